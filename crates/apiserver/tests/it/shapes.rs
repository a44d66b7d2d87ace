//! The forms in which objects and the API itself are shown.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, pod};

const TABLE: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

#[tokio::test]
async fn tables() {
    let api = Api::start().await;
    api.created(PODS, pod("p")).await;
    let table = api.with("accept", TABLE);
    let (code, list) = table.get(PODS).await;
    assert_eq!((code, &list["kind"], &list["apiVersion"]), (200, &json!("Table"), &json!("meta.k8s.io/v1")));
    let columns: Vec<&str> =
        list["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
    let row = &list["rows"][0];
    assert_eq!((&row["cells"][0], &row["cells"][1], &row["cells"][2]), (&json!("p"), &json!("0/1"), &json!("Pending")));
    assert_eq!(row["cells"].as_array().unwrap().len(), columns.len());
    assert_eq!((&row["object"]["kind"], &row["object"]["spec"]), (&json!("PartialObjectMetadata"), &Value::Null));
    let (_, one) = table.get(&format!("{PODS}/p?includeObject=Object")).await;
    assert_eq!(one["rows"][0]["object"]["spec"]["containers"][0]["name"], "c");
    let (_, none) = table.get(&format!("{PODS}?includeObject=None")).await;
    assert_eq!(none["rows"][0]["object"], Value::Null);
    let (_, page) = table.get(&format!("{PODS}?limit=1")).await;
    assert!(page["metadata"]["resourceVersion"].is_string());
    let (code, status) = table.get(&format!("{PODS}/none")).await;
    assert_eq!((code, &status["kind"]), (404, &json!("Status")));
}

#[tokio::test]
async fn partial_metadata() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    let one = api.with("accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let (_, object) = one.get(&format!("{CONFIG_MAPS}/a")).await;
    assert_eq!(
        (&object["kind"], &object["metadata"]["name"], &object["data"]),
        (&json!("PartialObjectMetadata"), &json!("a"), &Value::Null)
    );
    let many = api.with("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let (_, list) = many.get(CONFIG_MAPS).await;
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("a"))
    );
}

#[tokio::test]
async fn discovery_in_both_forms() {
    let api = Api::start().await;
    let (_, core) = api.get("/api").await;
    assert_eq!((&core["kind"], &core["versions"]), (&json!("APIVersions"), &json!(["v1"])));
    let (_, groups) = api.get("/apis").await;
    let apps = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "apps").unwrap();
    assert_eq!(apps["preferredVersion"], json!({"groupVersion": "apps/v1", "version": "v1"}));
    let (_, list) = api.get("/apis/apps/v1").await;
    let resources = list["resources"].as_array().unwrap();
    let deployments = resources.iter().find(|r| r["name"] == "deployments").unwrap();
    assert_eq!(
        (&deployments["singularName"], &deployments["shortNames"], &deployments["categories"]),
        (&json!("deployment"), &json!(["deploy"]), &json!(["all"]))
    );
    assert!(
        resources
            .iter()
            .any(|r| r["name"] == "deployments/scale" && r["group"] == "autoscaling" && r["kind"] == "Scale")
    );
    let reply = api
        .with("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")
        .send("GET", "/apis", "", "")
        .await;
    assert_eq!(reply.headers["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let apps = reply.body["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
    let deployments =
        apps["versions"][0]["resources"].as_array().unwrap().iter().find(|r| r["resource"] == "deployments").unwrap();
    assert_eq!(
        (&deployments["scope"], &deployments["responseKind"]["kind"]),
        (&json!("Namespaced"), &json!("Deployment"))
    );
    assert_eq!(api.get("/apis/nope").await.0, 404);
    assert_eq!(api.get("/apis/apps/v2").await.0, 404);
}

#[tokio::test]
async fn openapi_documents() {
    let api = Api::start().await;
    let (_, index) = api.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (code, document) = api.get(url).await;
    assert_eq!((code, &document["openapi"]), (200, &json!("3.0.0")));
    let schema = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        schema["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    assert_eq!(api.get("/openapi/v3/apis/nope/v1").await.0, 404);
}

#[tokio::test]
async fn one_object_in_two_versions() {
    let api = Api::start().await;
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "hello", "reason": "R", "type": "Normal", "action": "A",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}, "reportingController": "example.com/c", "reportingInstance": "i",
        "eventTime": "2024-01-01T00:00:00.000000Z",
    });
    const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
    let made = api.created(EVENTS, event).await;
    assert_eq!((&made["apiVersion"], &made["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
    let (_, core) = api.get("/api/v1/namespaces/default/events/e").await;
    assert_eq!(
        (&core["apiVersion"], &core["message"], &core["involvedObject"]["name"]),
        (&json!("v1"), &json!("hello"), &json!("p"))
    );
    let (_, list) = api.get(EVENTS).await;
    assert_eq!((&list["kind"], &list["items"][0]["note"]), (&json!("EventList"), &json!("hello")));
    let mut watch = api.watch(&format!("{EVENTS}?watch=1")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["note"], "hello");

    let hpa = json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
    api.created("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", hpa).await;
    let (_, v2) = api.get("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h").await;
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50, "{v2}");
    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/h";
    let (code, patched) = api.patch(v1, "merge", json!({"spec": {"targetCPUUtilizationPercentage": 60}})).await;
    assert_eq!((code, &patched["spec"]["targetCPUUtilizationPercentage"]), (200, &json!(60)), "{patched}");
}

/// Every stored kind is listed, watched and shown as a table.
#[tokio::test]
async fn every_kind_is_served() {
    let api = Api::start().await;
    for kind in skiff_api::kinds::KINDS.iter().filter(|k| k.is_stored()) {
        let base =
            if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/{}", kind.group, kind.version) };
        let path = format!("{base}/{}", kind.plural);
        let (code, list) = api.get(&path).await;
        assert_eq!((code, list["kind"].as_str()), (200, Some(format!("{}List", kind.kind).as_str())), "{path}");
        let (_, table) = api.with("accept", TABLE).get(&path).await;
        assert!(table["columnDefinitions"].as_array().is_some_and(|c| !c.is_empty()), "{path}");
        let initial = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
        let mut watch = api.watch(&format!("{path}?{initial}")).await;
        while watch.next().await.unwrap()["type"] != "BOOKMARK" {}
    }
}
