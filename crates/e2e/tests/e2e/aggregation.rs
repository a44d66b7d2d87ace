//! APIs that a server in the cluster serves, through the cluster's own.

use std::time::Duration;

use skiff_e2e::{Version, eventually, wait::check};

use crate::{extension_server, shared, tests};

tests![local_groups_are_listed, a_server_in_a_pod_serves_a_group, autoscalers_follow_the_metrics_of_an_adapter,];

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
    let mut object = kubectl.json(&["apiservice", NAME]);
    let conditions = object["status"]["conditions"].as_array_mut().unwrap();
    conditions.iter_mut().filter(|c| c["type"] == "Odd").for_each(|c| c["reason"] = "Other".into());
    kubectl.feed(&["replace", "--subresource=status", "-f", "-"], &object.to_string()).ok();
    let odd = kubectl.path(&["apiservice", NAME], "{.status.conditions[?(@.type==\"Odd\")].reason}").unwrap();
    assert_eq!(odd, "Other");
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

fn autoscalers_follow_the_metrics_of_an_adapter() {
    const NAMESPACE: &str = "adapter";
    let kubectl = shared::cluster().in_new(NAMESPACE);
    let authority = extension_server::start(&kubectl, NAMESPACE);
    let services = [("v1beta2", "custom.metrics.k8s.io"), ("v1beta1", "external.metrics.k8s.io")];
    for (version, group) in services {
        kubectl.apply(&format!(
            "apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: {version}.{group}}}
spec:
  group: {group}
  version: {version}
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: {authority}
  service: {{namespace: {NAMESPACE}, name: extension}}
"
        ));
    }
    let metrics = [
        ("pods", "type: Pods, pods: {metric: {name: http_requests}, target: {type: AverageValue, averageValue: 10}}"),
        (
            "object",
            "type: Object, object: {describedObject: {kind: Service, name: extension, apiVersion: v1}, metric: {name: queue_length}, target: {type: Value, value: 10}}",
        ),
        (
            "external",
            "type: External, external: {metric: {name: queue_length}, target: {type: AverageValue, averageValue: 10}}",
        ),
    ];
    for (name, metric) in metrics {
        kubectl.apply(&format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '100000']}}]
"
        ));
        kubectl.run(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]).ok();
        let autoscaler = format!(
            "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {name}}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}}}
  maxReplicas: 5
  metrics: [{{{metric}}}]
"
        );
        if name == "pods" {
            // The adapter is told which pods it has numbers of.
            let pod = kubectl.path(&["pods", "-l", "app=pods"], "{.items[0].metadata.name}").unwrap();
            let put = format!(
                "import json, ssl, urllib.request as r; r.urlopen(r.Request('https://localhost:8443/metrics', method='PUT', data=json.dumps({{'pods': '{pod}', 'http_requests': '30'}}).encode()), context=ssl._create_unverified_context())"
            );
            kubectl.run(&["exec", "deployment/extension", "--", "python3", "-c", &put]).ok();
        }
        kubectl.apply(&autoscaler);
    }
    for (name, _) in metrics {
        eventually(PATIENCE, || {
            let replicas = kubectl.path(&["deployment", name], "{.spec.replicas}")?;
            check(replicas == "3", || {
                let said = kubectl.run(&["describe", "hpa", name]).result().unwrap_or_else(|e| e);
                format!("{name} has {replicas}: {said}")
            })
        });
        let reason = kubectl.path(&["hpa", name], "{.status.conditions[?(@.type==\"ScalingActive\")].reason}").unwrap();
        assert_eq!(reason, "ValidMetricFound", "{name}");
    }
    kubectl.run(&["get", "hpa"]).prints(&["30/10", "10 (avg)"]);
    for (version, group) in services {
        kubectl.run(&["delete", "apiservice", &format!("{version}.{group}")]).ok();
    }
}
