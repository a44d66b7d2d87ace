//! Admission webhooks that run in the cluster, with an authority of their own.

use std::time::Duration;

use skiff_e2e::{Kubectl, Version, eventually, wait::check};

use crate::{extension_server, shared, tests};

tests![
    webhooks_label_and_deny,
    webhooks_that_are_gone_fail_or_are_ignored,
    webhooks_guard_connections_and_custom_kinds,
    configurations_are_objects_like_others,
    a_webhook_converts_custom_objects,
    a_policy_adds_a_sidecar,
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

/// Removes the webhooks also when a test fails: others write as well.
struct Removed<'a>(&'a Place);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let selector = format!("test={}", self.0.namespace);
        for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            let _ = self.0.kubectl.run(&["delete", kind, "-l", &selector]).result();
        }
    }
}

fn rule(operations: &str, group: &str, resources: &str) -> String {
    format!("{{operations: [{operations}], apiGroups: [\"{group}\"], apiVersions: [\"*\"], resources: [{resources}]}}")
}

fn webhooks_label_and_deny() {
    let place = Place::new("webhooks");
    let _removed = Removed(&place);
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
    let both = ["mutatingwebhookconfiguration/webhooks-label", "validatingwebhookconfiguration/webhooks-deny"];
    for configuration in both {
        let mut object = kubectl.json(&[configuration]);
        object["webhooks"][0]["rules"][0]["operations"] = serde_json::json!(["UPDATE"]);
        kubectl.feed(&["replace", "-f", "-"], &object.to_string()).ok();
    }
    kubectl.run(&["create", "configmap", "forbidden"]).ok();
    assert_eq!(kubectl.path(&["configmap", "forbidden"], "{.metadata.labels.seen-by}").unwrap(), "");
    kubectl.run(&["delete", "configmap", "forbidden"]).ok();
    let create = r#"[{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}]"#;
    for configuration in both {
        kubectl.run(&["patch", configuration, "--type=json", "-p", create]).ok();
    }
    kubectl.run(&["create", "configmap", "forbidden"]).fails_with("denied the request");
    kubectl.run(&["create", "configmap", "back"]).ok();
    assert_eq!(kubectl.path(&["configmap", "back"], "{.metadata.labels.seen-by}").unwrap(), "webhook");
    place.clear();
    kubectl.run(&["create", "configmap", "forbidden"]).ok();
    // A condition spares one name.
    let skip = "  matchConditions: [{name: skip, expression: 'object.metadata.name != \"skip-me\"'}]\n";
    place.register("MutatingWebhookConfiguration", "webhooks-label", &maps, &[("label", "/mutate", skip)]);
    for (name, label) in [("skip-me", ""), ("not-me", "webhook")] {
        kubectl.run(&["create", "configmap", name]).ok();
        assert_eq!(kubectl.path(&["configmap", name], "{.metadata.labels.seen-by}").unwrap(), label);
    }
    // Nobody is asked about the configurations themselves.
    let own = rule("\"*\"", "admissionregistration.k8s.io", "\"*\"");
    place.register("ValidatingWebhookConfiguration", "webhooks-own", &own, &[("own", "/deny", "")]);
    place.register("MutatingWebhookConfiguration", "webhooks-own", &own, &[("own", "/mutate", "")]);
    place.register("ValidatingWebhookConfiguration", "webhooks-dummy", &own, &[("dummy", "/deny", "")]);
    let dummy = ["validatingwebhookconfiguration", "webhooks-dummy"];
    assert_eq!(kubectl.path(&dummy, "{.metadata.labels.seen-by}").unwrap(), "");
    kubectl.run(&["delete", "validatingwebhookconfiguration", "webhooks-dummy"]).ok();
    // Without an authority nobody can be trusted, and nothing passes.
    place.clear();
    let stranger = Place { authority: "\"\"".to_owned(), kubectl: kubectl.clone(), namespace: place.namespace };
    stranger.register("ValidatingWebhookConfiguration", "webhooks-strange", &maps, &[("strange", "/validate", "")]);
    kubectl.run(&["create", "configmap", "refused"]).fails_with("certificate signed by unknown authority");
}

fn configurations_are_objects_like_others() {
    let kubectl = shared::server("webhook-configurations");
    kubectl.run(&["api-resources", "--api-group=admissionregistration.k8s.io"]).prints(&[
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
        "admissionregistration.k8s.io/v1",
    ]);
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let manifest = |condition: &str| {
            format!(
                "apiVersion: admissionregistration.k8s.io/v1
kind: {kind}
metadata: {{name: conditions}}
webhooks:
- name: conditions.extension.test
  sideEffects: None
  admissionReviewVersions: [v1]
  clientConfig: {{url: 'https://127.0.0.1:1/'}}
  rules: [{{operations: [CREATE], apiGroups: [none.example.com], apiVersions: [v1], resources: [nones]}}]
  matchConditions: [{{name: first, expression: \"{condition}\"}}]
"
            )
        };
        kubectl.apply(&manifest("object.metadata.name == 'a'"));
        let of = [kind, "conditions"];
        let expression = "{.webhooks[0].matchConditions[0].expression}";
        assert_eq!(kubectl.path(&of, expression).unwrap(), "object.metadata.name == 'a'");
        kubectl.apply(&manifest("object.metadata.name == 'b'"));
        assert_eq!(kubectl.path(&of, expression).unwrap(), "object.metadata.name == 'b'");
        kubectl.feed(&["apply", "-f", "-"], &manifest("object.metadata.name ==")).fails_with("compilation failed");
        kubectl.run(&["delete", kind, "conditions"]).ok();
    }
}

fn a_webhook_converts_custom_objects() {
    let place = Place::new("conversion");
    let (kubectl, authority) = (&place.kubectl, &place.authority);
    let definition = |storage: &str| {
        let version = |name: &str, fields: &str| {
            format!(
                "  - {{name: {name}, served: true, storage: {}, schema: {{openAPIV3Schema: {{type: object, properties: {{{fields}}}}}}}}}\n",
                name == storage
            )
        };
        format!(
            "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: hosts.conversion.example.com}}
spec:
  group: conversion.example.com
  scope: Namespaced
  names: {{plural: hosts, kind: Host}}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {{service: {{namespace: conversion, name: extension, path: /convert}}, caBundle: {authority}}}
  versions:
{}{}",
            version("v1", "hostPort: {type: string}"),
            version("v2", "host: {type: string}, port: {type: string}"),
        )
    };
    kubectl.apply(&definition("v1"));
    kubectl.run(&["wait", "--for=condition=Established", "crd/hosts.conversion.example.com", "--timeout=20s"]).ok();
    let v1 = "apiVersion: conversion.example.com/v1\nkind: Host\nmetadata: {name: one}\nhostPort: a.example:80\n";
    kubectl.apply(v1);
    let at = |version: &str, name: &str, path: &str| {
        kubectl.path(&[&format!("hosts.{version}.conversion.example.com"), name], path).unwrap()
    };
    assert_eq!(at("v2", "one", "{.host} {.port}"), "a.example 80");
    assert_eq!(at("v1", "one", "{.hostPort}"), "a.example:80");
    kubectl.apply(&definition("v2"));
    kubectl.apply(
        "apiVersion: conversion.example.com/v2\nkind: Host\nmetadata: {name: two}\nhost: b.example\nport: \"81\"\n",
    );
    let list = kubectl.json(&["hosts.v2.conversion.example.com"]);
    let hosts: Vec<_> = list["items"].as_array().unwrap().iter().map(|i| (&i["apiVersion"], &i["host"])).collect();
    let v2 = &serde_json::json!("conversion.example.com/v2");
    assert_eq!(hosts, [(v2, &serde_json::json!("a.example")), (v2, &serde_json::json!("b.example"))]);
    let port = r#"{"hostPort": "b.example:82"}"#;
    kubectl.run(&["patch", "hosts.v1.conversion.example.com", "two", "--type=merge", "-p", port]).ok();
    assert_eq!(at("v2", "two", "{.port}"), "82");
    kubectl.run(&["delete", "crd", "hosts.conversion.example.com"]).ok();
}

fn webhooks_that_are_gone_fail_or_are_ignored() {
    let place = Place::new("webhooks-gone");
    let _removed = Removed(&place);
    let kubectl = &place.kubectl;
    let slow = "  timeoutSeconds: 1\n  failurePolicy: Ignore\n";
    let secrets = rule("CREATE", "", "secrets");
    place.register("ValidatingWebhookConfiguration", "webhooks-slow-open", &secrets, &[("open", "/slow", slow)]);
    kubectl.run(&["create", "secret", "generic", "one"]).ok();
    let slow = "  timeoutSeconds: 1\n";
    place.register("ValidatingWebhookConfiguration", "webhooks-slow", &secrets, &[("closed", "/slow", slow)]);
    kubectl.run(&["create", "secret", "generic", "two"]).fails_with("?timeout=1s\": context deadline exceeded");
    place.clear();
    let webhooks = [("patient", "/slow", ""), ("default", "/slow", "  timeoutSeconds: 10\n")];
    place.register("ValidatingWebhookConfiguration", "webhooks-slow", &secrets, &webhooks);
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
    let _removed = Removed(&place);
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

fn a_policy_adds_a_sidecar() {
    let kubectl = shared::server("mutating-policy");
    kubectl.apply(
        r#"apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: sidecar.example.com}
spec:
  matchConstraints:
    resourceRules: [{operations: [CREATE], apiGroups: [apps], apiVersions: [v1], resources: [deployments]}]
  matchConditions:
  - {name: none-yet, expression: "!object.spec.template.spec.containers.exists(c, c.name == 'mesh')"}
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: >
        Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{
          containers: [Object.spec.template.spec.containers{name: "mesh", image: "mesh/proxy:v1"}]}}}}
  - patchType: JSONPatch
    jsonPatch:
      expression: >
        [JSONPatch{op: "add", path: "/metadata/labels/" + jsonpatch.escapeKey("example.com/mesh"), value: "yes"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: sidecar.example.com}
spec:
  policyName: sidecar.example.com
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: mutating-policy}}}
"#,
    );
    for version in Version::ALL {
        let kubectl = kubectl.version(version);
        kubectl.run(&["get", "mutatingadmissionpolicies"]).prints(&["NAME", "MUTATIONS", "PARAMKIND", "AGE"]);
        kubectl.run(&["create", "deployment", "app", "--image=app:1"]).ok();
        let images = "{.spec.template.spec.containers[*].image} {.metadata.labels.example\\.com/mesh}";
        assert_eq!(kubectl.path(&["deployment", "app"], images).unwrap(), "app:1 mesh/proxy:v1 yes");
        kubectl.run(&["delete", "deployment", "app"]).ok();
    }
    kubectl.run(&["delete", "mutatingadmissionpolicybinding", "sidecar.example.com"]).ok();
    kubectl.run(&["create", "deployment", "app", "--image=app:1"]).ok();
    assert_eq!(kubectl.path(&["deployment", "app"], "{.spec.template.spec.containers[*].image}").unwrap(), "app:1");
    kubectl.run(&["delete", "mutatingadmissionpolicy", "sidecar.example.com"]).ok();
}
