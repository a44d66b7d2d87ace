//! Blue-green and canary releases, and the guides' user jane.

use skiff_e2e::{Kubectl, eventually, wait::check};

use super::{PATIENCE, manifest};
use crate::{shared, tests};

tests![blue_green_by_selector, canary_by_replicas, jane_reads_pods];

/// A Deployment of the guides' application in one version.
fn deployment(name: &str, version: &str, replicas: u8) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: myapp, version: {version}}}}}
  template:
    metadata: {{labels: {{app: myapp, version: {version}}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: myapp
        image: myapp:{version}
        imagePullPolicy: IfNotPresent
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1}}
---
"
    )
}

fn service(selector: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: myapp}}
spec:
  selector: {selector}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

/// A namespace with the manifests running, and a client's pod in it.
fn running(namespace: &str, manifests: &[String]) -> Kubectl {
    shared::load(&["myapp"]);
    let kubectl = shared::cluster().in_new(namespace);
    kubectl.apply(&manifests.concat());
    kubectl.run(&["run", "client", "--image=busybox:1.36", "--", "sleep", "3600"]).ok();
    kubectl.run(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=60s"]).ok();
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]).ok();
    kubectl
}

/// The versions that answer `times` requests.
fn versions(kubectl: &Kubectl, times: u8) -> Result<Vec<String>, String> {
    let ask = format!("for i in $(seq {times}); do wget -qO- -T 2 http://myapp; done");
    let pages = kubectl.run(&["exec", "client", "--", "sh", "-c", &ask]).result()?;
    Ok(pages.lines().filter_map(|page| page.split(' ').nth(1)).map(str::to_owned).collect())
}

fn blue_green_by_selector() {
    let both = [deployment("blue", "v1", 2), deployment("green", "v2", 2), service("{app: myapp, version: v1}")];
    let kubectl = running("blue-green", &both);
    eventually(PATIENCE, || {
        let seen = versions(&kubectl, 10)?;
        check(seen.len() == 10 && seen.iter().all(|version| version == "v1"), || format!("{seen:?}"))
    });
    for (version, old) in [("v2", "v1"), ("v1", "v2")] {
        let patch = format!("{{\"spec\": {{\"selector\": {{\"version\": \"{version}\"}}}}}}");
        kubectl.run(&["patch", "service", "myapp", "-p", &patch]).prints(&["service/myapp patched"]);
        eventually(PATIENCE, || {
            let seen = versions(&kubectl, 10)?;
            check(seen.len() == 10 && !seen.iter().any(|version| version == old), || format!("{seen:?}"))
        });
    }
}

fn canary_by_replicas() {
    let both = [deployment("stable", "v1", 3), deployment("canary", "v2", 1), service("{app: myapp}")];
    let kubectl = running("canary", &both);
    // A quarter, as far as chance has it.
    eventually(PATIENCE, || {
        let seen = versions(&kubectl, 40)?;
        let new = seen.iter().filter(|version| *version == "v2").count();
        check(seen.len() == 40 && (1..=25).contains(&new), || format!("{new} of {}", seen.len()))
    });
    kubectl.run(&["scale", "deployment", "canary", "--replicas=3"]).ok();
    kubectl.run(&["scale", "deployment", "stable", "--replicas=0"]).ok();
    eventually(PATIENCE, || {
        let seen = versions(&kubectl, 10)?;
        check(seen.len() == 10 && seen.iter().all(|version| version == "v2"), || format!("{seen:?}"))
    });
}

/// The guide's Role and RoleBinding, for a user with no other right.
fn jane_reads_pods() {
    let kubectl = shared::server("jane");
    let jane = |args: &[&str]| kubectl.run(&[args, &["--as", "jane"]].concat());
    jane(&["get", "pods"]).fails_with("User \"jane\" cannot list resource \"pods\" in API group \"\"");
    for file in ["hardware-role-pod-reader", "hardware-rolebinding-read-pods"] {
        kubectl.run(&["apply", "-f", &manifest(&format!("all/{file}.yaml"))]).prints(&["created"]);
    }
    eventually(PATIENCE, || jane(&["get", "pods"]).result());
    assert_eq!(jane(&["auth", "can-i", "watch", "pods"]).ok(), "yes\n");
    assert_eq!(jane(&["auth", "can-i", "delete", "pods"]).stdout, "no\n");
    jane(&["get", "secrets"]).fails_with("cannot list resource \"secrets\"");
    jane(&["get", "pods", "-n", "kube-system"]).fails_with("in the namespace \"kube-system\"");
}
