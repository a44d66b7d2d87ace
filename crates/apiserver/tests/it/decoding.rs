//! Bad input: what is no object, or not quite.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, deployment, pod};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

#[tokio::test]
async fn garbage_is_refused_with_its_reason() {
    let api = Api::start().await;
    for (ty, body, want) in [
        (
            "application/json",
            "{\"a\": ",
            "couldn't get version/kind; json parse error: unexpected end of JSON input ({\"a\": )",
        ),
        (
            "application/json",
            "{\"a\" 1}",
            "couldn't get version/kind; json parse error: invalid character '1' after object key ({\"a\" 1})",
        ),
        (
            "application/json",
            "[1 2]",
            "couldn't get version/kind; json parse error: invalid character '2' after array element (5b3120325d)",
        ),
        ("application/json", "", "couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"),
        ("application/yaml", "a: [", "yaml"),
    ] {
        let reply = api.send("POST", CONFIG_MAPS, ty, body).await;
        assert_eq!((reply.code, &reply.body["reason"]), (400, &json!("BadRequest")), "{body}");
        let message = reply.body["message"].as_str().unwrap();
        assert!(message.contains(want), "{body}: {message}");
    }
    let reply = api.send("POST", CONFIG_MAPS, "application/json", "[1]").await;
    assert_eq!(reply.code, 400);
    let reply = api.send("PATCH", &format!("{CONFIG_MAPS}/x"), "application/merge-patch+json", "{").await;
    assert_eq!(reply.code, 400, "{}", reply.body);
    let deep = "[".repeat(100_000);
    assert_eq!(api.send("POST", CONFIG_MAPS, "application/json", deep).await.code, 400);
}

#[tokio::test]
async fn an_object_of_another_kind_is_refused() {
    let api = Api::start().await;
    let mut other = config_map("a");
    other["kind"] = "Secret".into();
    let (code, status) = api.post(CONFIG_MAPS, other).await;
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")));
    let mut other = config_map("a");
    other["apiVersion"] = "apps/v1".into();
    let (code, status) = api.post(CONFIG_MAPS, other).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("the API version in the data (apps/v1) does not match the expected API version (v1)"))
    );
}

#[tokio::test]
async fn unknown_and_duplicate_fields() {
    let api = Api::start().await;
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"1","k":"2"},"datta":{}}"#;
    let post = async |validation: &str| {
        api.send("POST", &format!("{CONFIG_MAPS}?dryRun=All{validation}"), "application/json", body).await
    };
    let strict = post("&fieldValidation=Strict").await;
    assert_eq!(strict.code, 400);
    assert_eq!(
        strict.body["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.k\", unknown field \"datta\""
    );
    for warn in [post("").await, post("&fieldValidation=Warn").await] {
        assert_eq!(warn.code, 201);
        assert_eq!(
            warn.warnings(),
            ["299 - \"duplicate field \\\"data.k\\\"\"", "299 - \"unknown field \\\"datta\\\"\""]
        );
        assert_eq!((&warn.body["data"]["k"], &warn.body["datta"]), (&json!("2"), &Value::Null));
    }
    let ignored = post("&fieldValidation=Ignore").await;
    assert_eq!((ignored.code, ignored.warnings().len()), (201, 0));
    assert_eq!(post("&fieldValidation=Maybe").await.code, 422);

    api.created(DEPLOYMENTS, deployment("d")).await;
    let path = format!("{DEPLOYMENTS}/d?fieldValidation=Strict");
    let (code, status) = api.patch(&path, "merge", json!({"spec": {"replica": 3}})).await;
    assert_eq!(
        (code, status["message"].as_str().unwrap().contains("unknown field \"spec.replica\"")),
        (422, true),
        "{status}"
    );
}

#[tokio::test]
async fn wrong_types_are_named_as_upstream_names_them() {
    let api = Api::start().await;
    let mut bad = deployment("d");
    bad["spec"]["replicas"] = "three".into();
    let (code, status) = api.post(DEPLOYMENTS, bad).await;
    assert_eq!(code, 400);
    assert_eq!(
        status["message"],
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let mut bad = pod("p");
    bad["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "lots"}});
    let (code, status) = api.post(PODS, bad).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("quantities must match the regular expression"), "{status}");
    let bad = json!({"metadata": {"name": "s"}, "data": {"a": "!"}});
    let (code, status) = api.post("/api/v1/namespaces/default/secrets", bad).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("illegal base64 data at input byte 0"), "{status}");
}

#[tokio::test]
async fn media_types() {
    let api = Api::start().await;
    let reply = api.send("POST", CONFIG_MAPS, "text/plain", "x").await;
    assert_eq!((reply.code, &reply.body["reason"]), (415, &json!("UnsupportedMediaType")));
    assert_eq!(
        reply.body["message"],
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    api.created(CONFIG_MAPS, config_map("a")).await;
    let reply = api.send("PATCH", &format!("{CONFIG_MAPS}/a"), "application/json", "{}").await;
    assert_eq!(reply.code, 415, "{}", reply.body);
    let reply = api.with("accept", "image/png").send("GET", CONFIG_MAPS, "", "").await;
    assert_eq!((reply.code, &reply.body["reason"]), (406, &json!("NotAcceptable")));
    let reply = api.with("accept", "application/yaml").send("GET", &format!("{CONFIG_MAPS}/a"), "", "").await;
    assert_eq!(reply.headers["content-type"], "application/yaml");
    assert!(reply.body.as_str().unwrap().contains("kind: ConfigMap"));
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: from-yaml\ndata:\n  k: v\n";
    let reply = api.send("POST", CONFIG_MAPS, "application/yaml", yaml).await;
    assert_eq!(reply.code, 201, "{}", reply.body);
}

#[tokio::test]
async fn a_body_that_is_too_large() {
    let api = Api::start().await;
    let mut big = config_map("a");
    big["data"]["k"] = "x".repeat(3 * 1024 * 1024).into();
    let (code, status) = api.post(CONFIG_MAPS, big).await;
    assert_eq!(
        (code, &status["reason"], &status["message"]),
        (413, &json!("RequestEntityTooLarge"), &json!("Request entity too large: limit is 3145728"))
    );
    let mut big = config_map("a");
    big["data"]["k"] = "x".repeat(1024 * 1024 + 1).into();
    let (code, status) = api.post(CONFIG_MAPS, big).await;
    assert_eq!(code, 422, "{}", status["message"]);
    assert!(status["message"].as_str().unwrap().contains("Too long: may not be more than 1048576 bytes"));
}

/// A Namespace `{metadata: {name: "pb"}}` as client libraries send it.
#[tokio::test]
async fn protobuf_bodies_are_understood() {
    let api = Api::start().await;
    let field = |number: u8, content: &[u8]| {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    };
    let type_meta = [field(1, b"v1"), field(2, b"Namespace")].concat();
    let object = field(1, &field(1, b"pb"));
    let body = [b"k8s\0".to_vec(), field(1, &type_meta), field(2, &object)].concat();
    let reply = api.send("POST", "/api/v1/namespaces", "application/vnd.kubernetes.protobuf", body).await;
    assert_eq!((reply.code, &reply.body["metadata"]["name"]), (201, &json!("pb")), "{}", reply.body);
    for garbage in ["k8s\0\u{1}\u{2}", "nope", ""] {
        let reply = api.send("POST", "/api/v1/namespaces", "application/vnd.kubernetes.protobuf", garbage).await;
        assert_eq!(reply.code, 400, "{garbage:?}");
    }
}
