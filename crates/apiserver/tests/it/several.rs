//! Several API servers on one store.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use skiff_store::memory::MemoryStore;

use crate::api::Api;

const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Two servers, and what the first one made before the second one came.
async fn two() -> (Api, Api) {
    let store = Arc::new(MemoryStore::new());
    let at = |last| SocketAddr::from(([192, 0, 2, last], 6443));
    let one = Api::sharing(store.clone(), at(1)).await;
    (one, Api::sharing(store, at(2)).await)
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_and_no_port_is_given_twice() {
    const EACH: usize = 100;
    let (one, two) = two().await;
    let create = async |api: &Api, name: &str| {
        let mut given = Vec::new();
        for number in 0..EACH {
            // All but a few of the range's addresses are taken at the end.
            let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
            let created = api.created(SERVICES, service(&format!("{name}-{number}"), spec)).await;
            given.push((created["spec"]["clusterIP"].to_string(), created["spec"]["ports"][0]["nodePort"].to_string()));
        }
        given
    };
    let (first, second) = tokio::join!(create(&one, "one"), create(&two, "two"));
    let addresses: BTreeSet<_> = first.iter().chain(&second).map(|(address, _)| address).collect();
    let ports: BTreeSet<_> = first.iter().chain(&second).map(|(_, port)| port).collect();
    assert_eq!((addresses.len(), ports.len()), (2 * EACH, 2 * EACH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_gives_back_the_other_gives_away() {
    let (one, two) = two().await;
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.50", "ports": [{"port": 80, "nodePort": 30050}]});
    one.created(SERVICES, service("a", spec.clone())).await;
    let (code, refused) = two.post(SERVICES, service("b", spec.clone())).await;
    assert_eq!(code, 422, "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("failed to allocate IP 10.96.0.50: provided IP is already allocated"), "{message}");
    assert!(message.contains("provided port is already allocated"), "{message}");
    // An update that gives the port back.
    let (code, updated) = one
        .patch(&format!("{SERVICES}/a"), "merge", json!({"spec": {"ports": [{"port": 80, "nodePort": 30051}]}}))
        .await;
    assert_eq!(code, 200, "{updated}");
    let other = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30050}]});
    two.created(SERVICES, service("c", other)).await;
    let (code, gone) = one.delete(&format!("{SERVICES}/a"), Value::Null).await;
    assert_eq!(code, 200, "{gone}");
    let spec = json!({"clusterIP": "10.96.0.50", "ports": [{"port": 80}]});
    two.created(SERVICES, service("b", spec)).await;
    // The name of a Service that is there is what is wrong with it, not its address.
    let (code, there) = one.post(SERVICES, service("b", json!({"ports": [{"port": 80}]}))).await;
    assert_eq!((code, there["reason"].as_str()), (409, Some("AlreadyExists")), "{there}");
}

/// Many writers on both servers, and room for some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_holds_on_all_servers_together() {
    const ROOM: usize = 12;
    let (one, two) = two().await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"count/configmaps": ROOM.to_string()}}});
    one.created("/api/v1/namespaces/default/resourcequotas", quota).await;
    one.eventually("/api/v1/namespaces/default/resourcequotas/q", |q| q["status"]["used"].is_object()).await;
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let api = if number % 2 == 0 { one.clone() } else { two.clone() };
            tokio::spawn(async move {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{number}")}});
                let (code, reply) = api.post("/api/v1/namespaces/default/configmaps", map).await;
                assert!(code == 201 || code == 403, "{reply}");
                usize::from(code == 201)
            })
        })
        .collect();
    let mut created = 0;
    for task in tasks {
        created += task.await.unwrap();
    }
    assert_eq!(created, ROOM);
    let room = ROOM.to_string();
    let used = |q: &Value| q["status"]["used"]["count/configmaps"] == room.as_str();
    two.eventually("/api/v1/namespaces/default/resourcequotas/q", used).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_is_where_servers_are_alive() {
    const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let (one, two) = two().await;
    let addresses = |slice: &Value| -> Vec<String> {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        endpoints.map(|e| e["addresses"][0].as_str().unwrap().to_owned()).collect()
    };
    one.eventually(SLICE, |slice| addresses(slice) == ["192.0.2.1", "192.0.2.2"]).await;
    two.server.leave().await.unwrap();
    let (_, slice) = one.get(SLICE).await;
    assert_eq!(addresses(&slice), ["192.0.2.1"]);
    // What is as it should be is not written again.
    two.server.leave().await.unwrap();
    let (_, again) = one.get(SLICE).await;
    assert_eq!(again["metadata"]["resourceVersion"], slice["metadata"]["resourceVersion"]);
}
