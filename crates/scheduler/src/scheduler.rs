//! The loop that gives pods their nodes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    policy::v1::PodDisruptionBudget,
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use skiff_client::{Change, EventRecorder, EventType, Informer, Informers, ObjectKey, Subscription};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    binding::{self, BindError},
    nodes::{NodeInfo, Nodes, PodInfo},
    plugins::{Attempt, Refusal, World, volume_binding::Binding},
    preemption::{self, Eviction},
    queue::{Changes, Queue},
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
    /// It had to wait for volumes, and was not counted.
    waited: bool,
    outcome: Result<(), BindError>,
}

struct Scheduler {
    client: Client,
    recorder: EventRecorder,
    nodes: Nodes,
    world: World,
    queue: Queue,
    /// Pods without a node, as the watch shows them.
    pending: BTreeMap<ObjectKey, Arc<Pod>>,
    /// Pods for which room is being made on a node, by UID. Others of no higher priority leave it to them.
    nominated: HashMap<String, (String, PodInfo)>,
    claims: Informer<PersistentVolumeClaim>,
    budgets: Informer<PodDisruptionBudget>,
    bound: mpsc::Sender<Bound>,
    binding: usize,
}

/// A node for a pod, and what its claims get.
struct Choice {
    node: String,
    bindings: Vec<Binding>,
}

/// Why no node was chosen.
struct NoFit {
    /// Upstream's words, without what preemption has to say.
    message: String,
    helped_by: Changes,
    refusals: HashMap<String, Refusal>,
    total: usize,
}

/// Schedules until the future is dropped.
pub async fn run(client: Client, informers: Informers) {
    let pods = informers.informer::<Pod>();
    let nodes = informers.informer::<Node>();
    let namespaces = informers.informer::<Namespace>();
    let claims = informers.informer::<PersistentVolumeClaim>();
    let volumes = informers.informer::<PersistentVolume>();
    let classes = informers.informer::<StorageClass>();
    let drivers = informers.informer::<CSIDriver>();
    let csi_nodes = informers.informer::<CSINode>();
    let capacities = informers.informer::<CSIStorageCapacity>();
    let attachments = informers.informer::<VolumeAttachment>();
    let budgets = informers.informer::<PodDisruptionBudget>();
    nodes.wait_synced().await;
    pods.wait_synced().await;
    namespaces.wait_synced().await;
    claims.wait_synced().await;
    volumes.wait_synced().await;
    classes.wait_synced().await;
    drivers.wait_synced().await;
    csi_nodes.wait_synced().await;
    capacities.wait_synced().await;
    attachments.wait_synced().await;
    let (bound, mut outcomes) = mpsc::channel(BINDINGS_UNDER_WAY);
    let mut scheduler = Scheduler {
        recorder: EventRecorder::new(client.clone(), SCHEDULER_NAME, None),
        client,
        nodes: Nodes::default(),
        world: World::default(),
        queue: Queue::default(),
        pending: BTreeMap::new(),
        nominated: HashMap::new(),
        claims: claims.clone(),
        budgets,
        bound,
        binding: 0,
    };
    let mut node_changes: Subscription<Node> = nodes.subscribe();
    let mut pod_changes: Subscription<Pod> = pods.subscribe();
    let mut namespace_changes: Subscription<Namespace> = namespaces.subscribe();
    let mut claim_changes: Subscription<PersistentVolumeClaim> = claims.subscribe();
    let mut volume_changes: Subscription<PersistentVolume> = volumes.subscribe();
    let mut class_changes: Subscription<StorageClass> = classes.subscribe();
    let mut driver_changes: Subscription<CSIDriver> = drivers.subscribe();
    let mut csi_node_changes: Subscription<CSINode> = csi_nodes.subscribe();
    let mut capacity_changes: Subscription<CSIStorageCapacity> = capacities.subscribe();
    let mut attachment_changes: Subscription<VolumeAttachment> = attachments.subscribe();
    loop {
        let wake = scheduler.queue.next_wake();
        let can_try = scheduler.binding < BINDINGS_UNDER_WAY && scheduler.queue.is_ready(Instant::now());
        // What changed comes first: a choice is made on what is, not on what was.
        tokio::select! {
            biased;
            Some(change) = namespace_changes.recv() => scheduler.namespace_changed(&change),
            Some(change) = class_changes.recv() => {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                keep(&mut scheduler.world.storage.classes, name, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = driver_changes.recv() => {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                keep(&mut scheduler.world.storage.drivers, name, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = csi_node_changes.recv() => {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                keep(&mut scheduler.world.storage.csi_nodes, name, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = capacity_changes.recv() => {
                let key = ObjectKey::of(&**change.object());
                keep(&mut scheduler.world.storage.capacities, key, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = attachment_changes.recv() => {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                keep(&mut scheduler.world.storage.attachments, name, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = volume_changes.recv() => {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                keep(&mut scheduler.world.storage.volumes, name, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = claim_changes.recv() => {
                let key = ObjectKey::of(&**change.object());
                keep(&mut scheduler.world.storage.claims, key, change);
                scheduler.queue.changed(Changes::STORAGE, Instant::now());
            }
            Some(change) = node_changes.recv() => scheduler.node_changed(&change),
            Some(change) = pod_changes.recv() => scheduler.pod_changed(&change),
            Some(outcome) = outcomes.recv() => scheduler.bound(outcome),
            () = std::future::ready(()), if can_try => scheduler.try_next(),
            () = until(wake) => {}
        }
    }
}

/// Keeps a copy as the watch shows it.
fn keep<Key: Ord, K>(copies: &mut BTreeMap<Key, Arc<K>>, key: Key, change: Change<K>) {
    match change {
        Change::Applied { new, .. } => copies.insert(key, new),
        Change::Deleted { .. } => copies.remove(&key),
    };
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

/// Whether a pod has any say in where others may be, or they in where it may be.
fn minds_others(pod: &PodInfo) -> bool {
    let spread =
        pod.pod.spec.as_ref().is_some_and(|s| s.topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty()));
    spread || !pod.terms.is_empty()
}

impl Scheduler {
    fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        match change {
            Change::Applied { new, .. } => {
                self.world.namespaces.insert(name, new.metadata.labels.clone().unwrap_or_default());
            }
            Change::Deleted { .. } => {
                self.world.namespaces.remove(&name);
            }
        }
    }

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
                    self.queue.changed(Changes::NODE, Instant::now());
                }
            }
            Change::Deleted { old } => {
                self.nodes.remove_node(old.metadata.name.as_deref().unwrap_or_default());
                // Spreading may be possible without it.
                self.queue.changed(Changes::POD_PLACED, Instant::now());
            }
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
            self.nominated.remove(&uid);
            if self.nodes.remove_pod(&uid) {
                self.queue.changed(Changes::POD_GONE, Instant::now());
            }
        } else if let Some(node) = node_of(pod) {
            self.pending.remove(&key);
            self.queue.remove(&key);
            self.nominated.remove(&uid);
            let relabelled =
                change.old().is_none_or(|old| node_of(old).is_none() || old.metadata.labels != pod.metadata.labels);
            let info = PodInfo::new(pod.clone());
            self.nodes.place(info, node);
            if relabelled {
                self.queue.changed(Changes::POD_PLACED, Instant::now());
            }
        } else if self.is_ours(pod) {
            let changed =
                change.old().is_some_and(|old| old.spec != pod.spec || old.metadata.labels != pod.metadata.labels);
            self.pending.insert(key.clone(), pod.clone());
            let info = PodInfo::new(pod.clone());
            let node = pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()).filter(|n| !n.is_empty());
            match node {
                Some(node) => self.nominated.insert(uid, (node, info.clone())),
                None => self.nominated.remove(&uid),
            };
            self.queue.add(&key, info.priority(), changed);
        } else {
            // To be deleted, or gated, before it had a node.
            self.pending.remove(&key);
            self.queue.remove(&key);
            self.nominated.remove(&uid);
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
            Ok(choice) => {
                self.nominated.remove(info.uid());
                self.nodes.place(info, &choice.node);
                self.bind(key, pod, choice);
            }
            Err(failure) => {
                self.queue.failed(&key, Instant::now(), Some(failure.helped_by));
                let (message, nominate) = self.preempt(&info, failure);
                self.report_failure(&pod, message, nominate);
            }
        }
    }

    /// The best node, or upstream's words for why there is none.
    fn choose(&self, pod: &PodInfo) -> Result<Choice, NoFit> {
        let nodes: Vec<&NodeInfo> = self.nodes.iter().collect();
        let total = nodes.len();
        let none = |message: String, helped_by: Changes, refusals| NoFit { message, helped_by, refusals, total };
        if total == 0 {
            return Err(none("no nodes available to schedule pods".into(), Changes::NODE, HashMap::new()));
        }
        let attempt = Attempt::new(pod, &nodes, &self.world)
            .map_err(|why| none(format!("0/{total} nodes are available: {why}."), Changes::STORAGE, HashMap::new()))?;
        let mut fitting = Vec::new();
        let mut refusals = HashMap::new();
        for node in &nodes {
            match self.filter(&attempt, pod, node) {
                Ok(()) => fitting.push(*node),
                Err(refusal) => {
                    refusals.insert(node.name().to_owned(), refusal);
                }
            }
        }
        if fitting.is_empty() {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for reason in refusals.values().flat_map(|r| &r.reasons) {
                *counts.entry(reason).or_default() += 1;
            }
            let mut parts: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            parts.sort();
            let mut helped_by = Changes::NODE.or(Changes::POD_GONE);
            if minds_others(pod) {
                helped_by = helped_by.or(Changes::POD_PLACED);
            }
            if !crate::plugins::volume_binding::claims_of(&pod.pod).is_empty() {
                helped_by = helped_by.or(Changes::STORAGE);
            }
            let message = format!("0/{total} nodes are available: {}.", parts.join(", "));
            return Err(none(message, helped_by, refusals));
        }
        let best = if fitting.len() == 1 {
            fitting[0]
        } else {
            let scores = attempt.score(&fitting);
            // Among equals the emptiest: with equal scores pods still spread.
            let rank = |(node, score): &(&&NodeInfo, i64)| (*score, std::cmp::Reverse(node.pods.len()));
            fitting.iter().zip(scores).max_by_key(rank).map_or(fitting[0], |(node, _)| *node)
        };
        Ok(Choice { node: best.name().to_owned(), bindings: attempt.bindings(best) })
    }

    /// All filters, and the same with those pods there for which room is being made.
    fn filter(&self, attempt: &Attempt<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
        attempt.filter(node)?;
        let before = |other: &&PodInfo| other.priority() >= pod.priority() && other.uid() != pod.uid();
        let nominated: Vec<&PodInfo> =
            self.nominated.values().filter(|(on, _)| on == node.name()).map(|(_, p)| p).filter(before).collect();
        if nominated.is_empty() { Ok(()) } else { attempt.filter(&node.changed([], nominated)) }
    }

    /// Has pods of lower priority go, if that helps: the message for the pod, and the node where it will fit.
    fn preempt(&mut self, pod: &PodInfo, failure: NoFit) -> (String, Option<String>) {
        let NoFit { message, refusals, total, .. } = failure;
        if total == 0 {
            return (message, None);
        }
        let nodes: Vec<&NodeInfo> = self.nodes.iter().collect();
        match preemption::plan(pod, &nodes, &refusals, &self.world, &self.budgets.list()) {
            Ok(eviction) => {
                let node = eviction.node.clone();
                self.nominated.insert(pod.uid().to_owned(), (node.clone(), pod.clone()));
                self.evict(pod, eviction);
                (message, Some(node))
            }
            Err(why) => (format!("{message} preemption: {why}"), None),
        }
    }

    fn evict(&mut self, pod: &PodInfo, eviction: Eviction) {
        let (uid, node) = (pod.uid().to_owned(), eviction.node);
        for victim in eviction.victims.into_iter().map(|v| v.pod) {
            let (client, recorder) = (self.client.clone(), self.recorder.clone());
            let message = format!("Preempted by pod {uid} on node {node}");
            tokio::spawn(async move {
                match evict_one(&client, &victim).await {
                    Ok(()) => recorder.for_object(&*victim, EventType::Normal, "Preempted", message),
                    Err(error) => {
                        tracing::warn!(pod = %ObjectKey::of(&*victim), %error, "a pod could not be preempted");
                    }
                }
            });
        }
    }

    fn bind(&mut self, key: ObjectKey, pod: Arc<Pod>, choice: Choice) {
        let Choice { node, bindings } = choice;
        let waited = !bindings.is_empty();
        self.binding += usize::from(!waited);
        let (client, claims, bound) = (self.client.clone(), self.claims.clone(), self.bound.clone());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        tokio::spawn(async move {
            let outcome = match binding::volumes(&client, &claims, &bindings, &node).await {
                Ok(()) => binding::pod(&client, &pod, &node).await,
                Err(error) => Err(error),
            };
            // The scheduler is gone when nobody receives.
            let _ = bound.send(Bound { key, uid, node, pod, waited, outcome }).await;
        });
    }

    fn bound(&mut self, bound: Bound) {
        let Bound { key, uid, node, pod, waited, outcome } = bound;
        self.binding -= usize::from(!waited);
        match outcome {
            Ok(()) => {
                let message = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
                self.recorder.for_object(&*pod, EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                self.nodes.remove_pod(&uid);
                // A pod that is gone, or that somebody else bound, needs nothing more.
                if matches!(&error, BindError::Api(kube::Error::Api(status)) if status.code == 404) {
                    self.queue.remove(&key);
                    return;
                }
                tracing::warn!(pod = %key, node, %error, "binding failed");
                self.queue.failed(&key, Instant::now(), None);
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
    fn report_failure(&self, pod: &Arc<Pod>, message: String, nominate: Option<String>) {
        self.recorder.for_object(&**pod, EventType::Warning, "FailedScheduling", message.clone());
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let known = conditions
            .iter()
            .any(|c| c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(&message));
        let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.clone());
        if known && (nominate.is_none() || nominate == nominated) {
            return;
        }
        let client = self.client.clone();
        let (namespace, name) =
            (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        tokio::spawn(async move {
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let mut patch = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": now, "lastProbeTime": null,
            }]}});
            if let Some(node) = nominate {
                patch["status"]["nominatedNodeName"] = node.into();
            }
            let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
            if let Err(error) = patched {
                tracing::debug!(%namespace, name, %error, "writing the pod's condition failed");
            }
        });
    }
}

/// Says why, and deletes: the pod ends as with any other deletion.
async fn evict_one(client: &Client, victim: &Pod) -> kube::Result<()> {
    let meta = &victim.metadata;
    if meta.deletion_timestamp.is_some() {
        return Ok(());
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": now,
    }]}});
    let gone =
        |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409);
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&condition)).await {
        Err(error) if gone(&error) => return Ok(()),
        patched => patched?,
    };
    let preconditions = Some(Preconditions { uid: meta.uid.clone(), resource_version: None });
    match api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
        Err(error) if gone(&error) => Ok(()),
        deleted => deleted.map(|_| ()),
    }
}
