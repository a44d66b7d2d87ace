//! Which pod comes, goes or waits next, and the status.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;

use super::identity::{self, ordinal_of, start};
use crate::{history::HASH, pods};

/// The names of the two revisions between which a set rolls; pods have them as a label.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revisions<'a> {
    /// What the pods were before.
    pub(super) current: &'a str,
    /// What they are to be.
    pub(super) update: &'a str,
}

/// Why a pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is no longer wanted.
    Condemned,
    /// It is of an old revision.
    Outdated,
    Failed,
    Succeeded,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// The pod of this ordinal is to be made, of the current revision or of the updated one.
    Create {
        ordinal: i32,
        updated: bool,
    },
    /// The claims of this pod have to be there.
    Claims {
        pod: Arc<Pod>,
    },
    /// The pod has not the identity or the storage that it should have.
    Correct {
        pod: Arc<Pod>,
    },
    Delete {
        pod: Arc<Pod>,
        why: Why,
    },
}

pub(super) fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|s| s.pod_management_policy.as_deref()) == Some("Parallel")
}

pub(super) fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// Whether this ordinal is one of those that the set wants.
pub(super) fn is_wanted(set: &StatefulSet, ordinal: i32) -> bool {
    (start(set)..start(set) + replicas(set)).contains(&ordinal)
}

fn revision(pod: &Pod) -> &str {
    pod.labels().get(HASH).map_or("", String::as_str)
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Running, ready, for long enough, and not going.
fn is_healthy(set: &StatefulSet, pod: &Pod, now: Timestamp) -> bool {
    let min = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    !is_going(pod) && pods::phase(pod) == "Running" && pods::is_available(pod, min, now) == Ok(true)
}

/// `None` if pods are updated only when somebody deletes them.
fn partition(set: &StatefulSet) -> Option<i32> {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    Some(strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0))
}

fn max_unavailable(set: &StatefulSet) -> i32 {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let max = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.as_ref());
    pods::resolve(Some(max.unwrap_or(&IntOrString::Int(1))), replicas(set), false).max(1)
}

/// Whether a new pod of this ordinal is made of the updated revision.
fn is_updated(set: &StatefulSet, ordinal: i32) -> bool {
    partition(set).is_none_or(|p| ordinal >= start(set) + p)
}

/// What to do now, in order. `owned` are the set's pods, also those that are going.
pub(super) fn plan(set: &StatefulSet, owned: &[Arc<Pod>], revisions: Revisions<'_>, now: Timestamp) -> Vec<Step> {
    let ordered = !is_parallel(set);
    let mut wanted: Vec<(i32, Option<Arc<Pod>>)> =
        (start(set)..start(set) + replicas(set)).map(|ordinal| (ordinal, None)).collect();
    let mut condemned: Vec<(i32, Arc<Pod>)> = Vec::new();
    for pod in owned {
        let Some(ordinal) = ordinal_of(set, &pod.name_any()) else { continue };
        match wanted.iter_mut().find(|(o, _)| *o == ordinal) {
            Some((_, slot)) => *slot = Some(pod.clone()),
            None => condemned.push((ordinal, pod.clone())),
        }
    }
    condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    let mut steps = Vec::new();
    for (ordinal, pod) in &wanted {
        let Some(pod) = pod else {
            steps.push(Step::Create { ordinal: *ordinal, updated: is_updated(set, *ordinal) });
            if ordered {
                return steps;
            }
            continue;
        };
        let over = match pods::phase(pod) {
            "Failed" => Some(Why::Failed),
            "Succeeded" => Some(Why::Succeeded),
            _ => None,
        };
        if let Some(why) = over {
            if !is_going(pod) {
                steps.push(Step::Delete { pod: pod.clone(), why });
            }
            // The new one is made when this one is gone.
            return steps;
        }
        if pods::phase(pod) == "Pending" && !is_going(pod) {
            steps.push(Step::Claims { pod: pod.clone() });
        }
        if ordered && !is_healthy(set, pod, now) {
            return steps;
        }
        if !is_going(pod) && !identity::matches(set, pod) {
            steps.push(Step::Correct { pod: pod.clone() });
        }
    }
    // From the highest ordinal down. The first unhealthy one, counted from below, may go although it is unhealthy.
    let unhealthy = wanted
        .iter()
        .filter_map(|(o, p)| p.as_ref().map(|p| (*o, p)))
        .chain(condemned.iter().map(|(o, p)| (*o, p)))
        .filter(|(_, p)| !is_healthy(set, p, now))
        .min_by_key(|(o, _)| *o)
        .map(|(_, p)| p.name_any());
    for (_, pod) in &condemned {
        if is_going(pod) {
            if ordered {
                return steps;
            }
            continue;
        }
        if ordered && !is_healthy(set, pod, now) && unhealthy.as_deref() != Some(&pod.name_any()) {
            return steps;
        }
        steps.push(Step::Delete { pod: pod.clone(), why: Why::Condemned });
        if ordered {
            return steps;
        }
    }
    if let Some(partition) = partition(set) {
        roll(set, &wanted, partition, revisions, now, &mut steps);
    }
    steps
}

/// Deletes outdated pods, from the highest ordinal down to the partition.
fn roll(
    set: &StatefulSet,
    wanted: &[(i32, Option<Arc<Pod>>)],
    partition: i32,
    revisions: Revisions<'_>,
    now: Timestamp,
    steps: &mut Vec<Step>,
) {
    let max = max_unavailable(set);
    let healthy = |pod: &Option<Arc<Pod>>| pod.as_ref().is_some_and(|p| is_healthy(set, p, now));
    let first = start(set) + partition;
    let mut room = if max > 1 {
        let unavailable = wanted.iter().filter(|(_, pod)| !healthy(pod)).count();
        max - i32::try_from(unavailable).unwrap_or(i32::MAX)
    } else {
        1
    };
    for (_, pod) in wanted.iter().rev().filter(|(o, _)| *o >= first) {
        if room <= 0 {
            return;
        }
        if let Some(pod) = pod.as_ref().filter(|p| revision(p) != revisions.update && !is_going(p)) {
            steps.push(Step::Delete { pod: pod.clone(), why: Why::Outdated });
            room -= 1;
        } else if max == 1 && !healthy(pod) {
            // One at a time: the updated pod has to be there before the next one goes.
            return;
        }
    }
}

/// The status, and when it will change by itself because a pod has been ready for long enough.
pub(super) fn status(
    set: &StatefulSet,
    owned: &[Arc<Pod>],
    names: Revisions<'_>,
    collisions: i32,
    now: Timestamp,
) -> (StatefulSetStatus, Option<Timestamp>) {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let (mut total, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    let mut next: Option<Timestamp> = None;
    for pod in owned.iter().filter(|p| ordinal_of(set, &p.name_any()).is_some()) {
        total += 1;
        if pods::phase(pod) == "Running" && pods::is_ready(pod) {
            ready += 1;
            match pods::is_available(pod, min_ready, now) {
                Ok(yes) => available += i32::from(yes),
                Err(then) => next = Some(next.map_or(then, |n| n.min(then))),
            }
        }
        if !is_going(pod) {
            current += i32::from(revision(pod) == names.current);
            updated += i32::from(revision(pod) == names.update);
        }
    }
    let mut current_name = names.current;
    // A roll is over when all pods are updated and ready.
    if partition(set).is_some() && updated == total && ready == total && total == replicas(set) {
        current = updated;
        current_name = names.update;
    }
    let some = |n: i32| (n != 0).then_some(n);
    let status = StatefulSetStatus {
        replicas: total,
        ready_replicas: some(ready),
        available_replicas: Some(available),
        current_replicas: some(current),
        updated_replicas: some(updated),
        current_revision: Some(current_name.to_owned()),
        update_revision: Some(names.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(collisions),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    };
    (status, next)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::identity::tests::set, *};

    const REVISIONS: Revisions<'static> = Revisions { current: "one", update: "two" };

    fn pod(name: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let set = set(json!({}));
        let ordinal = ordinal_of(&set, name).unwrap();
        let mut pod = identity::pod(&set, &set.spec.as_ref().unwrap().template, hash, ordinal);
        pod.status = serde_json::from_value(json!({"phase": "Running", "conditions": [{"type": "Ready",
            "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
        .unwrap();
        Arc::new(pod)
    }

    fn going(pod: &Arc<Pod>) -> Arc<Pod> {
        let mut pod = (**pod).clone();
        pod.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        Arc::new(pod)
    }

    fn steps(spec: Value, pods: &[Arc<Pod>]) -> Vec<String> {
        let steps = plan(&set(spec), pods, REVISIONS, Timestamp::now());
        let text = |s: &Step| match s {
            Step::Create { ordinal, updated } => format!("+{ordinal}{}", if *updated { "" } else { " old" }),
            Step::Delete { pod, why } => format!("-{} {why:?}", pod.name_any()),
            Step::Correct { pod } => format!("~{}", pod.name_any()),
            Step::Claims { pod } => format!("claims {}", pod.name_any()),
        };
        steps.iter().map(text).collect()
    }

    #[test]
    fn pods_come_one_after_the_other_and_go_in_reverse() {
        assert_eq!(steps(json!({"replicas": 3}), &[]), ["+0"]);
        assert_eq!(steps(json!({"replicas": 3}), &[pod("web-0", "two", false)]), [""; 0]);
        assert_eq!(steps(json!({"replicas": 3}), &[pod("web-0", "two", true)]), ["+1"]);
        let all = [pod("web-0", "two", true), pod("web-1", "two", true), pod("web-2", "two", true)];
        assert_eq!(steps(json!({"replicas": 1}), &all), ["-web-2 Condemned"]);
        let two = [all[0].clone(), all[1].clone(), going(&all[2])];
        assert_eq!(steps(json!({"replicas": 1}), &two), [""; 0]);
        // An unhealthy pod below stops the way down.
        let sick = [all[0].clone(), pod("web-1", "two", false), all[2].clone()];
        assert_eq!(steps(json!({"replicas": 1}), &sick), ["-web-2 Condemned"]);
        let sick = [pod("web-0", "two", false), all[1].clone(), all[2].clone()];
        assert_eq!(steps(json!({"replicas": 1}), &sick), [""; 0]);
    }

    #[test]
    fn parallel_sets_do_not_wait() {
        let parallel = |n: i32| json!({"replicas": n, "podManagementPolicy": "Parallel"});
        assert_eq!(steps(parallel(3), &[]), ["+0", "+1", "+2"]);
        let all = [pod("web-0", "two", false), pod("web-1", "two", false), pod("web-2", "two", true)];
        assert_eq!(steps(parallel(0), &all), ["-web-2 Condemned", "-web-1 Condemned", "-web-0 Condemned"]);
    }

    #[test]
    fn ordinals_may_start_later() {
        let spec = json!({"replicas": 2, "ordinals": {"start": 5}});
        assert_eq!(steps(spec.clone(), &[pod("web-5", "two", true)]), ["+6"]);
        let all = [pod("web-5", "two", true), pod("web-6", "two", true), pod("web-0", "two", true)];
        assert_eq!(steps(spec, &all), ["-web-0 Condemned"]);
    }

    #[test]
    fn a_roll_goes_down_to_the_partition() {
        let all = |a: &str, b: &str, c: &str| [pod("web-0", a, true), pod("web-1", b, true), pod("web-2", c, true)];
        let spec = json!({"replicas": 3});
        assert_eq!(steps(spec.clone(), &all("one", "one", "one")), ["-web-2 Outdated"]);
        assert_eq!(steps(spec.clone(), &all("one", "one", "two")), ["-web-1 Outdated"]);
        let waiting = [pod("web-0", "one", true), pod("web-1", "one", true), pod("web-2", "two", false)];
        assert_eq!(steps(spec.clone(), &waiting), [""; 0]);
        let partition = |p: i32| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": p}}});
        assert_eq!(steps(partition(2), &all("one", "one", "two")), [""; 0]);
        assert_eq!(steps(partition(2), &all("one", "one", "two")[1..]), ["+0 old"]);
        let on_delete = json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}});
        assert_eq!(steps(on_delete.clone(), &all("one", "one", "one")), [""; 0]);
        assert_eq!(steps(on_delete, &all("one", "one", "one")[1..]), ["+0"]);
        let two =
            json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}});
        assert_eq!(steps(two, &all("one", "one", "one")), ["-web-2 Outdated", "-web-1 Outdated"]);
    }

    #[test]
    fn failed_pods_are_made_again() {
        let mut failed = (*pod("web-0", "two", false)).clone();
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        assert_eq!(steps(json!({"replicas": 1}), &[Arc::new(failed)]), ["-web-0 Failed"]);
    }

    #[test]
    fn the_status_counts_and_a_roll_ends() {
        let set = set(json!({"replicas": 2}));
        let count = |pods: &[Arc<Pod>]| status(&set, pods, REVISIONS, 0, Timestamp::now()).0;
        let s = count(&[pod("web-0", "one", true), pod("web-1", "two", true)]);
        assert_eq!((s.replicas, s.current_replicas, s.updated_replicas), (2, Some(1), Some(1)));
        assert_eq!(s.current_revision.as_deref(), Some("one"));
        let s = count(&[pod("web-0", "two", true), pod("web-1", "two", true)]);
        assert_eq!((s.current_revision.as_deref(), s.current_replicas), (Some("two"), Some(2)));
        assert_eq!((s.ready_replicas, s.available_replicas), (Some(2), Some(2)));
    }
}
