//! DaemonSet: one pod on every node that the template's selector, affinity and tolerations allow.
//!
//! Watches DaemonSets, their pods and revisions, and nodes; owns the pods and revisions that it controls; writes pods,
//! revisions and the set's status. A pod is bound to its node by an affinity to the node's name, so that the
//! scheduler still decides whether there is room.

mod reconcile;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Action, Change, Controller, EventType, Informer, Informers, ObjectKey, owner_mapper, self_mapper};

use crate::{
    Result, While as _,
    history::{HASH, History, Made, hash_of, surplus},
    podcontrol::{PodControl, pod_mapper},
    pods,
};

const WORKERS: usize = 2;
/// How many pods one step creates at most.
const BURST: usize = 250;
/// Pods that fail on a node are replaced after this time, then twice as long, up to the last one.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LAST_BACK_OFF: Duration = Duration::from_secs(15 * 60);

struct DaemonSets {
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    history: History,
    control: Arc<PodControl>,
    /// When a set's pod on a node was last replaced because it had failed, and the time until the next one may be.
    failures: Mutex<HashMap<(String, String), (Instant, Duration)>>,
}

fn selector(set: &DaemonSet) -> Option<skiff_api::selector::LabelSelector> {
    set.spec.as_ref().and_then(|s| pods::compile(&s.selector))
}

/// What of a node decides where daemons run.
fn relevant(node: &Node) -> impl PartialEq + use<> {
    (node.metadata.labels.clone(), node.spec.as_ref().and_then(|s| s.taints.clone()))
}

pub(crate) async fn run(informers: Informers) {
    let client = informers.client().clone();
    let this = Arc::new(DaemonSets {
        sets: informers.informer(),
        pods: informers.informer(),
        nodes: informers.informer(),
        history: History { client: client.clone(), revisions: informers.informer(), label: HASH },
        control: Arc::new(PodControl::new(client, "daemonset-controller")),
        failures: Mutex::default(),
    });
    let (sets, all_pods, revisions) = (this.sets.clone(), this.pods.clone(), this.history.revisions.clone());
    let mapper = pod_mapper(this.control.clone(), sets.clone(), "apps", "DaemonSet", selector);
    let (nodes, on_nodes) = (this.nodes.clone(), this.sets.clone());
    let node_mapper = move |change: &Change<Node>| -> Vec<ObjectKey> {
        if let Change::Applied { old: Some(old), new } = change
            && relevant(old) == relevant(new)
        {
            return Vec::new();
        }
        on_nodes.list().iter().map(|set| ObjectKey::of(&**set)).collect()
    };
    Controller::new("daemonset")
        .workers(WORKERS)
        .watch(&sets, self_mapper)
        .watch(&all_pods, mapper)
        .watch(&revisions, owner_mapper::<ControllerRevision>("apps", "DaemonSet"))
        .watch(&nodes, node_mapper)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl DaemonSets {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(set) = self.sets.get_key(&key) else {
            self.control.expectations.forget(&key);
            return Ok(Action::Done);
        };
        let (Some(selector), Some(spec)) = (selector(&set), set.spec.as_ref()) else { return Ok(Action::Done) };
        let owned = self.control.claim(&*set, &selector, &self.pods, |_| true).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let revisions = self.history.of(&*set, &selector).await?;
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let revision = match self.history.make(&*set, &spec.template, &revisions, collisions).await? {
            Made::Revision(revision) => revision,
            Made::Collision => {
                let status = json!({"status": {"collisionCount": collisions + 1}});
                let api: Api<DaemonSet> = Api::namespaced(self.control.client.clone(), &key.namespace);
                let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&status)).await;
                patched.during("noting a collision of names")?;
                return Ok(Action::Done);
            }
            Made::Never => return Ok(Action::Done),
        };
        let hash = hash_of(&revision);
        let (now, nodes) = (Timestamp::now(), self.nodes.list());
        let (mut failure, mut again) = (None, None);
        if self.control.expectations.are_met(&key, |uid| pods::is_present(&owned, uid)) {
            match self.manage(&set, &hash, &owned, &nodes, now).await {
                Ok(wait) => again = wait,
                Err(error) => failure = Some(error),
            }
        }
        let (status, next) = reconcile::status(&set, &hash, &owned, &nodes, collisions, now);
        self.control.write_status(&*set, set.status.as_ref(), &status).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        let live = |r: &ControllerRevision| {
            r.name_any() == revision.name_any()
                || owned.iter().any(|p| p.labels().get(HASH).is_some_and(|h| *h == hash_of(r)))
        };
        self.history.delete(&surplus(&revisions, live, spec.revision_history_limit.unwrap_or(10))).await?;
        let next = next.map(|then| Duration::try_from(then.duration_since(now)).unwrap_or_default());
        Ok(next.into_iter().chain(again).min().map_or(Action::Done, Action::RequeueAfter))
    }

    /// Creates and deletes pods; after which time a failed one may be replaced.
    async fn manage(
        &self,
        set: &DaemonSet,
        hash: &str,
        owned: &[Arc<Pod>],
        nodes: &[Arc<Node>],
        now: Timestamp,
    ) -> Result<Option<Duration>> {
        let mut decision = reconcile::decide(set, hash, owned, nodes, now);
        let mut again: Option<Duration> = None;
        for (pod, succeeded) in &decision.over {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
            if let Some(wait) = self.back_off(set, &node) {
                again = Some(again.map_or(wait, |a| a.min(wait)));
                decision.delete.retain(|p| p.metadata.uid != pod.metadata.uid);
                continue;
            }
            let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            let recorder = &self.control.recorder;
            if *succeeded {
                let message = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
                recorder.for_object(set, EventType::Normal, "SucceededDaemonPod", message);
            } else {
                let message = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
                recorder.for_object(set, EventType::Warning, "FailedDaemonPod", message);
            }
        }
        decision.create.truncate(BURST);
        let new: Vec<Pod> = decision.create.iter().map(|node| reconcile::pod(set, hash, node)).collect();
        self.control.create_all(set, &new).await?;
        self.control.delete_all(set, &decision.delete).await?;
        Ok(again)
    }

    /// How long a failed pod has still to stay; `None` if it may go, which is noted.
    fn back_off(&self, set: &DaemonSet, node: &str) -> Option<Duration> {
        let key = (set.uid().unwrap_or_default(), node.to_owned());
        let mut failures = self.failures.lock();
        let now = Instant::now();
        // What has worked for long enough since is forgotten.
        failures.retain(|_, (since, wait)| now.duration_since(*since) < *wait + 2 * LAST_BACK_OFF);
        match failures.get_mut(&key) {
            Some((since, wait)) => {
                let passed = now.duration_since(*since);
                if passed < *wait {
                    return Some(*wait - passed);
                }
                *since = now;
                *wait = (*wait * 2).min(LAST_BACK_OFF);
            }
            None => {
                failures.insert(key, (now, FIRST_BACK_OFF));
            }
        }
        None
    }
}
