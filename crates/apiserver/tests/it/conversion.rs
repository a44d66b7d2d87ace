//! Versions of a custom kind that only a webhook knows how to convert.

use serde_json::{Value, json};

use crate::{
    api::{Api, names, text},
    custom::define,
    hook_server::HookServer,
};

const HOSTS: &str = "/namespaces/default/hosts";

fn definition(server: &HookServer, storage: &str) -> Value {
    let version = |name: &str, fields: &[&str]| {
        let mut properties = json!({});
        for field in fields {
            properties[field] = json!({"type": "string"});
        }
        let subresources = json!({"status": {}});
        json!({"name": name, "served": true, "storage": name == storage, "subresources": subresources,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}})
    };
    json!({"metadata": {"name": "hosts.test.io"}, "spec": {
        "group": "test.io", "scope": "Namespaced", "names": {"plural": "hosts", "kind": "Host"},
        "versions": [version("v1", &["hostPort"]), version("v2", &["host", "port"])],
        "conversion": {"strategy": "Webhook", "webhook": {
            "conversionReviewVersions": ["v1"], "clientConfig": server.client_config("/convert"),
        }},
    }})
}

/// `hostPort` in v1 is `host` and `port` in v2; the word `bad` in it is refused.
fn convert(_: &str, review: Value) -> (u16, String) {
    let request = &review["request"];
    let wanted = text(&request["desiredAPIVersion"]);
    let mut response = json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": []});
    for object in request["objects"].as_array().unwrap() {
        let mut object = object.clone();
        object["apiVersion"] = wanted.as_str().into();
        let map = object.as_object_mut().unwrap();
        if let Some(both) = map.remove("hostPort") {
            let both = text(&both);
            if both.contains("bad") {
                response["result"] = json!({"status": "Failure", "message": "that is bad"});
            }
            let (host, port) = both.split_once(':').unwrap_or((&both, ""));
            map.insert("host".into(), host.into());
            map.insert("port".into(), port.into());
            map.insert("unknown".into(), 1.into());
        } else if let (Some(host), Some(port)) = (map.remove("host"), map.remove("port")) {
            map.insert("hostPort".into(), format!("{}:{}", text(&host), text(&port)).into());
        }
        response["convertedObjects"].as_array_mut().unwrap().push(object);
    }
    (200, json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response}).to_string())
}

fn path(version: &str) -> String {
    format!("/apis/test.io/{version}{HOSTS}")
}

#[tokio::test]
async fn objects_are_read_and_written_in_both_versions() {
    let (api, server) = (Api::start().await, HookServer::start(convert).await);
    define(&api, definition(&server, "v1")).await;
    let v1 = json!({"apiVersion": "test.io/v1", "kind": "Host", "metadata": {"name": "a"}, "hostPort": "x:1"});
    api.created(&path("v1"), v1).await;
    assert!(server.take().is_empty(), "nothing was to be converted");
    let mut watch = api.watch(&format!("{}?watch=true", path("v2"))).await;
    let first = watch.next().await.unwrap();
    assert_eq!((&first["object"]["host"], &first["object"]["apiVersion"]), (&json!("x"), &json!("test.io/v2")));
    let v2 = json!({"apiVersion": "test.io/v2", "kind": "Host", "metadata": {"name": "b"}, "host": "y", "port": "2"});
    let made = api.created(&path("v2"), v2).await;
    assert_eq!((&made["host"], &made["hostPort"], &made["unknown"]), (&json!("y"), &Value::Null, &Value::Null));
    assert_eq!(watch.next().await.unwrap()["object"]["port"], "2");
    let (_, read) = api.get(&format!("{}/b", path("v1"))).await;
    assert_eq!(read["hostPort"], "y:2");
    // An update in the version that is not stored.
    let (code, changed) = api.patch(&format!("{}/a", path("v2")), "merge", json!({"port": "3"})).await;
    assert_eq!((code, &changed["host"], &changed["port"]), (200, &json!("x"), &json!("3")), "{changed}");
    let revision = changed["metadata"]["resourceVersion"].clone();
    let (_, same) = api.patch(&format!("{}/a", path("v2")), "merge", json!({"port": "3"})).await;
    assert_eq!(same["metadata"]["resourceVersion"], revision, "nothing was changed");
    assert_eq!(api.get(&format!("{}/a", path("v1"))).await.1["hostPort"], "x:3");
    // What is stored in two versions is listed in one, for one question.
    let storage = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/hosts.test.io";
    assert_eq!(api.patch(crd, "json", storage).await.0, 200);
    let v2 = json!({"apiVersion": "test.io/v2", "kind": "Host", "metadata": {"name": "c"}, "host": "z", "port": "4"});
    api.created(&path("v2"), v2).await;
    server.take();
    let (_, list) = api.get(&path("v2")).await;
    assert_eq!(names(&list), ["a", "b", "c"]);
    let ports: Vec<String> = list["items"].as_array().unwrap().iter().map(|i| text(&i["port"])).collect();
    assert_eq!(ports, ["3", "2", "4"]);
    let asked = server.take();
    assert_eq!((asked.len(), asked[0].1["request"]["objects"].as_array().map(Vec::len)), (1, Some(2)));
    assert_eq!(api.delete(&format!("{}/a", path("v1")), Value::Null).await.0, 200);
}

#[tokio::test]
async fn failures_are_told() {
    let (api, server) = (Api::start().await, HookServer::start(convert).await);
    let mut bad = definition(&server, "v1");
    bad["spec"]["conversion"]["webhook"]["conversionReviewVersions"] = json!([]);
    let (code, status) = api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", bad).await;
    assert_eq!(code, 422);
    assert!(text(&status["message"]).contains("spec.conversion.conversionReviewVersions: Required value"), "{status}");
    define(&api, definition(&server, "v1")).await;
    let v1 = json!({"apiVersion": "test.io/v1", "kind": "Host", "metadata": {"name": "a"}, "hostPort": "bad:1"});
    api.created(&path("v1"), v1).await;
    let (code, status) = api.get(&format!("{}/a", path("v2"))).await;
    assert_eq!(code, 500);
    assert_eq!(
        status["message"],
        "Internal error occurred: conversion webhook for test.io/v1, Kind=Host failed: that is bad"
    );
    // Those who need no version can go on.
    let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    assert_eq!(api.with("accept", metadata).get(&path("v2")).await.0, 200);
    drop(server);
    let (code, status) = api.get(&path("v2")).await;
    assert_eq!(code, 500, "{status}");
    assert!(text(&status["message"]).contains("failed: Post \"https://127.0.0.1:"), "{status}");
}
