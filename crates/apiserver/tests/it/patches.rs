//! The three types of patches.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, config_map, deployment};

#[tokio::test]
async fn each_type_of_patch_applies() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (code, a) = api
        .patch(
            &path,
            "json",
            json!([{"op": "test", "path": "/data/k", "value": "v"}, {"op": "add", "path": "/data/x", "value": "1"}]),
        )
        .await;
    assert_eq!((code, &a["data"]), (200, &json!({"k": "v", "x": "1"})));
    let (code, a) = api.patch(&path, "merge", json!({"data": {"x": null, "y": "2"}})).await;
    assert_eq!((code, &a["data"]), (200, &json!({"k": "v", "y": "2"})));
    let (code, a) = api.patch(&path, "strategic", json!({"data": {"$patch": "replace", "z": "3"}})).await;
    assert_eq!((code, &a["data"]), (200, &json!({"z": "3"})));
    let (code, same) = api.patch(&path, "merge", json!({})).await;
    assert_eq!((code, &same["metadata"]["resourceVersion"]), (200, &a["metadata"]["resourceVersion"]));
}

#[tokio::test]
async fn lists_merge_by_key() {
    let api = Api::start().await;
    const PATH: &str = "/apis/apps/v1/namespaces/default/deployments";
    api.created(PATH, deployment("d")).await;
    let path = format!("{PATH}/d");
    let containers = json!([{"name": "side", "image": "s"}, {"name": "c", "image": "new"}]);
    let (code, d) =
        api.patch(&path, "strategic", json!({"spec": {"template": {"spec": {"containers": containers}}}})).await;
    assert_eq!(code, 200, "{d}");
    let images = |d: &Value| -> Vec<String> {
        d["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| format!("{}={}", c["name"].as_str().unwrap(), c["image"].as_str().unwrap()))
            .collect()
    };
    let mut merged = images(&d);
    merged.sort();
    assert_eq!(merged, ["c=new", "side=s"]);
    let remove = json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}});
    let (_, d) = api.patch(&path, "strategic", remove).await;
    assert_eq!(images(&d), ["c=new"]);
    let (_, d) = api
        .patch(&path, "merge", json!({"spec": {"template": {"spec": {"containers": [{"name": "x", "image": "y"}]}}}}))
        .await;
    assert_eq!(images(&d), ["x=y"]);
}

#[tokio::test]
async fn patches_that_do_not_apply() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, config_map("a")).await;
    let path = format!("{CONFIG_MAPS}/a");
    for (kind, patch, code) in [
        ("json", json!([{"op": "test", "path": "/data/k", "value": "other"}]), 422),
        ("json", json!([{"op": "remove", "path": "/data/nope"}]), 422),
        ("json", json!({"data": {}}), 400),
        ("json", json!([{"op": "jump", "path": "/data"}]), 400),
        ("merge", json!([]), 400),
        ("merge", json!({"data": {"k": 1}}), 422),
        ("merge", json!({"metadata": {"resourceVersion": "1"}}), 409),
        ("merge", json!({"metadata": {"labels": {"a b": "c"}}}), 422),
        ("strategic", json!([]), 400),
        ("strategic", json!({"data": {"$patch": "sideways"}}), 400),
        ("merge", json!({"kind": "Secret"}), 400),
    ] {
        let (got, status) = api.patch(&path, kind, patch.clone()).await;
        assert_eq!(got, code, "{kind} {patch}: {status}");
    }
    assert_eq!(api.get(&path).await.1, made);
}

#[tokio::test]
async fn patches_of_many_writers_all_count() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let api = api.clone();
            tokio::spawn(async move {
                api.patch(&format!("{CONFIG_MAPS}/a"), "merge", json!({"data": {format!("n{n}"): "1"}})).await.0
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.1["data"].as_object().unwrap().len(), 17);
}
