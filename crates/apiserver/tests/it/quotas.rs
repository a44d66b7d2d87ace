//! Quotas under load, limit ranges, and the metrics of nodes that do not answer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, pod};

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

/// Waits until a quota says that this much is used.
async fn used(api: &Api, resource: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, quota) = api.get(&format!("{QUOTAS}/q")).await;
        if quota["status"]["used"][resource] == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{resource} is not {wanted}: {quota}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn quota(api: &Api, hard: Value) {
    api.created(
        QUOTAS,
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}}),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_as_many_pass_as_there_is_room_for() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, config_map("there")).await;
    quota(&api, json!({"configmaps": "10"})).await;
    used(&api, "configmaps", "1").await;
    // Deletions and counts go on meanwhile.
    let creates = (0..30).map(|i| {
        let api = &api;
        async move { api.post(CONFIG_MAPS, config_map(&format!("c{i}"))).await }
    });
    let answers = futures::future::join_all(creates).await;
    let created = answers.iter().filter(|(code, _)| *code == 201).count();
    assert_eq!(created, 9);
    let (_, refused) = answers.iter().find(|(code, _)| *code == 403).unwrap();
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("exceeded quota: q, requested: configmaps=1, used: configmaps=10, limited: configmaps=10"),
        "{message}"
    );
    used(&api, "configmaps", "10").await;
    // What could not be made is not counted.
    let (code, _) = api.delete(&format!("{CONFIG_MAPS}/there"), json!({})).await;
    assert_eq!(code, 200);
    used(&api, "configmaps", "9").await;
    let (_, all) = api.get(CONFIG_MAPS).await;
    let name = all["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(api.post(CONFIG_MAPS, config_map(&name)).await.0, 409);
    used(&api, "configmaps", "9").await;
}

#[tokio::test]
async fn a_limit_range_completes_pods() {
    let api = Api::start().await;
    let limits = json!([{"type": "Container", "max": {"cpu": "1"}}]);
    api.created(
        "/api/v1/namespaces/default/limitranges",
        json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": limits}}),
    )
    .await;
    let made = api.created(PODS, pod("p")).await;
    assert_eq!(made["spec"]["containers"][0]["resources"], json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}));
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let mut big = pod("big");
    big["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    let (code, refused) = api.post(PODS, big).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "pods \"big\" is forbidden: [maximum cpu usage per Container is 1, but limit is 2]".replace(['[', ']'], "")
    );
}

#[tokio::test]
async fn nodes_without_metrics_are_left_out() {
    let api = Api::start().await;
    api.created("/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).await;
    let (code, list) = api.get("/apis/metrics.k8s.io/v1beta1/nodes").await;
    assert_eq!((code, &list["kind"], &list["items"]), (200, &json!("NodeMetricsList"), &json!([])));
    let (code, none) = api.get("/apis/metrics.k8s.io/v1beta1/nodes/n").await;
    assert_eq!((code, &none["message"]), (404, &json!("nodemetrics.metrics.k8s.io \"n\" not found")));
    let (code, _) = api.post("/apis/metrics.k8s.io/v1beta1/nodes", json!({})).await;
    assert_eq!(code, 405);
}
