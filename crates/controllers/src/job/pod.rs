//! The pods of a Job.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::ResourceExt as _;

use crate::pods;

/// Keeps a finished pod until it is counted.
pub(crate) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod of an indexed Job.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: how often pods of this index have failed before.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// A pod to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct New {
    pub(super) index: Option<i32>,
    /// How often the index has failed, if that is counted for each.
    pub(super) failures: Option<i32>,
}

pub(super) fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()) == Some("Indexed")
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

/// How often the pod's index had failed before it.
pub(super) fn failures_of(pod: &Pod) -> i32 {
    pod.annotations().get(FAILURES).and_then(|n| n.parse().ok()).unwrap_or(0)
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|f| f == TRACKING)
}

pub(super) fn make(job: &Job, new: New) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(&template, job);
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let Some(index) = new.index else { return pod };
    let name = format!("{}-{index}", job.name_any());
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(failures) = new.failures {
        annotations.insert(FAILURES.into(), failures.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if env.iter().any(|e| e.name == VARIABLE) {
            continue;
        }
        let field =
            ObjectFieldSelector { api_version: Some("v1".into()), field_path: format!("metadata.labels['{INDEX}']") };
        env.push(EnvVar {
            name: VARIABLE.into(),
            value: None,
            value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        });
    }
    pod
}
