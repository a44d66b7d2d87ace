//! Create, read, update, and the rules that hold for objects of every kind.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, config_map, deployment};

#[tokio::test]
async fn an_object_lives_and_dies() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let meta = &made["metadata"];
    assert_eq!((&meta["namespace"], &made["kind"]), (&json!("default"), &json!("ConfigMap")));
    assert!(meta["uid"].is_string() && meta["creationTimestamp"].is_string() && meta["resourceVersion"].is_string());
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(api.get(&path).await, (200, made.clone()));

    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let (code, updated) = api.put(&path, changed.clone()).await;
    assert_eq!((code, &updated["data"]["k"]), (200, &json!("w")));
    assert_ne!(updated["metadata"]["resourceVersion"], meta["resourceVersion"]);

    let (code, status) = api.put(&path, changed).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    assert_eq!(
        (&status["reason"], &status["details"]),
        (&json!("Conflict"), &json!({"name": "a", "kind": "configmaps"}))
    );

    // Writing what is there already is no change.
    let (code, same) = api.put(&path, updated.clone()).await;
    assert_eq!((code, same), (200, updated));

    let (code, gone) = api.delete(&path, Value::Null).await;
    assert_eq!((code, &gone["status"], &gone["details"]["uid"]), (200, &json!("Success"), &meta["uid"]));
    let (code, status) = api.get(&path).await;
    assert_eq!((code, &status["message"]), (404, &json!("configmaps \"a\" not found")));
    assert_eq!(api.delete(&path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn what_is_there_cannot_be_created() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let (code, status) = api.post(CONFIG_MAPS, config_map("a")).await;
    assert_eq!(
        (code, &status["reason"], &status["message"]),
        (409, &json!("AlreadyExists"), &json!("configmaps \"a\" already exists"))
    );
    let mut again = config_map("b");
    again["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    let (code, status) = api.post(CONFIG_MAPS, again).await;
    assert_eq!((code, &status["message"]), (500, &json!("resourceVersion should not be set on objects to be created")));
}

#[tokio::test]
async fn what_is_not_there_cannot_be_updated() {
    let api = Api::start().await;
    let (code, status) = api.put(&format!("{CONFIG_MAPS}/a"), config_map("a")).await;
    assert_eq!((code, &status["message"]), (404, &json!("configmaps \"a\" not found")));
    let (code, _) = api.patch(&format!("{CONFIG_MAPS}/a"), "merge", json!({"data": {}})).await;
    assert_eq!(code, 404);
    // A lease is made by an update of it.
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "x"}});
    let (code, _) = api.put("/apis/coordination.k8s.io/v1/namespaces/default/leases/l", lease).await;
    assert_eq!(code, 201);
}

#[tokio::test]
async fn names_of_body_and_path_must_agree() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (code, status) = api.put(&path, config_map("b")).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("the name of the object (b) does not match the name on the URL (a)"))
    );
    let (code, status) = api.put(&path, json!({"data": {}})).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("the name of the object (a based on URL) was undeterminable: name must be provided"))
    );
    let mut other = config_map("a");
    other["metadata"]["namespace"] = "kube-system".into();
    for (code, status) in [api.put(&path, other.clone()).await, api.post(CONFIG_MAPS, other.clone()).await] {
        assert_eq!(code, 400);
        assert_eq!(
            status["message"],
            "the namespace of the provided object does not match the namespace sent on the request"
        );
    }
    let (code, status) = api.patch(&path, "merge", json!({"metadata": {"name": "b"}})).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("the name of the object (b) does not match the name on the URL (a)"))
    );
}

#[tokio::test]
async fn bad_names_and_labels_are_listed_one_by_one() {
    let api = Api::start().await;
    let mut bad = config_map("Bad_Name");
    bad["metadata"]["labels"] = json!({"a b": "c d"});
    let (code, status) = api.post(CONFIG_MAPS, bad).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("ConfigMap \"Bad_Name\" is invalid: [metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of"), "{message}");
    let causes = status["details"]["causes"].as_array().unwrap();
    assert_eq!(causes.len(), 3, "{causes:?}");
    assert!(causes.iter().all(|c| c["reason"] == "FieldValueInvalid"), "{causes:?}");
    let (code, status) = api.post(CONFIG_MAPS, json!({"metadata": {}})).await;
    assert_eq!(
        (code, &status["message"]),
        (422, &json!("ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"))
    );
    let generated = api.created(CONFIG_MAPS, json!({"metadata": {"generateName": "x-"}})).await;
    assert!(generated["metadata"]["name"].as_str().unwrap().starts_with("x-"));
    let (code, status) = api.post(CONFIG_MAPS, json!({"metadata": {"name": "a", "finalizers": ["mine"]}})).await;
    assert_eq!(code, 422, "{status}");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let api = Api::start().await;
    let before = api.store.revision();
    let (code, made) = api.post(&format!("{CONFIG_MAPS}?dryRun=All"), config_map("a")).await;
    assert_eq!(code, 201);
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["resourceVersion"].is_null());
    assert_eq!(api.store.revision(), before);
    api.created(CONFIG_MAPS, config_map("a")).await;
    assert_eq!(api.post(&format!("{CONFIG_MAPS}?dryRun=All"), config_map("a")).await.0, 409);
    let before = api.store.revision();
    let path = format!("{CONFIG_MAPS}/a");
    let (code, patched) = api.patch(&format!("{path}?dryRun=All"), "merge", json!({"data": {"k": "w"}})).await;
    assert_eq!((code, &patched["data"]["k"]), (200, &json!("w")));
    assert_eq!(api.delete(&format!("{path}?dryRun=All"), Value::Null).await.0, 200);
    assert_eq!(api.delete(&path, json!({"dryRun": ["All"]})).await.0, 200);
    assert_eq!(api.store.revision(), before);
    let (code, status) = api.post(&format!("{CONFIG_MAPS}?dryRun=Some"), config_map("b")).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let api = Api::start().await;
    const PATH: &str = "/apis/apps/v1/namespaces/default/deployments";
    let mut wanted = deployment("d");
    wanted["status"] = json!({"replicas": 7});
    let made = api.created(PATH, wanted).await;
    assert_eq!((&made["status"]["replicas"], &made["metadata"]["generation"]), (&Value::Null, &json!(1)));
    let path = format!("{PATH}/d");
    let mut change = made.clone();
    change["status"]["replicas"] = 3.into();
    change["spec"]["replicas"] = 5.into();
    let (_, updated) = api.put(&path, change.clone()).await;
    assert_eq!((&updated["spec"]["replicas"], &updated["status"]["replicas"]), (&json!(5), &Value::Null));
    assert_eq!(updated["metadata"]["generation"], 2);
    change["metadata"]["resourceVersion"] = updated["metadata"]["resourceVersion"].clone();
    change["spec"]["replicas"] = 9.into();
    let (code, updated) = api.put(&format!("{path}/status"), change).await;
    assert_eq!(
        (code, &updated["spec"]["replicas"], &updated["status"]["replicas"]),
        (200, &json!(5), &json!(3)),
        "{updated}"
    );
    assert_eq!(updated["metadata"]["generation"], 2);
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let api = Api::start().await;
    api.created("/apis/apps/v1/namespaces/default/deployments", deployment("d")).await;
    const PATH: &str = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let (code, mut scale) = api.get(PATH).await;
    assert_eq!(
        (code, &scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (200, &json!("Scale"), &json!(1), &json!("app=d"))
    );
    scale["spec"]["replicas"] = 4.into();
    assert_eq!(api.put(PATH, scale.clone()).await.0, 200);
    assert_eq!(api.put(PATH, scale).await.0, 409);
    let (code, scale) = api.patch(PATH, "merge", json!({"spec": {"replicas": 2}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(2)));
    let (code, status) = api.patch(PATH, "merge", json!({"spec": {"replicas": -1}})).await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(api.get("/apis/apps/v1/namespaces/default/deployments/d").await.1["spec"]["replicas"], 2);
}

#[tokio::test]
async fn paths_that_lead_nowhere() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    for path in [
        "/api/v1/namespaces/default/gadgets",
        "/apis/apps/v9/deployments",
        &format!("{CONFIG_MAPS}/a/nope"),
        "/api/v1/namespaces/default/pods/x/nope",
    ] {
        let (code, status) = api.get(path).await;
        assert_eq!((code, &status["reason"]), (404, &json!("NotFound")), "{path}");
        assert_eq!(status["message"], "the server could not find the requested resource", "{path}");
    }
    let (code, paths) = api.get("/nope").await;
    assert_eq!(code, 404);
    assert!(paths["paths"].as_array().is_some_and(|p| p.contains(&json!("/api/v1"))), "{paths}");
    for (method, path) in [
        ("PUT", CONFIG_MAPS),
        ("POST", "/api/v1/namespaces/default/configmaps/a"),
        ("DELETE", "/api/v1/namespaces"),
        ("POST", "/api/v1/pods"),
        ("GET", "/api/v1/namespaces/default/pods/x/binding"),
    ] {
        let reply = api.send(method, path, "application/json", "{}").await;
        assert_eq!(
            (reply.code, &reply.body["reason"]),
            (405, &json!("MethodNotAllowed")),
            "{method} {path}: {}",
            reply.body
        );
    }
    for path in ["/", "/version", "/livez", "/readyz", "/healthz", "/metrics", "/api", "/apis", "/openapi/v3"] {
        assert_eq!(api.get(path).await.0, 200, "{path}");
    }
    assert_eq!(api.get("/readyz?verbose").await.0, 200);
}
