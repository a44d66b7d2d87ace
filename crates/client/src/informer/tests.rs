use std::{sync::Arc, time::Duration};

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::*;
use crate::fake::FakeApi;

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key": value}})).unwrap()
}

fn value(object: &ConfigMap) -> &str {
    &object.data.as_ref().unwrap()["key"]
}

async fn next<K>(changes: &mut Subscription<K>) -> Change<K> {
    tokio::time::timeout(Duration::from_secs(60), changes.recv()).await.expect("in time").expect("open")
}

/// `+name=value`, `name:old→new` or `-name=value`.
async fn told(changes: &mut Subscription<ConfigMap>) -> String {
    match next(changes).await {
        Change::Applied { old: None, new } => format!("+{}={}", new.name_any(), value(&new)),
        Change::Applied { old: Some(old), new } => {
            format!("{}:{}→{}", new.name_any(), value(&old), value(&new))
        }
        Change::Deleted { old } => format!("-{}={}", old.name_any(), value(&old)),
    }
}

struct Fixture {
    fake: FakeApi,
    api: Api<ConfigMap>,
    informer: Informer<ConfigMap>,
    informers: Informers,
}

impl Fixture {
    /// With `a=1` there from the start.
    async fn new() -> Fixture {
        let fake = FakeApi::new();
        let api: Api<ConfigMap> = Api::namespaced(fake.client(), "default");
        api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
        let informers = Informers::new(fake.client());
        let informer = informers.informer();
        informer.wait_synced().await;
        Fixture { fake, api, informer, informers }
    }

    async fn set(&self, name: &str, value: &str) {
        let patch = json!({"data": {"key": value}});
        self.api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    async fn create(&self, name: &str, value: &str) {
        self.api.create(&PostParams::default(), &config_map(name, value)).await.unwrap();
    }

    async fn delete(&self, name: &str) {
        self.api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn lists(&self) -> usize {
        let requests = self.fake.requests();
        requests.iter().filter(|request| request.starts_with("GET") && !request.contains("watch=")).count()
    }
}

#[tokio::test(start_paused = true)]
async fn tells_what_is_there_and_every_change() {
    let fixture = Fixture::new().await;
    let mut changes = fixture.informer.subscribe();
    assert_eq!(told(&mut changes).await, "+a=1");
    fixture.create("b", "1").await;
    assert_eq!(told(&mut changes).await, "+b=1");
    fixture.set("a", "2").await;
    assert_eq!(told(&mut changes).await, "a:1→2");
    fixture.delete("a").await;
    assert_eq!(told(&mut changes).await, "-a=2");
    assert!(fixture.informer.get("default", "a").is_none());
    assert_eq!(value(&fixture.informer.get("default", "b").unwrap()), "1");
    assert_eq!(fixture.informer.list().len(), 1);
    assert_eq!(fixture.informer.list_namespace("default").len(), 1);
    assert_eq!(fixture.informer.list_namespace("defaul").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_sees_merged_updates_but_every_deletion() {
    let fixture = Fixture::new().await;
    let mut fast = fixture.informer.subscribe();
    let mut slow = fixture.informer.subscribe();
    told(&mut fast).await;
    told(&mut slow).await;
    for round in 2..100 {
        fixture.set("a", &round.to_string()).await;
    }
    fixture.delete("a").await;
    fixture.create("a", "again").await;
    fixture.set("a", "last").await;
    while !told(&mut fast).await.ends_with("last") {
        tokio::task::yield_now().await;
    }
    assert_eq!(told(&mut slow).await, "a:1→99");
    assert_eq!(told(&mut slow).await, "-a=99");
    assert_eq!(told(&mut slow).await, "+a=last");
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_watch_goes_on_without_a_new_list() {
    let fixture = Fixture::new().await;
    let mut changes = fixture.informer.subscribe();
    told(&mut changes).await;
    fixture.set("a", "2").await;
    assert_eq!(told(&mut changes).await, "a:1→2");
    fixture.fake.fail_next(Some(Method::GET), 503);
    fixture.fake.cut_watches();
    fixture.set("a", "3").await;
    assert_eq!(told(&mut changes).await, "a:2→3");
    assert_eq!(fixture.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_410_the_difference_is_told() {
    let fixture = Fixture::new().await;
    let mut changes = fixture.informer.subscribe();
    told(&mut changes).await;
    fixture.create("b", "1").await;
    fixture.create("c", "1").await;
    assert_eq!(told(&mut changes).await, "+b=1");
    assert_eq!(told(&mut changes).await, "+c=1");
    // While nobody watches: a stays, b changes, c is replaced by a namesake, d is new.
    for _ in 0..3 {
        fixture.fake.fail_next(Some(Method::GET), 500);
    }
    fixture.fake.cut_watches();
    fixture.set("b", "2").await;
    fixture.delete("c").await;
    fixture.create("c", "other").await;
    fixture.create("d", "1").await;
    fixture.fake.compact();
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(told(&mut changes).await);
    }
    assert_eq!(all, ["b:1→2", "-c=1", "+c=other", "+d=1"]);
    assert_eq!(fixture.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn long_lists_are_read_in_pages_and_at_once_if_the_pages_expire() {
    let fake = FakeApi::new();
    let api: Api<ConfigMap> = Api::namespaced(fake.client(), "default");
    for number in 0..1001 {
        api.create(&PostParams::default(), &config_map(&format!("c{number}"), "")).await.unwrap();
    }
    let informer = Informers::new(fake.client()).informer::<ConfigMap>();
    informer.wait_synced().await;
    assert_eq!(informer.len(), 1001);
    let pages = fake.requests().iter().filter(|request| request.contains("limit=500")).count();
    assert_eq!(pages, 3);
}

#[tokio::test(start_paused = true)]
async fn one_list_and_watch_serves_everybody() {
    let fixture = Fixture::new().await;
    let second = fixture.informers.informer::<ConfigMap>();
    second.wait_synced().await;
    assert!(Arc::ptr_eq(&second.get("default", "a").unwrap(), &fixture.informer.get("default", "a").unwrap()));
    assert_eq!(fixture.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_selector_turns_updates_into_creations_and_deletions() {
    let fake = FakeApi::new();
    let api: Api<Pod> = Api::namespaced(fake.client(), "default");
    let pod = |name: &str, node: &str| -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}}))
            .unwrap()
    };
    api.create(&PostParams::default(), &pod("mine", "n1")).await.unwrap();
    api.create(&PostParams::default(), &pod("pending", "")).await.unwrap();
    let informer = Informers::new(fake.client()).selected::<Pod>(Selector::fields("spec.nodeName=n1"));
    let mut changes = informer.subscribe();
    assert_eq!(next(&mut changes).await.object().name_any(), "mine");
    let patch = json!({"spec": {"nodeName": "n1"}});
    api.patch("pending", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let change = next(&mut changes).await;
    assert!(change.old().is_none() && change.object().name_any() == "pending");
    api.delete("mine", &DeleteParams::default()).await.unwrap();
    assert!(matches!(next(&mut changes).await, Change::Deleted { old } if old.name_any() == "mine"));
}

#[tokio::test(start_paused = true)]
async fn indices_follow_the_objects() {
    let fake = FakeApi::new();
    let api: Api<Pod> = Api::namespaced(fake.client(), "default");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "owner", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": []},
    }))
    .unwrap();
    api.create(&PostParams::default(), &pod).await.unwrap();
    let informer = Informers::new(fake.client()).informer::<Pod>();
    informer.wait_synced().await;
    informer.add_index("node", |pod: &Pod| pod.spec.iter().filter_map(|spec| spec.node_name.clone()).collect());
    assert_eq!(informer.by_owner("owner").len(), 1);
    assert_eq!(informer.by_index("node", "n1").len(), 1);
    let mut changes = informer.subscribe();
    next(&mut changes).await;
    let patch = json!({"spec": {"nodeName": "n2"}, "metadata": {"ownerReferences": null}});
    api.patch("p", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    next(&mut changes).await;
    assert_eq!(informer.by_owner("owner").len(), 0);
    assert_eq!(informer.by_index("node", "n1").len(), 0);
    assert_eq!(informer.by_index("node", "n2").len(), 1);
    assert_eq!(informer.by_index("none", "n2").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn kinds_known_at_run_time_and_single_namespaces() {
    let fixture = Fixture::new().await;
    let kind = ApiResource::erase::<ConfigMap>(&());
    let selector = Selector { namespace: Some("default".into()), ..Selector::default() };
    let informer = fixture.informers.select::<DynamicObject>(&kind, selector);
    informer.wait_synced().await;
    assert_eq!(informer.get("default", "a").unwrap().data["data"]["key"], "1");
    let metadata = fixture.informers.select::<PartialObjectMeta<DynamicObject>>(&kind, Selector::all());
    metadata.wait_synced().await;
    assert_eq!(metadata.len(), 1);
    let requests = fixture.fake.requests();
    assert!(requests.iter().any(|request| request.starts_with("GET /api/v1/namespaces/default/configmaps?")));
}

#[tokio::test(start_paused = true)]
async fn ends_with_its_last_handle() {
    let Fixture { fake, informer, informers, .. } = Fixture::new().await;
    let mut changes = informer.subscribe();
    told(&mut changes).await;
    drop((informer, informers));
    let end = tokio::time::timeout(Duration::from_secs(5), changes.recv()).await;
    assert!(end.expect("in time").is_none());
    drop(fake);
}
