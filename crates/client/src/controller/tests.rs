use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{PostParams, ResourceExt},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::*;
use crate::{Informers, fake::FakeApi};

async fn create(fake: &FakeApi, name: &str) {
    let object: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(fake.client(), "default");
    api.create(&PostParams::default(), &object).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reconciles_what_is_there_and_what_comes() {
    let fake = FakeApi::new();
    create(&fake, "a").await;
    let informers = Informers::new(fake.client());
    let informer = informers.informer::<ConfigMap>();
    let (seen, mut reconciled) = mpsc::unbounded_channel();
    let controller = Controller::new("test").watch(&informer, self_mapper);
    let queue = controller.queue();
    let running = tokio::spawn(controller.run(move |key: ObjectKey| {
        let (seen, informer) = (seen.clone(), informer.clone());
        async move {
            let object = informer.get_key(&key).expect("the cache is filled before the first reconcile");
            seen.send(object.name_any()).unwrap();
            Ok::<_, String>(Action::Done)
        }
    }));
    assert_eq!(reconciled.recv().await.unwrap(), "a");
    create(&fake, "b").await;
    assert_eq!(reconciled.recv().await.unwrap(), "b");
    queue.shut_down();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn errors_and_panics_are_retried_with_back_off() {
    let controller = Controller::<String>::new("test").workers(2);
    let queue = controller.queue();
    queue.add("error".to_owned());
    queue.add("panic".to_owned());
    queue.add("later".to_owned());
    let start = Instant::now();
    let calls: Arc<Mutex<HashMap<String, Vec<u128>>>> = Arc::default();
    let (done, mut all_done) = mpsc::unbounded_channel();
    let running = tokio::spawn(controller.run({
        let calls = calls.clone();
        move |key: String| {
            let (calls, done) = (calls.clone(), done.clone());
            async move {
                let count = {
                    let mut calls = calls.lock();
                    let times = calls.entry(key.clone()).or_default();
                    times.push(start.elapsed().as_millis());
                    times.len()
                };
                match (&*key, count) {
                    (_, 4) => done.send(()).unwrap(),
                    ("error", _) => return Err("not yet"),
                    ("panic", _) => panic!("on purpose"),
                    _ => return Ok(Action::RequeueAfter(Duration::from_millis(100))),
                }
                Ok(Action::Done)
            }
        }
    }));
    for _ in 0..3 {
        all_done.recv().await.unwrap();
    }
    let calls = calls.lock().clone();
    // tokio's timers have a resolution of a millisecond and round up.
    let close = |times: &[u128], expected: [u128; 4]| {
        times.iter().zip(expected).all(|(time, expected)| (expected..=expected + 4).contains(time))
    };
    assert!(close(&calls["error"], [0, 5, 15, 35]), "{calls:?}");
    assert!(close(&calls["panic"], [0, 5, 15, 35]), "{calls:?}");
    assert!(close(&calls["later"], [0, 100, 200, 300]), "{calls:?}");
    assert_eq!(queue.failures(&"error".to_owned()), 0);
    queue.shut_down();
    running.await.unwrap();
}

#[test]
fn owners_are_found_also_when_they_change() {
    let pod = |owner: &str, api_version: &str| -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "ownerReferences": [
                {"apiVersion": api_version, "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true},
                {"apiVersion": api_version, "kind": "ReplicaSet", "name": "other", "uid": "o"}]}}))
            .unwrap(),
        )
    };
    let mapper = owner_mapper::<Pod>("apps", "ReplicaSet");
    let keys = |old: Option<Arc<Pod>>, new: Arc<Pod>| {
        mapper(&Change::Applied { old, new }).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(keys(None, pod("a", "apps/v1")), ["n/a"]);
    assert_eq!(keys(Some(pod("a", "apps/v1")), pod("a", "apps/v1")), ["n/a"]);
    assert_eq!(keys(Some(pod("a", "apps/v1")), pod("b", "apps/v1")), ["n/a", "n/b"]);
    assert_eq!(keys(None, pod("a", "example.com/v1")), Vec::<String>::new());
}
