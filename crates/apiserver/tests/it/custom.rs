//! Custom kinds: definitions, what they bring, and their objects.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use skiff_store::memory::MemoryStore;

use crate::api::{Api, names};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CRS: &str = "/apis/database.example.com/v1/namespaces/default/postgresqls";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "postgresqls.database.example.com"},
        "spec": {
            "group": "database.example.com", "scope": "Namespaced",
            "names": {"plural": "postgresqls", "singular": "postgresql", "kind": "PostgreSQL", "shortNames": ["pg"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [{"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
                "selectableFields": [{"jsonPath": ".spec.version"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["version"], "x-kubernetes-validations": [
                        {"rule": "self.replicas != 4", "message": "four is no number of replicas"}], "properties": {
                        "version": {"type": "string", "enum": ["12", "13", "14", "15"], "description": "The version to run."},
                        "replicas": {"type": "integer", "minimum": 1, "maximum": 5, "default": 1},
                        "storage": {"type": "string", "pattern": "^[0-9]+[MGT]i"},
                    }},
                    "status": {"type": "object", "properties": {"phase": {"type": "string"}, "replicas": {"type": "integer"}}},
                }}},
            }],
        },
    })
}

fn object(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "database.example.com/v1", "kind": "PostgreSQL", "metadata": {"name": name}, "spec": spec})
}

fn condition(definition: &Value, ty: &str) -> Value {
    let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == ty).unwrap_or_default()
}

/// Waits until a path answers as it should.
pub(crate) async fn until(api: &Api, path: &str, good: impl Fn(u16, &Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let (code, body) = api.get(path).await;
        if good(code, &body) {
            return body;
        }
        assert!(tokio::time::Instant::now() < deadline, "{code} {body}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn define(api: &Api, definition: Value) -> Value {
    let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
    api.created(CRDS, definition).await;
    until(api, &format!("{CRDS}/{name}"), |_, d| condition(d, "Established")["status"] == "True").await
}

#[tokio::test]
async fn a_definition_brings_a_kind() {
    let api = Api::start().await;
    assert_eq!(api.get(CRS).await.0, 404);
    let made = define(&api, definition()).await;
    assert_eq!(condition(&made, "NamesAccepted")["reason"], "NoConflicts");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["status"]["acceptedNames"]["listKind"], "PostgreSQLList");

    let created = api.created(CRS, object("a", json!({"version": "14"}))).await;
    assert_eq!((&created["spec"]["replicas"], &created["metadata"]["generation"]), (&json!(1), &json!(1)));
    let (_, list) = api.get(CRS).await;
    assert_eq!((&list["kind"], names(&list)), (&json!("PostgreSQLList"), vec!["a".to_owned()]));
    let (_, selected) = api.get(&format!("{CRS}?fieldSelector=spec.version%3D13")).await;
    assert_eq!(names(&selected), Vec::<String>::new());
    let table = api.with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io").send("GET", CRS, "", "").await;
    assert_eq!(table.body["rows"][0]["cells"], json!(["a", 1]));

    let (_, resources) = api.get("/apis/database.example.com/v1").await;
    assert_eq!(resources["resources"][0]["shortNames"], json!(["pg"]));
    let (_, groups) = api.get("/apis").await;
    assert!(groups.to_string().contains("database.example.com"));
    let (_, document) = api.get("/openapi/v3/apis/database.example.com/v1").await;
    let schema = &document["components"]["schemas"]["com.example.database.v1.PostgreSQL"];
    assert_eq!(schema["properties"]["spec"]["properties"]["version"]["description"], "The version to run.");
    let (_, v2) = api.get("/openapi/v2").await;
    assert_eq!(
        v2["definitions"]["com.example.database.v1.PostgreSQL"]["x-kubernetes-group-version-kind"][0]["kind"],
        "PostgreSQL"
    );
}

#[tokio::test]
async fn objects_are_checked_by_their_schema() {
    let api = Api::start().await;
    define(&api, definition()).await;
    let (code, status) = api.post(CRS, object("a", json!({"version": "16", "replicas": 9, "storage": "x"}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        status["message"],
        "PostgreSQL.database.example.com \"a\" is invalid: [spec.version: Unsupported value: \"16\": supported values: \"12\", \"13\", \"14\", \"15\", spec.replicas: Invalid value: 9: spec.replicas in body should be less than or equal to 5, spec.storage: Invalid value: \"x\": spec.storage in body should match '^[0-9]+[MGT]i']"
    );
    let (code, status) = api.post(CRS, object("a", json!({"version": "14", "replicas": 4}))).await;
    assert_eq!(code, 422);
    assert!(
        status["message"].as_str().unwrap().ends_with("spec: Invalid value: \"object\": four is no number of replicas")
    );

    let unknown = object("a", json!({"version": "14", "colour": "blue"}));
    let (code, status) = api.post(&format!("{CRS}?fieldValidation=Strict"), unknown.clone()).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("strict decoding error: unknown field \"spec.colour\""));
    let reply = api.send("POST", CRS, "application/json", unknown.to_string()).await;
    assert_eq!((reply.code, reply.warnings().len()), (201, 1));
    assert!(reply.body["spec"]["colour"].is_null());
}

#[tokio::test]
async fn patches_status_and_scale() {
    let api = Api::start().await;
    define(&api, definition()).await;
    api.created(CRS, object("a", json!({"version": "14"}))).await;
    let path = format!("{CRS}/a");
    let (code, _) = api.patch(&path, "strategic", json!({"spec": {"replicas": 2}})).await;
    assert_eq!(code, 415);
    let (code, patched) = api.patch(&path, "merge", json!({"spec": {"replicas": 2}, "status": {"phase": "no"}})).await;
    assert_eq!((code, &patched["spec"]["replicas"], &patched["status"]), (200, &json!(2), &Value::Null));
    assert_eq!(patched["metadata"]["generation"], 2);
    let change = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(api.patch(&path, "json", change).await.1["spec"]["replicas"], 3);
    let (code, object) = api
        .patch(
            &format!("{path}/status"),
            "merge",
            json!({"spec": {"replicas": 5}, "status": {"phase": "Running", "replicas": 3}}),
        )
        .await;
    assert_eq!((code, &object["spec"]["replicas"], &object["status"]["phase"]), (200, &json!(3), &json!("Running")));
    assert_eq!(object["metadata"]["generation"], 3);
    let (_, scale) = api.get(&format!("{path}/scale")).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(3), &json!(3)));
    let (code, scale) = api.patch(&format!("{path}/scale"), "merge", json!({"spec": {"replicas": 5}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(5)));
    // Argo CD takes a field away so; one with a default gets that.
    let nulls = json!([
        {"op": "add", "path": "/status", "value": null},
        {"op": "add", "path": "/spec/replicas", "value": null},
        {"op": "add", "path": "/spec/storage", "value": null},
    ]);
    let (code, patched) = api.patch(&path, "json", nulls).await;
    assert_eq!((code, &patched["spec"]), (200, &json!({"version": "14", "replicas": 1})), "{patched}");
}

#[tokio::test]
async fn watches_see_objects_and_their_end() {
    let api = Api::start().await;
    define(&api, definition()).await;
    let mut watch = api.watch(&format!("{CRS}?watch=true")).await;
    api.created(CRS, object("a", json!({"version": "14"}))).await;
    assert_eq!(watch.seen().await, ("ADDED".into(), "a".into()));
    let crd = format!("{CRDS}/postgresqls.database.example.com");
    let (code, going) = api.delete(&crd, Value::Null).await;
    assert_eq!((code, &going["metadata"]["finalizers"]), (200, &json!(["customresourcecleanup.apiextensions.k8s.io"])));
    assert_eq!(watch.seen().await, ("DELETED".into(), "a".into()));
    until(&api, &crd, |code, _| code == 404).await;
    assert_eq!(api.get(CRS).await.0, 404);
    // The same kind made again has none of the old objects.
    define(&api, definition()).await;
    assert_eq!(names(&api.get(CRS).await.1), Vec::<String>::new());
}

#[tokio::test]
async fn kinds_survive_a_restart() {
    let store = Arc::new(MemoryStore::new());
    let api = Api::on(store.clone()).await;
    define(&api, definition()).await;
    api.created(CRS, object("a", json!({"version": "14"}))).await;
    assert!(store_has(&api, "/registry/database.example.com/postgresqls/default/a").await);
    // What `Api::on` makes in every new cluster is there already.
    api.delete("/api/v1/namespaces/default/serviceaccounts/default", Value::Null).await;
    drop(api);
    let again = Api::on(store).await;
    let (code, list) = again.get(CRS).await;
    assert_eq!((code, names(&list)), (200, vec!["a".to_owned()]));
}

async fn store_has(api: &Api, key: &str) -> bool {
    let end = format!("{key}\u{0}");
    !api.store.range(key..end.as_str(), None, 0).await.unwrap().kvs.is_empty()
}

#[tokio::test]
async fn versions_share_their_objects() {
    let api = Api::start().await;
    let mut two = definition();
    let mut beta = two["spec"]["versions"][0].clone();
    beta["name"] = "v1beta1".into();
    beta["storage"] = false.into();
    two["spec"]["versions"].as_array_mut().unwrap().push(beta);
    define(&api, two).await;
    let old = "/apis/database.example.com/v1beta1/namespaces/default/postgresqls";
    let mut made = object("a", json!({"version": "14"}));
    made["apiVersion"] = "database.example.com/v1beta1".into();
    assert_eq!(api.created(old, made).await["apiVersion"], "database.example.com/v1beta1");
    assert_eq!(api.get(&format!("{CRS}/a")).await.1["apiVersion"], "database.example.com/v1");
    let (_, group) = api.get("/apis/database.example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let (code, patched) = api.patch(&format!("{old}/a"), "merge", json!({"spec": {"replicas": 2}})).await;
    assert_eq!((code, &patched["apiVersion"]), (200, &json!("database.example.com/v1beta1")));
    // What only a webhook could convert is not shown in a version that it is not in.
    let webhook = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:1/"}}}}});
    let (code, said) = api.patch(&format!("{CRDS}/postgresqls.database.example.com"), "merge", webhook).await;
    assert_eq!(code, 200, "{said}");
    assert_eq!((api.get(old).await.0, api.get(CRS).await.0), (500, 200));
}

#[tokio::test]
async fn names_belong_to_one_kind() {
    let api = Api::start().await;
    define(&api, definition()).await;
    let mut other = definition();
    other["metadata"]["name"] = "others.database.example.com".into();
    other["spec"]["names"] = json!({"plural": "others", "kind": "Other", "shortNames": ["pg"]});
    api.created(CRDS, other).await;
    let path = format!("{CRDS}/others.database.example.com");
    let refused = until(&api, &path, |_, d| condition(d, "NamesAccepted")["status"] == "False").await;
    assert_eq!(condition(&refused, "NamesAccepted")["reason"], "ShortNamesConflict");
    assert_eq!(api.get("/apis/database.example.com/v1/others").await.0, 404);
    // It gets them when they are free.
    api.delete(&format!("{CRDS}/postgresqls.database.example.com"), Value::Null).await;
    until(&api, &path, |_, d| condition(d, "Established")["status"] == "True").await;
}

#[tokio::test]
async fn a_new_default_shows_in_old_objects() {
    let api = Api::start().await;
    let mut before = definition();
    before["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["replicas"] =
        json!({"type": "integer"});
    define(&api, before).await;
    let mut watch = api.watch(&format!("{CRS}?watch=true")).await;
    let made = api.created(CRS, object("a", json!({"version": "14", "replicas": 2}))).await;
    assert!(made["spec"]["storage"].is_null());
    assert_eq!(watch.seen().await.0, "ADDED");
    let storage = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/storage/default";
    let crd = format!("{CRDS}/postgresqls.database.example.com");
    let (code, changed) = api.patch(&crd, "json", json!([{"op": "add", "path": storage, "value": "1Gi"}])).await;
    assert_eq!(code, 200, "{changed}");
    assert_eq!(api.get(&format!("{CRS}/a")).await.1["spec"]["storage"], "1Gi");
    assert_eq!(api.get(CRS).await.1["items"][0]["spec"]["storage"], "1Gi");
    // Written once, it stays when the default goes.
    api.patch(&format!("{CRS}/a"), "merge", json!({"spec": {"replicas": 3}})).await;
    api.patch(&crd, "json", json!([{"op": "remove", "path": storage}])).await;
    assert_eq!(api.get(&format!("{CRS}/a")).await.1["spec"]["storage"], "1Gi");
}

#[tokio::test]
async fn bad_definitions_are_refused() {
    let api = Api::start().await;
    let mut bad = definition();
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"] = Value::Null;
    let (code, status) = api.post(CRDS, bad).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains(
        "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields"
    ), "{status}");
}
