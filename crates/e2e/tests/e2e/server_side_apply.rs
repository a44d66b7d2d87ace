//! `kubectl apply --server-side`: owners of fields, conflicts, and what is taken away.

use serde_json::Value;
use skiff_e2e::{Kubectl, Version};

use crate::{shared, tests};

tests![owners_conflicts_and_removal, taking_over_from_client_side_apply];

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx:1.20
        ports: [{containerPort: 80}]
";

fn namespace(test: &str, version: Version) -> Kubectl {
    shared::server(&format!("{test}-{}", version.text().replace('.', "-"))).version(version)
}

fn owners_conflicts_and_removal() {
    for version in Version::ALL {
        let kubectl = namespace("server-side", version);
        let apply = |manager: &str, more: &[&str], manifest: &str| {
            let manager = format!("--field-manager={manager}");
            kubectl.feed(&[&["apply", "--server-side", &manager, "-f", "-"], more].concat(), manifest)
        };
        assert_eq!(apply("one", &[], DEPLOYMENT).ok(), "deployment.apps/web serverside-applied\n");
        assert_eq!(apply("one", &[], DEPLOYMENT).ok(), "deployment.apps/web serverside-applied\n");

        // Hidden unless asked for.
        assert!(!kubectl.run(&["get", "deployment", "web", "-o", "yaml"]).ok().contains("managedFields"));
        let shown = kubectl.run(&["get", "deployment", "web", "-o", "yaml", "--show-managed-fields"]).ok();
        for text in ["manager: one", "operation: Apply", r#"k:{"containerPort":80,"protocol":"TCP"}"#, "f:replicas: {}"]
        {
            assert!(shown.contains(text), "{text} in {shown}");
        }

        // Another manager wants something else.
        let other = DEPLOYMENT.replace("replicas: 2", "replicas: 5");
        let refused = apply("two", &[], &other);
        assert_eq!(refused.code, Some(1));
        for text in ["Apply failed with 1 conflict: conflict with \"one\": .spec.replicas", "--force-conflicts"] {
            assert!(refused.stderr.contains(text), "{refused:?}");
        }
        apply("two", &["--force-conflicts"], &other).ok();
        let replicas = || kubectl.path(&["deployment", "web"], "{.spec.replicas}").unwrap();
        assert_eq!(replicas(), "5");
        apply("one", &["--dry-run=server", "--force-conflicts"], DEPLOYMENT).ok();
        assert_eq!(replicas(), "5");

        // Two managers, each with its own field; each takes away only what is its own.
        let map =
            |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {{{data}}}\n");
        let data =
            || -> Value { serde_json::from_str(&kubectl.path(&["configmap", "shared"], "{.data}").unwrap()).unwrap() };
        apply("one", &[], &map("a: '1', both: x")).ok();
        apply("two", &[], &map("b: '1', both: x")).ok();
        assert_eq!(data(), serde_json::json!({"a": "1", "b": "1", "both": "x"}));
        apply("one", &[], &map("c: '1'")).ok();
        assert_eq!(data(), serde_json::json!({"b": "1", "both": "x", "c": "1"}));
        apply("two", &[], &map("b: '1'")).ok();
        assert_eq!(data(), serde_json::json!({"b": "1", "c": "1"}));
    }
}

fn taking_over_from_client_side_apply() {
    for version in Version::ALL {
        let kubectl = namespace("take-over", version);
        let labelled =
            DEPLOYMENT.replace("{app: web}\nspec:\n  replicas", "{app: web, old: yes-please}\nspec:\n  replicas");
        kubectl.apply(&labelled);
        let changed = DEPLOYMENT.replace("nginx:1.20", "nginx:1.21");
        // kubectl first moves what it owned from its own side, so that a field left out now goes away.
        assert_eq!(
            kubectl.feed(&["apply", "--server-side", "-f", "-"], &changed).ok(),
            "deployment.apps/web serverside-applied\n"
        );
        let deployment = kubectl.json(&["deployment", "web", "--show-managed-fields"]);
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "nginx:1.21");
        assert!(deployment["metadata"]["labels"]["old"].is_null(), "{deployment:#}");
        let managers: Vec<(&str, &str)> = deployment["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| (e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap()))
            .collect();
        assert!(managers.contains(&("kubectl", "Apply")), "{managers:?}");
        assert!(!managers.iter().any(|(manager, _)| *manager == "kubectl-client-side-apply"), "{managers:?}");
    }
}
