//! Helm 4, unmodified, with a chart that has what charts have: `helm/chart`. It applies on the server, and waits by
//! watching; what version 3 does instead, `kubectl` does as well: patches, and asking again.

use std::{process::Command, time::Duration};

use serde_json::Value;
use skiff_e2e::{Kubectl, Output, command, eventually, host, wait::check};

use crate::{shared, tests};

tests![a_release_from_install_to_uninstall, an_upgrade_that_fails_is_taken_back];

const PATIENCE: Duration = Duration::from_secs(60);

/// Helm in a new namespace of the shared cluster.
struct Helm {
    kubectl: Kubectl,
}

impl Helm {
    fn new(namespace: &str) -> Self {
        shared::load(&["myapp"]);
        Self { kubectl: shared::cluster().in_new(namespace) }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut helm = Command::new(host::prepared("tools/helm"));
        helm.args(["--namespace", self.kubectl.namespace.as_deref().expect("a new one")]).args(args);
        helm.env("KUBECONFIG", &self.kubectl.kubeconfig).env("HOME", &self.kubectl.home);
        // `./chart`, as the guide has it.
        helm.current_dir(host::root().join("crates/e2e/tests/e2e/helm"));
        command::run(&mut helm, "")
    }

    /// A command that prints JSON.
    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[args, &["--output", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("helm {args:?}: {error}: {text}"))
    }

    /// The states and descriptions of all revisions.
    #[track_caller]
    fn history(&self) -> Vec<String> {
        let history = self.json(&["history", "myapp"]);
        let of = |revision: &Value, field: &str| revision[field].as_str().unwrap_or_default().to_owned();
        let revisions = history.as_array().expect("a list");
        revisions.iter().map(|one| format!("{}: {}", of(one, "status"), of(one, "description"))).collect()
    }

    /// The images of the application's pods that are there, and how many are ready.
    #[track_caller]
    fn runs(&self, image: &str, replicas: usize) {
        let wanted = vec![format!("{image} true"); replicas];
        eventually(PATIENCE, || {
            let path = "{range .items[*]}{.spec.containers[0].image} {.status.containerStatuses[0].ready}{'\\n'}{end}";
            let pods = self.kubectl.path(&["pods", "-l", "app.kubernetes.io/instance=myapp"], path)?;
            check(pods.lines().eq(&wanted), || pods.clone())
        });
    }

    /// What an object of the release has there.
    #[track_caller]
    fn has(&self, what: &[&str], path: &str) -> String {
        self.kubectl.path(what, path).expect("it is there")
    }
}

fn a_release_from_install_to_uninstall() {
    let helm = Helm::new("helm-release");
    let kubectl = &helm.kubectl;
    let is = |what: &[&str], path: &str, wanted: &str| assert_eq!(helm.has(what, path), wanted, "{what:?}");

    // The kinds of crds/ are there before objects of them, the hook has ended before anything is made.
    helm.run(&["install", "myapp", "./chart", "--set", "image.tag=v1", "--wait", "--timeout", "90s"]).prints(&[
        "NAME: myapp",
        "STATUS: deployed",
        "REVISION: 1",
        "myapp v1 is at http://myapp.helm-release",
    ]);
    is(&["deployment", "myapp"], "{.status.readyReplicas}", "2");
    is(&["job", "myapp-migration"], "{.status.succeeded}", "1");
    kubectl.run(&["logs", "job/myapp-migration"]).prints(&["migrating to v1"]);
    let text = helm.has(&["greeting", "myapp"], "{.spec.text}");
    assert!(text.starts_with("hello from v1, revision 1, Kubernetes v1.36"), "{text}");
    is(
        &["secrets", "--field-selector=type=helm.sh/release.v1"],
        "{.items[*].metadata.name}",
        "sh.helm.release.v1.myapp.v1",
    );
    let password = helm.has(&["secret", "myapp"], "{.data.password}");
    helm.run(&["install", "myapp", "./chart"]).fails_with("a name that is still in use");

    // What would be done is asked of the server, which is also where charts look up what is there.
    helm.run(&["upgrade", "myapp", "./chart", "--set", "image.tag=v2", "--dry-run=server"])
        .prints(&["image: \"myapp:v2\"", &format!("password: {password}")]);
    is(&["deployment", "myapp"], "{.spec.template.spec.containers[0].image}", "myapp:v1");

    // As the guide has it; `--wait` because of what is asked next.
    helm.run(&["upgrade", "myapp", "./chart", "--set", "image.tag=v2", "--wait", "--timeout", "90s"])
        .prints(&["Release \"myapp\" has been upgraded. Happy Helming!", "REVISION: 2"]);
    helm.runs("myapp:v2", 2);
    is(&["secret", "myapp"], "{.data.password}", &password);
    kubectl.run(&["logs", "job/myapp-migration"]).prints(&["migrating to v2"]);
    helm.run(&["test", "myapp", "--logs", "--timeout", "60s"]).prints(&["Phase:", "Succeeded", "myapp v2 on myapp-"]);

    let releases = helm.json(&["list"]);
    assert_eq!(releases[0]["name"], "myapp", "{releases}");
    assert_eq!((&releases[0]["revision"], &releases[0]["status"]), (&"2".into(), &"deployed".into()), "{releases}");
    helm.run(&["list"]).prints(&["NAME", "CHART", "myapp-0.1.0", "deployed"]);
    // With the objects as the server shows them.
    helm.run(&["status", "myapp"]).prints(&["STATUS: deployed", "==> v1/Deployment", "==> v1/Service", "myapp"]);
    helm.run(&["get", "manifest", "myapp"]).prints(&["kind: Deployment", "image: \"myapp:v2\"", "kind: Greeting"]);
    helm.run(&["get", "values", "myapp"]).prints(&["image:", "tag: v2"]);
    helm.run(&["get", "hooks", "myapp"]).prints(&["myapp-migration", "myapp-connection"]);

    // A change by hand of what the chart does not say stays; one of what it says has another owner now.
    kubectl.run(&["annotate", "deployment", "myapp", "team=blue"]).ok();
    kubectl.run(&["scale", "deployment", "myapp", "--replicas=1"]).ok();
    let upgrade = ["upgrade", "--install", "myapp", "./chart", "--reuse-values", "--set", "replicas=3", "--wait"];
    helm.run(&upgrade).fails_with("with subresource \"scale\" using apps/v1: .spec.replicas");
    helm.run(&[&upgrade[..], &["--force-conflicts"]].concat()).prints(&["has been upgraded"]);
    helm.runs("myapp:v2", 3);
    is(&["deployment", "myapp"], "{.metadata.annotations.team}", "blue");

    helm.run(&["rollback", "myapp", "1", "--wait"]).prints(&["Rollback was a success"]);
    helm.runs("myapp:v1", 2);
    let history = helm.history();
    assert_eq!(history.first().unwrap(), "superseded: Install complete");
    assert_eq!(history.last().unwrap(), "deployed: Rollback to 1");

    helm.run(&["uninstall", "myapp", "--wait"]).prints(&["release \"myapp\" uninstalled"]);
    let left = kubectl.run(&["get", "deployments,services,secrets,greetings", "-o", "name"]).ok();
    assert_eq!(left, "");
    helm.run(&["status", "myapp"]).fails_with("release: not found");
    // Hooks are not the release's, nor are its kinds: they stay.
    is(&["crd", "greetings.helm.test"], "{.spec.names.kind}", "Greeting");
    kubectl.run(&["delete", "crd", "greetings.helm.test"]).ok();
}

fn an_upgrade_that_fails_is_taken_back() {
    let helm = Helm::new("helm-failure");
    let set = ["--skip-crds", "--set", "greeting=false", "--set", "replicas=1"];
    let chart = |action: &[&'static str], more: &[&'static str]| {
        helm.run(&[action, &["myapp", "./chart", "--timeout", "40s"], &set, more].concat())
    };
    chart(&["upgrade", "--install"], &["--set", "image.tag=v1", "--wait"])
        .prints(&["does not exist. Installing it now."]);
    helm.runs("myapp:v1", 1);

    // Without the flag it stays as it failed.
    chart(
        &["upgrade"],
        &["--set", "image.tag=nowhere", "--set", "progressDeadlineSeconds=3", "--wait", "--timeout", "8s"],
    )
    .fails();
    assert_eq!(helm.json(&["status", "myapp"])["info"]["status"], "failed");
    assert_eq!(helm.has(&["deployment", "myapp"], "{.spec.template.spec.containers[0].image}"), "myapp:nowhere");
    chart(&["upgrade"], &["--set", "image.tag=v2", "--wait"]).prints(&["REVISION: 3"]);
    helm.runs("myapp:v2", 1);

    // With it the one before is put back.
    let flag = "--rollback-on-failure";
    let told = chart(&["upgrade"], &["--set", "image.tag=nowhere", flag, "--timeout", "8s"]).fails();
    assert!(told.contains("UPGRADE FAILED: release myapp failed, and has been rolled back due to"), "{told}");
    helm.runs("myapp:v2", 1);
    let history = helm.history();
    let states: Vec<_> = history.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
    assert_eq!(states, ["superseded", "failed", "superseded", "failed", "deployed"], "{history:#?}");
    assert_eq!(history.last().unwrap(), "deployed: Rollback to 3");

    // What the server refuses is told, with its reason.
    chart(&["upgrade"], &["--set", "service.port=0"]).fails_with("spec.ports[0].port: Invalid value: 0");
    helm.run(&["uninstall", "myapp", "--wait"]).prints(&["release \"myapp\" uninstalled"]);
}
