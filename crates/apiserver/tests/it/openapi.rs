//! OpenAPI v2 and v3 as clients get them.

use crate::api::Api;

#[tokio::test]
async fn version_2_has_every_kind_and_refers_to_nothing_else() {
    let api = Api::start().await;
    let (code, document) = api.get("/openapi/v2").await;
    assert_eq!((code, document["swagger"].as_str()), (200, Some("2.0")));
    let pod = &document["definitions"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    let containers = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        (&containers["x-kubernetes-patch-merge-key"], &containers["x-kubernetes-patch-strategy"]),
        (&"name".into(), &"merge".into())
    );
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    let text = document.to_string();
    for reference in text.split("#/definitions/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["definitions"].get(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn version_2_comes_as_protobuf_to_those_who_ask() {
    let api = Api::start().await;
    let asked = api.with("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf");
    let reply = asked.send("GET", "/openapi/v2", "", "").await;
    assert_eq!(reply.code, 200);
    assert_eq!(reply.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    let other = api.with("accept", "text/html").send("GET", "/openapi/v2", "", "").await;
    assert_eq!(other.code, 406);
}
