//! From the creation of a pod until it is Ready.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use skiff_e2e::{Cluster, eventually};
use tokio::sync::mpsc;

use crate::{Figure, api::Api, median};

const SERIAL: usize = 30;
const AT_ONCE: usize = 50;
const PODS: &str = "/api/v1/namespaces/default/pods";

pub(crate) fn measure() -> Vec<Figure> {
    let cluster = Cluster::create("bench", &[]);
    cluster.load(&["busybox"]);
    let kubectl = cluster.kubectl().within("default");
    eventually(Duration::from_secs(30), || kubectl.run(&["get", "serviceaccount", "default"]).result());
    let api = Api::new(&kubectl);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // One that is not counted.
    runtime.block_on(ready(&api, "warm", 1));
    let serial = (0..SERIAL).map(|n| runtime.block_on(ready(&api, &format!("serial{n}"), 1)).as_secs_f64() * 1e3);
    let serial: Vec<_> = serial.collect();
    kubectl.run(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    let together = runtime.block_on(ready(&api, "together", AT_ONCE));
    let worst = serial.iter().copied().fold(0.0, f64::max);
    vec![
        Figure::new("pod, create to Ready, p50", format!("{:.0} ms", median(serial)), "≤ 100 ms"),
        Figure::new("pod, create to Ready, worst", format!("{worst:.0} ms"), ""),
        Figure::new(
            format!("{AT_ONCE} pods at once until all Ready"),
            format!("{:.2} s", together.as_secs_f64()),
            "≤ 5 s",
        ),
    ]
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
            }],
        },
    })
}

/// Creates this many pods at the same time; how long it takes until the last one is Ready.
async fn ready(api: &Api, prefix: &str, count: usize) -> Duration {
    let (send, mut events) = mpsc::unbounded_channel();
    let watcher = api.connect().await;
    let path = format!("{PODS}?watch=true");
    let watching = tokio::spawn(async move {
        watcher
            .watch(&path, |event| {
                let conditions = event["object"]["status"]["conditions"].as_array();
                let is_ready =
                    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
                is_ready && send.send(name.to_owned()).is_err()
            })
            .await;
    });
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(api.connect().await);
    }
    let names: Arc<Vec<String>> = Arc::new((0..count).map(|n| format!("{prefix}-{n}")).collect());
    let started = Instant::now();
    for (n, mut connection) in connections.into_iter().enumerate() {
        let names = names.clone();
        tokio::spawn(async move { connection.create(PODS, &pod(&names[n])).await });
    }
    let mut waiting: HashMap<_, _> = names.iter().map(|name| (name.clone(), ())).collect();
    while !waiting.is_empty() {
        let name = tokio::time::timeout(Duration::from_secs(60), events.recv()).await;
        let name = name.unwrap_or_else(|_| panic!("not Ready: {:?}", waiting.keys())).expect("the watch goes on");
        waiting.remove(&name);
    }
    let took = started.elapsed();
    watching.abort();
    took
}
