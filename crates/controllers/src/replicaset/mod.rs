//! ReplicaSet and ReplicationController: as many pods as wanted.
//!
//! Watches ReplicaSets, or ReplicationControllers, and pods; owns the pods that it controls; writes pods and the
//! owner's status. Pods that the selector selects and nobody controls are adopted, controlled ones that it no longer
//! selects are released. The two kinds differ in their selector alone, so one reconcile serves both.

mod reconcile;

use std::{fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ReplicaSet, ReplicaSetStatus},
        core::v1::{Pod, PodTemplateSpec, ReplicationController},
    },
};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use skiff_api::selector::LabelSelector;
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};

use crate::{
    Result,
    podcontrol::{PodControl, pod_mapper},
    pods,
};

/// How many pods one step creates or deletes at most.
const BURST: usize = 500;
const WORKERS: usize = 5;

/// What has a number of pods.
pub(crate) trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its group and kind, and its controller's name in events.
    const NAMES: (&'static str, &'static str, &'static str);

    fn selector(&self) -> Option<LabelSelector>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// How many pods, and for how many seconds they have to be ready before they are available.
    fn wanted(&self) -> (i32, i32);
    fn status(&self) -> Option<ReplicaSetStatus>;
    /// Whether its status tells how many pods are going.
    fn counts_terminating(&self) -> bool;
}

impl Replicated for ReplicaSet {
    const NAMES: (&'static str, &'static str, &'static str) = ("apps", "ReplicaSet", "replicaset-controller");

    fn selector(&self) -> Option<LabelSelector> {
        self.spec.as_ref().and_then(|s| pods::compile(&s.selector))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn wanted(&self) -> (i32, i32) {
        let spec = self.spec.as_ref();
        (spec.and_then(|s| s.replicas).unwrap_or(1), spec.and_then(|s| s.min_ready_seconds).unwrap_or(0))
    }
    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }
    fn counts_terminating(&self) -> bool {
        true
    }
}

impl Replicated for ReplicationController {
    const NAMES: (&'static str, &'static str, &'static str) = ("", "ReplicationController", "replication-controller");

    fn selector(&self) -> Option<LabelSelector> {
        let labels = self.spec.as_ref()?.selector.as_ref()?;
        (!labels.is_empty()).then(|| LabelSelector::from_map(labels))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn wanted(&self) -> (i32, i32) {
        let spec = self.spec.as_ref();
        (spec.and_then(|s| s.replicas).unwrap_or(1), spec.and_then(|s| s.min_ready_seconds).unwrap_or(0))
    }
    fn status(&self) -> Option<ReplicaSetStatus> {
        // The fields have the same names.
        serde_json::from_value(serde_json::to_value(self.status.as_ref()?).ok()?).ok()
    }
    fn counts_terminating(&self) -> bool {
        false
    }
}

struct Sets<K: Replicated> {
    sets: Informer<K>,
    pods: Informer<Pod>,
    control: Arc<PodControl>,
}

/// Runs the controller of ReplicaSets or of ReplicationControllers.
pub(crate) async fn run<K: Replicated>(informers: Informers) {
    let (group, kind, component) = K::NAMES;
    let this = Arc::new(Sets::<K> {
        sets: informers.informer(),
        pods: informers.informer(),
        control: Arc::new(PodControl::new(informers.client().clone(), component)),
    });
    let (sets, all_pods) = (this.sets.clone(), this.pods.clone());
    let mapper = pod_mapper(this.control.clone(), sets.clone(), group, kind, K::selector);
    Controller::new(component)
        .workers(WORKERS)
        .watch(&sets, self_mapper)
        .watch(&all_pods, mapper)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl<K: Replicated> Sets<K> {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(set) = self.sets.get_key(&key) else {
            self.control.expectations.forget(&key);
            return Ok(Action::Done);
        };
        let Some(selector) = set.selector() else { return Ok(Action::Done) };
        let owned = self.control.claim(&*set, &selector, &self.pods, |_| true).await?;
        let met = self.control.expectations.are_met(&key, |uid| pods::is_present(&owned, uid));
        let mut failure = None;
        let now = jiff::Timestamp::now();
        if met && set.meta().deletion_timestamp.is_none() {
            failure = self.scale(&set, &owned, now).await.err();
        }
        let (status, next) = reconcile::status(&*set, &owned, failure.as_ref().map(ToString::to_string), now);
        self.control.write_status(&*set, set.status().as_ref(), &status).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(match next {
            Some(then) => Action::RequeueAfter(Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)),
            None => Action::Done,
        })
    }

    /// Creates or deletes what is missing or too many.
    async fn scale(&self, set: &K, owned: &[Arc<Pod>], now: jiff::Timestamp) -> Result<()> {
        let decision = reconcile::decide(set, owned, BURST, now);
        if decision.create > 0 {
            let template = set.template().cloned().unwrap_or_default();
            let pod = pods::from_template(&template, set);
            self.control.create_all(set, &vec![pod; decision.create]).await?;
        }
        self.control.delete_all(set, &decision.delete).await
    }
}
