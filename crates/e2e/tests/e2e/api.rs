//! What needs the API server and the controllers, and no node.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use serde_json::Value;
use skiff_e2e::{Kubectl, Version, eventually, wait::check};

use crate::{shared, tests};

tests![
    both_kubectls_discover_the_api,
    both_kubectls_create_and_change_a_deployment,
    output_formats,
    watching,
    describing,
    labels_and_annotations,
    patches,
    editing,
    dry_runs_change_nothing,
    applying,
    a_rollout_has_a_history,
    configmaps_and_secrets,
    services_get_addresses_and_ports,
    a_deleted_owner_takes_what_it_owns,
    a_deleted_namespace_takes_what_is_in_it,
    a_namespace_tells_what_holds_it,
    waiting,
    pods_that_fit_nowhere_say_why,
    selectors_and_limits,
    service_accounts_and_tokens,
    nobody_may_do_what_no_role_allows,
    kinds_come_into_the_roles_for_users,
];

const PATIENCE: Duration = Duration::from_secs(20);

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels:
    app: web
spec:
  replicas: 2
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: nginx
        image: nginx:1.20
        ports:
        - containerPort: 80
";

fn both(test: &str) -> impl Iterator<Item = Kubectl> {
    Version::ALL.into_iter().map(move |version| {
        let namespace = format!("{test}-{}", version.text().replace('.', "-"));
        shared::server(&namespace).version(version)
    })
}

fn both_kubectls_discover_the_api() {
    for kubectl in both("discover") {
        kubectl.run(&["version"]).prints(&["Client Version: v1.3", "Server Version: v1.36"]);
        kubectl.run(&["cluster-info"]).prints(&["Kubernetes control plane", "is running at", "https://127.0.0.1:"]);
        let resources =
            kubectl.run(&["api-resources"]).prints(&["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]);
        for line in [
            ["pods", "po", "v1", "true", "Pod"],
            ["nodes", "no", "v1", "false", "Node"],
            ["services", "svc", "v1", "true", "Service"],
            ["deployments", "deploy", "apps/v1", "true", "Deployment"],
            ["horizontalpodautoscalers", "hpa", "autoscaling/v2", "true", "HorizontalPodAutoscaler"],
            ["ingresses", "ing", "networking.k8s.io/v1", "true", "Ingress"],
            ["storageclasses", "sc", "storage.k8s.io/v1", "false", "StorageClass"],
        ] {
            let found = resources.lines().any(|row| row.split_whitespace().eq(line));
            assert!(found, "no {line:?} in\n{resources}");
        }
        kubectl.run(&["api-versions"]).prints(&["apps/v1\n", "batch/v1\n", "v1\n", "rbac.authorization.k8s.io/v1\n"]);
        kubectl.run(&["explain", "deployment.spec.replicas"]).prints(&[
            "KIND:",
            "Deployment",
            "VERSION:",
            "v1",
            "replicas <integer>",
        ]);
        kubectl
            .run(&["explain", "pods", "--recursive"])
            .prints(&["containers\t<[]Container> -required-", "imagePullPolicy"]);
        kubectl.run(&["explain", "pods.spec.nothing"]).fails_with("field \"nothing\" does not exist");
        kubectl.run(&["get", "--raw", "/livez"]).prints(&["ok"]);
        kubectl.run(&["get", "--raw", "/readyz?verbose"]).prints(&["ok"]);
        kubectl.run(&["get", "--raw", "/metrics"]).prints(&["apiserver_request_total"]);
    }
}

fn both_kubectls_create_and_change_a_deployment() {
    for kubectl in both("create") {
        let created = kubectl.run(&["create", "deployment", "web", "--image=nginx:latest"]).ok();
        assert_eq!(created, "deployment.apps/web created\n");
        let scaled = kubectl.run(&["scale", "deployment", "web", "--replicas=3"]).ok();
        assert_eq!(scaled, "deployment.apps/web scaled\n");
        eventually(PATIENCE, || {
            let pods = kubectl.json(&["pods", "-l", "app=web"]);
            let names: Vec<_> = items(&pods).iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
            check(names.len() == 3 && names.iter().all(|name| name.starts_with("web-")), || format!("{names:?}"))
        });
        kubectl.run(&["get", "deployments"]).prints(&["NAME   READY   UP-TO-DATE   AVAILABLE   AGE\n", "web    0/3"]);
        kubectl.run(&["get", "all"]).prints(&["pod/web-", "deployment.apps/web", "replicaset.apps/web-"]);
        let image = kubectl.run(&["set", "image", "deployment/web", "nginx=nginx:1.25"]).ok();
        assert_eq!(image, "deployment.apps/web image updated\n");
        eventually(PATIENCE, || {
            let sets = kubectl.json(&["replicasets"]);
            check(items(&sets).len() == 2, || sets.to_string())
        });
        let deleted = kubectl.run(&["delete", "deployment", "web"]).ok();
        assert!(deleted.starts_with("deployment.apps \"web\" deleted"), "{deleted}");
        kubectl
            .run(&["get", "deployment", "web"])
            .fails_with("Error from server (NotFound): deployments.apps \"web\" not found");
        eventually(PATIENCE, || {
            let none = kubectl.run(&["get", "pods,replicasets"]);
            check(none.stderr.contains("No resources found"), || none.stdout)
        });
    }
}

fn output_formats() {
    for kubectl in both("formats") {
        kubectl.apply(DEPLOYMENT);
        eventually(PATIENCE, || {
            let pods = kubectl.json(&["pods"]);
            check(items(&pods).len() == 2, || pods.to_string())
        });
        let get = |output: &str| kubectl.run(&["get", "deployment", "web", "-o", output]);
        get("wide").prints(&["CONTAINERS", "IMAGES", "SELECTOR", "nginx:1.20", "app=web"]);
        get("yaml").prints(&[
            "apiVersion: apps/v1\nkind: Deployment\n",
            "    app: web\n",
            "      - image: nginx:1.20\n",
        ]);
        let json: Value = serde_json::from_str(&get("json").ok()).expect("JSON");
        assert_eq!(json["kind"], "Deployment");
        assert_eq!(json["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%", "defaulted");
        assert_eq!(get("jsonpath={.spec.template.spec.containers[*].image}").ok(), "nginx:1.20");
        assert_eq!(get("name").ok(), "deployment.apps/web\n");
        assert_eq!(get("custom-columns=NAME:.metadata.name,WANTED:.spec.replicas").ok(), "NAME   WANTED\nweb    2\n");
        assert_eq!(get("go-template={{.metadata.name}}").ok(), "web");
        let labels = kubectl.run(&["get", "pods", "--show-labels", "--no-headers"]).ok();
        assert_eq!(labels.lines().filter(|line| line.contains("app=web,pod-template-hash=")).count(), 2, "{labels}");
        kubectl.run(&["get", "pods", "-L", "app"]).prints(&["APP"]);
        let sorted = kubectl.run(&["get", "pods", "-o", "name", "--sort-by=.metadata.name"]).ok();
        assert!(sorted.lines().is_sorted(), "{sorted}");
        kubectl.run(&["get", "pods", "-A"]).prints(&["NAMESPACE"]);
    }
}

fn watching() {
    for kubectl in both("watching") {
        kubectl.run(&["create", "configmap", "seen", "--from-literal=a=1"]).ok();
        let mut watch = kubectl.start(&["get", "configmaps", "-w", "--output-watch-events"]);
        let row = |line: &str, wanted: &[&str]| line.split_whitespace().take(wanted.len()).eq(wanted.iter().copied());
        watch.line(PATIENCE, |line| row(line, &["EVENT", "NAME", "DATA", "AGE"]));
        watch.line(PATIENCE, |line| row(line, &["ADDED", "seen", "1"]));
        kubectl.run(&["patch", "configmap", "seen", "-p", r#"{"data":{"b":"2"}}"#]).ok();
        watch.line(PATIENCE, |line| row(line, &["MODIFIED", "seen", "2"]));
        kubectl.run(&["create", "configmap", "later"]).ok();
        watch.line(PATIENCE, |line| row(line, &["ADDED", "later", "0"]));
        kubectl.run(&["delete", "configmap", "seen"]).ok();
        watch.line(PATIENCE, |line| row(line, &["DELETED", "seen", "2"]));
    }
}

fn describing() {
    for kubectl in both("describing") {
        kubectl.apply(DEPLOYMENT);
        eventually(PATIENCE, || {
            let text = kubectl.run(&["describe", "deployment", "web"]).result()?;
            let wanted = [
                "Name:                   web",
                "Replicas:               2 desired",
                "ScalingReplicaSet",
                "Scaled up replica set web-",
            ];
            wanted.iter().try_for_each(|part| check(text.contains(part), || format!("no {part:?} in\n{text}")))
        });
        kubectl.run(&["describe", "pods"]).prints(&[
            "Status:           Pending",
            "ReplicaSet/web-",
            "QoS Class:                   BestEffort",
        ]);
        kubectl
            .run(&["describe", "namespace", kubectl.namespace.as_deref().unwrap()])
            .prints(&["Status:       Active"]);
        kubectl.run(&["expose", "deployment", "web", "--port=80"]).ok();
        kubectl.run(&["describe", "service", "web"]).prints(&["Selector:", "app=web", "Type:", "ClusterIP"]);
        kubectl.run(&["create", "secret", "generic", "password", "--from-literal=key=hidden"]).ok();
        let secret = kubectl.run(&["describe", "secret", "password"]).prints(&["key:  6 bytes"]);
        assert!(!secret.contains("hidden"), "{secret}");
    }
}

fn labels_and_annotations() {
    let kubectl = shared::server("labels");
    kubectl.run(&["create", "configmap", "c"]).ok();
    assert_eq!(kubectl.run(&["label", "configmap", "c", "tier=front"]).ok(), "configmap/c labeled\n");
    kubectl
        .run(&["label", "configmap", "c", "tier=back"])
        .fails_with("already has a value (front), and --overwrite is false");
    kubectl.run(&["label", "configmap", "c", "tier=back", "--overwrite"]).ok();
    assert_eq!(kubectl.run(&["get", "configmap", "-l", "tier=back", "-o", "name"]).ok(), "configmap/c\n");
    assert_eq!(kubectl.run(&["get", "configmap", "-l", "tier in (front)", "-o", "name"]).ok(), "");
    assert_eq!(kubectl.run(&["label", "configmap", "c", "tier-"]).ok(), "configmap/c unlabeled\n");
    kubectl.run(&["label", "configmap", "c", "bad=not valid"]).fails();
    assert_eq!(kubectl.run(&["annotate", "configmap", "c", "note=hello world"]).ok(), "configmap/c annotated\n");
    assert_eq!(kubectl.path(&["configmap", "c"], "{.metadata.annotations.note}").unwrap(), "hello world");
}

fn patches() {
    let kubectl = shared::server("patches");
    kubectl.apply(DEPLOYMENT);
    // Strategic: the list of containers is merged by name.
    let strategic = r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"busybox"}]}}}}"#;
    assert_eq!(kubectl.run(&["patch", "deployment", "web", "-p", strategic]).ok(), "deployment.apps/web patched\n");
    let images = "{.spec.template.spec.containers[*].image}";
    let mut after: Vec<_> =
        kubectl.path(&["deployment", "web"], images).unwrap().split(' ').map(str::to_owned).collect();
    after.sort();
    assert_eq!(after, ["busybox", "nginx:1.20"]);
    // Merge: the list is replaced.
    let merge = r#"{"spec":{"template":{"spec":{"containers":[{"name":"only","image":"nginx"}]}}}}"#;
    kubectl.run(&["patch", "deployment", "web", "--type=merge", "-p", merge]).ok();
    assert_eq!(kubectl.path(&["deployment", "web"], images).unwrap(), "nginx");
    let json =
        r#"[{"op":"test","path":"/spec/replicas","value":2},{"op":"replace","path":"/spec/replicas","value":5}]"#;
    kubectl.run(&["patch", "deployment", "web", "--type=json", "-p", json]).ok();
    assert_eq!(kubectl.path(&["deployment", "web"], "{.spec.replicas}").unwrap(), "5");
    // Its test does not hold any more.
    kubectl.run(&["patch", "deployment", "web", "--type=json", "-p", json]).fails();
    assert_eq!(kubectl.path(&["deployment", "web"], "{.spec.replicas}").unwrap(), "5");
}

fn editing() {
    for kubectl in both("editing") {
        kubectl.apply(DEPLOYMENT);
        let editor = kubectl.home.join(format!("editor-{}", kubectl.version.text()));
        fs::write(&editor, "#!/bin/sh\nsed -i 's/replicas: 2/replicas: 4/' \"$1\"\n").unwrap();
        fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = kubectl.command(&["edit", "deployment", "web"]);
        let edited = skiff_e2e::command::run(command.env("KUBE_EDITOR", &editor), "").ok();
        assert_eq!(edited, "deployment.apps/web edited\n");
        assert_eq!(kubectl.path(&["deployment", "web"], "{.spec.replicas}").unwrap(), "4");
    }
}

fn dry_runs_change_nothing() {
    for kubectl in both("dry") {
        kubectl
            .run(&["create", "deployment", "web", "--image=nginx", "--dry-run=client", "-o", "yaml"])
            .prints(&["kind: Deployment", "image: nginx"]);
        let server = kubectl.feed(&["apply", "--dry-run=server", "-f", "-"], DEPLOYMENT).ok();
        assert_eq!(server, "deployment.apps/web created (server dry run)\n");
        kubectl.run(&["get", "deployment", "web"]).fails_with("NotFound");
        kubectl.apply(DEPLOYMENT);
        kubectl.run(&["scale", "deployment", "web", "--replicas=9", "--dry-run=server"]).ok();
        kubectl.run(&["delete", "deployment", "web", "--dry-run=server"]).ok();
        assert_eq!(kubectl.path(&["deployment", "web"], "{.spec.replicas}").unwrap(), "2");
        // The server's validation runs.
        let wrong = DEPLOYMENT.replace("name: web", "name: Not_Valid");
        kubectl
            .feed(&["apply", "--dry-run=server", "-f", "-"], &wrong)
            .fails_with("is invalid: metadata.name: Invalid value");
    }
}

fn applying() {
    for kubectl in both("applying") {
        assert_eq!(kubectl.apply(DEPLOYMENT), "deployment.apps/web created\n");
        assert_eq!(kubectl.apply(DEPLOYMENT), "deployment.apps/web unchanged\n");
        let changed = DEPLOYMENT.replace("replicas: 2", "replicas: 3").replace("nginx:1.20", "nginx:1.21");
        let diff = kubectl.feed(&["diff", "-f", "-"], &changed);
        assert_eq!(diff.code, Some(1), "{diff:?}");
        assert!(diff.stdout.contains("-  replicas: 2\n+  replicas: 3\n"), "{}", diff.stdout);
        assert!(
            diff.stdout.contains("image: nginx:1.20") && diff.stdout.contains("image: nginx:1.21"),
            "{}",
            diff.stdout
        );
        assert_eq!(kubectl.apply(&changed), "deployment.apps/web configured\n");
        assert_eq!(kubectl.path(&["deployment", "web"], "{.spec.replicas}").unwrap(), "3");
        // A field that is not in the manifest any more goes away.
        let labelled = changed
            .replace("    app: web\nspec:\n  replicas", "    app: web\n    extra: yes-please\nspec:\n  replicas");
        kubectl.apply(&labelled);
        assert_eq!(kubectl.path(&["deployment", "web"], "{.metadata.labels.extra}").unwrap(), "yes-please");
        kubectl.apply(&changed);
        assert_eq!(kubectl.path(&["deployment", "web"], "{.metadata.labels.extra}").unwrap(), "");
        let several = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\n";
        assert_eq!(kubectl.apply(several), "configmap/a created\nconfigmap/b created\n");
        kubectl.feed(&["delete", "-f", "-"], several).prints(&["configmap \"a\" deleted", "configmap \"b\" deleted"]);
    }
}

fn a_rollout_has_a_history() {
    let kubectl = shared::server("history");
    kubectl.apply(DEPLOYMENT);
    let revision = |wanted: &str| {
        eventually(PATIENCE, || {
            let at =
                kubectl.path(&["deployment", "web"], r"{.metadata.annotations.deployment\.kubernetes\.io/revision}")?;
            check(at == wanted, || format!("revision {at:?}"))
        });
    };
    revision("1");
    kubectl.run(&["annotate", "deployment", "web", "kubernetes.io/change-cause=first"]).ok();
    kubectl.run(&["set", "image", "deployment/web", "nginx=nginx:1.25"]).ok();
    revision("2");
    kubectl.run(&["rollout", "history", "deployment/web"]).prints(&["REVISION  CHANGE-CAUSE", "1         first"]);
    kubectl.run(&["rollout", "history", "deployment/web", "--revision=1"]).prints(&["nginx:1.20"]);
    assert_eq!(kubectl.run(&["rollout", "undo", "deployment/web"]).ok(), "deployment.apps/web rolled back\n");
    revision("3");
    assert_eq!(
        kubectl.path(&["deployment", "web"], "{.spec.template.spec.containers[0].image}").unwrap(),
        "nginx:1.20"
    );
    assert_eq!(kubectl.run(&["rollout", "restart", "deployment/web"]).ok(), "deployment.apps/web restarted\n");
    revision("4");
    assert_eq!(kubectl.run(&["rollout", "pause", "deployment/web"]).ok(), "deployment.apps/web paused\n");
    assert_eq!(kubectl.run(&["rollout", "resume", "deployment/web"]).ok(), "deployment.apps/web resumed\n");
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=1s"]).fails_with("timed out");
}

fn configmaps_and_secrets() {
    for kubectl in both("config") {
        let file = kubectl.home.join(format!("file-{}.txt", kubectl.version.text()));
        fs::write(&file, "text\n").unwrap();
        let from_file = format!("--from-file=f={}", file.display());
        kubectl.run(&["create", "configmap", "c", "--from-literal=a=1", &from_file]).ok();
        assert_eq!(kubectl.path(&["configmap", "c"], "{.data.a}{.data.f}").unwrap(), "1text\n");
        kubectl.run(&["create", "secret", "generic", "s", "--from-literal=p=word"]).ok();
        assert_eq!(kubectl.path(&["secret", "s"], "{.data.p} {.type}").unwrap(), "d29yZA== Opaque");
        kubectl.run(&["get", "secrets"]).prints(&["NAME   TYPE     DATA   AGE", "s      Opaque   1"]);
        kubectl.run(&["create", "configmap", "c"]).fails_with("configmaps \"c\" already exists");
    }
}

fn services_get_addresses_and_ports() {
    let kubectl = shared::server("services");
    kubectl.apply(DEPLOYMENT);
    assert_eq!(
        kubectl.run(&["expose", "deployment", "web", "--type=LoadBalancer", "--port=80"]).ok(),
        "service/web exposed\n"
    );
    let service = kubectl.json(&["service", "web"]);
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    assert!(address.starts_with("10.96."), "{service}");
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or_default();
    assert!((30_000..=32_767).contains(&port), "{service}");
    kubectl.run(&["get", "service", "web"]).prints(&["TYPE", "LoadBalancer", address, &format!("80:{port}/TCP")]);
    // No two services have one address or one port.
    let again = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: again}}, spec: {{type: NodePort, clusterIP: {address}, ports: [{{port: 80}}]}}}}"
    );
    kubectl.feed(&["create", "-f", "-"], &again).fails_with("provided IP is already allocated");
    let again = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: again}}, spec: {{type: NodePort, ports: [{{port: 80, nodePort: {port}}}]}}}}"
    );
    kubectl.feed(&["create", "-f", "-"], &again).fails_with("provided port is already allocated");
    kubectl.run(&["create", "service", "clusterip", "headless", "--clusterip=None"]).ok();
    kubectl.run(&["get", "service", "headless"]).prints(&["None"]);
    assert_eq!(kubectl.within("default").path(&["service", "kubernetes"], "{.spec.clusterIP}").unwrap(), "10.96.0.1");
}

fn a_deleted_owner_takes_what_it_owns() {
    let kubectl = shared::server("owners");
    kubectl.apply(DEPLOYMENT);
    let count = |what: &str, wanted: usize| {
        eventually(PATIENCE, || {
            let found = kubectl.json(&[what]);
            check(items(&found).len() == wanted, || found.to_string())
        });
    };
    count("pods", 2);
    // Orphans stay, and are adopted when their owner comes again.
    kubectl.run(&["delete", "deployment", "web", "--cascade=orphan"]).ok();
    let name = kubectl.path(&["replicasets"], "{.items[*].metadata.name}").unwrap();
    count("pods", 2);
    kubectl.apply(DEPLOYMENT);
    eventually(PATIENCE, || {
        let owner = kubectl.path(&["replicaset", &name], "{.metadata.ownerReferences[0].name}")?;
        check(owner == "web", || format!("owner {owner:?}"))
    });
    count("replicasets", 1);
    kubectl.run(&["delete", "deployment", "web", "--cascade=foreground", "--timeout=30s"]).ok();
    count("pods", 0);
    count("replicasets", 0);
}

fn a_deleted_namespace_takes_what_is_in_it() {
    let kubectl = shared::server("doomed");
    kubectl.apply(DEPLOYMENT);
    kubectl.run(&["create", "configmap", "c"]).ok();
    kubectl.run(&["delete", "namespace", "doomed", "--timeout=30s"]).prints(&["namespace \"doomed\" deleted"]);
    kubectl.run(&["get", "namespace", "doomed"]).fails_with("namespaces \"doomed\" not found");
    kubectl.run(&["create", "configmap", "c"]).fails_with("namespaces \"doomed\" not found");
    kubectl.run(&["create", "namespace", "doomed"]).ok();
    let left = kubectl.run(&["get", "deployments,pods"]);
    assert!(left.stderr.contains("No resources found"), "{left:?}");
}

fn a_namespace_tells_what_holds_it() {
    let kubectl = shared::server("held");
    let held = "metadata: {name: held, finalizers: [example.com/hold]}";
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Pod, {held}, spec: {{containers: [{{name: c, image: nginx}}]}}}}
---
{{apiVersion: v1, kind: ConfigMap, {held}}}
---
{{apiVersion: v1, kind: Secret, metadata: {{name: free}}}}
"
    ));
    kubectl.run(&["delete", "namespace", "held", "--wait=false"]).ok();
    // Nothing else goes before the last pod has gone.
    let pod_is_going = || kubectl.path(&["pod", "held"], "{.metadata.deletionTimestamp}");
    eventually(PATIENCE, || check(!pod_is_going()?.is_empty(), || "the pod stays".to_owned()));
    eventually(PATIENCE, || {
        let conditions = kubectl.path(&["namespace", "held"], "{.status.conditions[*].status}")?;
        check(conditions == "False False False False False", || conditions)
    });
    let others = kubectl.path(&["configmap/held", "secret/free"], "{.items[*].metadata.deletionTimestamp}").unwrap();
    assert_eq!(others, "");
    let release = r#"{"metadata": {"finalizers": null}}"#;
    kubectl.run(&["patch", "pod", "held", "--type=merge", "-p", release]).ok();
    // Then all others go, and what cannot is told.
    eventually(PATIENCE, || {
        let described = kubectl.run(&["describe", "namespace", "held"]).result()?;
        let told = [
            "Status:       Terminating",
            "NamespaceDeletionContentFailure",
            "All content successfully deleted, may be waiting on finalization",
            "SomeResourcesRemain",
            "Some resources are remaining: configmaps. has 1 resource instances",
            "SomeFinalizerRemain",
            "Some finalizers are remaining: example.com/hold in 1 resource instances",
        ];
        check(told.iter().all(|text| described.contains(text)), || described.clone())
    });
    kubectl.run(&["get", "secret", "free"]).fails_with("NotFound");
    kubectl.run(&["patch", "configmap", "held", "--type=merge", "-p", release]).ok();
    kubectl.run(&["wait", "--for=delete", "namespace/held", "--timeout=20s"]).ok();
}

fn waiting() {
    let kubectl = shared::server("waiting");
    kubectl.apply(DEPLOYMENT);
    kubectl
        .run(&["wait", "--for=jsonpath={.status.replicas}=2", "deployment/web", "--timeout=20s"])
        .prints(&["deployment.apps/web condition met"]);
    kubectl
        .run(&["wait", "--for=condition=Available", "deployment/web", "--timeout=1s"])
        .fails_with("timed out waiting for the condition");
    let mut wait = kubectl.start(&["wait", "--for=delete", "deployment/web", "--timeout=20s"]);
    kubectl.run(&["delete", "deployment", "web"]).ok();
    assert_eq!(wait.end(PATIENCE), Some(0));
}

fn pods_that_fit_nowhere_say_why() {
    let kubectl = shared::server("nowhere");
    kubectl.run(&["run", "alone", "--image=nginx"]).ok();
    eventually(PATIENCE, || {
        let events = kubectl.run(&["events", "--for", "pod/alone"]).result()?;
        check(events.contains("FailedScheduling") && events.contains("no nodes available to schedule pods"), || events)
    });
    kubectl.run(&["get", "pod", "alone"]).prints(&["alone   0/1     Pending   0"]);
    assert_eq!(
        kubectl.path(&["pod", "alone"], "{.status.conditions[?(@.type=='PodScheduled')].reason}").unwrap(),
        "Unschedulable"
    );
    // Nothing runs, so there is nothing to wait for.
    kubectl.run(&["delete", "pod", "alone", "--timeout=10s"]).ok();
    kubectl.run(&["get", "pod", "alone"]).fails_with("NotFound");
}

fn selectors_and_limits() {
    let kubectl = shared::server("selectors");
    let many: String = (0..25)
        .map(|n| {
            format!(
                "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c{n:02}, labels: {{even: \"{}\"}}}}}}\n",
                n % 2 == 0
            )
        })
        .collect();
    kubectl.feed(&["create", "-f", "-"], &many).ok();
    let names = |args: &[&str]| kubectl.run(&[&["get", "configmaps", "-o", "name"], args].concat()).ok();
    assert_eq!(names(&["-l", "even=true"]).lines().count(), 13);
    // In chunks: the same, and each only once.
    assert_eq!(names(&["--chunk-size=4", "-l", "even"]).lines().count(), 25);
    assert_eq!(names(&["--field-selector=metadata.name=c07"]), "configmap/c07\n");
    let page = kubectl.run(&["get", "--raw", "/api/v1/namespaces/selectors/configmaps?limit=10"]).ok();
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(items(&page).len(), 10);
    assert!(page["metadata"]["continue"].as_str().is_some_and(|token| !token.is_empty()), "{}", page["metadata"]);
    kubectl.run(&["delete", "configmaps", "-l", "even=true"]).ok();
    assert_eq!(names(&["-l", "even"]).lines().count(), 12);
    kubectl.run(&["get", "pods", "--field-selector=spec.nothing=1"]).fails_with("field label not supported");
}

fn service_accounts_and_tokens() {
    let kubectl = shared::server("accounts");
    let certificates = kubectl.path(&["configmap", "kube-root-ca.crt"], "{.data.ca\\.crt}").unwrap();
    assert!(certificates.starts_with("-----BEGIN CERTIFICATE-----"), "{certificates}");
    kubectl.run(&["create", "serviceaccount", "robot"]).ok();
    let token = kubectl.run(&["create", "token", "robot"]).ok();
    let as_robot = |args: &[&str]| {
        let server = kubectl.run(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]).ok();
        let empty = kubectl.home.join("no-kubeconfig");
        let mut command = Kubectl { kubeconfig: empty, ..kubectl.clone() }.command(args);
        command.args(["--server", &server, "--insecure-skip-tls-verify", "--token", token.trim()]);
        skiff_e2e::command::run(&mut command, "")
    };
    as_robot(&["auth", "whoami"]).prints(&["system:serviceaccount:accounts:robot"]);
    as_robot(&["get", "pods"]).fails_with(
        "pods is forbidden: User \"system:serviceaccount:accounts:robot\" cannot list resource \"pods\" in API group \"\" in the namespace \"accounts\"",
    );
    kubectl.run(&["create", "rolebinding", "views", "--clusterrole=view", "--serviceaccount=accounts:robot"]).ok();
    eventually(PATIENCE, || as_robot(&["get", "pods"]).result());
    as_robot(&["create", "configmap", "c"]).fails_with("is forbidden");
    as_robot(&["get", "pods", "-n", "default"]).fails_with("is forbidden");
}

fn nobody_may_do_what_no_role_allows() {
    let kubectl = shared::server("forbidden");
    kubectl.run(&["get", "secrets", "--as=someone"]).fails_with(
        "Error from server (Forbidden): secrets is forbidden: User \"someone\" cannot list resource \"secrets\" in API group \"\" in the namespace \"forbidden\"",
    );
    assert_eq!(kubectl.run(&["auth", "can-i", "get", "pods"]).ok(), "yes\n");
    assert_eq!(kubectl.run(&["auth", "can-i", "get", "pods", "--as=someone"]).stdout, "no\n");
    kubectl.run(&["create", "role", "reader", "--verb=get,list", "--resource=configmaps"]).ok();
    kubectl.run(&["create", "rolebinding", "reads", "--role=reader", "--user=someone"]).ok();
    eventually(PATIENCE, || kubectl.run(&["get", "configmaps", "--as=someone"]).result());
    kubectl.run(&["delete", "configmaps", "--all", "--as=someone"]).fails_with("is forbidden");
    // Nobody gives away more than they have.
    kubectl
        .run(&["create", "rolebinding", "grows", "--clusterrole=admin", "--user=someone", "--as=someone"])
        .fails_with("is forbidden");
}

pub(crate) fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// As operators do it for theirs.
fn kinds_come_into_the_roles_for_users() {
    // One that is in neither `edit` nor `view`.
    const KIND: &str = "rolebindings.rbac.authorization.k8s.io";
    let kubectl = shared::server("roles");
    kubectl.run(&["create", "rolebinding", "bob", "--clusterrole=edit", "--user=bob"]).ok();
    let may = |verb: &str, resource: &str| kubectl.run(&["auth", "can-i", verb, resource, "--as=bob"]).stdout;
    assert_eq!((may("create", "pods").trim(), may("list", KIND).trim()), ("yes", "no"));
    kubectl.apply(
        "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: example-view
  labels: {rbac.authorization.k8s.io/aggregate-to-view: 'true'}
rules:
- {apiGroups: [rbac.authorization.k8s.io], resources: [rolebindings], verbs: [get, list, watch]}
",
    );
    // `edit` has all that `view` has.
    let seen = |wanted: &str| {
        eventually(PATIENCE, || {
            let rules = kubectl.run(&["describe", "clusterrole", "edit"]).result()?;
            let said = if rules.contains(KIND) { "yes" } else { "no" };
            check(said == wanted, || rules.clone())
        });
    };
    seen("yes");
    let asked = [may("list", KIND), may("delete", KIND)];
    assert_eq!(asked.each_ref().map(|answer| answer.trim()), ["yes", "no"]);
    kubectl.run(&["delete", "clusterrole", "example-view"]).ok();
    seen("no");
}
