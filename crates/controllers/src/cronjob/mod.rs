//! CronJob: a Job whenever its schedule says so.
//!
//! Watches CronJobs and Jobs; owns the Jobs that it controls; writes Jobs and the CronJob's status. Of several times
//! that were missed only the last one gets a Job. Schedules without a time zone are in UTC.

mod reconcile;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::batch::v1::{CronJob, CronJobStatus, Job},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde_json::json;
use skiff_client::{
    Action, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, object_reference, owner_mapper,
    self_mapper,
};

use crate::{
    Result, While as _, is_conflict, is_not_found,
    podcontrol::{api_message, is_terminating},
    pods,
};

const WORKERS: usize = 5;
/// Clocks that differ a little must not make a controller look too early.
const MARGIN: Duration = Duration::from_millis(100);

struct CronJobs {
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(CronJobs {
        crons: informers.informer(),
        jobs: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "cronjob-controller", None),
    });
    let (crons, jobs) = (this.crons.clone(), this.jobs.clone());
    Controller::new("cronjob")
        .workers(WORKERS)
        .watch(&crons, self_mapper)
        .watch(&jobs, owner_mapper("batch", "CronJob"))
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl CronJobs {
    fn api(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn tell(&self, cron: &CronJob, warning: bool, reason: &str, message: String) {
        let kind = if warning { EventType::Warning } else { EventType::Normal };
        self.recorder.for_object(cron, kind, reason, message);
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(cron) = self.crons.get_key(&key) else { return Ok(Action::Done) };
        let mut jobs = self.jobs.by_owner(cron.metadata.uid.as_deref().unwrap_or_default());
        // One that was just started may not be in the cache yet.
        for active in cron.status.iter().flat_map(|s| s.active.iter().flatten()) {
            if jobs.iter().all(|j| j.metadata.uid != active.uid) {
                let found = self.api(&key.namespace).get_opt(active.name.as_deref().unwrap_or_default()).await;
                let found = found.during("looking for an active Job")?;
                jobs.extend(found.filter(|j| j.metadata.uid == active.uid).map(Arc::new));
            }
        }
        let now = Timestamp::now();
        let mut decision = reconcile::decide(&cron, &jobs, now);
        for (warning, reason, message) in std::mem::take(&mut decision.events) {
            self.tell(&cron, warning, reason, message);
        }
        for job in &decision.delete {
            self.delete(&cron, job).await?;
        }
        let mut failure = None;
        if let Some(time) = decision.start {
            match self.start(&cron, time).await {
                Ok(Some(job)) => {
                    decision.status.active.get_or_insert_default().push(object_reference(&job));
                    decision.status.last_schedule_time = Some(Time(time));
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        self.write_status(&cron, &decision.status).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(match decision.again {
            Some(then) => {
                let wait = Duration::try_from(then.duration_since(now)).unwrap_or_default();
                Action::RequeueAfter(wait + MARGIN)
            }
            None => Action::Done,
        })
    }

    /// Starts the Job of a time; `None` if there cannot be one.
    async fn start(&self, cron: &CronJob, time: Timestamp) -> Result<Option<Job>> {
        let job = reconcile::job(cron, time);
        let api = self.api(&cron.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &job).await {
            Ok(created) => {
                self.tell(cron, false, "SuccessfulCreate", format!("Created job {}", created.name_any()));
                Ok(Some(created))
            }
            Err(e) if is_terminating(&e) => Ok(None),
            Err(e) if is_conflict(&e) => {
                // Started before, and not noted; or somebody else's.
                let there = api.get_opt(&job.name_any()).await.during("looking at a Job of this name")?;
                let ours = |j: &Job| pods::controller_of(j).map(|o| o.uid.as_str()) == cron.metadata.uid.as_deref();
                Ok(there.filter(|j| ours(j) && !crate::job::is_finished(j)))
            }
            Err(error) => {
                self.tell(cron, true, "FailedCreate", format!("Error creating job: {}", api_message(&error)));
                Err(error).during("creating a Job")
            }
        }
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<()> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: job.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api(&cron.namespace().unwrap_or_default()).delete(&job.name_any(), &params).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            Err(error) => {
                self.tell(cron, true, "FailedDelete", format!("Deleted job: {}", api_message(&error)));
                Err(error).during("deleting a Job")
            }
            Ok(_) => {
                self.tell(cron, false, "SuccessfulDelete", format!("Deleted job {}", job.name_any()));
                Ok(())
            }
        }
    }

    /// Writes the status on this very version; a newer one comes back through the watch.
    async fn write_status(&self, cron: &CronJob, status: &CronJobStatus) -> Result<()> {
        if cron.status.clone().unwrap_or_default() == *status {
            return Ok(());
        }
        let api: Api<CronJob> = Api::namespaced(self.client.clone(), &cron.namespace().unwrap_or_default());
        let metadata = json!({"uid": cron.uid(), "resourceVersion": cron.resource_version()});
        let patch = json!({"metadata": metadata, "status": crate::replacement(&cron.status, status)});
        match api.patch_status(&cron.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) => Ok(()),
            written => written.during("writing the status").map(|_| ()),
        }
    }
}
