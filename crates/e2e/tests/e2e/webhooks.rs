//! Admission webhooks that run in the cluster, with an authority of their own.

use std::time::Duration;

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{extension_server, shared, tests};

tests![
    webhooks_label_and_deny,
    webhooks_that_are_gone_fail_or_are_ignored,
    webhooks_guard_connections_and_custom_kinds,
];

const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace with the server in it, and what webhooks need to know of it.
struct Place {
    kubectl: Kubectl,
    namespace: &'static str,
    authority: String,
}

impl Place {
    fn new(namespace: &'static str) -> Place {
        let kubectl = shared::cluster().in_new(namespace);
        let authority = extension_server::start(&kubectl, namespace);
        Place { kubectl, namespace, authority }
    }

    /// Registers webhooks `(name, path, more fields)` of a kind, for this namespace and these rules alone.
    fn register(&self, kind: &str, name: &str, rules: &str, webhooks: &[(&str, &str, &str)]) {
        let namespace = self.namespace;
        let mut manifest = format!(
            "apiVersion: admissionregistration.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, labels: {{test: {namespace}}}}}\nwebhooks:\n"
        );
        for (name, path, more) in webhooks {
            manifest.push_str(&format!(
                "- name: {name}.extension.test
  sideEffects: None
  admissionReviewVersions: [v1]
  clientConfig: {{service: {{namespace: {namespace}, name: extension, path: {path}}}, caBundle: {authority}}}
  rules: [{rules}]
  namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}
{more}",
                authority = self.authority,
            ));
        }
        self.kubectl.apply(&manifest);
    }

    fn clear(&self) {
        let selector = format!("test={}", self.namespace);
        for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            self.kubectl.run(&["delete", kind, "-l", &selector]).ok();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Also when a test fails: others write as well.
        let selector = format!("test={}", self.namespace);
        for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            let _ = self.kubectl.run(&["delete", kind, "-l", &selector]).result();
        }
    }
}

fn rule(operations: &str, group: &str, resources: &str) -> String {
    format!("{{operations: [{operations}], apiGroups: [\"{group}\"], apiVersions: [\"*\"], resources: [{resources}]}}")
}

fn webhooks_label_and_deny() {
    let place = Place::new("webhooks");
    let kubectl = &place.kubectl;
    let maps = rule("CREATE, UPDATE", "", "configmaps");
    place.register("MutatingWebhookConfiguration", "webhooks-label", &maps, &[("label", "/mutate", "")]);
    place.register("ValidatingWebhookConfiguration", "webhooks-deny", &maps, &[("deny", "/validate", "")]);
    kubectl.run(&["get", "mutatingwebhookconfigurations", "webhooks-label"]).prints(&["NAME", "WEBHOOKS", "AGE"]);
    let made = kubectl.run(&["create", "configmap", "good", "--from-literal=a=b"]);
    assert!(made.stderr.contains("Warning: labelled by the webhook"), "{}", made.stderr);
    made.ok();
    assert_eq!(kubectl.path(&["configmap", "good"], "{.metadata.labels.seen-by}").unwrap(), "webhook");
    kubectl
        .run(&["create", "configmap", "forbidden"])
        .fails_with("admission webhook \"deny.extension.test\" denied the request: the test forbids it");
    let rename = r#"{"data": {"a": "c"}}"#;
    kubectl.run(&["patch", "configmap", "good", "--type=merge", "-p", rename]).ok();
    // Other namespaces are none of its business.
    shared::cluster().in_new("webhooks-exempt").run(&["create", "configmap", "forbidden"]).ok();
    // Without CREATE it says nothing any more, and with it again.
    let set = |operations: &str| {
        let patch =
            format!(r#"[{{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": {operations}}}]"#);
        for kind in ["mutatingwebhookconfiguration/webhooks-label", "validatingwebhookconfiguration/webhooks-deny"] {
            kubectl.run(&["patch", kind, "--type=json", "-p", &patch]).ok();
        }
    };
    set(r#"["UPDATE"]"#);
    kubectl.run(&["create", "configmap", "forbidden"]).ok();
    assert_eq!(kubectl.path(&["configmap", "forbidden"], "{.metadata.labels.seen-by}").unwrap(), "");
    kubectl.run(&["delete", "configmap", "forbidden"]).ok();
    set(r#"["CREATE"]"#);
    kubectl.run(&["create", "configmap", "forbidden"]).fails_with("denied the request");
    place.clear();
    kubectl.run(&["create", "configmap", "forbidden"]).ok();
}

fn webhooks_that_are_gone_fail_or_are_ignored() {
    let place = Place::new("webhooks-gone");
    let kubectl = &place.kubectl;
    let slow = "  timeoutSeconds: 1\n  failurePolicy: Ignore\n";
    let secrets = rule("CREATE", "", "secrets");
    place.register("ValidatingWebhookConfiguration", "webhooks-slow-open", &secrets, &[("open", "/slow", slow)]);
    kubectl.run(&["create", "secret", "generic", "one"]).ok();
    let slow = "  timeoutSeconds: 1\n";
    place.register("ValidatingWebhookConfiguration", "webhooks-slow", &secrets, &[("closed", "/slow", slow)]);
    kubectl.run(&["create", "secret", "generic", "two"]).fails_with("?timeout=1s\": context deadline exceeded");
    place.clear();
    place.register("ValidatingWebhookConfiguration", "webhooks-slow", &secrets, &[("patient", "/slow", "")]);
    kubectl.run(&["create", "secret", "generic", "two"]).ok();

    let maps = rule("CREATE", "", "configmaps");
    place.register("MutatingWebhookConfiguration", "webhooks-gone", &maps, &[("label", "/mutate", "")]);
    kubectl.run(&["scale", "deployment/extension", "--replicas=0"]).ok();
    eventually(PATIENCE, || {
        let pods = kubectl.run(&["get", "pods", "-l", "app=extension", "-o", "name"]).result()?;
        check(pods.is_empty(), || pods)
    });
    kubectl.run(&["create", "configmap", "none"]).fails_with(
        "Internal error occurred: failed calling webhook \"label.extension.test\": failed to call webhook: Post \"https://extension.webhooks-gone.svc:443/mutate?timeout=10s\": ",
    );
    let ignore = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]"#;
    kubectl.run(&["patch", "mutatingwebhookconfiguration", "webhooks-gone", "--type=json", "-p", ignore]).ok();
    kubectl.run(&["create", "configmap", "none"]).ok();
    assert_eq!(kubectl.path(&["configmap", "none"], "{.metadata.labels.seen-by}").unwrap(), "");
    kubectl.run(&["scale", "deployment/extension", "--replicas=1"]).ok();
    kubectl.run(&["rollout", "status", "deployment/extension", "--timeout=60s"]).ok();
    eventually(PATIENCE, || {
        kubectl.run(&["delete", "configmap", "again", "--ignore-not-found"]).result()?;
        kubectl.run(&["create", "configmap", "again"]).result()?;
        let label = kubectl.path(&["configmap", "again"], "{.metadata.labels.seen-by}")?;
        check(label == "webhook", || label)
    });
}

fn webhooks_guard_connections_and_custom_kinds() {
    let place = Place::new("webhooks-guard");
    let kubectl = &place.kubectl;
    let pods = rule("CONNECT", "", "pods/attach");
    place.register("ValidatingWebhookConfiguration", "webhooks-attach", &pods, &[("attach", "/deny", "")]);
    let pod = kubectl.path(&["pods", "-l", "app=extension"], "{.items[0].metadata.name}").unwrap();
    kubectl.run(&["attach", &pod]).fails_with("admission webhook \"attach.extension.test\" denied the request");
    kubectl.run(&["exec", &pod, "--", "true"]).ok();
    // A definition, and the objects of another.
    const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: guards.webhooks.example.com}
spec:
  group: webhooks.example.com
  scope: Namespaced
  names: {plural: guards, kind: Guard}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";
    const GUARD: &str = "apiVersion: webhooks.example.com/v1\nkind: Guard\nmetadata: {name: guard}\nspec: {a: 1}\n";
    kubectl.apply(DEFINITION);
    kubectl.run(&["wait", "--for=condition=Established", "crd/guards.webhooks.example.com", "--timeout=20s"]).ok();
    kubectl.apply(GUARD);
    let guards = rule("\"*\"", "webhooks.example.com", "guards");
    place.register("ValidatingWebhookConfiguration", "webhooks-guards", &guards, &[("guards", "/deny", "")]);
    let denied = "admission webhook \"guards.extension.test\" denied the request";
    kubectl.run(&["delete", "guard", "guard"]).fails_with(denied);
    kubectl.run(&["label", "guard", "guard", "a=b"]).fails_with(denied);
    kubectl.feed(&["create", "-f", "-"], &GUARD.replace("name: guard", "name: other")).fails_with(denied);
    place.clear();
    kubectl.run(&["delete", "guard", "guard"]).ok();
    kubectl.run(&["delete", "crd", "guards.webhooks.example.com"]).ok();
    let definitions = rule("CREATE", "apiextensions.k8s.io", "customresourcedefinitions");
    let only = "  objectSelector: {matchLabels: {guarded: \"yes\"}}\n";
    place.register("ValidatingWebhookConfiguration", "webhooks-crds", &definitions, &[("crds", "/deny", only)]);
    let labelled = DEFINITION.replace("{name: guards.", "{labels: {guarded: \"yes\"}, name: guards.");
    kubectl.feed(&["create", "-f", "-"], &labelled).fails_with("admission webhook \"crds.extension.test\" denied");
}
