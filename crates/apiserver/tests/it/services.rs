//! Addresses and node ports of Services.

use serde_json::{Value, json};

use crate::api::{Api, text};

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut s = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    for (k, v) in spec.as_object().unwrap() {
        s["spec"][k] = v.clone();
    }
    s
}

#[tokio::test]
async fn addresses_are_unique() {
    let api = Api::start().await;
    let a = api.created(SERVICES, service("a", json!({}))).await;
    let ip = text(&a["spec"]["clusterIP"]);
    assert!(ip.starts_with("10.96.0."), "{ip}");
    assert_eq!(
        (&a["spec"]["clusterIPs"], &a["spec"]["type"], &a["spec"]["ipFamilies"]),
        (&json!([ip]), &json!("ClusterIP"), &json!(["IPv4"]))
    );
    assert_eq!(a["spec"]["ports"][0], json!({"protocol": "TCP", "port": 80, "targetPort": 80}));
    let (code, status) = api.post(SERVICES, service("b", json!({"clusterIP": ip}))).await;
    assert_eq!(code, 422);
    let want = format!(
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: provided IP is already allocated"
    );
    assert_eq!(status["message"], want);
    let (code, status) = api.post(SERVICES, service("b", json!({"clusterIP": "192.0.2.1"}))).await;
    assert_eq!(code, 422);
    assert!(
        text(&status["message"])
            .contains("the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.96.0.0/24"),
        "{status}"
    );
    let (code, status) = api
        .patch(
            &format!("{SERVICES}/a"),
            "merge",
            json!({"spec": {"clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"]}}),
        )
        .await;
    assert_eq!(code, 422, "{status}");
    assert!(text(&status["message"]).contains("may not change once set"), "{status}");
    // A refused or rehearsed creation keeps no address; a deleted Service gives its own back.
    assert_eq!(
        api.post(&format!("{SERVICES}?dryRun=All"), service("c", json!({"clusterIP": "10.96.0.50"}))).await.0,
        201
    );
    assert_eq!(api.post(SERVICES, service("a", json!({"clusterIP": "10.96.0.50"}))).await.0, 409);
    api.created(SERVICES, service("c", json!({"clusterIP": "10.96.0.50"}))).await;
    api.delete(&format!("{SERVICES}/c"), Value::Null).await;
    api.created(SERVICES, service("d", json!({"clusterIP": "10.96.0.50"}))).await;
    let headless = api.created(SERVICES, service("h", json!({"clusterIP": "None"}))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn node_ports_are_unique() {
    let api = Api::start().await;
    let a = api.created(SERVICES, service("a", json!({"type": "NodePort"}))).await;
    let port = a["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let wanted = |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let (code, status) = api.post(SERVICES, service("b", wanted(port))).await;
    assert_eq!(code, 422);
    let want = format!(
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
    );
    assert_eq!(status["message"], want);
    let (code, status) = api.post(SERVICES, service("b", wanted(80))).await;
    assert_eq!(code, 422);
    assert!(
        text(&status["message"])
            .contains("provided port is not in the valid range. The range of valid ports is 30000-32767"),
        "{status}"
    );
    // A Service that needs its port no more gives it back.
    let (code, a) = api.patch(&format!("{SERVICES}/a"), "merge", json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!((code, &a["spec"]["ports"][0]["nodePort"]), (200, &Value::Null), "{a}");
    api.created(SERVICES, service("b", wanted(port))).await;
}

#[tokio::test]
async fn faults_of_a_service() {
    let api = Api::start().await;
    let (code, status) = api.post(SERVICES, service("a", json!({"ports": []}))).await;
    assert_eq!((code, &status["message"]), (422, &json!("Service \"a\" is invalid: spec.ports: Required value")));
    let (code, status) = api.post(SERVICES, service("1A", json!({}))).await;
    assert_eq!(code, 422);
    assert!(
        text(&status["message"])
            .contains("metadata.name: Invalid value: \"1A\": a lowercase RFC 1123 label must consist of"),
        "{status}"
    );
    let (code, status) = api.post(SERVICES, service("a", json!({"ports": [{"port": 0}]}))).await;
    assert_eq!(code, 422);
    assert!(
        text(&status["message"])
            .contains("spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
        "{status}"
    );
}

#[tokio::test]
async fn services_of_two_families() {
    let api = Api::with_services("10.96.0.0/24,fd00:10:96::/112").await;
    let (code, cidr) = api.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await;
    assert_eq!((code, &cidr["spec"]["cidrs"]), (200, &json!(["10.96.0.0/24", "fd00:10:96::/112"])));
    let single = api.created(SERVICES, service("a", json!({}))).await;
    let families = |s: &Value| (s["spec"]["ipFamilyPolicy"].clone(), s["spec"]["ipFamilies"].clone());
    assert_eq!(families(&single), (json!("SingleStack"), json!(["IPv4"])));
    let a = format!("{SERVICES}/a");
    let (code, dual) = api.patch(&a, "merge", json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).await;
    assert_eq!((code, families(&dual)), (200, (json!("PreferDualStack"), json!(["IPv4", "IPv6"]))), "{dual}");
    let addresses = dual["spec"]["clusterIPs"].as_array().unwrap();
    assert_eq!((&addresses[0], addresses.len()), (&single["spec"]["clusterIP"], 2));
    assert!(text(&addresses[1]).starts_with("fd00:10:96::"), "{dual}");
    // An update that leaves the newer fields out changes nothing.
    let mut plain = dual.clone();
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        plain["spec"].as_object_mut().unwrap().remove(field);
    }
    let (code, same) = api.put(&a, plain).await;
    assert_eq!((code, &same["spec"]["clusterIPs"]), (200, &dual["spec"]["clusterIPs"]), "{same}");
    let (code, status) = api.patch(&a, "merge", json!({"spec": {"ipFamilies": ["IPv4"]}})).await;
    assert_eq!(code, 422);
    let want = "Service \"a\" is invalid: spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family";
    assert_eq!(status["message"], want);
    // What is released somebody else can have.
    let (code, again) = api.patch(&a, "merge", json!({"spec": {"ipFamilyPolicy": "SingleStack"}})).await;
    assert_eq!((code, &again["spec"]), (200, &single["spec"]), "{again}");
    let six = api.created(SERVICES, service("b", json!({"clusterIP": addresses[1]}))).await;
    assert_eq!(families(&six), (json!("SingleStack"), json!(["IPv6"])));
    let external = json!({"spec": {"type": "ExternalName", "externalName": "x.example.com"}});
    let (code, external) = api.patch(&format!("{SERVICES}/b"), "merge", external).await;
    assert_eq!((code, families(&external)), (200, (Value::Null, Value::Null)), "{external}");
}

#[tokio::test]
async fn one_family_cannot_be_two() {
    let api = Api::start().await;
    let (code, status) = api.post(SERVICES, service("a", json!({"ipFamilyPolicy": "RequireDualStack"}))).await;
    assert_eq!(code, 422);
    let want = "Service \"a\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services";
    assert_eq!(status["message"], want);
    let prefers = api.created(SERVICES, service("a", json!({"ipFamilyPolicy": "PreferDualStack"}))).await;
    assert_eq!(prefers["spec"]["ipFamilies"], json!(["IPv4"]));
}
