//! APIs that a server in the cluster serves, through the cluster's own.

use std::time::Duration;

use skiff_e2e::{Version, eventually, wait::check};

use crate::{extension_server, shared, tests};

tests![local_groups_are_listed, a_server_in_a_pod_serves_a_group];

const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "v1alpha1.wardle.example.com";

fn local_groups_are_listed() {
    let kubectl = shared::server("local-groups");
    for version in Version::ALL {
        let kubectl = kubectl.version(version);
        let table = kubectl.run(&["get", "apiservices"]).prints(&["NAME", "SERVICE", "AVAILABLE", "AGE"]);
        for name in ["v1.", "v1.apps", "v2.autoscaling", "v1.rbac.authorization.k8s.io"] {
            let row =
                table.lines().find(|l| l.split_whitespace().next() == Some(name)).unwrap_or_else(|| panic!("{table}"));
            assert!(row.contains("Local") && row.contains("True"), "{row}");
        }
    }
    let config = ["configmap", "extension-apiserver-authentication", "-n", "kube-system"];
    let names = kubectl.path(&config, "{.data.requestheader-allowed-names}").unwrap();
    assert_eq!(names, r#"["front-proxy-client"]"#);
}

fn a_server_in_a_pod_serves_a_group() {
    const NAMESPACE: &str = "aggregation";
    let kubectl = shared::cluster().in_new(NAMESPACE);
    let service = |more: &str| {
        format!(
            "apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: {NAME}}}
spec:
  group: wardle.example.com
  version: v1alpha1
  groupPriorityMinimum: 2000
  versionPriority: 200
  service: {{namespace: {NAMESPACE}, name: extension}}
{more}"
        )
    };
    let available = |wanted: &str| {
        eventually(PATIENCE, || {
            let row = kubectl.run(&["get", "apiservice", NAME, "--no-headers"]).result()?;
            check(row.contains(wanted), || row)
        });
    };
    kubectl.apply(&service("  insecureSkipTLSVerify: true\n"));
    available("False (ServiceNotFound)");
    kubectl.run(&["get", "--raw", "/apis/wardle.example.com/v1alpha1"]).fails_with("currently unable to handle");
    let authority = extension_server::start(&kubectl, NAMESPACE);
    kubectl.apply(&service(&format!("  caBundle: {authority}\n")).replace("  insecureSkipTLSVerify: true\n", ""));
    kubectl
        .run(&["patch", "apiservice", NAME, "--type=merge", "-p", r#"{"spec": {"insecureSkipTLSVerify": false}}"#])
        .ok();
    kubectl.run(&["wait", "--for=condition=Available", &format!("apiservice/{NAME}"), "--timeout=60s"]).ok();
    available(&format!("{NAMESPACE}/extension   True"));
    for version in Version::ALL {
        let kubectl = kubectl.version(version);
        kubectl.run(&["api-versions"]).prints(&["wardle.example.com/v1alpha1"]);
        kubectl.run(&["api-resources"]).prints(&["flunders", "fl", "wardle.example.com/v1alpha1", "Flunder"]);
        let flunder = format!("flunder-{}", version.text().replace('.', "-"));
        let manifest =
            format!("apiVersion: wardle.example.com/v1alpha1\nkind: Flunder\nmetadata: {{name: {flunder}}}\n");
        kubectl.feed(&["create", "--validate=false", "-f", "-"], &manifest).prints(&["created"]);
        kubectl.run(&["get", "flunders"]).prints(&[&flunder]);
        // The server has seen who asked, and that it was this API server that said so.
        let by = kubectl.path(&["flunder", &flunder], "{.metadata.annotations.made-by}").unwrap();
        assert_eq!(by, "kubernetes-admin");
        let as_other = ["get", "flunders", "--as=jane"];
        kubectl
            .run(&as_other)
            .fails_with("flunders.wardle.example.com is forbidden: User \"jane\" cannot list resource");
        kubectl.run(&["delete", "flunder", &flunder]).prints(&["deleted"]);
        kubectl
            .run(&["get", "flunder", &flunder])
            .fails_with(&format!("flunders.wardle.example.com \"{flunder}\" not found"));
    }
    let status = r#"{"status": {"conditions": [{"type": "Odd", "status": "True", "reason": "Test", "message": "m"}]}}"#;
    kubectl.run(&["patch", "apiservice", NAME, "--subresource=status", "--type=strategic", "-p", status]).ok();
    let odd = kubectl.path(&["apiservice", NAME], "{.status.conditions[?(@.type==\"Odd\")].reason}").unwrap();
    assert_eq!(odd, "Test");
    // Nothing of its own is needed to say that it is gone.
    kubectl.run(&["scale", "deployment/extension", "--replicas=0"]).ok();
    available("False (MissingEndpoints)");
    kubectl.run(&["get", "flunders"]).fails();
    kubectl.run(&["get", "pods"]).ok();
    kubectl.run(&["scale", "deployment/extension", "--replicas=1"]).ok();
    available("True");
    kubectl.run(&["get", "flunders"]).ok();
    kubectl.run(&["delete", "apiservice", NAME]).ok();
    kubectl.run(&["get", "flunders"]).fails_with("the server could not find the requested resource");
}
