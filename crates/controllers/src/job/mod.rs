//! Job: pods that run to their end, as often as wanted.
//!
//! Watches Jobs and pods; owns the pods that it controls; writes pods and the Job's status. Every pod has the
//! finalizer `batch.kubernetes.io/job-tracking`, which goes when the pod is counted, so that none is counted twice or
//! not at all. Decisions are made only on a Job that is at least as new as the last status written here: an older one
//! would not tell what is counted already.

mod indexes;
mod pod;
mod policy;
mod reconcile;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::Pod,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Action, Change, Controller, EventType, Informer, Informers, ObjectKey, self_mapper};

pub(crate) use self::reconcile::is_finished;
use self::{
    pod::TRACKING,
    reconcile::{BackOff, Observed},
};
use crate::{
    Result, While as _, is_conflict, is_not_found,
    podcontrol::{PodControl, pod_mapper},
    pods,
};

const WORKERS: usize = 5;
/// The value of `managedBy` that means this controller.
const THIS: &str = "kubernetes.io/job-controller";

/// What is remembered of a Job between two looks at it.
#[derive(Default)]
struct Remembered {
    back_off: BackOff,
    /// UIDs of pods whose finalizer was taken away, until the cache shows it.
    released: HashSet<String>,
    /// The resourceVersion of the last status written.
    written: u64,
}

struct Jobs {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    control: Arc<PodControl>,
    remembered: Mutex<HashMap<ObjectKey, Remembered>>,
}

fn selector(job: &Job) -> Option<skiff_api::selector::LabelSelector> {
    pods::compile(job.spec.as_ref()?.selector.as_ref()?)
}

fn version(job: &Job) -> u64 {
    job.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

pub(crate) async fn run(informers: Informers) {
    let mut control = PodControl::new(informers.client().clone(), "job-controller");
    control.finalizer = Some(TRACKING);
    let this = Arc::new(Jobs {
        jobs: informers.informer(),
        pods: informers.informer(),
        control: Arc::new(control),
        remembered: Mutex::default(),
    });
    let (jobs, all_pods) = (this.jobs.clone(), this.pods.clone());
    let owned = pod_mapper(this.control.clone(), jobs.clone(), "batch", "Job", selector);
    let mapper = move |change: &Change<Pod>| {
        let mut keys = owned(change);
        // A tracked pod whose Job is gone, or that was orphaned, must not keep its finalizer for ever.
        let pod = change.object();
        if pod::is_tracked(pod)
            && let Some((name, _)) = reconcile::job_of(pod)
        {
            let key = ObjectKey::new(&pod.namespace().unwrap_or_default(), &name);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    };
    Controller::new("job")
        .workers(WORKERS)
        .watch(&jobs, self_mapper)
        .watch(&all_pods, mapper)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Jobs {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let job = self.jobs.get_key(&key);
        self.release_orphans(&key, job.as_deref()).await?;
        let Some(job) = job else {
            self.control.expectations.forget(&key);
            self.remembered.lock().remove(&key);
            return Ok(Action::Done);
        };
        let spec = job.spec.as_ref();
        if spec.and_then(|s| s.managed_by.as_deref()).is_some_and(|m| m != THIS) {
            return Ok(Action::Done);
        }
        let Some(selector) = selector(&job) else { return Ok(Action::Done) };
        let finished = is_finished(&job);
        let owned = self.control.claim(&*job, &selector, &self.pods, |_| !finished).await?;
        let (back_off, released) = {
            let mut remembered = self.remembered.lock();
            let remembered = remembered.entry(key.clone()).or_default();
            if version(&job) < remembered.written {
                // The newer one is on its way and brings the key back.
                return Ok(Action::Done);
            }
            for uid in reconcile::settled(&owned, &remembered.released) {
                remembered.released.remove(&uid);
            }
            (remembered.back_off, remembered.released.clone())
        };
        if finished {
            let held: Vec<_> = owned.iter().filter(|p| pod::is_tracked(p)).cloned().collect();
            self.release(&key, &held).await?;
            return Ok(Action::Done);
        }
        let is_current = self.control.expectations.are_met(&key, |uid| pods::is_present(&owned, uid));
        let now = Timestamp::now();
        let seen = Observed { job: &job, pods: &owned, released: &released, back_off, is_current, now };
        let decision = reconcile::decide(&seen);

        let mut failure = self.control.delete_all(&*job, &decision.delete).await.err();
        if failure.is_none() {
            let new: Vec<Pod> = decision.create.iter().map(|new| pod::make(&job, *new)).collect();
            failure = self.control.create_all(&*job, &new).await.err();
        }
        let mut status = decision.status;
        if failure.is_some() {
            // How many there really are is seen next time.
            status.active = job.status.as_ref().and_then(|s| s.active);
        }
        if !self.write_status(&key, &job, &status).await? {
            return Ok(Action::Done);
        }
        if let Some(remembered) = self.remembered.lock().get_mut(&key) {
            remembered.back_off = decision.back_off;
        }
        for (warning, reason, message) in decision.events {
            let kind = if warning { EventType::Warning } else { EventType::Normal };
            self.control.recorder.for_object(&*job, kind, &reason, message);
        }
        self.release(&key, &decision.release).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(match decision.again {
            Some(then) => Action::RequeueAfter(Duration::try_from(then.duration_since(now)).unwrap_or_default()),
            None => Action::Done,
        })
    }

    /// Writes the status on this very version of the Job; `false` if another writer was first.
    async fn write_status(&self, key: &ObjectKey, job: &Job, status: &JobStatus) -> Result<bool> {
        if job.status.as_ref() == Some(status) {
            return Ok(true);
        }
        let api: Api<Job> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let metadata = json!({"uid": job.uid(), "resourceVersion": job.resource_version()});
        let patch = json!({"metadata": metadata, "status": crate::replacement(&job.status, status)});
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(false),
            written => {
                let written = written.during("writing the status")?;
                if let Some(remembered) = self.remembered.lock().get_mut(key) {
                    remembered.written = version(&written);
                }
                Ok(true)
            }
        }
    }

    /// Takes the finalizer from pods, and remembers it.
    async fn release(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> Result<()> {
        let one = |pod: Arc<Pod>| async move {
            self.take_finalizer(&pod).await?;
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            self.remembered.lock().entry(key.clone()).or_default().released.insert(uid);
            Ok(())
        };
        let all = pods.iter().cloned().map(one);
        futures::future::join_all(all).await.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(())
    }

    async fn take_finalizer(&self, pod: &Pod) -> Result<()> {
        let patch = json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [TRACKING]}});
        let api: Api<Pod> = Api::namespaced(self.control.client.clone(), &pod.namespace().unwrap_or_default());
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
            // Gone, or another pod of its name.
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            patched => patched.during("taking a pod's finalizer").map(|_| ()),
        }
    }

    /// Takes the finalizer from pods that name a Job which is not there, or which they are no longer of.
    async fn release_orphans(&self, key: &ObjectKey, job: Option<&Job>) -> Result<()> {
        for pod in self.pods.list_namespace(&key.namespace) {
            let Some((name, uid)) = pod::is_tracked(&pod).then(|| reconcile::job_of(&pod)).flatten() else { continue };
            let orphaned = match (job, uid) {
                (None, _) => true,
                (Some(job), Some(uid)) => job.metadata.uid.as_ref() != Some(&uid),
                // It may still be adopted.
                (Some(job), None) => is_finished(job),
            };
            if name == *key.name && orphaned {
                self.take_finalizer(&pod).await?;
            }
        }
        Ok(())
    }
}
