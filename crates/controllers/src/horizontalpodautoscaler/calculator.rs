//! From what pods use to how many there should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use skiff_api::quantity::Quantity;

use crate::pods;

/// How long after its start a pod's CPU may be that of its start.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// How long after its start a change of readiness still counts as the first one.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// One pod's value of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PodMetric {
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    /// Thousandths.
    pub(super) value: i64,
}

/// Values by the name of the pod.
pub(super) type PodMetrics = BTreeMap<String, PodMetric>;

/// By how much a ratio may be off before anything is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent of the request, where that is the target.
    pub(super) utilization: Option<i32>,
    /// The average, or the value, in thousandths.
    pub(super) value: i64,
}

/// The pods, in the groups that count differently.
#[derive(Debug, Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(all: &[Arc<Pod>], metrics: &PodMetrics, of_cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in all {
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match metrics.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(metric) if of_cpu && still_starts(pod, metric, now) => drop(groups.unready.insert(name)),
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// Whether the CPU that a pod used may be that of its start.
fn still_starts(pod: &Pod, metric: &PodMetric, now: Timestamp) -> bool {
    let Some(status) = &pod.status else { return true };
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let (Some(ready), Some(started)) = (ready, &status.start_time) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    if started.0 + CPU_INITIALIZATION > now {
        // Its use counts from the first whole window in which it was ready.
        return ready.status == "False" || metric.at < changed + metric.window;
    }
    ready.status == "False" && started.0 + INITIAL_READINESS > changed
}

/// What each pod requests, in thousandths; of one container alone if that is named.
pub(super) fn requests(
    all: &[Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in all {
        let spec = pod.spec.as_ref();
        let restartable = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
        let inits = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten()).filter(restartable);
        let containers: Vec<&Container> = inits.chain(spec.into_iter().flat_map(|s| &s.containers)).collect();
        let wanted = containers.iter().filter(|c| container.is_none_or(|name| c.name == name));
        let mut sum = 0i64;
        let mut any = false;
        for c in wanted {
            any = true;
            let quantity = c.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
            let Some(quantity) = quantity.and_then(|q| q.0.parse::<Quantity>().ok()) else {
                return Err(format!(
                    "missing request for {resource} in container {} of Pod {}",
                    c.name,
                    pod.name_any()
                ));
            };
            sum = sum.saturating_add(quantity.millis());
        }
        if let Some(name) = container.filter(|_| !any) {
            return Err(format!("container {name} not found in Pod {}", pod.name_any()));
        }
        requests.insert(pod.name_any(), sum);
    }
    Ok(requests)
}

/// What is aimed at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// Percent of what the pods request.
    Utilization { percent: i32, requests: &'a BTreeMap<String, i64> },
    /// The average of the pods, in thousandths.
    Average(i64),
}

/// How far the pods are from the target, with the utilization and the average.
fn ratio(metrics: &PodMetrics, target: Target<'_>) -> Result<(f64, Option<i32>, i64), String> {
    match target {
        Target::Utilization { percent, requests } => {
            let matched = || metrics.iter().filter_map(|(name, m)| Some((m.value, *requests.get(name)?)));
            let (used, requested) = matched()
                .fold((0i64, 0i64), |(a, b), (used, request)| (a.saturating_add(used), b.saturating_add(request)));
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
            let count = i64::try_from(matched().count()).unwrap_or(i64::MAX);
            Ok((f64::from(utilization) / f64::from(percent), Some(utilization), used / count))
        }
        Target::Average(target) => {
            let sum: i64 = metrics.values().map(|m| m.value).sum();
            let average = sum / i64::try_from(metrics.len()).unwrap_or(i64::MAX).max(1);
            Ok((average as f64 / target as f64, None, average))
        }
    }
}

/// Whole replicas, never fewer than asked for.
fn ceil(replicas: f64) -> i32 {
    replicas.ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}

/// How many pods a metric of each pod asks for.
pub(super) fn replicas_for_pods(
    current: i32,
    all: &[Arc<Pod>],
    mut metrics: PodMetrics,
    target: Target<'_>,
    of_cpu: bool,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Proposal, String> {
    if all.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(all, &metrics, of_cpu, now);
    metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if metrics.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let (first, utilization, value) = ratio(&metrics, target)?;
    let proposal = |replicas| Proposal { replicas, utilization, value };
    let more_with_unready = !groups.unready.is_empty() && first > 1.0;
    if !more_with_unready && groups.missing.is_empty() {
        let enough = tolerance.covers(first);
        return Ok(proposal(if enough { current } else { ceil(first * groups.ready as f64) }));
    }
    let mut assume = |name: &String, value| {
        metrics.insert(name.clone(), PodMetric { at: now, window: SignedDuration::ZERO, value });
    };
    for name in &groups.missing {
        // Nobody knows what they use: on the way down all that is wanted of them, on the way up nothing.
        if first < 1.0 {
            let full = match target {
                Target::Utilization { percent, requests } => {
                    let full = i64::from(percent.max(100));
                    requests.get(name).map_or(0, |r| r.saturating_mul(full) / 100)
                }
                Target::Average(target) => target,
            };
            assume(name, full);
        } else if first > 1.0 {
            assume(name, 0);
        }
    }
    if more_with_unready {
        groups.unready.iter().for_each(|name| assume(name, 0));
    }
    let (second, ..) = ratio(&metrics, target)?;
    let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
    if tolerance.covers(second) || turned {
        return Ok(proposal(current));
    }
    let replicas = ceil(second * metrics.len() as f64);
    let against = (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current);
    Ok(proposal(if against { current } else { replicas }))
}

/// How many pods a value asks for that is not the pods' own, in thousandths as its target.
pub(super) fn replicas_for_value(current: i32, ready: i32, value: i64, target: i64, tolerance: Tolerance) -> Proposal {
    let ratio = value as f64 / target as f64;
    let replicas = match current {
        0 => ceil(ratio),
        _ if tolerance.covers(ratio) => current,
        _ => ceil(ratio * f64::from(ready)),
    };
    Proposal { replicas, utilization: None, value }
}

/// How many pods a value asks for of which each takes `target`, in thousandths.
pub(super) fn replicas_for_share(current: i32, value: i64, target: i64, tolerance: Tolerance) -> Proposal {
    let ratio = value as f64 / (target as f64 * f64::from(current));
    let replicas = if current != 0 && tolerance.covers(ratio) { current } else { ceil(value as f64 / target as f64) };
    let average = if current == 0 { 0 } else { (value as f64 / f64::from(current)).ceil() as i64 };
    Proposal { replicas, utilization: None, value: average }
}

/// How many of the pods are ready.
pub(super) fn ready(all: &[Arc<Pod>]) -> Result<i32, String> {
    if all.is_empty() {
        return Err(
            "unable to calculate ready pods: no pods returned by selector while calculating replica count".to_owned()
        );
    }
    let ready = all.iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).count();
    Ok(i32::try_from(ready).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOLERANCE: Tolerance = Tolerance { down: 0.1, up: 0.1 };

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn pod(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {"phase": phase, "startTime": "2026-01-01T11:00:00Z",
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T11:00:05Z"}]},
            }))
            .unwrap(),
        )
    }

    fn replicas(percent: i32, pods: &[(&str, bool, Option<i64>)]) -> (i32, Option<i32>) {
        let all: Vec<_> =
            pods.iter().enumerate().map(|(i, (phase, ready, _))| pod(&format!("p{i}"), phase, *ready)).collect();
        let value = |v: &i64| PodMetric { at: now(), window: SignedDuration::from_secs(10), value: *v };
        let metrics =
            pods.iter().enumerate().filter_map(|(i, p)| Some((format!("p{i}"), value(p.2.as_ref()?)))).collect();
        let requests = requests(&all, "cpu", None).unwrap();
        let target = Target::Utilization { percent, requests: &requests };
        let current = i32::try_from(all.len()).unwrap();
        let proposal = replicas_for_pods(current, &all, metrics, target, true, TOLERANCE, now()).unwrap();
        (proposal.replicas, proposal.utilization)
    }

    #[test]
    fn utilization_scales() {
        let run = |v| ("Running", true, Some(v));
        assert_eq!(replicas(30, &[run(300), run(500), run(700)]), (5, Some(50)));
        assert_eq!(replicas(50, &[run(100), run(100), run(100), run(100)]), (1, Some(10)));
        // Within a tenth nothing is done.
        assert_eq!(replicas(100, &[run(1010), run(1030), run(1020)]), (3, Some(102)));
        // Pods that do not run yet count as idle on the way up, not at all on the way down.
        assert_eq!(replicas(30, &[run(500), ("Pending", false, None), ("Pending", false, None)]), (3, Some(50)));
        assert_eq!(replicas(50, &[run(100), ("Pending", false, None)]), (1, Some(10)));
        // Pods without metrics count as idle on the way up, as busy on the way down.
        assert_eq!(replicas(30, &[run(800), ("Running", true, None)]), (3, Some(80)));
        assert_eq!(replicas(50, &[run(100), run(100), ("Running", true, None)]), (3, Some(10)));
    }

    #[test]
    fn what_cannot_be_calculated_is_told() {
        let none = replicas_for_pods(1, &[], PodMetrics::new(), Target::Average(1), false, TOLERANCE, now());
        assert_eq!(none.unwrap_err(), "no pods returned by selector while calculating replica count");
        let all = [pod("a", "Running", true)];
        let unknown = replicas_for_pods(1, &all, PodMetrics::new(), Target::Average(1), false, TOLERANCE, now());
        assert_eq!(unknown.unwrap_err(), "did not receive metrics for targeted pods (pods might be unready)");
        assert_eq!(requests(&all, "memory", None).unwrap_err(), "missing request for memory in container c of Pod a");
        assert_eq!(requests(&all, "cpu", Some("x")).unwrap_err(), "container x not found in Pod a");
    }

    #[test]
    fn values_that_are_not_the_pods() {
        let tolerance = TOLERANCE;
        assert_eq!(replicas_for_value(3, 3, 20_000, 15_000, tolerance).replicas, 4);
        assert_eq!(replicas_for_value(3, 3, 15_000, 15_000, tolerance).replicas, 3);
        let share = replicas_for_share(3, 20_000, 5_000, tolerance);
        assert_eq!((share.replicas, share.value), (4, 6667));
    }
}
