//! Disruption: how many pods each PodDisruptionBudget can spare.
//!
//! Watches PodDisruptionBudgets, pods and the kinds that pods are scaled by; owns nothing; writes the budgets'
//! status, from which the API server takes the evictions that it allows.

mod reconcile;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, ReplicationController},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, self_mapper};

use crate::{Result, While as _, is_not_found, pods};

struct Disruption {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    client: kube::Client,
    recorder: EventRecorder,
}

/// The budgets of a namespace whose selector selects this pod.
fn covering(budgets: &Informer<PodDisruptionBudget>, pod: &Pod) -> Vec<ObjectKey> {
    let all = budgets.list_namespace(&pod.namespace().unwrap_or_default()).into_iter();
    all.filter(|b| selector(b).is_some_and(|s| pods::selects(&s, pod))).map(|b| ObjectKey::of(&*b)).collect()
}

/// No selector selects nothing, an empty one everything.
fn selector(budget: &PodDisruptionBudget) -> Option<skiff_api::selector::LabelSelector> {
    pods::compile(budget.spec.as_ref()?.selector.as_ref()?)
}

/// A change of how many pods an owner wants concerns the budgets of its namespace.
fn scaled<K: Resource + Send + Sync + 'static>(
    budgets: &Informer<PodDisruptionBudget>,
    replicas: fn(&K) -> Option<i32>,
) -> impl Fn(&Change<K>) -> Vec<ObjectKey> + Send + 'static {
    let budgets = budgets.clone();
    move |change| {
        if let Change::Applied { old: Some(old), new } = change
            && replicas(old) == replicas(new)
        {
            return Vec::new();
        }
        let namespace = change.object().meta().namespace.clone().unwrap_or_default();
        budgets.list_namespace(&namespace).iter().map(|b| ObjectKey::of(&**b)).collect()
    }
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Disruption {
        budgets: informers.informer(),
        pods: informers.informer(),
        deployments: informers.informer(),
        sets: informers.informer(),
        stateful: informers.informer(),
        controllers: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "controllermanager", None),
    });
    let budgets = this.budgets.clone();
    let mapper = {
        let budgets = budgets.clone();
        move |change: &Change<Pod>| {
            let mut keys = covering(&budgets, change.object());
            // A pod whose labels changed leaves a budget.
            keys.extend(change.old().into_iter().flat_map(|old| covering(&budgets, old)));
            keys
        }
    };
    Controller::new("disruption")
        .watch(&budgets, self_mapper)
        .watch(&this.pods, mapper)
        .watch(&this.deployments, scaled(&budgets, |d: &Deployment| d.spec.as_ref()?.replicas))
        .watch(&this.sets, scaled(&budgets, |s: &ReplicaSet| s.spec.as_ref()?.replicas))
        .watch(&this.stateful, scaled(&budgets, |s: &StatefulSet| s.spec.as_ref()?.replicas))
        .watch(&this.controllers, scaled(&budgets, |c: &ReplicationController| c.spec.as_ref()?.replicas))
        .run({
            let this = this.clone();
            move |key| {
                let this = this.clone();
                async move { this.reconcile(key).await }
            }
        })
        .await;
}

impl Disruption {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(budget) = self.budgets.get_key(&key) else { return Ok(Action::Done) };
        let selector = selector(&budget);
        let mut covered = self.pods.list_namespace(&key.namespace);
        covered.retain(|p| selector.as_ref().is_some_and(|s| pods::selects(s, &**p)));
        if covered.is_empty() {
            self.recorder.for_object(&*budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = Timestamp::now();
        let decision = reconcile::decide(&budget, &covered, || self.scale(&key.namespace, &covered), now);
        let failed = decision.status.conditions.iter().flatten().find(|c| c.reason == "SyncFailed");
        if let Some(failed) = failed {
            let message = format!("Failed to calculate the number of expected pods: {}", failed.message);
            self.recorder.for_object(&*budget, EventType::Warning, "CalculateExpectedPodCountFailed", message);
        }
        for name in &decision.stayed {
            let Some(pod) = covered.iter().find(|p| p.name_any() == *name) else { continue };
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.for_object(&**pod, EventType::Warning, "NotDeleted", message);
        }
        if budget.status.as_ref() != Some(&decision.status) {
            // The API server counts evictions in the same status: whoever is late looks again.
            let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
            let metadata = json!({"uid": budget.uid(), "resourceVersion": budget.resource_version()});
            let status = crate::replacement(&budget.status, &decision.status);
            let patch = json!({"metadata": metadata, "status": status});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(e) if is_not_found(&e) => return Ok(Action::Done),
                written => written.during("writing the status")?,
            };
        }
        Ok(match decision.again {
            Some(then) => Action::RequeueAfter(Duration::try_from(then.duration_since(now)).unwrap_or_default()),
            None => Action::Done,
        })
    }

    /// How many pods the owners of these want together. Pods without an owner count for nothing.
    fn scale(&self, namespace: &str, covered: &[Arc<Pod>]) -> std::result::Result<i32, String> {
        let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
        for pod in covered {
            let Some(owner) = pods::controller_of(&**pod) else { continue };
            if wanted.contains_key(&owner.uid) {
                continue;
            }
            let (uid, replicas) = match owner.kind.as_str() {
                "ReplicaSet" => self.of_set(namespace, &owner.name, &owner.uid),
                "StatefulSet" => {
                    let set = self.stateful.get(namespace, &owner.name);
                    (owner.uid.clone(), set.and_then(|s| s.spec.as_ref()?.replicas))
                }
                "ReplicationController" => {
                    let controller = self.controllers.get(namespace, &owner.name);
                    (owner.uid.clone(), controller.and_then(|c| c.spec.as_ref()?.replicas))
                }
                kind => {
                    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
                    let name = format!("{}s.{group}", kind.to_ascii_lowercase());
                    return Err(format!("{} does not implement the scale subresource", name.trim_end_matches('.')));
                }
            };
            let Some(replicas) = replicas else {
                return Err(format!("found no controllers for pod {:?}", pod.name_any()));
            };
            wanted.insert(uid, replicas);
        }
        Ok(wanted.values().sum())
    }

    /// A Deployment is the owner of all its ReplicaSets' pods.
    fn of_set(&self, namespace: &str, name: &str, uid: &str) -> (String, Option<i32>) {
        let Some(set) = self.sets.get(namespace, name) else { return (uid.to_owned(), None) };
        let deployment = pods::controller_of(&*set).filter(|o| o.kind == "Deployment");
        match deployment.and_then(|o| self.deployments.get(namespace, &o.name)) {
            Some(d) => (d.uid().unwrap_or_default(), d.spec.as_ref().and_then(|s| s.replicas)),
            None => (uid.to_owned(), set.spec.as_ref().and_then(|s| s.replicas)),
        }
    }
}
