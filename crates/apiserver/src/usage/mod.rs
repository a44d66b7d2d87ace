//! `metrics.k8s.io`: what nodes and pods use, for `kubectl top` and the autoscaler.
//!
//! The group is that of upstream's metrics-server, served here without an add-on. Readings come from the kubelets over
//! the path that logs come over. Nothing is read while nobody asks: a question reads the nodes that it is about, and
//! for a while afterwards they are read again every few seconds, so that the next answer has a window to tell of.

mod samples;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::future::join_all;
use http::Response;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::{Kind, Status, quantity::Quantity};
use skiff_store::Revision;

use self::samples::{ContainerKey, NodeUse, Reading, Samples, Use};
use crate::{
    http::Body,
    object::{Indexing, Object, encode, meta_str},
    proxy,
    registry::{
        engine::cache_status,
        strategy::{Strategy, col, name_col},
    },
    render::{Accepted, Renderer},
    request::{ListOptions, Query, RequestInfo},
    server::ApiServer,
};

/// A reading this young is not read again.
const FRESH: SignedDuration = SignedDuration::from_secs(2);
/// How long the first answer waits for a second reading.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// How often nodes are read that were lately asked about.
const AGAIN: Duration = Duration::from_secs(5);
/// How long after a question its nodes are read: longer than the autoscaler's period.
const INTEREST: Duration = Duration::from_secs(40);
/// How long a node may take. One that takes longer is left out.
const DEADLINE: Duration = Duration::from_secs(5);

/// The readings of the nodes that were lately asked about.
#[derive(Default)]
pub struct Usage {
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
    /// Whether somebody reads the nodes again and again.
    reading: Mutex<bool>,
}

struct Node {
    /// Held while the node is read, so that it is read once for all who ask.
    samples: tokio::sync::Mutex<Samples>,
    asked: Mutex<Instant>,
}

impl Usage {
    fn node(&self, name: &str) -> Arc<Node> {
        let new = || Node { samples: tokio::sync::Mutex::default(), asked: Mutex::new(Instant::now()) };
        self.nodes.lock().entry(name.to_owned()).or_insert_with(|| Arc::new(new())).clone()
    }

    /// Forgets the nodes that nobody asks about any more; the names of the others.
    fn wanted(&self) -> Vec<String> {
        let mut nodes = self.nodes.lock();
        nodes.retain(|_, node| node.asked.lock().elapsed() < INTEREST);
        nodes.keys().cloned().collect()
    }
}

async fn read(server: &ApiServer, name: &str) -> Option<Reading> {
    let summary = proxy::usage_summary(server.registry(), server.backends(), name);
    match tokio::time::timeout(DEADLINE, summary).await {
        Ok(Ok(summary)) => Reading::parse(&summary),
        Ok(Err(error)) => {
            tracing::debug!(node = name, %error, "cannot read what a node uses");
            None
        }
        Err(_) => {
            tracing::debug!(node = name, "a node does not say in time what it uses");
            None
        }
    }
}

/// Reads a node unless it was just read.
async fn refresh(server: &ApiServer, name: &str, node: &Node) {
    let mut samples = node.samples.lock().await;
    if samples.age(Timestamp::now()).is_some_and(|age| age < FRESH) && samples.suffice() {
        return;
    }
    let Some(reading) = read(server, name).await else { return };
    samples.add(reading);
}

async fn node_use(server: &ApiServer, name: String) -> (String, NodeUse) {
    let node = server.usage().node(&name);
    *node.asked.lock() = Instant::now();
    refresh(server, &name, &node).await;
    let first = {
        let samples = node.samples.lock().await;
        samples.age(Timestamp::now()).is_some() && !samples.suffice()
    };
    if first {
        tokio::time::sleep(FIRST_WINDOW).await;
        refresh(server, &name, &node).await;
    }
    let uses = node.samples.lock().await.uses();
    (name, uses)
}

/// What these nodes use, asked all at once.
async fn uses(server: &Arc<ApiServer>, nodes: BTreeSet<String>) -> BTreeMap<String, NodeUse> {
    if nodes.is_empty() {
        return BTreeMap::new();
    }
    let found = join_all(nodes.into_iter().map(|name| node_use(server, name))).await.into_iter().collect();
    let mut reading = server.usage().reading.lock();
    if !*reading {
        *reading = true;
        tokio::spawn(keep_reading(Arc::downgrade(server)));
    }
    found
}

/// Reads the nodes again until nobody asks any more.
async fn keep_reading(server: Weak<ApiServer>) {
    loop {
        tokio::time::sleep(AGAIN).await;
        let Some(server) = server.upgrade() else { return };
        let wanted = {
            let mut reading = server.usage().reading.lock();
            let wanted = server.usage().wanted();
            *reading = !wanted.is_empty();
            wanted
        };
        if wanted.is_empty() {
            return;
        }
        let nodes: Vec<_> = wanted.into_iter().map(|name| (server.usage().node(&name), name)).collect();
        join_all(nodes.iter().map(|(node, name)| refresh(&server, name, node))).await;
    }
}

static NODES: Strategy = Strategy {
    columns: &[name_col(), col("cpu"), col("memory"), col("window")],
    row: |o| {
        vec![
            o["metadata"]["name"].clone(),
            o["usage"]["cpu"].clone(),
            o["usage"]["memory"].clone(),
            o["window"].clone(),
        ]
    },
    ..Strategy::DEFAULT
};

static PODS: Strategy = Strategy {
    columns: &[name_col(), col("cpu"), col("memory"), col("window")],
    row: |o| {
        let sum = |resource: &str| {
            let all = o["containers"].as_array().into_iter().flatten();
            let all = all.filter_map(|c| c["usage"][resource].as_str()?.parse::<Quantity>().ok());
            Value::String(all.fold(Quantity::ZERO, |a, b| a + b).to_string())
        };
        vec![o["metadata"]["name"].clone(), sum("cpu"), sum("memory"), o["window"].clone()]
    },
    ..Strategy::DEFAULT
};

/// `cpu` and `memory` as metrics-server writes them.
fn amounts(used: &Use) -> Value {
    let cpu = format!("{}n", used.cpu_nano_cores).parse::<Quantity>().unwrap_or(Quantity::ZERO);
    let memory = Quantity::from_bytes(i64::try_from(used.memory_bytes >> 10 << 10).unwrap_or(i64::MAX));
    json!({"cpu": cpu.to_string(), "memory": memory.to_string()})
}

fn window(window: SignedDuration) -> String {
    format!("{}s", window.as_millis() as f64 / 1e3)
}

/// Metadata of the metrics of an object.
fn metadata(of: &Value, at: Timestamp) -> Value {
    let mut metadata = json!({"name": of["metadata"]["name"], "creationTimestamp": time(at)});
    for field in ["namespace", "labels"] {
        if !of["metadata"][field].is_null() {
            metadata[field] = of["metadata"][field].clone();
        }
    }
    metadata
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn node_metrics(node: &Value, used: &Use) -> Value {
    json!({
        "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata(node, used.at),
        "timestamp": time(used.at), "window": window(used.window), "usage": amounts(used),
    })
}

/// Nothing for a pod of which no container has been seen twice.
fn pod_metrics(pod: &Value, uses: &NodeUse) -> Option<Value> {
    let of = |name: &str| -> ContainerKey {
        let text = |field: &str| meta_str(pod, field).to_owned();
        (text("namespace"), text("name"), text("uid"), name.to_owned())
    };
    let mut found = Vec::new();
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            found.extend(uses.containers.get(&of(name)).map(|used| (name, used)));
        }
    }
    let earliest = found.iter().map(|(_, used)| used).min_by_key(|used| used.at)?;
    let containers: Vec<Value> =
        found.iter().map(|(name, used)| json!({"name": name, "usage": amounts(used)})).collect();
    Some(json!({
        "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata(pod, earliest.at),
        "timestamp": time(earliest.at), "window": window(earliest.window), "containers": containers,
    }))
}

/// Get and list of the group's two resources.
pub async fn answer(
    server: &Arc<ApiServer>,
    kind: &'static Kind,
    info: &RequestInfo,
    query: &Query,
    accepted: Accepted,
) -> Result<Response<Body>, Status> {
    if !kind.verbs().contains(&info.verb.as_str()) {
        return Err(Status::method_not_allowed());
    }
    let of_nodes = !kind.namespaced;
    let resource = server.registry().builtin("", kind.plural);
    let mut options = ListOptions::parse(query, if of_nodes { "" } else { &info.namespace })?;
    if info.verb == "get" {
        options.filter.name = info.name.clone();
    }
    for (path, ..) in &options.filter.fields.terms {
        if !["metadata.name", "metadata.namespace"].contains(&path.as_str()) {
            return Err(Status::bad_request(format!("field label not supported: {path}")));
        }
    }
    let listed = resource.cache.list(&options.filter, 0, None).await.map_err(|e| cache_status(&e))?;
    let objects: Vec<Value> = listed.objects.iter().map(|o| o.value()).collect();
    let node_of = |o: &Value| {
        let node = if of_nodes { &o["metadata"]["name"] } else { &o["spec"]["nodeName"] };
        node.as_str().filter(|n| !n.is_empty()).map(str::to_owned)
    };
    let running = |o: &&Value| of_nodes || o["status"]["phase"] == "Running";
    let nodes = objects.iter().filter(running).filter_map(node_of).collect();
    let uses = uses(server, nodes).await;
    let mut found = Vec::new();
    for object in objects.iter().filter(running) {
        let Some(uses) = node_of(object).and_then(|node| uses.get(&node)) else { continue };
        let metrics = if of_nodes {
            uses.node.as_ref().map(|used| node_metrics(object, used))
        } else {
            pod_metrics(object, uses)
        };
        found.extend(metrics);
    }
    let renderer = Renderer {
        kind,
        strategy: if of_nodes { &NODES } else { &PODS },
        version: None,
        accepted,
        include: query.get("includeObject").unwrap_or_default(),
    };
    if info.verb == "get" {
        let Some(one) = found.pop() else {
            let name = if of_nodes { info.name.clone() } else { format!("{}/{}", info.namespace, info.name) };
            let what = if of_nodes { "nodemetrics" } else { "podmetrics" };
            return Err(Status::not_found(kind.group, what, &name));
        };
        return Ok(renderer.object(200, &encode(&one).into()));
    }
    let indexing = Indexing { selectable: &[], field: crate::object::plain_field };
    let shown = found.iter().map(|o| Object::new("".into(), &encode(o), listed.revision, indexing).map(|o| o.bytes));
    let shown = shown.collect::<Result<Vec<_>, _>>().map_err(Status::internal)?;
    Ok(renderer.list(&shown, Revision::ZERO, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_form_of_metrics_server() {
        let used = Use {
            at: Timestamp::from_second(0).unwrap(),
            window: SignedDuration::from_millis(10_250),
            cpu_nano_cores: 1_234_567,
            memory_bytes: (10 << 20) + 5,
        };
        let node = json!({"metadata": {"name": "n", "labels": {"a": "b"}}});
        let metrics = node_metrics(&node, &used);
        assert_eq!(metrics["usage"], json!({"cpu": "1234567n", "memory": "10Mi"}));
        assert_eq!((&metrics["window"], &metrics["timestamp"]), (&json!("10.25s"), &json!("1970-01-01T00:00:00Z")));
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let mut uses = NodeUse::default();
        assert_eq!(pod_metrics(&pod, &uses), None);
        uses.containers.insert(("d".into(), "p".into(), "u".into(), "a".into()), used);
        let metrics = pod_metrics(&pod, &uses).unwrap();
        assert_eq!(metrics["containers"][0]["usage"]["memory"], "10Mi");
        assert_eq!((PODS.row)(&metrics), [json!("p"), json!("1234567n"), json!("10Mi"), json!("10.25s")]);
    }
}
