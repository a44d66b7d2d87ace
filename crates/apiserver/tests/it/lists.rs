//! Lists: pages, selectors, and which state is shown.

use serde_json::{Value, json};
use skiff_store::Revision;

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, names, pod, text};

#[tokio::test]
async fn pages_show_one_revision_while_objects_change() {
    let api = Api::start().await;
    for n in ["a", "b", "c", "d"] {
        api.created(CONFIG_MAPS, config_map(n)).await;
    }
    let (code, first) = api.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!((code, names(&first)), (200, vec!["a".into(), "b".into()]));
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    let token = text(&first["metadata"]["continue"]);
    api.created(CONFIG_MAPS, config_map("bb")).await;
    api.delete(&format!("{CONFIG_MAPS}/c"), Value::Null).await;
    api.patch(&format!("{CONFIG_MAPS}/d"), "merge", json!({"data": {"k": "new"}})).await;

    let (code, second) = api.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await;
    assert_eq!((code, names(&second)), (200, vec!["c".into(), "d".into()]), "{second}");
    assert_eq!(second["items"][1]["data"]["k"], "v");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"]["continue"].is_null() && second["metadata"]["remainingItemCount"].is_null());

    let (code, _) = api.get(&format!("{CONFIG_MAPS}?continue={token}&resourceVersion=1")).await;
    assert_eq!(code, 400);
    for bad in ["nope", "eyJydiI6MX0"] {
        assert_eq!(api.get(&format!("{CONFIG_MAPS}?continue={bad}")).await.0, 400);
    }
    // A token is good for its own resource alone.
    assert_eq!(api.get(&format!("/api/v1/namespaces/default/secrets?continue={token}")).await.0, 400);

    // Once the first page's revision is compacted away the rest can still be had, as it is now.
    api.store.compact(api.store.revision()).await.unwrap();
    let (code, expired) = api.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await;
    assert_eq!((code, &expired["reason"]), (410, &json!("Expired")), "{expired}");
    assert!(
        expired["message"]
            .as_str()
            .unwrap()
            .starts_with("The provided continue parameter is too old to display a consistent list result.")
    );
    let token = text(&expired["metadata"]["continue"]);
    let (code, rest) = api.get(&format!("{CONFIG_MAPS}?continue={token}")).await;
    assert_eq!((code, names(&rest)), (200, vec!["bb".into(), "d".into()]), "{rest}");
}

#[tokio::test]
async fn resource_versions_of_lists() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let then = text(&made["metadata"]["resourceVersion"]);
    api.created(CONFIG_MAPS, config_map("b")).await;
    for (query, want) in [
        ("".to_owned(), vec!["a", "b"]),
        ("?resourceVersion=0".to_owned(), vec!["a", "b"]),
        (format!("?resourceVersion={then}"), vec!["a", "b"]),
        (format!("?resourceVersion={then}&resourceVersionMatch=NotOlderThan"), vec!["a", "b"]),
        (format!("?resourceVersion={then}&resourceVersionMatch=Exact"), vec!["a"]),
    ] {
        let (code, list) = api.get(&format!("{CONFIG_MAPS}{query}")).await;
        assert_eq!(code, 200, "{query}: {list}");
        assert_eq!(names(&list), want, "{query}");
    }
    let (code, list) = api.get(&format!("{CONFIG_MAPS}?resourceVersion={then}&resourceVersionMatch=Exact")).await;
    assert_eq!((code, &list["metadata"]["resourceVersion"]), (200, &json!(then)));
    for (query, want) in [
        ("resourceVersion=x", 400),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=5&resourceVersionMatch=Maybe", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("limit=x", 400),
    ] {
        let (code, status) = api.get(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(code, want, "{query}: {status}");
    }

    let future = api.store.revision().0 + 1000;
    let (code, status) = api.get(&format!("{CONFIG_MAPS}?resourceVersion={future}")).await;
    assert_eq!((code, &status["reason"]), (504, &json!("Timeout")));
    assert_eq!(status["message"], format!("Timeout: Too large resource version: {future}, current: {}", future - 1000));
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");

    api.store.compact(api.store.revision()).await.unwrap();
    let (code, status) = api.get(&format!("{CONFIG_MAPS}?resourceVersion={then}&resourceVersionMatch=Exact")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")), "{status}");
}

#[tokio::test]
async fn selectors() {
    let api = Api::start().await;
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "n1")] {
        let mut p = pod(name);
        p["spec"]["nodeName"] = node.into();
        p["metadata"]["labels"]["tier"] = if name == "c" { "back" } else { "front" }.into();
        api.created(PODS, p).await;
    }
    for (query, want) in [
        ("labelSelector=tier%3Dfront", "a b"),
        ("labelSelector=tier%20notin%20(front)", "c"),
        ("labelSelector=app%20in%20(a,c),tier", "a c"),
        ("labelSelector=!tier", ""),
        ("fieldSelector=spec.nodeName%3Dn1", "a c"),
        ("fieldSelector=metadata.name%3Db", "b"),
        ("fieldSelector=metadata.name!%3Db,spec.nodeName%3Dn1", "a c"),
        ("fieldSelector=status.phase%3DPending&labelSelector=tier%3Dback", "c"),
    ] {
        let (code, list) = api.get(&format!("/api/v1/pods?{query}")).await;
        assert_eq!((code, names(&list).join(" ")), (200, want.to_owned()), "{query}");
    }
    let (code, status) = api.get(&format!("{PODS}?fieldSelector=spec.nope%3D1")).await;
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")), "{status}");
    assert!(status["message"].as_str().unwrap().contains("field label not supported: spec.nope"), "{status}");
    let (code, _) = api.get(&format!("{PODS}?labelSelector=a%3D%3D%3Db")).await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn a_get_may_name_a_revision() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let now = text(&made["metadata"]["resourceVersion"]);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a?resourceVersion={now}")).await.0, 200);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a?resourceVersion=0")).await.0, 200);
    let future = api.store.revision().0 + 1000;
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a?resourceVersion={future}")).await.0, 504);
    assert_ne!(Revision(0), api.store.revision());
}
