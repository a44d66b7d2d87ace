//! Deployment: ReplicaSets, one for each template, and the roll from the old ones to the new one.
//!
//! Watches Deployments, ReplicaSets and (for the strategy `Recreate`) pods; owns the ReplicaSets that it controls;
//! writes ReplicaSets, the Deployment's revision annotation and its status.

mod reconcile;
mod status;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use skiff_client::{
    Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, owner_mapper, self_mapper,
};

use self::reconcile::{REVISION, Step};
use crate::{Result, While as _, is_conflict, is_not_found, pods};

const WORKERS: usize = 5;

struct Deployments {
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Deployments {
        deployments: informers.informer(),
        sets: informers.informer(),
        pods: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "deployment-controller", None),
    });
    let (deployments, sets, all_pods) = (this.deployments.clone(), this.sets.clone(), this.pods.clone());
    let owners = this.clone();
    // `Recreate` waits until the last old pod is gone.
    let pod_mapper = move |change: &Change<Pod>| -> Option<ObjectKey> {
        let Change::Deleted { old } = change else { return None };
        let set = pods::controller_of(&**old).filter(|o| o.kind == "ReplicaSet")?;
        let set = owners.sets.get(old.namespace().as_deref().unwrap_or_default(), &set.name)?;
        let owner = pods::controller_of(&*set).filter(|o| o.kind == "Deployment")?;
        Some(ObjectKey::new(set.namespace().as_deref().unwrap_or_default(), &owner.name))
    };
    Controller::new("deployment")
        .workers(WORKERS)
        .watch(&deployments, self_mapper)
        .watch(&sets, owner_mapper("apps", "Deployment"))
        .watch(&all_pods, pod_mapper)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Deployments {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(deployment) = self.deployments.get_key(&key) else { return Ok(Action::Done) };
        let uid = deployment.metadata.uid.clone().unwrap_or_default();
        let Some(selector) = deployment.spec.as_ref().and_then(|s| pods::compile(&s.selector)) else {
            return Ok(Action::Done);
        };
        let mut sets: Vec<Arc<ReplicaSet>> = Vec::new();
        for set in self.sets.by_owner(&uid) {
            if pods::selects(&selector, &*set) {
                sets.push(set);
            }
        }
        for set in self.sets.list_namespace(&key.namespace) {
            let orphan = pods::controller_of(&*set).is_none() && set.metadata.deletion_timestamp.is_none();
            if orphan && deployment.metadata.deletion_timestamp.is_none() && pods::selects(&selector, &*set) {
                return self.adopt(&set, &deployment).await;
            }
        }
        let now = Timestamp::now();
        if deployment.metadata.deletion_timestamp.is_some() {
            self.write_status(&deployment, &sets, now).await?;
            return Ok(Action::Done);
        }
        let old_pods_left = || {
            let (_, old) = reconcile::split(&deployment, &sets);
            old.iter().any(|set| {
                let pods = self.pods.by_owner(set.metadata.uid.as_deref().unwrap_or_default());
                pods.iter().any(|p| !matches!(pods::phase(p), "Succeeded" | "Failed"))
            })
        };
        // One step at a time: each changes what the next is decided on.
        for step in reconcile::plan(&deployment, &sets, old_pods_left()) {
            if !self.carry_out(&deployment, &sets, step).await? {
                // The change comes back through the watch.
                break;
            }
        }
        let again = self.write_status(&deployment, &sets, now).await?;
        Ok(again.map_or(Action::Done, Action::RequeueAfter))
    }

    /// Whether the next step may follow at once.
    async fn carry_out(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>], step: Step) -> Result<bool> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        match step {
            Step::SetRevision(revision) => {
                let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
                let patch = json!({"metadata": {"uid": deployment.uid(), "annotations": {REVISION: revision}}});
                match api.patch(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(false),
                    patched => patched.during("writing the revision").map(|_| true),
                }
            }
            Step::Annotate { set, annotations } => {
                let patch = json!({"metadata": {"annotations": annotations}});
                match api.patch(&set, &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Err(e) if is_not_found(&e) => Ok(false),
                    patched => patched.during("annotating a ReplicaSet").map(|_| true),
                }
            }
            Step::Create(set) => {
                let name = set.name_any();
                let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
                match api.create(&PostParams::default(), &set).await {
                    Ok(_) => {}
                    Err(e) if is_conflict(&e) => return self.collision(deployment, sets, &name).await,
                    Err(kube::Error::Api(status)) if status.message.contains("being terminated") => return Ok(false),
                    Err(error) => {
                        let message = format!("Failed to create new replica set {name:?}: {error}");
                        self.recorder.for_object(deployment, EventType::Warning, "ReplicaSetCreateError", message);
                        return Err(error).during("creating a ReplicaSet");
                    }
                }
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.recorder.for_object(deployment, EventType::Normal, "ScalingReplicaSet", message);
                }
                Ok(false)
            }
            Step::Scale { set, from, to, annotations } => {
                let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}});
                match api.patch(&set, &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Err(e) if is_not_found(&e) => return Ok(false),
                    patched => patched.during("scaling a ReplicaSet")?,
                };
                if from != to {
                    let way = if to > from { "up" } else { "down" };
                    let message = format!("Scaled {way} replica set {set} from {from} to {to}");
                    self.recorder.for_object(deployment, EventType::Normal, "ScalingReplicaSet", message);
                }
                Ok(true)
            }
            Step::Delete { set, uid } => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
                    ..DeleteParams::default()
                };
                match api.delete(&set, &params).await {
                    Err(e) if is_not_found(&e) => Ok(true),
                    deleted => deleted.during("deleting an old ReplicaSet").map(|_| true),
                }
            }
        }
    }

    /// The name of the new set is taken. If it is not by the very set that is wanted, the next name differs.
    async fn collision(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>], name: &str) -> Result<bool> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        let there = match api.get_opt(name).await.during("looking at a ReplicaSet of the same name")? {
            Some(there) => there,
            None => return Ok(false),
        };
        let ours = pods::controller_of(&there).is_some_and(|o| Some(&o.uid) == deployment.metadata.uid.as_ref());
        if ours && reconcile::has_template_of(&there, deployment) || sets.iter().any(|s| s.uid() == there.uid()) {
            return Ok(false);
        }
        let count = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0) + 1;
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({"status": {"collisionCount": count}});
        api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .during("noting a collision of names")?;
        Ok(false)
    }

    async fn adopt(&self, set: &ReplicaSet, deployment: &Deployment) -> Result<Action> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &set.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": set.uid(), "ownerReferences": [pods::owner_reference(deployment)]}});
        match api.patch(&set.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => {}
            patched => {
                patched.during("adopting a ReplicaSet")?;
            }
        }
        Ok(Action::Done)
    }

    /// Writes the status if it changed; after which time it has to be looked at again.
    async fn write_status(
        &self,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        now: Timestamp,
    ) -> Result<Option<Duration>> {
        let (status, again) = status::status(deployment, sets, now);
        if deployment.status.as_ref() != Some(&status) {
            let api: Api<Deployment> =
                Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
            let patch = json!({"metadata": {"uid": deployment.uid()}, "status": crate::replacement(&deployment.status, &status)});
            match api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                patched => {
                    patched.during("writing the status")?;
                }
            }
        }
        Ok(again)
    }
}
