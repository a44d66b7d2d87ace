//! StatefulSet: pods with names, hosts and volumes of their own, in order.
//!
//! Watches StatefulSets, their pods, revisions and claims; owns the pods and revisions that it controls; writes pods,
//! claims, revisions and the set's status. Pods come in the order of their ordinals and go in reverse, each when the
//! one before is ready, unless the set is `Parallel`. As upstream, an update replaces pods from the highest ordinal
//! down to the partition.

mod claims;
mod identity;
mod reconcile;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet},
    core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use skiff_client::{Action, Controller, EventType, Informer, Informers, ObjectKey, owner_mapper, self_mapper};

use self::reconcile::{Revisions, Step, Why};
use crate::{
    Result, While as _,
    history::{HASH, History, Made, REVISION_HASH, surplus, template_of},
    is_conflict, is_not_found,
    podcontrol::{PodControl, api_message, is_terminating, pod_mapper},
    pods,
};

const WORKERS: usize = 5;

struct StatefulSets {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    history: History,
    control: Arc<PodControl>,
}

fn selector(set: &StatefulSet) -> Option<skiff_api::selector::LabelSelector> {
    set.spec.as_ref().and_then(|s| pods::compile(&s.selector))
}

pub(crate) async fn run(informers: Informers) {
    let client = informers.client().clone();
    let this = Arc::new(StatefulSets {
        sets: informers.informer(),
        pods: informers.informer(),
        claims: informers.informer(),
        history: History { client: client.clone(), revisions: informers.informer(), label: REVISION_HASH },
        control: Arc::new(PodControl::new(client, "statefulset-controller")),
    });
    let (sets, all_pods, revisions) = (this.sets.clone(), this.pods.clone(), this.history.revisions.clone());
    let mapper = pod_mapper(this.control.clone(), sets.clone(), "apps", "StatefulSet", selector);
    Controller::new("statefulset")
        .workers(WORKERS)
        .watch(&sets, self_mapper)
        .watch(&all_pods, mapper)
        .watch(&revisions, owner_mapper::<ControllerRevision>("apps", "StatefulSet"))
        .reads(&this.claims)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl StatefulSets {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(set) = self.sets.get_key(&key) else { return Ok(Action::Done) };
        let (Some(selector), Some(spec)) = (selector(&set), set.spec.as_ref()) else { return Ok(Action::Done) };
        let is_ours = |pod: &Pod| identity::ordinal_of(&set, &pod.name_any()).is_some();
        let owned = self.control.claim(&*set, &selector, &self.pods, is_ours).await?;
        let revisions = self.history.of(&*set, &selector).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let old_status = set.status.clone().unwrap_or_default();
        let collisions = old_status.collision_count.unwrap_or(0);
        let update = match self.history.make(&*set, &spec.template, &revisions, collisions).await? {
            Made::Revision(revision) => revision,
            Made::Collision => {
                let status = json!({"status": {"collisionCount": collisions + 1}});
                let api: Api<StatefulSet> = Api::namespaced(self.control.client.clone(), &key.namespace);
                let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&status)).await;
                patched.during("noting a collision of names")?;
                return Ok(Action::Done);
            }
            Made::Never => return Ok(Action::Done),
        };
        let current_name = old_status.current_revision.as_deref().unwrap_or_default();
        let current = revisions.iter().find(|r| r.name_any() == current_name).unwrap_or(&update);
        let (current_name, update_name) = (current.name_any(), update.name_any());
        let names = Revisions { current: &current_name, update: &update_name };

        let now = Timestamp::now();
        let mut failure = self.own_claims(&set, &owned).await.err();
        for step in reconcile::plan(&set, &owned, names, now) {
            if failure.is_some() {
                break;
            }
            failure = self.carry_out(&set, step, current, &update).await.err();
        }
        let (status, next) = reconcile::status(&set, &owned, names, collisions, now);
        self.control.write_status(&*set, set.status.as_ref(), &status).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        let live = |r: &ControllerRevision| {
            let name = r.name_any();
            name == current_name || name == update_name || owned.iter().any(|p| p.labels().get(HASH) == Some(&name))
        };
        self.history.delete(&surplus(&revisions, live, spec.revision_history_limit.unwrap_or(10))).await?;
        Ok(match next {
            Some(then) => Action::RequeueAfter(Duration::try_from(then.duration_since(now)).unwrap_or_default()),
            None => Action::Done,
        })
    }

    async fn carry_out(
        &self,
        set: &StatefulSet,
        step: Step,
        current: &ControllerRevision,
        update: &ControllerRevision,
    ) -> Result<()> {
        match step {
            Step::Create { ordinal, updated } => {
                let revision = if updated { update } else { current };
                let own = || set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
                let template: PodTemplateSpec = template_of(revision).unwrap_or_else(own);
                let pod = identity::pod(set, &template, &revision.name_any(), ordinal);
                self.make_claims(set, ordinal, &pod.name_any()).await?;
                self.create(set, &pod).await
            }
            Step::Claims { pod } => match identity::ordinal_of(set, &pod.name_any()) {
                Some(ordinal) => self.make_claims(set, ordinal, &pod.name_any()).await,
                None => Ok(()),
            },
            Step::Correct { pod } => {
                let patch = json!({"metadata": {"uid": pod.uid(), "labels": identity::labels(set, &pod)}});
                self.control.patch(&pod, &Patch::Merge(&patch), "correcting a pod").await
            }
            Step::Delete { pod, why } => self.delete(set, &pod, why).await,
        }
    }

    fn tell(&self, set: &StatefulSet, failed: bool, verb: &str, what: &str) {
        let (kind, reason) = match (failed, verb) {
            (false, "create") => (EventType::Normal, "SuccessfulCreate"),
            (false, _) => (EventType::Normal, "SuccessfulDelete"),
            (true, "create") => (EventType::Warning, "FailedCreate"),
            (true, _) => (EventType::Warning, "FailedDelete"),
        };
        self.control.recorder.for_object(set, kind, reason, format!("{verb} {what}"));
    }

    async fn create(&self, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.control.client.clone(), &set.namespace().unwrap_or_default());
        let what = format!("Pod {} in StatefulSet {}", pod.name_any(), set.name_any());
        match api.create(&PostParams::default(), pod).await {
            Ok(_) => {
                self.tell(set, false, "create", &format!("{what} successful"));
                Ok(())
            }
            Err(e) if is_terminating(&e) => Ok(()),
            // The cache is behind, or somebody else's pod has the name: the retry looks again.
            Err(error) => {
                if !is_conflict(&error) {
                    self.tell(set, true, "create", &format!("{what} failed error: {}", api_message(&error)));
                }
                Err(error).during("creating a pod")
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod, why: Why) -> Result<()> {
        let name = format!("{}/{}", set.namespace().unwrap_or_default(), set.name_any());
        let again = |state: &str| format!("StatefulSet {name} is recreating {state} Pod {}", pod.name_any());
        let recorder = &self.control.recorder;
        match why {
            Why::Failed => recorder.for_object(set, EventType::Warning, "RecreatingFailedPod", again("failed")),
            Why::Succeeded => {
                recorder.for_object(set, EventType::Normal, "RecreatingTerminatedPod", again("terminated"));
            }
            Why::Condemned | Why::Outdated => {}
        }
        let what = format!("Pod {} in StatefulSet {}", pod.name_any(), set.name_any());
        match self.control.delete_quietly(pod).await {
            Ok(deleted) => {
                if deleted {
                    self.tell(set, false, "delete", &format!("{what} successful"));
                }
                Ok(())
            }
            Err(error) => {
                self.tell(set, true, "delete", &format!("{what} failed error: {}", api_message(&error)));
                Err(error).during("deleting a pod")
            }
        }
    }

    /// Creates the claims of a pod that are not there.
    async fn make_claims(&self, set: &StatefulSet, ordinal: i32, pod: &str) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.control.client.clone(), &namespace);
        for mut claim in identity::claims(set, ordinal) {
            let name = claim.name_any();
            match self.claims.get(&namespace, &name) {
                Some(there) if there.metadata.deletion_timestamp.is_none() => continue,
                // It may be used again only when it is gone.
                Some(_) => return Err(crate::Error::Object(format!("pvc {name} is being deleted"))),
                None => {}
            }
            let owners = claims::owners(set, None, false, &[]);
            claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            let what = format!("Claim {name} Pod {pod} in StatefulSet {}", set.name_any());
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => self.tell(set, false, "create", &format!("{what} success")),
                Err(e) if is_conflict(&e) || is_terminating(&e) => {}
                Err(error) => {
                    self.tell(set, true, "create", &format!("{what} failed error: {}", api_message(&error)));
                    return Err(error).during("creating a claim");
                }
            }
        }
        Ok(())
    }

    /// Gives the claims of the set's pods the owners that the retention policy wants.
    async fn own_claims(&self, set: &StatefulSet, owned: &[Arc<Pod>]) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.control.client.clone(), &namespace);
        for pod in owned {
            let Some(ordinal) = identity::ordinal_of(set, &pod.name_any()) else { continue };
            for claim in identity::claims(set, ordinal) {
                let Some(claim) = self.claims.get(&namespace, &claim.name_any()) else { continue };
                let condemned = !reconcile::is_wanted(set, ordinal);
                let owners = claims::owners(set, Some(pod), condemned, claim.owner_references());
                if owners == claim.owner_references() {
                    continue;
                }
                let patch = json!({"metadata": {"uid": claim.uid(), "resourceVersion": claim.resource_version(),
                    "ownerReferences": owners}});
                match api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Err(e) if is_not_found(&e) => {}
                    patched => {
                        patched.during("setting a claim's owners")?;
                    }
                }
            }
        }
        Ok(())
    }
}
