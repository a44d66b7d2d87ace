//! Admission webhooks: who is asked about what, and what becomes of the answers.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::{
    api::{Api, CONFIG_MAPS, PODS, config_map, deployment, pod, text},
    custom::define,
    hook_server::HookServer,
};

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// An answer to a review, with more in its response.
fn answer(review: &Value, allowed: bool, more: Value) -> (u16, String) {
    let mut response = json!({"uid": review["request"]["uid"], "allowed": allowed});
    for (k, v) in more.as_object().into_iter().flatten() {
        response[k] = v.clone();
    }
    let whole = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
    (200, whole.to_string())
}

fn patch(operations: Value) -> Value {
    let encoded = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"patchType": "JSONPatch", "patch": encoded})
}

/// What the test's server answers on each of its paths.
fn answers(path: &str, review: Value) -> (u16, String) {
    let object = &review["request"]["object"];
    let path = path.split('?').next().unwrap_or_default();
    match path {
        "/allow" => answer(&review, true, json!({"warnings": ["mind \"this\""]})),
        "/deny" => {
            answer(&review, false, json!({"status": {"message": "no such luck", "code": 403, "reason": "Forbidden"}}))
        }
        "/one" => {
            let operations = match object["data"]["one"].is_null() {
                true => json!([{"op": "add", "path": "/data/one", "value": "1"}]),
                false => json!([]),
            };
            answer(&review, true, patch(operations))
        }
        // Works only on what the first one has added.
        "/two" if object["data"]["one"].is_null() => answer(&review, true, Value::Null),
        "/two" => answer(&review, true, patch(json!([{"op": "add", "path": "/data/two", "value": "2"}]))),
        "/init" => {
            let container = json!([{"name": "init", "image": "i"}]);
            answer(&review, true, patch(json!([{"op": "add", "path": "/spec/initContainers", "value": container}])))
        }
        "/broken" => (200, "{}".to_owned()),
        "/bad-patch" => answer(&review, true, patch(json!([{"op": "remove", "path": "/data/none"}]))),
        _ => (404, String::new()),
    }
}

fn rule(operations: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": ["*"], "resources": resources})
}

fn hook(server: &HookServer, name: &str, path: &str, rule: Value) -> Value {
    json!({
        "name": format!("{name}.hooks.test"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": server.client_config(path), "rules": [rule],
    })
}

fn configuration(name: &str, hooks: Vec<Value>) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}, "webhooks": hooks})
}

#[tokio::test]
async fn mutating_webhooks_see_what_others_changed() {
    let (api, server) = (Api::start().await, HookServer::start(answers).await);
    let on_create = || rule(&["CREATE"], "", &["configmaps"]);
    let mut two = hook(&server, "two", "/two", on_create());
    api.created(MUTATING, configuration("b", vec![hook(&server, "one", "/one", on_create())])).await;
    // Names decide the order: this one is asked before the other has changed anything.
    two["reinvocationPolicy"] = "IfNeeded".into();
    api.created(MUTATING, configuration("a", vec![two])).await;
    let made = api.created(CONFIG_MAPS, config_map("c")).await;
    assert_eq!(made["data"], json!({"k": "v", "one": "1", "two": "2"}));
    let paths: Vec<String> = server.take().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/two?timeout=10s", "/one?timeout=10s", "/two?timeout=10s"]);
    // Neither is asked about what its rules do not name.
    let (code, _) = api.patch(&format!("{CONFIG_MAPS}/c"), "merge", json!({"data": {"one": null}})).await;
    assert_eq!(code, 200);
    assert!(server.take().is_empty());
    // A changed configuration counts at once.
    let change = json!([{"op": "add", "path": "/webhooks/0/rules/0/operations/-", "value": "UPDATE"}]);
    assert_eq!(api.patch(&format!("{MUTATING}/b"), "json", change).await.0, 200);
    let (_, changed) =
        api.patch(&format!("{CONFIG_MAPS}/c"), "merge", json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(changed["data"]["one"], "1");
    let (_, review) = server.take().remove(0);
    let request = &review["request"];
    assert_eq!((&request["operation"], &request["name"]), (&json!("UPDATE"), &json!("c")));
    assert_eq!(request["options"], json!({"kind": "PatchOptions", "apiVersion": "meta.k8s.io/v1"}));
    assert_eq!(request["object"]["metadata"]["labels"]["a"], "b");
    assert!(request["oldObject"]["metadata"]["labels"].is_null());
    assert!(request["oldObject"]["metadata"]["resourceVersion"].is_string());
    assert_eq!(request["requestResource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    // A connection is used again by whoever made it: two webhooks.
    assert_eq!(server.connections(), 3, "two webhooks, one of them changed once");
    // What a webhook adds is completed.
    api.created(
        MUTATING,
        configuration("pods", vec![hook(&server, "init", "/init", rule(&["CREATE"], "", &["pods"]))]),
    )
    .await;
    let made = api.created(PODS, pod("p")).await;
    assert_eq!(made["spec"]["initContainers"][0]["terminationMessagePolicy"], "File");
    assert_eq!(made["spec"]["initContainers"][0]["volumeMounts"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn validating_webhooks_refuse() {
    let (api, server) = (Api::start().await, HookServer::start(answers).await);
    let all = rule(&["*"], "*", &["*/*"]);
    let mut deny = hook(&server, "deny", "/deny", all.clone());
    deny["objectSelector"] = json!({"matchLabels": {"denied": "yes"}});
    api.created(VALIDATING, configuration("deny", vec![deny, hook(&server, "allow", "/allow", all)])).await;
    let reply = api.send("POST", CONFIG_MAPS, "application/json", config_map("c").to_string()).await;
    assert_eq!(reply.code, 201);
    assert_eq!(reply.warnings(), [r#"299 - "mind \"this\"""#]);
    let mut bad = config_map("d");
    bad["metadata"]["labels"] = json!({"denied": "yes"});
    let reply = api.send("POST", CONFIG_MAPS, "application/json", bad.to_string()).await;
    assert_eq!((reply.code, &reply.body["reason"]), (403, &json!("Forbidden")));
    assert_eq!(reply.body["message"], "admission webhook \"deny.hooks.test\" denied the request: no such luck");
    assert_eq!(reply.warnings().len(), 1);
    let (code, _) =
        api.patch(&format!("{CONFIG_MAPS}/c"), "merge", json!({"metadata": {"labels": {"denied": "yes"}}})).await;
    assert_eq!(code, 403);
    // Nobody is asked about the configurations themselves.
    let mut own = configuration("own", vec![]);
    own["metadata"]["labels"] = json!({"denied": "yes"});
    server.take();
    api.created(VALIDATING, own).await;
    assert_eq!(api.delete(&format!("{VALIDATING}/own"), Value::Null).await.0, 200);
    assert!(server.take().is_empty());
    // Deletions, scales, connections and evictions.
    assert_eq!(api.delete(&format!("{CONFIG_MAPS}/c"), Value::Null).await.0, 200);
    let (_, review) = server.take().remove(0);
    let request = &review["request"];
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(
        (&request["oldObject"]["data"]["k"], &request["options"]["kind"]),
        (&json!("v"), &json!("DeleteOptions"))
    );
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    api.created(deployments, deployment("d")).await;
    server.take();
    let scale = json!({"spec": {"replicas": 3}});
    assert_eq!(api.patch(&format!("{deployments}/d/scale"), "merge", scale).await.0, 200);
    let (_, review) = server.take().remove(0);
    let request = &review["request"];
    assert_eq!((&request["subResource"], &request["kind"]["kind"]), (&json!("scale"), &json!("Scale")));
    assert_eq!(
        (&request["object"]["spec"], &request["oldObject"]["spec"]),
        (&json!({"replicas": 3}), &json!({"replicas": 1}))
    );
    api.created(PODS, pod("p")).await;
    server.take();
    let (code, status) = api.post(&format!("{PODS}/p/exec?command=sh&stdin=true"), Value::Null).await;
    assert_eq!(code, 400, "{status}");
    let (_, review) = server.take().remove(0);
    let request = &review["request"];
    assert_eq!((&request["operation"], &request["requestKind"]["kind"]), (&json!("CONNECT"), &json!("PodExecOptions")));
    assert_eq!(request["object"]["command"], json!(["sh"]));
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    assert_eq!(api.post(&format!("{PODS}/p/eviction"), eviction).await.0, 201);
    let asked = server.take();
    assert_eq!(asked.len(), 1);
    let request = &asked[0].1["request"];
    assert_eq!((&request["operation"], &request["kind"]["kind"]), (&json!("CREATE"), &json!("Eviction")));
}

#[tokio::test]
async fn failures_are_settled_by_policy() {
    let (api, server) = (Api::start().await, HookServer::start(answers).await);
    let on = |resource: &str| rule(&["CREATE"], "", &[resource]);
    let hooks = [("/broken", "secrets"), ("/nowhere", "services"), ("/bad-patch", "configmaps")];
    for (path, resource) in hooks {
        let made = hook(&server, &path[1..], path, on(resource));
        api.created(MUTATING, configuration(&path[1..], vec![made])).await;
    }
    let secret = json!({"metadata": {"name": "s"}});
    let (code, status) = api.post("/api/v1/namespaces/default/secrets", secret.clone()).await;
    assert_eq!((code, &status["reason"]), (500, &json!("InternalError")));
    assert_eq!(
        status["message"],
        "Internal error occurred: failed calling webhook \"broken.hooks.test\": received invalid webhook response: webhook response was absent"
    );
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let (_, status) = api.post("/api/v1/namespaces/default/services", service).await;
    assert_eq!(
        status["message"],
        "Internal error occurred: failed calling webhook \"nowhere.hooks.test\": failed to call webhook: the server could not find the requested resource"
    );
    assert_eq!(api.post(CONFIG_MAPS, config_map("c")).await.0, 500);
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    assert_eq!(api.patch(&format!("{MUTATING}/broken"), "json", ignore.clone()).await.0, 200);
    api.created("/api/v1/namespaces/default/secrets", secret).await;
    // Without the authority nobody can say who answers.
    let mut strange = hook(&server, "strange", "/allow", on("pods"));
    strange["clientConfig"]["caBundle"] = HookServer::start(answers).await.ca_bundle.clone().into();
    api.created(VALIDATING, configuration("strange", vec![strange])).await;
    let (_, status) = api.post(PODS, pod("p")).await;
    let port = server.port;
    assert_eq!(
        status["message"],
        format!(
            "Internal error occurred: failed calling webhook \"strange.hooks.test\": failed to call webhook: Post \"https://127.0.0.1:{port}/allow?timeout=10s\": tls: failed to verify certificate: x509: certificate signed by unknown authority"
        )
    );
    let mut of_service = hook(&server, "service", "/allow", on("serviceaccounts"));
    of_service["clientConfig"] =
        json!({"service": {"namespace": "default", "name": "hook", "path": "/allow"}, "caBundle": server.ca_bundle});
    api.created(VALIDATING, configuration("service", vec![of_service])).await;
    let account = json!({"metadata": {"name": "a"}});
    let (_, status) = api.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    assert!(text(&status["message"]).ends_with("?timeout=10s\": service \"hook\" not found"), "{status}");
}

#[tokio::test]
async fn a_server_starts_whatever_webhooks_say() {
    let api = Api::start().await;
    let server = HookServer::start(answers).await;
    let everything = hook(&server, "everything", "/deny", rule(&["*"], "*", &["*/*"]));
    let mutating = configuration("everything", vec![everything.clone()]);
    api.created(MUTATING, mutating).await;
    api.created(VALIDATING, configuration("everything", vec![everything])).await;
    drop(server);
    assert_eq!(api.post(CONFIG_MAPS, config_map("c")).await.0, 500);
    let again = Api::restarted(api.store.clone()).await;
    assert_eq!(again.post(CONFIG_MAPS, config_map("c")).await.0, 500);
    // And the way out is open.
    for path in [MUTATING, VALIDATING] {
        assert_eq!(again.delete(&format!("{path}/everything"), Value::Null).await.0, 200);
    }
    again.created(CONFIG_MAPS, config_map("c")).await;
}

#[tokio::test]
async fn selectors_conditions_and_dry_runs() {
    let (api, server) = (Api::start().await, HookServer::start(answers).await);
    let mut deny = hook(&server, "deny", "/deny", rule(&["CREATE"], "", &["configmaps", "namespaces"]));
    deny["matchConditions"] = json!([{"name": "not-skipped", "expression": "object.metadata.name != 'skip-me'"}]);
    deny["namespaceSelector"] = json!({"matchExpressions": [{"key": "exempt", "operator": "DoesNotExist"}]});
    api.created(VALIDATING, configuration("deny", vec![deny])).await;
    assert_eq!(api.post(CONFIG_MAPS, config_map("c")).await.0, 403);
    api.created(CONFIG_MAPS, config_map("skip-me")).await;
    // A new namespace has the labels that it brings.
    let namespaces = "/api/v1/namespaces";
    assert_eq!(api.post(namespaces, json!({"metadata": {"name": "n"}})).await.0, 403);
    api.created(namespaces, json!({"metadata": {"name": "n", "labels": {"exempt": "yes"}}})).await;
    api.created("/api/v1/namespaces/n/configmaps", config_map("c")).await;
    let bad = json!([{"op": "replace", "path": "/webhooks/0/matchConditions/0/expression", "value": "object.x =="}]);
    let (code, status) = api.patch(&format!("{VALIDATING}/deny"), "json", bad).await;
    assert_eq!(code, 422);
    assert!(text(&status["message"]).contains("compilation failed"), "{status}");
    // What a condition cannot say refuses, unless failures are ignored.
    let fault = json!([{"op": "replace", "path": "/webhooks/0/matchConditions/0/expression", "value": "object.spec.none == 1"}]);
    assert_eq!(api.patch(&format!("{VALIDATING}/deny"), "json", fault).await.0, 200);
    let (code, status) = api.post(CONFIG_MAPS, config_map("d")).await;
    assert_eq!(code, 403);
    assert!(text(&status["message"]).starts_with("configmaps \"d\" is forbidden: "), "{status}");
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    assert_eq!(api.patch(&format!("{VALIDATING}/deny"), "json", ignore).await.0, 200);
    api.created(CONFIG_MAPS, config_map("d")).await;
    // Dry runs are told apart.
    api.created(
        MUTATING,
        configuration("one", vec![hook(&server, "one", "/one", rule(&["CREATE"], "", &["configmaps"]))]),
    )
    .await;
    server.take();
    let map = config_map("dry");
    let (code, made) = api.post(&format!("{CONFIG_MAPS}?dryRun=All&fieldManager=me"), map).await;
    assert_eq!((code, &made["data"]["one"]), (201, &json!("1")), "{made}");
    let request = &server.take()[0].1["request"];
    assert_eq!(request["dryRun"], true);
    assert_eq!(
        request["options"],
        json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"], "fieldManager": "me"})
    );
}

#[tokio::test]
async fn equivalent_versions_are_converted() {
    let (api, server) = (Api::start().await, HookServer::start(answers).await);
    let only_v1 = |name: &str, policy: &str| {
        let mut rule = rule(&["CREATE"], "autoscaling", &["horizontalpodautoscalers"]);
        rule["apiVersions"] = json!(["v1"]);
        let mut hook = hook(&server, name, "/allow", rule);
        hook["matchPolicy"] = policy.into();
        hook
    };
    api.created(VALIDATING, configuration("v1", vec![only_v1("equivalent", "Equivalent"), only_v1("exact", "Exact")]))
        .await;
    let target = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
    let metrics = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]);
    let v2 =
        json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target, "metrics": metrics}});
    api.created("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", v2).await;
    let asked = server.take();
    assert_eq!(asked.len(), 1);
    let request = &asked[0].1["request"];
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(request["object"]["spec"]["targetCPUUtilizationPercentage"], 50);
    let v1 = json!({"metadata": {"name": "i"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target}});
    api.created("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", v1).await;
    assert_eq!(server.take().len(), 2);
}

#[tokio::test]
async fn custom_kinds_are_asked_about() {
    let (api, server) = (Api::start().await, HookServer::start(answers).await);
    let schema = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {"one": {"type": "string"}}}}});
    let definition = json!({"metadata": {"name": "things.test.io"}, "spec": {
        "group": "test.io", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
    }});
    define(&api, definition).await;
    let hooks = vec![
        hook(&server, "one", "/one", rule(&["CREATE"], "test.io", &["things"])),
        hook(&server, "two", "/two", rule(&["CREATE"], "test.io", &["things"])),
    ];
    api.created(MUTATING, configuration("things", hooks)).await;
    let things = "/apis/test.io/v1/namespaces/default/things";
    let thing = json!({"apiVersion": "test.io/v1", "kind": "Thing", "metadata": {"name": "t"}, "data": {}});
    let made = api.created(things, thing).await;
    // What the schema does not know goes.
    assert_eq!(made["data"], json!({"one": "1"}));
    let mut deny = hook(&server, "deny", "/deny", rule(&["DELETE", "UPDATE"], "test.io", &["*"]));
    deny["clientConfig"] = server.client_config("/deny");
    api.created(VALIDATING, configuration("things", vec![deny])).await;
    assert_eq!(api.delete(&format!("{things}/t"), Value::Null).await.0, 403);
    assert_eq!(api.patch(&format!("{things}/t"), "merge", json!({"data": {"one": "x"}})).await.0, 403);
}
