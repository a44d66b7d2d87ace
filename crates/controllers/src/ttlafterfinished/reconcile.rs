//! When a Job goes.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

/// When a finished Job is to be deleted, if it asks for that and is not being deleted yet.
pub(super) fn expiry(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ends = job.status.as_ref()?.conditions.as_ref()?;
    let end = ends.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    Some(end.last_transition_time.as_ref()?.0 + SignedDuration::from_secs(ttl.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_finished_jobs_expire() {
        let job = |kind: &str| -> Job {
            serde_json::from_value(json!({"metadata": {"name": "j"},
                "spec": {"ttlSecondsAfterFinished": 10, "template": {}},
                "status": {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .unwrap()
        };
        assert_eq!(expiry(&job("Complete")), Some("2026-01-01T00:00:10Z".parse().unwrap()));
        assert_eq!(expiry(&job("Failed")), expiry(&job("Complete")));
        assert_eq!(expiry(&job("Suspended")), None);
    }
}
