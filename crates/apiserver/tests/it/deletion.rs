//! The end of objects: grace, finalizers, preconditions, collections, namespaces.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, deployment, names, pod, text};

async fn running(api: &Api, name: &str) -> Value {
    api.created(PODS, pod(name)).await;
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
    let (code, status) = api.post(&format!("{PODS}/{name}/binding"), binding).await;
    assert_eq!(code, 201, "{status}");
    let (code, pod) =
        api.patch(&format!("{PODS}/{name}/status"), "merge", json!({"status": {"phase": "Running"}})).await;
    assert_eq!(code, 200);
    pod
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let api = Api::start().await;
    let mut held = config_map("a");
    held["metadata"]["finalizers"] = json!(["example.com/mine"]);
    api.created(CONFIG_MAPS, held).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (code, going) = api.delete(&path, Value::Null).await;
    assert_eq!(code, 200);
    assert!(going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 0);
    // A second deletion changes nothing.
    let (_, again) = api.delete(&path, Value::Null).await;
    assert_eq!(again["metadata"]["resourceVersion"], going["metadata"]["resourceVersion"]);
    let (code, status) =
        api.patch(&path, "merge", json!({"metadata": {"finalizers": ["example.com/mine", "example.com/other"]}})).await;
    assert_eq!(code, 422, "{status}");
    let (code, _) = api.patch(&path, "merge", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    assert_eq!(api.get(&path).await.0, 404);
}

#[tokio::test]
async fn preconditions_are_checked() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let path = format!("{CONFIG_MAPS}/a");
    let uid = text(&made["metadata"]["uid"]);
    let (code, status) = api.delete(&path, json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        status["message"],
        format!(
            "Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (other) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        )
    );
    let (code, status) = api.delete(&path, json!({"preconditions": {"resourceVersion": "1"}})).await;
    assert_eq!(code, 409);
    assert!(
        text(&status["message"])
            .contains("the ResourceVersion in the precondition (1) does not match the ResourceVersion in record"),
        "{status}"
    );
    assert_eq!(api.delete(&path, json!({"preconditions": {"uid": uid}})).await.0, 200);
    // An update of an object that was made anew is refused.
    api.created(CONFIG_MAPS, config_map("a")).await;
    let mut old = made.clone();
    old["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let (code, status) = api.put(&path, old).await;
    assert_eq!(code, 409);
    assert!(
        text(&status["message"])
            .contains(&format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ")),
        "{status}"
    );
}

#[tokio::test]
async fn a_running_pod_gets_its_grace() {
    let api = Api::start().await;
    running(&api, "p").await;
    let path = format!("{PODS}/p");
    let (code, going) = api.delete(&path, json!({"gracePeriodSeconds": 20})).await;
    assert_eq!((code, &going["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(20)));
    // It can be made shorter, not longer.
    let (_, going) = api.delete(&path, json!({"gracePeriodSeconds": 60})).await;
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 20);
    let (_, going) = api.delete(&format!("{path}?gracePeriodSeconds=5"), Value::Null).await;
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 5);
    let (code, _) =
        api.delete(&path, json!({"gracePeriodSeconds": 0, "apiVersion": "v1", "kind": "DeleteOptions"})).await;
    assert_eq!(code, 200);
    assert_eq!(api.get(&path).await.0, 404);
    // A pod that nothing runs goes at once.
    api.created(PODS, pod("q")).await;
    let (code, last) = api.delete(&format!("{PODS}/q"), Value::Null).await;
    assert_eq!((code, &last["kind"]), (200, &json!("Pod")));
    assert_eq!(api.get(&format!("{PODS}/q")).await.0, 404);
}

#[tokio::test]
async fn propagation_becomes_a_finalizer() {
    let api = Api::start().await;
    const PATH: &str = "/apis/apps/v1/namespaces/default/deployments";
    for (name, policy, want) in [("f", "Foreground", json!(["foregroundDeletion"])), ("o", "Orphan", json!(["orphan"]))]
    {
        api.created(PATH, deployment(name)).await;
        let (code, going) = api.delete(&format!("{PATH}/{name}"), json!({"propagationPolicy": policy})).await;
        assert_eq!((code, &going["metadata"]["finalizers"]), (200, &want), "{going}");
    }
    api.created(PATH, deployment("b")).await;
    let (code, gone) = api.delete(&format!("{PATH}/b?propagationPolicy=Background"), Value::Null).await;
    assert_eq!((code, &gone["status"]), (200, &json!("Success")));
    api.created(PATH, deployment("b")).await;
    let (code, status) = api.delete(&format!("{PATH}/b"), json!({"propagationPolicy": "Sideways"})).await;
    assert_eq!(code, 422, "{status}");
    let (code, status) =
        api.delete(&format!("{PATH}/b"), json!({"propagationPolicy": "Orphan", "orphanDependents": true})).await;
    assert_eq!(code, 422, "{status}");
    let (code, _) = api.delete(&format!("{PATH}/b"), json!({"gracePeriodSeconds": "soon"})).await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let api = Api::start().await;
    for n in ["a", "b", "c"] {
        let mut c = config_map(n);
        c["metadata"]["labels"] = json!({"keep": if n == "b" { "yes" } else { "no" }});
        api.created(CONFIG_MAPS, c).await;
    }
    let (code, deleted) = api.delete(&format!("{CONFIG_MAPS}?labelSelector=keep%3Dno"), Value::Null).await;
    assert_eq!((code, names(&deleted)), (200, vec!["a".into(), "c".into()]));
    assert_eq!(names(&api.get(CONFIG_MAPS).await.1), ["b"]);
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new() {
    let api = Api::start().await;
    let (code, status) = api.post("/api/v1/namespaces/nowhere/configmaps", config_map("a")).await;
    assert_eq!((code, &status["message"]), (404, &json!("namespaces \"nowhere\" not found")));
    api.created("/api/v1/namespaces", json!({"metadata": {"name": "x"}})).await;
    let path = "/api/v1/namespaces/x";
    api.created("/api/v1/namespaces/x/configmaps", config_map("a")).await;
    let (code, going) = api.delete(path, Value::Null).await;
    assert_eq!((code, &going["status"]["phase"]), (200, &json!("Terminating")));
    let (code, status) = api.post("/api/v1/namespaces/x/configmaps", config_map("b")).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "configmaps \"b\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    assert_eq!(status["details"]["causes"][0]["reason"], "NamespaceTerminating");
    // What is there can still change.
    assert_eq!(api.patch("/api/v1/namespaces/x/configmaps/a", "merge", json!({"data": {"k": "w"}})).await.0, 200);
    let (_, mut now) = api.get(path).await;
    now["spec"]["finalizers"] = json!([]);
    assert_eq!(api.put(&format!("{path}/finalize"), now).await.0, 200);
    assert_eq!(api.get(path).await.0, 404);
    let (code, status) = api.delete("/api/v1/namespaces/default", Value::Null).await;
    assert_eq!(
        (code, &status["message"]),
        (403, &json!("namespaces \"default\" is forbidden: this namespace may not be deleted"))
    );
}

#[tokio::test]
async fn an_eviction_respects_the_budget() {
    let api = Api::start().await;
    running(&api, "p").await;
    // One that is not ready could go while the others are healthy.
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(api.patch(&format!("{PODS}/p/status"), "merge", ready).await.0, 200);
    const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}});
    let made = api.created(BUDGETS, budget).await;
    let status = |allowed: i64| json!({"status": {"observedGeneration": made["metadata"]["generation"], "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    let (code, _) = api.patch(&format!("{BUDGETS}/b/status"), "merge", status(0)).await;
    assert_eq!(code, 200);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let (code, refused) = api.post(&path, eviction.clone()).await;
    assert_eq!((code, &refused["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(refused["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(
        refused["details"]["causes"][0],
        json!({"reason": "DisruptionBudget", "message": "The disruption budget b needs 1 healthy pods and has 1 currently"})
    );
    api.patch(&format!("{BUDGETS}/b/status"), "merge", status(1)).await;
    let (code, done) = api.post(&path, eviction).await;
    assert_eq!((code, &done["status"]), (201, &json!("Success")), "{done}");
    let (_, pod) = api.get(&format!("{PODS}/p")).await;
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    let (_, budget) = api.get(&format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
}
