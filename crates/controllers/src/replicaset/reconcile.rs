//! What to create or delete, and the status.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;

use super::Replicated;
use crate::pods;

/// How many pods to create, or which to delete.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    pub(crate) create: usize,
    pub(crate) delete: Vec<Arc<Pod>>,
}

pub(crate) fn decide(set: &impl Replicated, owned: &[Arc<Pod>], burst: usize, now: Timestamp) -> Decision {
    let wanted = usize::try_from(set.wanted().0).unwrap_or(0);
    let mut active: Vec<Arc<Pod>> = owned.iter().filter(|p| pods::is_active(p)).cloned().collect();
    if active.len() < wanted {
        return Decision { create: (wanted - active.len()).min(burst), delete: Vec::new() };
    }
    let surplus = (active.len() - wanted).min(burst);
    active.sort_by_cached_key(|p| pods::deletion_rank(p, now));
    active.truncate(surplus);
    Decision { create: 0, delete: active }
}

/// The status, and when it will change by itself because a pod has been ready for long enough.
pub(crate) fn status(
    set: &impl Replicated,
    owned: &[Arc<Pod>],
    failure: Option<String>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Timestamp>) {
    let (_, min_ready_seconds) = set.wanted();
    let labels = set.template().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone()).unwrap_or_default();
    let (mut total, mut labeled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut next: Option<Timestamp> = None;
    for pod in owned {
        if !pods::is_active(pod) {
            if pod.metadata.deletion_timestamp.is_some() && !matches!(pods::phase(pod), "Succeeded" | "Failed") {
                terminating += 1;
            }
            continue;
        }
        total += 1;
        labeled += i32::from(labels.iter().all(|(k, v)| pod.labels().get(k) == Some(v)));
        ready += i32::from(pods::is_ready(pod));
        match pods::is_available(pod, min_ready_seconds, now) {
            Ok(yes) => available += i32::from(yes),
            Err(then) => next = Some(next.map_or(then, |n| n.min(then))),
        }
    }
    let old = set.status().unwrap_or_default();
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let reported = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !reported => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    // Zeros are left out, as upstream's encoding does; only the total is always there.
    let some = |n: i32| (n != 0).then_some(n);
    let status = ReplicaSetStatus {
        replicas: total,
        fully_labeled_replicas: some(labeled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: some(terminating).filter(|_| set.counts_terminating()),
        observed_generation: set.meta().generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    };
    (status, next)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::{Value, json};

    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "rs", "generation": 2}, "spec": {
            "replicas": replicas, "minReadySeconds": 0, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}}}}))
        .unwrap()
    }

    fn pod(name: &str, node: &str, status: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"a": "b"}}, "spec": {"nodeName": node, "containers": []}, "status": status}))
                .unwrap(),
        )
    }

    fn ready() -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
    }

    #[test]
    fn missing_pods_are_created_and_the_worst_ones_go_first() {
        let now = Timestamp::now();
        let pods = [
            pod("good", "n", ready()),
            pod("unassigned", "", json!({"phase": "Pending"})),
            pod("starting", "n", json!({"phase": "Running"})),
        ];
        assert_eq!(decide(&set(5), &pods, 500, now).create, 2);
        assert_eq!(decide(&set(50), &pods, 10, now).create, 10);
        let names = |n| decide(&set(n), &pods, 500, now).delete.iter().map(|p| p.name_any()).collect::<Vec<_>>();
        assert_eq!(names(2), ["unassigned"]);
        assert_eq!(names(1), ["unassigned", "starting"]);
        assert!(names(3).is_empty());
        // What is over does not count.
        let over = [pod("over", "n", json!({"phase": "Failed"}))];
        assert_eq!(decide(&set(1), &over, 500, now).create, 1);
    }

    #[test]
    fn the_status_counts() {
        let pods = [pod("a", "n", ready()), pod("b", "n", json!({"phase": "Pending"}))];
        let (s, next) = status(&set(2), &pods, None, Timestamp::now());
        assert_eq!(
            (s.replicas, s.ready_replicas, s.available_replicas, s.observed_generation),
            (2, Some(1), Some(1), Some(2))
        );
        assert_eq!(next, None);
        let (s, _) = status(&set(2), &pods, Some("no".into()), Timestamp::now());
        assert_eq!(s.conditions.unwrap()[0].type_, "ReplicaFailure");
    }
}
