//! Server-side apply and the owners of fields.

use serde_json::{Value, json};
use skiff_apiserver::User;

use crate::{
    api::{Api, CONFIG_MAPS, Reply, config_map, deployment},
    custom,
};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(api: &Api, path: &str, manager: &str, config: Value) -> Reply {
    let join = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{join}fieldManager={manager}");
    api.send("PATCH", &path, "application/apply-patch+yaml", config.to_string()).await
}

fn config(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// The entry of a manager for a subresource, or null.
fn entry(object: &Value, manager: &str, subresource: &str) -> Value {
    let all = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let found = all
        .into_iter()
        .find(|e| e["manager"] == manager && e["subresource"].as_str().unwrap_or_default() == subresource);
    found.unwrap_or_default()
}

#[tokio::test]
async fn applying_creates_changes_and_takes_away() {
    let api = Api::start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let made = apply(&api, &path, "x", config("a", json!({"k": "1", "l": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let owner = entry(&made.body, "x", "");
    assert_eq!(owner["operation"], "Apply");
    assert_eq!(owner["apiVersion"], "v1");
    assert_eq!(owner["fieldsV1"], json!({"f:data": {"f:k": {}, "f:l": {}}}));
    assert!(owner["time"].is_string() && owner["fieldsType"] == "FieldsV1");

    let same = apply(&api, &path, "x", config("a", json!({"k": "1", "l": "1"}))).await;
    assert_eq!((same.code, &same.body), (200, &made.body));

    let less = apply(&api, &path, "x", config("a", json!({"k": "2"}))).await;
    assert_eq!((less.code, &less.body["data"]), (200, &json!({"k": "2"})));
    let dry = apply(&api, &format!("{path}?dryRun=All"), "x", config("a", json!({"k": "3"}))).await;
    assert_eq!((dry.code, &dry.body["data"]), (200, &json!({"k": "3"})));
    assert_eq!(api.get(&path).await.1["data"], json!({"k": "2"}));
}

/// Custom objects, leases and budgets, whose updates name a revision: an applied one is that of what it was applied to.
#[tokio::test]
async fn kinds_without_unconditional_updates_are_applied() {
    let api = Api::start().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "greetings.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "greetings", "kind": "Greeting"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {"text": {"type": "string"}}}},
            }}}],
        },
    });
    custom::define(&api, definition).await;
    let greeting = |text: &str| {
        let meta = json!({"name": "a"});
        json!({"apiVersion": "example.com/v1", "kind": "Greeting", "metadata": meta, "spec": {"text": text}})
    };
    let lease = |holder: &str| {
        let meta = json!({"name": "a"});
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {"holderIdentity": holder}})
    };
    let budget = |least: &str| {
        let spec = json!({"minAvailable": least, "selector": {"matchLabels": {"a": "b"}}});
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "a"}, "spec": spec})
    };
    for (path, [before, after]) in [
        ("/apis/example.com/v1/namespaces/default/greetings/a", [greeting("1"), greeting("2")]),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases/a", [lease("1"), lease("2")]),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets/a", [budget("1%"), budget("2%")]),
    ] {
        let made = apply(&api, path, "x", before).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let changed = apply(&api, path, "x", after.clone()).await;
        assert_eq!((changed.code, &changed.body["spec"]), (200, &after["spec"]), "{}", changed.body);
        let same = apply(&api, path, "x", after.clone()).await;
        assert_eq!((same.code, &same.body), (200, &changed.body));
        // One that names what it is based on is refused when that has changed.
        let mut old = after;
        old["metadata"]["resourceVersion"] = made.body["metadata"]["resourceVersion"].clone();
        assert_eq!(apply(&api, path, "x", old).await.code, 409);
    }
}

#[tokio::test]
async fn conflicts_name_the_owner_and_are_forced() {
    let api = Api::start().await;
    let made = api.with("user-agent", "kubectl-client-side-apply/v1").post(DEPLOYMENTS, deployment("d")).await;
    assert_eq!(made.0, 201);
    let path = format!("{DEPLOYMENTS}/d");
    let config =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 7}});
    let refused = apply(&api, &path, "x", config.clone()).await;
    assert_eq!((refused.code, &refused.body["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{
            "reason": "FieldManagerConflict",
            "message": "conflict with \"kubectl-client-side-apply\" using apps/v1",
            "field": ".spec.replicas",
        }])
    );
    let forced = apply(&api, &format!("{path}?force=true"), "x", config).await;
    assert_eq!((forced.code, &forced.body["spec"]["replicas"]), (200, &json!(7)));
    assert_eq!(entry(&forced.body, "x", "")["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let others = &entry(&forced.body, "kubectl-client-side-apply", "")["fieldsV1"];
    assert!(others["f:spec"]["f:template"].is_object() && others["f:spec"]["f:replicas"].is_null(), "{others}");

    // Scaling takes the field over, as a subresource of its own.
    let scale = json!({"spec": {"replicas": 9}});
    api.with("user-agent", "scaler/1").patch(&format!("{path}/scale"), "merge", scale).await;
    let scaled = api.get(&path).await.1;
    assert_eq!(entry(&scaled, "scaler", "scale")["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(entry(&scaled, "x", ""), Value::Null);
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 2}});
    let refused = apply(&api, &format!("{path}/scale"), "y", scale.clone()).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let forced = apply(&api, &format!("{path}/scale?force=true"), "y", scale).await;
    assert_eq!((forced.code, &forced.body["spec"]["replicas"]), (200, &json!(2)), "{}", forced.body);
}

#[tokio::test]
async fn other_writes_keep_the_owners_up_to_date() {
    let api = Api::start().await;
    let a = api.with("user-agent", "maker/v1.2 (linux)").created(CONFIG_MAPS, config_map("a")).await;
    let owner = entry(&a, "maker", "");
    assert_eq!((&owner["operation"], &owner["fieldsV1"]), (&json!("Update"), &json!({"f:data": {".": {}, "f:k": {}}})));
    let path = format!("{CONFIG_MAPS}/a");
    let (_, a) =
        api.patch(&format!("{path}?fieldManager=other"), "merge", json!({"data": {"k": "new", "x": "1"}})).await;
    assert_eq!(entry(&a, "other", "")["fieldsV1"], json!({"f:data": {"f:k": {}, "f:x": {}}}));
    assert_eq!(entry(&a, "maker", "")["fieldsV1"], json!({"f:data": {}}));
    // Who does not know of managedFields does not remove them.
    let mut plain = a.clone();
    plain["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
    plain["data"] = json!({"x": "1"});
    let (code, b) = api.put(&format!("{path}?fieldManager=third"), plain).await;
    assert_eq!(code, 200);
    assert_eq!(entry(&b, "other", "")["fieldsV1"], json!({"f:data": {"f:x": {}}}));
    let (code, same) = api.put(&format!("{path}?fieldManager=fourth"), b.clone()).await;
    assert_eq!((code, &same), (200, &b));
    // They can be set, as kubectl does it when it takes over from its own side, and reset.
    let mut entries = b["metadata"]["managedFields"].clone();
    entries[0]["operation"] = "Apply".into();
    let replace = json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": entries},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": b["metadata"]["resourceVersion"]},
    ]);
    let (code, c) = api.patch(&path, "json", replace).await;
    assert_eq!(code, 200, "{c}");
    assert!(c["metadata"]["managedFields"].as_array().unwrap().iter().any(|e| e["operation"] == "Apply"), "{c}");
    let (_, d) = api.patch(&path, "merge", json!({"metadata": {"managedFields": [{}]}})).await;
    assert!(d["metadata"]["managedFields"].is_null());
    // What nobody tracks belongs to nobody until it is applied.
    let (_, d) = api.patch(&path, "merge", json!({"data": {"y": "1"}})).await;
    assert!(d["metadata"]["managedFields"].is_null());
    let refused = apply(&api, &path, "x", config("a", json!({"y": "2"}))).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.y"
    );
}

#[tokio::test]
async fn the_status_is_applied_by_itself() {
    let api = Api::start().await;
    api.created(DEPLOYMENTS, deployment("d")).await;
    let path = format!("{DEPLOYMENTS}/d");
    let config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 5}, "status": {"observedGeneration": 1, "conditions": [
            {"type": "Own", "status": "True"},
        ]},
    });
    let done = apply(&api, &format!("{path}/status"), "x", config.clone()).await;
    assert_eq!(done.code, 200, "{}", done.body);
    assert_ne!(done.body["spec"]["replicas"], 5);
    assert_eq!(
        entry(&done.body, "x", "status")["fieldsV1"],
        json!({"f:status": {"f:conditions": {"k:{\"type\":\"Own\"}": {".": {}, "f:status": {}, "f:type": {}}}, "f:observedGeneration": {}}})
    );
    let done = apply(&api, &format!("{path}?force=true"), "x", config).await;
    assert_eq!(entry(&done.body, "x", "")["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert!(entry(&done.body, "x", "status").is_object());
}

#[tokio::test]
async fn what_cannot_be_applied() {
    let api = Api::start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let send = async |path: String, body: Value| {
        let reply = api.send("PATCH", &path, "application/apply-patch+yaml", body.to_string()).await;
        (reply.code, reply.body["message"].as_str().unwrap_or_default().to_owned())
    };
    let (code, why) = send(path.clone(), config("a", json!({}))).await;
    assert_eq!(code, 422);
    assert!(why.contains("fieldManager: Required value: is required for apply patch"), "{why}");
    let (code, _) = send(format!("{path}?fieldManager={}", "x".repeat(129)), config("a", json!({}))).await;
    assert_eq!(code, 422);
    let (code, why) = send(format!("{path}?fieldManager=x"), config("b", json!({}))).await;
    assert_eq!((code, why.as_str()), (400, "the name of the object (b) does not match the name on the URL (a)"));
    let mut owned = config("a", json!({}));
    owned["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Apply"}]);
    let (code, why) = send(format!("{path}?fieldManager=x"), owned).await;
    assert_eq!((code, why.as_str()), (400, "metadata.managedFields must be nil"));
    let mut twice = deployment("d");
    let container = twice["spec"]["template"]["spec"]["containers"][0].clone();
    twice["spec"]["template"]["spec"]["containers"] = json!([container, container]);
    let (code, why) = send(format!("{DEPLOYMENTS}/d?fieldManager=x"), twice).await;
    assert_eq!(code, 500);
    assert!(why.contains(".spec.template.spec.containers: duplicate entries for key [name="), "{why}");
    let (code, _) = api.patch(&format!("{path}?force=true"), "merge", json!({})).await;
    assert_eq!(code, 422);
    // Whoever may patch may not therefore create.
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "p"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]});
    api.created("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "p"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "p"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    api.created("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    let eve = api.by(User::known("eve", &[]));
    let refused = apply(&eve, &path, "x", config("a", json!({}))).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.body["message"].as_str().unwrap().contains("cannot create resource \"configmaps\""),
        "{}",
        refused.body
    );
}
