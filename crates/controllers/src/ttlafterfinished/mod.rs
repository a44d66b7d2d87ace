//! TTL after finished: deletes Jobs some seconds after their end, if they ask for it.
//!
//! Watches Jobs; owns nothing; deletes Jobs in the foreground, so that they stay until their pods are gone.

mod reconcile;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions, PropagationPolicy},
};
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};

use crate::{Result, While as _, is_conflict, is_not_found};

pub(crate) async fn run(informers: Informers) {
    let jobs: Informer<Job> = informers.informer();
    let client = informers.client().clone();
    let watched = jobs.clone();
    Controller::new("ttl-after-finished")
        .watch(&watched, self_mapper)
        .run(move |key| {
            let (jobs, client) = (jobs.clone(), client.clone());
            async move { reconcile(&jobs, client, key).await }
        })
        .await;
}

async fn reconcile(jobs: &Informer<Job>, client: kube::Client, key: ObjectKey) -> Result<Action> {
    let now = Timestamp::now();
    let expires =
        |job: &Job| reconcile::expiry(job).map(|t| Duration::try_from(t.duration_since(now)).unwrap_or_default());
    let Some(left) = jobs.get_key(&key).and_then(|job| expires(&job)) else { return Ok(Action::Done) };
    if !left.is_zero() {
        return Ok(Action::RequeueAfter(left));
    }
    // The cache may be behind a change of the time.
    let api: Api<Job> = Api::namespaced(client, &key.namespace);
    let Some(job) = api.get_opt(&key.name).await.during("looking at a Job")? else { return Ok(Action::Done) };
    match expires(&job) {
        None => return Ok(Action::Done),
        Some(left) if !left.is_zero() => return Ok(Action::RequeueAfter(left)),
        Some(_) => {}
    }
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        preconditions: Some(Preconditions { uid: job.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&key.name, &params).await {
        Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(Action::Done),
        deleted => deleted.during("deleting a Job").map(|_| Action::Done),
    }
}
