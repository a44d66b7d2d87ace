//! Watches: everything once and in order, from where the client wants.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, pod, text};

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[tokio::test]
async fn changes_arrive_in_order() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let from = text(&made["metadata"]["resourceVersion"]);
    let mut after = api.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}")).await;
    let mut all = api.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    let mut old = api.watch("/api/v1/watch/namespaces/default/configmaps").await;
    let mut one = api.watch("/api/v1/watch/namespaces/default/configmaps/b").await;
    let mut named =
        api.watch(&format!("{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3Db&resourceVersion={from}")).await;
    api.created(CONFIG_MAPS, config_map("b")).await;
    api.patch(&format!("{CONFIG_MAPS}/a"), "merge", json!({"data": {"k": "w"}})).await;
    let (_, last) = api.get(&format!("{CONFIG_MAPS}/a")).await;
    api.delete(&format!("{CONFIG_MAPS}/a"), Value::Null).await;
    for watch in [&mut all, &mut old] {
        assert_eq!(watch.seen().await, pair("ADDED", "a"));
    }
    for watch in [&mut after, &mut all, &mut old] {
        assert_eq!(watch.seen().await, pair("ADDED", "b"));
        assert_eq!(watch.seen().await, pair("MODIFIED", "a"));
        let gone = watch.next().await.unwrap();
        assert_eq!(gone["type"], "DELETED");
        assert_eq!(gone["object"]["data"]["k"], "w");
        // The last state carries the revision of the deletion.
        let revision = |v: &Value| text(&v["metadata"]["resourceVersion"]).parse::<u64>().unwrap();
        assert!(revision(&gone["object"]) > revision(&last));
    }
    for watch in [&mut one, &mut named] {
        assert_eq!(watch.seen().await, pair("ADDED", "b"));
    }
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_for_the_watcher() {
    let api = Api::start().await;
    let mut watch = api.watch(&format!("{PODS}?watch=1&labelSelector=app%3Da")).await;
    api.created(PODS, pod("a")).await;
    api.created(PODS, pod("b")).await;
    for (name, app) in [("a", "z"), ("b", "a")] {
        let (code, status) =
            api.patch(&format!("{PODS}/{name}"), "merge", json!({"metadata": {"labels": {"app": app}}})).await;
        assert_eq!(code, 200, "{status}");
    }
    assert_eq!(watch.seen().await, pair("ADDED", "a"));
    assert_eq!(watch.seen().await, pair("DELETED", "a"));
    assert_eq!(watch.seen().await, pair("ADDED", "b"));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = api.watch(&path).await;
    assert_eq!(watch.seen().await, pair("ADDED", "a"));
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(text(&mark["object"]["metadata"]["resourceVersion"]), api.store.revision().0.to_string());
    api.created(CONFIG_MAPS, config_map("b")).await;
    assert_eq!(watch.seen().await, pair("ADDED", "b"));
    let (code, status) = api.get(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
}

#[tokio::test]
async fn a_start_that_is_compacted_away_ends_with_410() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let from = text(&made["metadata"]["resourceVersion"]);
    for n in 0..1100 {
        api.patch(&format!("{CONFIG_MAPS}/a"), "merge", json!({"data": {"n": n.to_string()}})).await;
    }
    // What the cache has forgotten comes from the store.
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}");
    let mut watch = api.watch(&path).await;
    for n in 0..1100 {
        let event = watch.next().await.unwrap();
        assert_eq!((&event["type"], text(&event["object"]["data"]["n"])), (&json!("MODIFIED"), n.to_string()));
    }
    api.store.compact(api.store.revision()).await.unwrap();
    let mut watch = api.watch(&path).await;
    let error = watch.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"], &error["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert!(text(&error["object"]["message"]).starts_with(&format!("too old resource version: {from} (")), "{error}");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_ends_in_time() {
    let api = Api::start().await;
    let mut watch =
        api.watch(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1&resourceVersion={}", api.store.revision().0)).await;
    assert_eq!(watch.next().await, None);
    let future = api.store.revision().0 + 1000;
    let (code, _) = api.get(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={future}&timeoutSeconds=1")).await;
    assert_eq!(code, 504);
}

#[tokio::test]
async fn tables_and_metadata_are_watched() {
    let api = Api::start().await;
    api.created(PODS, pod("a")).await;
    let table = api.with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let mut watch = table.watch(&format!("{PODS}?watch=1")).await;
    let first = watch.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    api.created(PODS, pod("b")).await;
    let second = watch.next().await.unwrap();
    assert_eq!(
        (&second["object"]["columnDefinitions"], &second["object"]["rows"][0]["cells"][0]),
        (&json!(null), &json!("b")),
        "{second}"
    );

    let partial = api.with("accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
    let mut watch = partial.watch(&format!("{PODS}?watch=1")).await;
    let first = watch.next().await.unwrap();
    assert_eq!((&first["object"]["kind"], &first["object"]["spec"]), (&json!("PartialObjectMetadata"), &Value::Null));
}
