//! How many pods a budget expects, has and can spare.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt as _;

use crate::pods;

/// An evicted pod that is not gone after this time is taken for one that stays.
const EVICTION_S: i64 = 120;

/// What came of looking at a budget.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) status: PodDisruptionBudgetStatus,
    /// Pods that were evicted and did not go.
    pub(super) stayed: Vec<String>,
    pub(super) again: Option<Timestamp>,
}

/// The new status. `scale` is how many pods their owners want, which is asked for only where the budget needs it.
pub(super) fn decide(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    scale: impl FnOnce() -> Result<i32, String>,
    now: Timestamp,
) -> Decision {
    let mut status = budget.status.clone().unwrap_or_default();
    let (mut disrupted, mut stayed, mut again) = (BTreeMap::new(), Vec::new(), None::<Timestamp>);
    for (name, since) in status.disrupted_pods.take().unwrap_or_default() {
        let Some(pod) = covered.iter().find(|p| p.name_any() == name) else { continue };
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let ends = since.0 + SignedDuration::from_secs(EVICTION_S);
        if ends < now {
            stayed.push(name);
        } else {
            again = Some(again.map_or(ends, |a| a.min(ends)));
            disrupted.insert(name, since);
        }
    }
    let healthy = covered.iter().filter(|p| {
        p.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(&p.name_any()) && pods::is_ready(p)
    });
    let healthy = count(healthy.count());
    status.disrupted_pods = (!disrupted.is_empty()).then_some(disrupted);
    let (allowed, reason, message) = match expectation(budget, covered, scale) {
        Ok((expected, desired)) => {
            let spare = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
            status.current_healthy = Some(healthy);
            status.desired_healthy = Some(desired);
            status.expected_pods = Some(expected);
            status.observed_generation = budget.metadata.generation;
            (spare, if spare > 0 { "SufficientPods" } else { "InsufficientPods" }, String::new())
        }
        // What cannot be known must not be disrupted.
        Err(error) => (0, "SyncFailed", error),
    };
    status.disruptions_allowed = Some(allowed);
    set_condition(&mut status, budget.metadata.generation, allowed > 0, reason, message, now);
    Decision { status, stayed, again }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// How many pods there should be, and how many of them healthy.
fn expectation(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    scale: impl FnOnce() -> Result<i32, String>,
) -> Result<(i32, i32), String> {
    let spec = budget.spec.clone().unwrap_or_default();
    if let Some(max) = &spec.max_unavailable {
        let expected = scale()?;
        return Ok((expected, (expected - pods::resolve(Some(max), expected, true)).max(0)));
    }
    match &spec.min_available {
        Some(IntOrString::Int(n)) => Ok((count(covered.len()), *n)),
        Some(share) => {
            let expected = scale()?;
            Ok((expected, pods::resolve(Some(share), expected, true)))
        }
        None => Ok((0, 0)),
    }
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    generation: Option<i64>,
    allowed: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let value = if allowed { "True" } else { "False" };
    let before = conditions.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = before.filter(|c| c.status == value).map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(new);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let budget = json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status});
        serde_json::from_value(budget).unwrap()
    }

    fn pods(ready: &[bool]) -> Vec<Arc<Pod>> {
        let pod = |(i, ready): (usize, &bool)| {
            let conditions = json!([{"type": "Ready", "status": if *ready { "True" } else { "False" }}]);
            let pod = json!({"metadata": {"name": format!("p{i}")}, "status": {"phase": "Running", "conditions": conditions}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        ready.iter().enumerate().map(pod).collect()
    }

    fn numbers(spec: Value, ready: &[bool], scale: i32) -> (i32, i32, i32, i32) {
        let s = decide(&budget(spec, json!({})), &pods(ready), || Ok(scale), Timestamp::now()).status;
        let n = |n: Option<i32>| n.unwrap();
        (n(s.expected_pods), n(s.current_healthy), n(s.desired_healthy), n(s.disruptions_allowed))
    }

    #[test]
    fn what_can_be_spared() {
        assert_eq!(numbers(json!({"minAvailable": 2}), &[true, true, true], 0), (3, 3, 2, 1));
        assert_eq!(numbers(json!({"minAvailable": 2}), &[true, true, false], 0), (3, 2, 2, 0));
        assert_eq!(numbers(json!({"minAvailable": "50%"}), &[true, true, true], 3), (3, 3, 2, 1));
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &[true, true], 3), (3, 2, 2, 0));
        assert_eq!(numbers(json!({"maxUnavailable": "34%"}), &[true, true, true], 3), (3, 3, 1, 2));
        assert_eq!(numbers(json!({"minAvailable": 0}), &[], 0), (0, 0, 0, 0));
    }

    #[test]
    fn evicted_pods_are_not_counted_until_they_stay_too_long() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let status = json!({"disruptedPods": {"p0": "2026-01-01T00:00:00Z", "p1": "2025-01-01T00:00:00Z",
            "gone": "2026-01-01T00:00:00Z"}, "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        let d = decide(&budget(json!({"minAvailable": 1}), status), &pods(&[true, true]), || Ok(2), now);
        assert_eq!((d.status.current_healthy, d.status.disruptions_allowed), (Some(1), Some(0)));
        assert_eq!(d.status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!((d.stayed, d.again), (vec!["p1".to_owned()], Some("2026-01-01T00:02:00Z".parse().unwrap())));
    }

    #[test]
    fn what_is_not_known_is_not_disrupted() {
        let d = decide(
            &budget(json!({"maxUnavailable": 1}), json!({})),
            &pods(&[true]),
            || Err("no scale".into()),
            Timestamp::now(),
        );
        let condition = &d.status.conditions.unwrap()[0];
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("SyncFailed", "no scale"));
        assert_eq!(d.status.disruptions_allowed, Some(0));
    }
}
