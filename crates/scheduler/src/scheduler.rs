//! The loop that gives pods their nodes.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Change, EventRecorder, EventType, Informers, ObjectKey, Subscription};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    nodes::{Nodes, PodInfo},
    plugins,
    queue::Queue,
};

/// The scheduler that pods name unless they say otherwise.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// How many bindings may be under way; more would only wait in the API server.
const BINDINGS_UNDER_WAY: usize = 64;

/// A binding that was tried.
struct Bound {
    key: ObjectKey,
    uid: String,
    node: String,
    pod: Arc<Pod>,
    outcome: Result<(), kube::Error>,
}

struct Scheduler {
    client: Client,
    recorder: EventRecorder,
    nodes: Nodes,
    queue: Queue,
    /// Pods without a node, as the watch shows them.
    pending: BTreeMap<ObjectKey, Arc<Pod>>,
    bound: mpsc::Sender<Bound>,
    binding: usize,
}

/// Schedules until the future is dropped.
pub async fn run(client: Client, informers: Informers) {
    let pods = informers.informer::<Pod>();
    let nodes = informers.informer::<Node>();
    nodes.wait_synced().await;
    pods.wait_synced().await;
    let (bound, mut outcomes) = mpsc::channel(BINDINGS_UNDER_WAY);
    let mut scheduler = Scheduler {
        recorder: EventRecorder::new(client.clone(), SCHEDULER_NAME, None),
        client,
        nodes: Nodes::default(),
        queue: Queue::default(),
        pending: BTreeMap::new(),
        bound,
        binding: 0,
    };
    let mut node_changes: Subscription<Node> = nodes.subscribe();
    let mut pod_changes: Subscription<Pod> = pods.subscribe();
    loop {
        let wake = scheduler.queue.next_wake();
        let can_try = scheduler.binding < BINDINGS_UNDER_WAY && scheduler.queue.is_ready(Instant::now());
        // What changed comes first: a choice is made on what is, not on what was.
        tokio::select! {
            biased;
            Some(change) = node_changes.recv() => scheduler.node_changed(&change),
            Some(change) = pod_changes.recv() => scheduler.pod_changed(&change),
            Some(outcome) = outcomes.recv() => scheduler.bound(outcome),
            () = std::future::ready(()), if can_try => scheduler.try_next(),
            () = until(wake) => {}
        }
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty())
}

impl Scheduler {
    fn node_changed(&mut self, change: &Change<Node>) {
        match change {
            Change::Applied { new, old } => {
                // Heartbeats change nothing that matters here.
                let helps = old.as_ref().is_none_or(|old| {
                    let facts = |n: &Node| {
                        (
                            n.spec.clone(),
                            n.metadata.labels.clone(),
                            n.status.as_ref().and_then(|s| s.allocatable.clone()),
                        )
                    };
                    facts(old) != facts(new)
                });
                self.nodes.set_node(new.clone());
                if helps {
                    self.queue.move_all(Instant::now());
                }
            }
            Change::Deleted { old } => self.nodes.remove_node(old.metadata.name.as_deref().unwrap_or_default()),
        }
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let key = ObjectKey::of(&**pod);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let gone = matches!(change, Change::Deleted { .. }) || is_over(pod);
        if gone {
            self.pending.remove(&key);
            self.queue.remove(&key);
            if self.nodes.remove_pod(&uid) {
                self.queue.move_all(Instant::now());
            }
        } else if let Some(node) = node_of(pod) {
            self.pending.remove(&key);
            self.queue.remove(&key);
            let info = PodInfo::new(pod.clone());
            self.nodes.place(info, node);
        } else if self.is_ours(pod) {
            let changed =
                change.old().is_some_and(|old| old.spec != pod.spec || old.metadata.labels != pod.metadata.labels);
            self.pending.insert(key.clone(), pod.clone());
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            self.queue.add(&key, priority, changed);
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or(SCHEDULER_NAME);
        scheduler == SCHEDULER_NAME && !is_gated(pod) && pod.metadata.deletion_timestamp.is_none()
    }

    /// Tries the next pod, if there is one.
    fn try_next(&mut self) {
        let Some(key) = self.queue.pop(Instant::now()) else { return };
        let Some(pod) = self.pending.get(&key).cloned() else {
            self.queue.remove(&key);
            return;
        };
        let info = PodInfo::new(pod.clone());
        match self.choose(&info) {
            Ok(node) => {
                self.nodes.place(info, &node);
                self.bind(key, pod, node);
            }
            Err(message) => {
                self.queue.failed(&key, Instant::now(), true);
                self.report_failure(&pod, message);
            }
        }
    }

    /// The best node, or upstream's words for why there is none.
    fn choose(&self, pod: &PodInfo) -> Result<String, String> {
        let mut fitting = Vec::new();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut total = 0;
        for node in self.nodes.iter() {
            total += 1;
            match plugins::filter(pod, node) {
                Ok(()) => fitting.push(node),
                Err(why) => {
                    for reason in why {
                        *reasons.entry(reason).or_default() += 1;
                    }
                }
            }
        }
        if total == 0 {
            return Err("no nodes available to schedule pods".into());
        }
        if fitting.is_empty() {
            let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            parts.sort();
            return Err(format!(
                "0/{total} nodes are available: {}. preemption: 0/{total} nodes are available: {total} Preemption is not helpful for scheduling.",
                parts.join(", ")
            ));
        }
        if fitting.len() == 1 {
            return Ok(fitting[0].name().to_owned());
        }
        let scores = plugins::score(pod, &fitting);
        // Among equals the emptiest: with equal scores pods still spread.
        let best = fitting.iter().zip(scores).max_by_key(|(node, score)| (*score, std::cmp::Reverse(node.pods.len())));
        Ok(best.map(|(node, _)| node.name().to_owned()).unwrap_or_default())
    }

    fn bind(&mut self, key: ObjectKey, pod: Arc<Pod>, node: String) {
        self.binding += 1;
        let (client, bound) = (self.client.clone(), self.bound.clone());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        tokio::spawn(async move {
            let api: Api<Pod> = Api::namespaced(client, &key.namespace);
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": &*key.name, "namespace": &*key.namespace, "uid": uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let created = api.create_subresource("binding", &key.name, &Default::default(), &binding).await;
            let outcome = created.map(|_: serde_json::Value| ());
            // The scheduler is gone when nobody receives.
            let _ = bound.send(Bound { key, uid, node, pod, outcome }).await;
        });
    }

    fn bound(&mut self, bound: Bound) {
        self.binding -= 1;
        let Bound { key, uid, node, pod, outcome } = bound;
        match outcome {
            Ok(()) => {
                let message = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
                self.recorder.for_object(&*pod, EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                self.nodes.remove_pod(&uid);
                // A pod that is gone, or that somebody else bound, needs nothing more.
                if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    self.queue.remove(&key);
                    return;
                }
                tracing::warn!(pod = %key, node, %error, "binding failed");
                self.queue.failed(&key, Instant::now(), false);
                self.recorder.for_object(
                    &*pod,
                    EventType::Warning,
                    "FailedScheduling",
                    format!("binding rejected: {error}"),
                );
            }
        }
    }

    /// Says in the pod's status and in an event why it has no node.
    fn report_failure(&self, pod: &Arc<Pod>, message: String) {
        self.recorder.for_object(&**pod, EventType::Warning, "FailedScheduling", message.clone());
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let known = conditions
            .iter()
            .any(|c| c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(&message));
        if known {
            return;
        }
        let client = self.client.clone();
        let (namespace, name) =
            (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        tokio::spawn(async move {
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let patch = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": now, "lastProbeTime": null,
            }]}});
            let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
            if let Err(error) = patched {
                tracing::debug!(%namespace, name, %error, "writing the pod's condition failed");
            }
        });
    }
}
