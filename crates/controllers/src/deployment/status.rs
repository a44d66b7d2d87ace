//! What a Deployment says of itself.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;

use super::reconcile::{fenceposts, is_complete, split, wanted};

/// The status, and after which time the deadline for progress has to be looked at.
pub(super) fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let (new, old_sets) = split(deployment, sets);
    let old = deployment.status.clone().unwrap_or_default();
    let of = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let sum = |f: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| sets.iter().map(|s| f(&of(s))).sum::<i32>();
    let total = sum(|s| s.replicas);
    let available = sum(|s| s.available_replicas.unwrap_or(0));
    let ready = sum(|s| s.ready_replicas.unwrap_or(0));
    let terminating = sum(|s| s.terminating_replicas.unwrap_or(0));
    let updated = new.as_ref().map_or(0, |n| of(n).replicas);
    let wanted_by_sets: i32 = sets.iter().map(|s| s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)).sum();
    let unavailable = (wanted_by_sets - available).max(0);
    let mut conditions = old.conditions.clone().unwrap_or_default();

    let (_, max_unavailable) = fenceposts(deployment);
    if available >= wanted(deployment) - max_unavailable {
        set(
            &mut conditions,
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".into(),
            now,
            false,
        );
    } else {
        let message = "Deployment does not have minimum availability.".into();
        set(&mut conditions, "Available", "False", "MinimumReplicasUnavailable", message, now, false);
    }

    let again =
        progress(deployment, new.as_ref(), &old_sets, &old, (updated, ready, available, total), &mut conditions, now);
    // Whoever waits for a roll reads Progressing after Available.
    conditions.sort_by_key(|c| std::cmp::Reverse(c.type_ == "Available"));
    let some = |n: i32| (n != 0).then_some(n);
    let status = DeploymentStatus {
        replicas: some(total),
        updated_replicas: some(updated),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some(unavailable),
        terminating_replicas: some(terminating),
        observed_generation: deployment.metadata.generation,
        collision_count: old.collision_count,
        conditions: Some(conditions),
    };
    (status, again)
}

/// Puts a condition in place. The time of the last update moves when anything changed or when `touch` says so.
fn set(
    conditions: &mut Vec<DeploymentCondition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
    touch: bool,
) {
    let now = Some(Time(now));
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(c) => {
            let same = c.status == status && c.reason.as_deref() == Some(reason);
            if same && !touch {
                return;
            }
            if c.status != status {
                c.last_transition_time = now.clone();
            }
            c.status = status.into();
            c.reason = Some(reason.into());
            c.message = Some(message);
            c.last_update_time = now;
        }
        None => conditions.push(DeploymentCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_update_time: now.clone(),
            last_transition_time: now,
        }),
    }
}

fn progress(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old_sets: &[Arc<ReplicaSet>],
    old: &DeploymentStatus,
    (updated, ready, available, total): (i32, i32, i32, i32),
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let deadline = i64::from(spec.progress_deadline_seconds.unwrap_or(600));
    // The largest number stands for "no deadline".
    if deadline == i64::from(i32::MAX) {
        conditions.retain(|c| c.type_ != "Progressing");
        return None;
    }
    let name = deployment.name_any();
    let set_name = new.map(|n| n.name_any());
    let current = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    if spec.paused == Some(true) {
        set(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused".into(), now, false);
        return None;
    }
    if current.as_ref().and_then(|c| c.reason.as_deref()) == Some("DeploymentPaused") {
        set(conditions, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now, false);
    }
    let same_generation = old.observed_generation == deployment.metadata.generation;
    let was_complete = current.as_ref().and_then(|c| c.reason.as_deref()) == Some("NewReplicaSetAvailable");
    if is_complete(deployment, new, old_sets) {
        let message = match &set_name {
            Some(set) => format!("ReplicaSet \"{set}\" has successfully progressed."),
            None => format!("Deployment \"{name}\" has successfully progressed."),
        };
        let renamed = current.as_ref().and_then(|c| c.message.as_deref()) != Some(&message);
        set(conditions, "Progressing", "True", "NewReplicaSetAvailable", message, now, !was_complete || renamed);
        return None;
    }
    // A complete roll that lost pods is not rolling again.
    if was_complete && same_generation {
        return None;
    }
    let before = (
        old.updated_replicas.unwrap_or(0),
        old.ready_replicas.unwrap_or(0),
        old.available_replicas.unwrap_or(0),
        old.replicas.unwrap_or(0) - old.updated_replicas.unwrap_or(0),
    );
    let moved = updated > before.0 || ready > before.1 || available > before.2 || total - updated < before.3;
    let message = match &set_name {
        Some(set) => format!("ReplicaSet \"{set}\" is progressing."),
        None => format!("Deployment \"{name}\" is progressing."),
    };
    if current.is_none() || was_complete || (!same_generation && current.as_ref().is_some_and(|c| c.status != "True")) {
        let (reason, message) = match &set_name {
            Some(set) => ("NewReplicaSetCreated", format!("Created new replica set \"{set}\"")),
            None => ("ReplicaSetUpdated", message),
        };
        set(conditions, "Progressing", "True", reason, message, now, true);
        return Some(Duration::from_secs(u64::try_from(deadline).unwrap_or(600) + 1));
    }
    if moved {
        set(conditions, "Progressing", "True", "ReplicaSetUpdated", message, now, true);
        return Some(Duration::from_secs(u64::try_from(deadline).unwrap_or(600) + 1));
    }
    let since = current.as_ref().and_then(|c| c.last_update_time.as_ref()).map_or(now, |t| t.0);
    let ends = since + SignedDuration::from_secs(deadline);
    if ends < now {
        let message = match &set_name {
            Some(set) => format!("ReplicaSet \"{set}\" has timed out progressing."),
            None => format!("Deployment \"{name}\" has timed out progressing."),
        };
        set(conditions, "Progressing", "False", "ProgressDeadlineExceeded", message, now, false);
        return None;
    }
    Some(Duration::try_from(ends.duration_since(now)).unwrap_or_default() + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::reconcile::tests::{deployment, set},
        *,
    };

    fn reason(status: &DeploymentStatus, kind: &str) -> (String, String) {
        let c = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap();
        (c.status.clone(), c.reason.clone().unwrap())
    }

    #[test]
    fn a_roll_progresses_completes_or_times_out() {
        let now = Timestamp::now();
        let mut d = deployment(json!({"replicas": 2, "progressDeadlineSeconds": 10}));
        let (s, again) = status(&d, &[set("n", "1", 1, 2, 0, 2)], now);
        assert_eq!(reason(&s, "Progressing"), ("True".into(), "NewReplicaSetCreated".into()));
        assert_eq!(reason(&s, "Available"), ("False".into(), "MinimumReplicasUnavailable".into()));
        assert!(again.is_some());
        d.status = Some(s);
        let late = now + SignedDuration::from_secs(60);
        let (s, _) = status(&d, &[set("n", "1", 1, 2, 0, 2)], late);
        assert_eq!(reason(&s, "Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
        let (s, again) = status(&d, &[set("n", "1", 1, 2, 2, 2)], now);
        assert_eq!(reason(&s, "Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
        assert_eq!(reason(&s, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
        assert_eq!((s.ready_replicas, s.unavailable_replicas, again), (Some(2), None, None));
        // Losing a pod afterwards is no roll.
        d.status = Some(s);
        let (s, _) = status(&d, &[set("n", "1", 1, 2, 1, 2)], now);
        assert_eq!(reason(&s, "Progressing").1, "NewReplicaSetAvailable");
    }
}
