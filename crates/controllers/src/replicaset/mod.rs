//! ReplicaSet: as many pods as wanted.
//!
//! Watches ReplicaSets and pods; owns the pods that it controls; writes pods and the ReplicaSet's status. Pods that
//! the selector selects and nobody controls are adopted, controlled ones that it no longer selects are released.

mod reconcile;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use skiff_client::{
    Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, owner_mapper, self_mapper,
};

use crate::{Result, While as _, expectations::Expectations, is_not_found, pods};

/// How many pods one step creates or deletes at most.
const BURST: usize = 500;
const WORKERS: usize = 5;

struct ReplicaSets {
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
    expectations: Expectations,
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(ReplicaSets {
        sets: informers.informer(),
        pods: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "replicaset-controller", None),
        expectations: Expectations::default(),
    });
    let by_owner = owner_mapper::<Pod>("apps", "ReplicaSet");
    let (watcher, sets) = (this.clone(), this.sets.clone());
    let mapper = move |change: &Change<Pod>| {
        if let Change::Deleted { old } = change {
            watcher.expectations.gone(old.metadata.uid.as_deref().unwrap_or_default());
        }
        let owned = by_owner(change);
        if !owned.is_empty() || pods::controller_of(&**change.object()).is_some() {
            return owned;
        }
        // Nobody's pod may be adopted by a set that selects it.
        let namespace = change.object().namespace().unwrap_or_default();
        let selecting = sets.list_namespace(&namespace).into_iter().filter(|set| {
            let selector = set.spec.as_ref().and_then(|s| pods::compile(&s.selector));
            selector.is_some_and(|s| pods::selects(&s, &**change.object()))
        });
        selecting.map(|set| ObjectKey::of(&*set)).collect()
    };
    let (sets, all_pods) = (this.sets.clone(), this.pods.clone());
    Controller::new("replicaset")
        .workers(WORKERS)
        .watch(&sets, self_mapper)
        .watch(&all_pods, mapper)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl ReplicaSets {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let Some(selector) = set.spec.as_ref().and_then(|s| pods::compile(&s.selector)) else {
            return Ok(Action::Done);
        };
        let mut owned: Vec<Arc<Pod>> = Vec::new();
        for pod in self.pods.by_owner(&uid) {
            if pods::selects(&selector, &*pod) {
                owned.push(pod);
            } else if pod.metadata.deletion_timestamp.is_none() {
                self.release(&pod, &uid).await?;
            }
        }
        if set.metadata.deletion_timestamp.is_none() {
            for pod in self.pods.list_namespace(&key.namespace) {
                if pods::controller_of(&*pod).is_none() && pods::is_active(&pod) && pods::selects(&selector, &*pod) {
                    self.adopt(&pod, &set).await?;
                }
            }
        }
        let present = |uid: &str| {
            owned.iter().any(|p| p.metadata.uid.as_deref() == Some(uid) && p.metadata.deletion_timestamp.is_none())
        };
        let met = self.expectations.are_met(&key, present);
        let mut failure = None;
        let now = jiff::Timestamp::now();
        if met && set.metadata.deletion_timestamp.is_none() {
            failure = self.scale(&key, &set, &owned, now).await.err();
        }
        let (status, next) = reconcile::status(&set, &owned, failure.as_ref().map(ToString::to_string), now);
        if set.status.as_ref() != Some(&status) {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = json!({"metadata": {"uid": uid}, "status": crate::replacement(&set.status, &status)});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(e) if is_not_found(&e) => return Ok(Action::Done),
                patched => patched.during("writing the status")?,
            };
        }
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(match next {
            Some(then) => Action::RequeueAfter(Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)),
            None => Action::Done,
        })
    }

    /// Creates or deletes what is missing or too many.
    async fn scale(&self, key: &ObjectKey, set: &ReplicaSet, owned: &[Arc<Pod>], now: jiff::Timestamp) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let decision = reconcile::decide(set, owned, BURST, now);
        // Slow start: one, two, four at a time, so that what is refused for all is not asked for all.
        let (mut left, mut batch) = (decision.create, 1);
        while left > 0 {
            let n = batch.min(left);
            let created = futures::future::join_all((0..n).map(|_| self.create(&api, key, set))).await;
            created.into_iter().collect::<Result<Vec<()>>>()?;
            left -= n;
            batch *= 2;
        }
        let deletions = decision.delete.iter().map(|pod| self.delete(&api, key, set, pod));
        futures::future::join_all(deletions).await.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(())
    }

    async fn create(&self, api: &Api<Pod>, key: &ObjectKey, set: &ReplicaSet) -> Result<()> {
        let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        match api.create(&PostParams::default(), &pods::from_template(&template, set)).await {
            Ok(pod) => {
                self.expectations.created(key, pod.metadata.uid.clone().unwrap_or_default());
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder.for_object(set, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            // The namespace is going; so is this set.
            Err(kube::Error::Api(status)) if status.message.contains("because it is being terminated") => Ok(()),
            Err(error) => {
                self.recorder.for_object(
                    set,
                    EventType::Warning,
                    "FailedCreate",
                    format!("Error creating: {}", api_message(&error)),
                );
                Err(error).during("creating a pod")
            }
        }
    }

    async fn delete(&self, api: &Api<Pod>, key: &ObjectKey, set: &ReplicaSet, pod: &Pod) -> Result<()> {
        let uid = pod.metadata.uid.clone();
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&pod.name_any(), &params).await {
            Err(e) if is_not_found(&e) => return Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", api_message(&error));
                self.recorder.for_object(set, EventType::Warning, "FailedDelete", message);
                return Err(error).during("deleting a pod");
            }
            Ok(_) => {}
        }
        self.expectations.deleted(key, uid.unwrap_or_default());
        let message = format!("Deleted pod: {}", pod.name_any());
        self.recorder.for_object(set, EventType::Normal, "SuccessfulDelete", message);
        Ok(())
    }

    async fn adopt(&self, pod: &Pod, set: &ReplicaSet) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "ownerReferences": [pods::owner_reference(set)]}});
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Err(e) if is_not_found(&e) || crate::is_conflict(&e) => Ok(()),
            patched => patched.during("adopting a pod").map(|_| ()),
        }
    }

    async fn release(&self, pod: &Pod, owner_uid: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch =
            json!({"metadata": {"uid": pod.metadata.uid, "ownerReferences": [{"$patch": "delete", "uid": owner_uid}]}});
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Err(e) if is_not_found(&e) || crate::is_conflict(&e) => Ok(()),
            patched => patched.during("releasing a pod").map(|_| ()),
        }
    }
}

/// What the API server said.
fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
