//! Node lifecycle: nodes that fall silent are not ready, and pods leave nodes that they do not tolerate.
//!
//! Watches Nodes, their Leases and pods. Writes the conditions of silent nodes, the taints that follow from
//! conditions, and deletes pods whose time on a tainted node is over.

mod reconcile;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{
    Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, Selector, self_mapper,
};

use self::reconcile::Disruption;
use crate::{Result, While as _, is_conflict, is_not_found};

/// How often a node is looked at that is kept from eviction because of the others.
const MONITOR_PERIOD: Duration = Duration::from_secs(5);
/// How long a node may be silent that was never heard of, upstream's.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

struct Lifecycle {
    /// How long a node may be silent.
    grace: Duration,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
    /// When a sign of life of each node was last seen here: clocks of nodes are not trusted.
    seen: Mutex<HashMap<String, (String, Instant)>>,
    /// Since when each pod's node has had taints that it does not tolerate for ever.
    tainted_since: Mutex<HashMap<String, Instant>>,
}

/// `grace`: how long a node may be silent (`--node-monitor-grace-period`).
pub(crate) async fn run(informers: Informers, grace: Duration) {
    let this = Arc::new(Lifecycle {
        grace,
        nodes: informers.informer(),
        leases: informers.selected(Selector::all()),
        pods: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "node-controller", None),
        seen: Mutex::default(),
        tainted_since: Mutex::default(),
    });
    this.pods.add_index("node", |pod| pod.spec.as_ref().and_then(|s| s.node_name.clone()).into_iter().collect());
    let (nodes, leases, pods) = (this.nodes.clone(), this.leases.clone(), this.pods.clone());
    Controller::new("nodelifecycle")
        .workers(2)
        .watch(&nodes, self_mapper)
        .watch(&leases, |change: &Change<Lease>| {
            let lease = change.object();
            (lease.namespace().as_deref() == Some("kube-node-lease")).then(|| ObjectKey::new("", &lease.name_any()))
        })
        .watch(&pods, |change: &Change<Pod>| {
            // Only a pod that comes to a node may have to leave it at once.
            let node = change.object().spec.as_ref()?.node_name.clone()?;
            let came = change.old().is_none_or(|old| old.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_none());
            came.then(|| ObjectKey::new("", &node))
        })
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move { this.reconcile(&key.name).await }
        })
        .await;
}

impl Lifecycle {
    async fn reconcile(&self, name: &str) -> Result<Action> {
        let Some(node) = self.nodes.get("", name) else {
            self.seen.lock().remove(name);
            return Ok(Action::Done);
        };
        let silent_for = self.silence(&node);
        let grace = if reconcile::was_heard_of(&node) { self.grace } else { self.grace.max(STARTUP_GRACE) };
        let mut again = grace.saturating_sub(silent_for) + Duration::from_millis(100);
        let now = jiff::Timestamp::now();
        if silent_for >= grace {
            if let Some(conditions) = reconcile::unknown_conditions(&node, now) {
                let api: Api<Node> = Api::all(self.client.clone());
                let patch = json!({"status": {"conditions": conditions}});
                match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
                    Err(e) if is_not_found(&e) => return Ok(Action::Done),
                    patched => patched.during("marking a silent node")?,
                };
                self.recorder.for_object(
                    &*node,
                    EventType::Normal,
                    "NodeNotReady",
                    format!("Node {name} status is now: NodeNotReady"),
                );
            }
            self.mark_pods_not_ready(name).await?;
            // The next sign of life comes by itself.
            again = Duration::from_secs(3600);
        }
        let disruption = reconcile::disruption(&self.nodes.list());
        if disruption != Disruption::None && !reconcile::is_ready(&node) {
            again = again.min(MONITOR_PERIOD);
        }
        if let Some(taints) = reconcile::taints(&node, disruption, now) {
            let api: Api<Node> = Api::all(self.client.clone());
            let patch =
                json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                patched => {
                    patched.during("tainting a node")?;
                }
            }
        }
        if let Some(next) = self.evict(&node).await? {
            again = again.min(next);
        }
        Ok(Action::RequeueAfter(again))
    }

    /// How long nothing has been heard of the node.
    fn silence(&self, node: &Node) -> Duration {
        let name = node.name_any();
        let renewed = self.leases.get("kube-node-lease", &name).and_then(|l| l.spec.as_ref()?.renew_time.clone());
        let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
        // Conditions written here are no sign of life.
        let heartbeat = ready.filter(|c| c.status != "Unknown").and_then(|c| c.last_heartbeat_time.clone());
        let sign = format!("{:?} {:?}", renewed.map(|t| t.0), heartbeat.map(|t| t.0));
        let mut seen = self.seen.lock();
        let entry = seen.entry(name).or_insert_with(|| (sign.clone(), Instant::now()));
        if entry.0 != sign {
            *entry = (sign, Instant::now());
        }
        entry.1.elapsed()
    }

    /// Pods of a silent node serve nobody, as far as anybody can know.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<()> {
        for pod in self.pods.by_index("node", node) {
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            if !conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                continue;
            }
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let patch = json!({"status": {"conditions": [{
                "type": "Ready", "status": "False", "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]}});
            match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
                Err(e) if is_not_found(&e) => {}
                patched => {
                    patched.during("marking a pod of a silent node")?;
                    self.recorder.for_object(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready");
                }
            }
        }
        Ok(())
    }

    /// Deletes pods whose time is over; when the next one's will be.
    async fn evict(&self, node: &Node) -> Result<Option<Duration>> {
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
        let mut next = None;
        for pod in self.pods.by_index("node", &node.name_any()) {
            let uid = pod.uid().unwrap_or_default();
            let patience = reconcile::patience(&pod, taints);
            let Some(patience) = patience.filter(|_| pod.metadata.deletion_timestamp.is_none()) else {
                let waited = self.tainted_since.lock().remove(&uid).is_some();
                if waited && pod.metadata.deletion_timestamp.is_none() {
                    self.recorder.for_object(
                        &*pod,
                        EventType::Normal,
                        "TaintManagerEviction",
                        format!(
                            "Cancelling deletion of Pod {}/{}",
                            pod.namespace().unwrap_or_default(),
                            pod.name_any()
                        ),
                    );
                }
                continue;
            };
            let since = *self.tainted_since.lock().entry(uid.clone()).or_insert_with(Instant::now);
            let left = patience.saturating_sub(since.elapsed());
            if !left.is_zero() {
                next = Some(next.map_or(left, |n: Duration| n.min(left)));
                continue;
            }
            self.recorder.for_object(
                &*pod,
                EventType::Normal,
                "TaintManagerEviction",
                format!("Marking for deletion Pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
            );
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let disrupted = json!({"status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]}});
            match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&disrupted)).await {
                Err(e) if is_not_found(&e) => continue,
                patched => patched.during("marking a pod for eviction")?,
            };
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&pod.name_any(), &params).await {
                Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                deleted => {
                    deleted.during("evicting a pod")?;
                }
            }
            self.tainted_since.lock().remove(&uid);
        }
        Ok(next)
    }
}
