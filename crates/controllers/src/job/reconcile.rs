//! How a Job stands, and which pods come, go or are counted.
//!
//! A finished pod is counted exactly once although the controller may end at any line: its UID is first written to
//! `uncountedTerminatedPods`, then its finalizer is taken away, and only then the UID becomes a number.

use std::{collections::HashSet, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;

use super::{
    indexes::{self, Indexes},
    pod::{New, failures_of, index_of, is_indexed, is_tracked},
    policy::{self, Verdict},
};
use crate::pods;

/// The time before a pod is made after the first failure; it doubles with each one up to the last.
const FIRST_BACK_OFF_S: i64 = 10;
const LAST_BACK_OFF_S: i64 = 600;
/// How many pods one step creates, deletes or counts at most.
const BURST: usize = 500;

/// Failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BackOff {
    pub(super) failures: u32,
    pub(super) last: Option<Timestamp>,
}

impl BackOff {
    fn after(failures: u32) -> SignedDuration {
        let factor = 1_i64.checked_shl(failures.saturating_sub(1)).filter(|f| *f > 0).unwrap_or(i64::MAX);
        SignedDuration::from_secs(FIRST_BACK_OFF_S.saturating_mul(factor).min(LAST_BACK_OFF_S))
    }

    /// When the next pod may be made, if that is not now.
    fn until(self, now: Timestamp) -> Option<Timestamp> {
        let then = self.last.filter(|_| self.failures > 0)? + BackOff::after(self.failures);
        (then > now).then_some(then)
    }
}

/// An event: whether it is a warning, its reason and its message.
pub(super) type Told = (bool, String, String);

#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) create: Vec<New>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    /// Pods that lose their finalizer once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) events: Vec<Told>,
    pub(super) back_off: BackOff,
    /// When to look again although nothing changes.
    pub(super) again: Option<Timestamp>,
}

/// What is seen of a Job.
pub(super) struct Observed<'a> {
    pub(super) job: &'a Job,
    pub(super) pods: &'a [Arc<Pod>],
    /// UIDs of pods whose finalizer is known to be gone although the cache may still show it.
    pub(super) released: &'a HashSet<String>,
    pub(super) back_off: BackOff,
    /// Whether the cache shows all pods that were made and deleted before.
    pub(super) is_current: bool,
    pub(super) now: Timestamp,
}

pub(super) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether the Job has come to its end.
pub(crate) fn is_finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|s| condition(s, "Complete").or(condition(s, "Failed")).is_some())
}

fn set_condition(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let list = status.conditions.get_or_insert_default();
    let now = Some(Time(now));
    let new = JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: now.clone(),
        last_transition_time: now,
    };
    match list.iter_mut().find(|c| c.type_ == kind) {
        Some(c) => *c = new,
        None => list.push(new),
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// Whether a pod that is being deleted is replaced only when it is really over.
fn waits_for_the_end(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    spec.and_then(|s| s.pod_replacement_policy.as_deref()) == Some("Failed")
        || spec.is_some_and(|s| s.pod_failure_policy.is_some())
}

fn is_over(pod: &Pod) -> bool {
    matches!(pods::phase(pod), "Succeeded" | "Failed")
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !is_over(pod)
}

fn has_failed(job: &Job, pod: &Pod) -> bool {
    pods::phase(pod) == "Failed" || (is_terminating(pod) && !waits_for_the_end(job))
}

/// When a pod came to its end.
fn finished_at(pod: &Pod, now: Timestamp) -> Timestamp {
    let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends = containers.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0));
    ends.max().or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0)).unwrap_or(now)
}

fn is_tracked_still(seen: &Observed<'_>, pod: &Pod) -> bool {
    is_tracked(pod) && !seen.released.contains(&uid(pod))
}

/// What the counting found.
struct Counted {
    succeeded: i32,
    failed: i32,
    completed: Indexes,
    failed_indexes: Indexes,
    /// The last failed pod of each index that is to be tried again: it tells how often it was.
    last_failures: Vec<Arc<Pod>>,
    /// Why the failure policy fails the Job.
    fails: Option<String>,
}

/// Moves what is safely recorded into numbers, and records what is new.
fn count(seen: &Observed<'_>, failing: bool, ending: bool, decision: &mut Decision) -> Counted {
    let job = seen.job;
    let spec = job.spec.clone().unwrap_or_default();
    let indexed = is_indexed(job);
    let completions = spec.completions.unwrap_or(0);
    let status = &mut decision.status;
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let held: HashSet<String> = seen.pods.iter().filter(|p| is_tracked_still(seen, p)).map(|p| uid(p)).collect();
    let flush = |list: &mut Option<Vec<String>>, total: &mut Option<i32>| {
        let list = list.get_or_insert_default();
        let before = list.len();
        list.retain(|uid| held.contains(uid));
        let moved = i32::try_from(before - list.len()).unwrap_or(0);
        if moved > 0 {
            *total = Some(total.unwrap_or(0) + moved);
        }
    };
    flush(&mut uncounted.succeeded, &mut status.succeeded);
    flush(&mut uncounted.failed, &mut status.failed);
    let per_index = spec.backoff_limit_per_index;
    let mut counted = Counted {
        succeeded: 0,
        failed: 0,
        completed: indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions),
        failed_indexes: indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions),
        last_failures: Vec::new(),
        fails: None,
    };
    let mut finished: Vec<&Arc<Pod>> = seen.pods.iter().filter(|p| is_tracked_still(seen, p)).collect();
    finished.sort_by_key(|p| finished_at(p, seen.now));
    // Success first: an index that has succeeded is not looked at for failures.
    for pod in &finished {
        if pods::phase(pod) == "Succeeded"
            && let Some(index) = index_of(pod).filter(|i| indexed && *i < completions)
        {
            counted.completed.insert(index);
        }
    }
    if let Some(limit) = per_index {
        for pod in finished.iter().filter(|p| has_failed(job, p)) {
            let Some(index) = index_of(pod).filter(|i| *i < completions) else { continue };
            let failed = pods::phase(pod) == "Failed" && policy::verdict(job, pod) == Verdict::FailIndex;
            if (failed || failures_of(pod) >= limit) && !counted.completed.contains(&index) {
                counted.failed_indexes.insert(index);
            }
        }
    }
    let succeeded = uncounted.succeeded.get_or_insert_default();
    let failed = uncounted.failed.get_or_insert_default();
    let active: HashSet<i32> = seen.pods.iter().filter(|p| pods::is_active(p)).filter_map(|p| index_of(p)).collect();
    for pod in finished {
        let foreign = indexed && index_of(pod).is_none_or(|i| i >= completions);
        let (won, lost) = (pods::phase(pod) == "Succeeded", has_failed(job, pod) || (failing && !pods::is_active(pod)));
        if !won && !lost {
            continue;
        }
        let id = uid(pod);
        if decision.release.len() >= BURST {
            break;
        }
        if foreign || succeeded.contains(&id) || failed.contains(&id) {
            decision.release.push(pod.clone());
            continue;
        }
        if won {
            if !indexed {
                succeeded.push(id);
            }
            decision.release.push(pod.clone());
            decision.back_off = BackOff::default();
            continue;
        }
        let verdict = if pods::phase(pod) == "Failed" { policy::verdict(job, pod) } else { Verdict::Count };
        match &verdict {
            Verdict::Ignore => {
                decision.release.push(pod.clone());
                continue;
            }
            Verdict::FailJob(why) => {
                counted.fails.get_or_insert_with(|| why.clone());
            }
            Verdict::FailIndex | Verdict::Count => {}
        }
        if let (Some(_), Some(index)) = (per_index, index_of(pod)) {
            let done = counted.completed.contains(&index) || counted.failed_indexes.contains(&index);
            if !done && !ending && !active.contains(&index) {
                // It is kept until there is a next pod of its index that carries the number on.
                counted.last_failures.push(pod.clone());
                continue;
            }
        }
        failed.push(id);
        decision.release.push(pod.clone());
        let failures = decision.back_off.failures + 1;
        decision.back_off = BackOff { failures, last: Some(finished_at(pod, seen.now)) };
    }
    let len = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    counted.failed = status.failed.unwrap_or(0) + len(failed.len() + counted.last_failures.len());
    if indexed {
        counted.succeeded = len(counted.completed.len());
        status.succeeded = Some(counted.succeeded).filter(|n| *n > 0);
        status.completed_indexes = Some(indexes::format(&counted.completed)).filter(|s| !s.is_empty());
        if per_index.is_some() {
            status.failed_indexes = Some(indexes::format(&counted.failed_indexes));
        }
    } else {
        counted.succeeded = status.succeeded.unwrap_or(0) + len(succeeded.len());
    }
    let some = |list: Option<Vec<String>>| list.filter(|l| !l.is_empty());
    status.uncounted_terminated_pods =
        Some(UncountedTerminatedPods { succeeded: some(uncounted.succeeded), failed: some(uncounted.failed) });
    counted
}

/// The end that the Job has come to: whether it succeeded, reason and message.
fn outcome(seen: &Observed<'_>, counted: &Counted, active: &[&Arc<Pod>]) -> Option<(bool, String, String)> {
    let job = seen.job;
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let said = |kind: &str, good: bool| {
        let c = condition(&status, kind)?;
        Some((good, c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()))
    };
    if let Some(before) = said("FailureTarget", false).or_else(|| said("SuccessCriteriaMet", true)) {
        return Some(before);
    }
    let fails = |reason: &str, message: &str| Some((false, reason.to_owned(), message.to_owned()));
    if let Some(why) = &counted.fails {
        return fails("PodFailurePolicy", why);
    }
    if let Some(why) = policy::success(job, &counted.completed) {
        return Some((true, "SuccessPolicy".into(), why));
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if counted.failed > limit || restarts_exceed(job, active, limit) {
        return fails("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if let (Some(deadline), Some(start)) = (spec.active_deadline_seconds, &status.start_time)
        && spec.suspend != Some(true)
        && start.0 + SignedDuration::from_secs(deadline) <= seen.now
    {
        return fails("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let completions = spec.completions;
    if spec.backoff_limit_per_index.is_some() {
        let failed = i32::try_from(counted.failed_indexes.len()).unwrap_or(i32::MAX);
        if spec.max_failed_indexes.is_some_and(|max| failed > max) {
            let why = "Job has exceeded the specified maximal number of failed indexes";
            return fails("MaxFailedIndexesExceeded", why);
        }
        if failed > 0 && completions.is_some_and(|n| counted.succeeded + failed >= n) {
            return fails("FailedIndexes", "Job has failed indexes");
        }
    }
    let complete = match completions {
        Some(n) => counted.succeeded >= n,
        // A queue of work: when one has found it empty and all have ended.
        None => counted.succeeded > 0 && active.is_empty(),
    };
    let message = "Reached expected number of succeeded pods";
    (complete && spec.suspend != Some(true)).then(|| (true, "CompletionsReached".into(), message.into()))
}

/// Whether containers were restarted in place more often than allowed.
fn restarts_exceed(job: &Job, active: &[&Arc<Pod>], limit: i32) -> bool {
    let spec = job.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    if spec.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let counted = active.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
    let statuses = counted.filter_map(|p| p.status.as_ref());
    let containers = statuses.flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
    let restarts: i32 = containers.map(|c| c.restart_count).sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// What is to be done with a Job that has not come to its end.
pub(super) fn decide(seen: &Observed<'_>) -> Decision {
    let (job, now) = (seen.job, seen.now);
    let spec = job.spec.clone().unwrap_or_default();
    let mut decision =
        Decision { status: job.status.clone().unwrap_or_default(), back_off: seen.back_off, ..Decision::default() };
    let suspended = spec.suspend == Some(true);
    if decision.status.start_time.is_none() && !suspended {
        decision.status.start_time = Some(Time(now));
    }
    let failing = condition(&decision.status, "FailureTarget").is_some();
    let ending = failing || condition(&decision.status, "SuccessCriteriaMet").is_some();
    let counted = count(seen, failing, ending, &mut decision);
    let active: Vec<&Arc<Pod>> = seen.pods.iter().filter(|p| pods::is_active(p)).collect();
    let terminating = seen.pods.iter().filter(|p| is_terminating(p)).count();
    let mut stays = active.len();
    if let Some((good, reason, message)) = outcome(seen, &counted, &active) {
        finish(&mut decision, good, &reason, &message, active.len() + terminating, now);
        decision.delete = active.iter().map(|p| Arc::clone(p)).collect();
        stays = 0;
    } else if job.metadata.deletion_timestamp.is_none() {
        suspend_or_resume(&mut decision, suspended, now);
        if seen.is_current {
            manage(seen, &counted, &active, terminating, &mut decision);
        }
        if let (Some(deadline), Some(start)) = (spec.active_deadline_seconds, &decision.status.start_time)
            && !suspended
        {
            sooner(&mut decision.again, start.0 + SignedDuration::from_secs(deadline));
        }
        stays = active.len() - decision.delete.len();
    }
    let gone: HashSet<String> = decision.delete.iter().map(|p| uid(p)).collect();
    let ready = active.iter().filter(|p| pods::is_ready(p) && !gone.contains(&uid(p))).count();
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    decision.status.active = Some(number(stays + decision.create.len())).filter(|n| *n > 0);
    decision.status.ready = Some(number(ready));
    decision.status.terminating = Some(number(terminating + decision.delete.len()));
    if is_at_its_end(&decision.status) {
        decision.status.terminating = Some(0);
    }
    decision
}

fn is_at_its_end(status: &JobStatus) -> bool {
    condition(status, "Complete").or(condition(status, "Failed")).is_some()
}

fn sooner(again: &mut Option<Timestamp>, then: Timestamp) {
    *again = Some(again.map_or(then, |a| a.min(then)));
}

/// Says how the Job ends, and that it has ended when all its pods have and are counted.
fn finish(decision: &mut Decision, good: bool, reason: &str, message: &str, left: usize, now: Timestamp) {
    let status = &mut decision.status;
    let target = if good { "SuccessCriteriaMet" } else { "FailureTarget" };
    if condition(status, target).is_none() {
        set_condition(status, target, "True", reason, message, now);
    }
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    if left > 0 || uncounted.succeeded.is_some() || uncounted.failed.is_some() || !decision.release.is_empty() {
        return;
    }
    if good {
        set_condition(status, "Complete", "True", reason, message, now);
        status.completion_time = Some(Time(now));
        decision.events.push((false, "Completed".into(), "Job completed".into()));
    } else {
        set_condition(status, "Failed", "True", reason, message, now);
        decision.events.push((true, reason.into(), message.into()));
    }
}

fn suspend_or_resume(decision: &mut Decision, suspended: bool, now: Timestamp) {
    let was = condition(&decision.status, "Suspended").is_some();
    if suspended && !was {
        set_condition(&mut decision.status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        decision.events.push((false, "Suspended".into(), "Job suspended".into()));
    } else if !suspended && was {
        set_condition(&mut decision.status, "Suspended", "False", "JobResumed", "Job resumed", now);
        decision.status.start_time = Some(Time(now));
        decision.events.push((false, "Resumed".into(), "Job resumed".into()));
    }
}

/// Creates what is missing and deletes what is too many.
fn manage(seen: &Observed<'_>, counted: &Counted, active: &[&Arc<Pod>], terminating: usize, decision: &mut Decision) {
    let spec = seen.job.spec.clone().unwrap_or_default();
    let size = |n: i32| usize::try_from(n).unwrap_or(0);
    let parallelism = size(spec.parallelism.unwrap_or(1));
    let wanted = match spec.completions {
        _ if spec.suspend == Some(true) => 0,
        // Nobody takes more work from a queue that one has found empty.
        None if counted.succeeded > 0 => active.len(),
        None => parallelism,
        Some(n) => {
            let failed = i32::try_from(counted.failed_indexes.len()).unwrap_or(i32::MAX);
            parallelism.min(size(n - counted.succeeded - failed))
        }
    };
    let mut superfluous: Vec<&Arc<Pod>> = Vec::new();
    if is_indexed(seen.job) {
        // One active pod for each index that is still to be done.
        let mut taken = Indexes::new();
        for pod in active {
            let open = index_of(pod).is_some_and(|i| {
                i < spec.completions.unwrap_or(0)
                    && !counted.completed.contains(&i)
                    && !counted.failed_indexes.contains(&i)
                    && taken.insert(i)
            });
            if !open {
                superfluous.push(pod);
            }
        }
    }
    let mut left: Vec<&Arc<Pod>> =
        active.iter().filter(|p| !superfluous.iter().any(|s| uid(s) == uid(p))).copied().collect();
    if left.len() > wanted {
        left.sort_by_cached_key(|p| (std::cmp::Reverse(index_of(p).unwrap_or(0)), pods::deletion_rank(p, seen.now)));
        let surplus = left.len() - wanted;
        superfluous.extend(left.drain(..surplus));
    }
    decision.delete = superfluous.into_iter().take(BURST).cloned().collect();
    let waiting = if waits_for_the_end(seen.job) { terminating } else { 0 };
    let missing = wanted.saturating_sub(left.len() + waiting).min(BURST);
    if missing == 0 {
        return;
    }
    if spec.backoff_limit_per_index.is_none()
        && let Some(then) = decision.back_off.until(seen.now)
    {
        sooner(&mut decision.again, then);
        return;
    }
    if is_indexed(seen.job) {
        create_indexes(seen, counted, missing, decision);
    } else {
        decision.create = vec![New { index: None, failures: None }; missing];
    }
}

/// The lowest indexes that nobody works on, each after its own back-off if failures are counted for each.
fn create_indexes(seen: &Observed<'_>, counted: &Counted, missing: usize, decision: &mut Decision) {
    let spec = seen.job.spec.clone().unwrap_or_default();
    let waits = waits_for_the_end(seen.job);
    let busy = |p: &Pod| pods::is_active(p) || (waits && is_terminating(p));
    let busy: Indexes = seen.pods.iter().filter(|p| busy(p)).filter_map(|p| index_of(p)).collect();
    for index in 0..spec.completions.unwrap_or(0) {
        if decision.create.len() == missing {
            return;
        }
        if busy.contains(&index) || counted.completed.contains(&index) || counted.failed_indexes.contains(&index) {
            continue;
        }
        let mut failures = None;
        if spec.backoff_limit_per_index.is_some() {
            let last =
                counted.last_failures.iter().filter(|p| index_of(p) == Some(index)).max_by_key(|p| failures_of(p));
            let count = last.map_or(0, |p| failures_of(p) + 1);
            let since = last.map(|p| finished_at(p, seen.now));
            let back_off = BackOff { failures: u32::try_from(count).unwrap_or(0), last: since };
            if let Some(then) = back_off.until(seen.now) {
                sooner(&mut decision.again, then);
                continue;
            }
            failures = Some(count);
        }
        decision.create.push(New { index: Some(index), failures });
    }
}

/// The UIDs that are no longer in question: their pods are seen without the finalizer, or not at all.
pub(super) fn settled(pods: &[Arc<Pod>], released: &HashSet<String>) -> HashSet<String> {
    let held: HashSet<String> = pods.iter().filter(|p| is_tracked(p)).map(|p| uid(p)).collect();
    released.iter().filter(|uid| !held.contains(*uid)).cloned().collect()
}

/// Name and UID of the Job that a pod is of, by its controller or else by its label.
pub(super) fn job_of(pod: &Pod) -> Option<(String, Option<String>)> {
    match pods::controller_of(pod) {
        Some(owner) if owner.kind == "Job" => Some((owner.name.clone(), Some(owner.uid.clone()))),
        Some(_) => None,
        None => pod.labels().get("batch.kubernetes.io/job-name").map(|name| (name.clone(), None)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(fields: Value, status: Value) -> Job {
        let mut spec = json!({"completions": 1, "parallelism": 1, "backoffLimit": 6, "suspend": false,
            "template": {"spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}}});
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec, "status": status})).unwrap()
    }

    fn pod(uid: &str, phase: &str, index: Option<(i32, i32)>) -> Arc<Pod> {
        let template = super::super::pod::make(
            &job(json!({}), json!({})),
            New { index: index.map(|i| i.0), failures: index.map(|i| i.1) },
        );
        let mut pod = template;
        pod.metadata.name = Some(uid.into());
        pod.metadata.uid = Some(uid.into());
        pod.status = serde_json::from_value(json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "",
            "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}}}]}))
        .unwrap();
        Arc::new(pod)
    }

    /// Without the finalizer.
    fn free(pod: &Arc<Pod>) -> Arc<Pod> {
        let mut pod = (**pod).clone();
        pod.metadata.finalizers = None;
        Arc::new(pod)
    }

    fn at(job: &Job, pods: &[Arc<Pod>], now: &str) -> Decision {
        let back_off = BackOff::default();
        let (released, now) = (HashSet::new(), now.parse().unwrap());
        decide(&Observed { job, pods, released: &released, back_off, is_current: true, now })
    }

    fn later(job: &Job, pods: &[Arc<Pod>]) -> Decision {
        at(job, pods, "2026-01-02T00:00:00Z")
    }

    fn has(decision: &Decision, kind: &str) -> Option<String> {
        condition(&decision.status, kind).and_then(|c| c.reason.clone())
    }

    #[test]
    fn pods_are_made_up_to_the_parallelism() {
        let plain = |n: usize| vec![New { index: None, failures: None }; n];
        let three = json!({"completions": 5, "parallelism": 3});
        let d = later(&job(three.clone(), json!({})), &[]);
        assert_eq!((d.create, d.status.active), (plain(3), Some(3)));
        assert!(d.status.start_time.is_some());
        // Two are left to do.
        let d = later(&job(three, json!({"succeeded": 3})), &[pod("a", "Running", None)]);
        assert_eq!(d.create, plain(1));
        let d =
            later(&job(json!({"parallelism": 1}), json!({})), &[pod("a", "Running", None), pod("b", "Pending", None)]);
        assert_eq!(d.delete.iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_pod_is_recorded_then_released_then_counted() {
        let done = pod("a", "Succeeded", None);
        let d = later(&job(json!({}), json!({})), std::slice::from_ref(&done));
        let uncounted = d.status.uncounted_terminated_pods.clone().unwrap();
        assert_eq!((uncounted.succeeded, d.release.len(), d.status.succeeded), (Some(vec!["a".into()]), 1, None));
        assert_eq!(has(&d, "SuccessCriteriaMet").as_deref(), Some("CompletionsReached"));
        assert_eq!(has(&d, "Complete"), None);
        // Still with its finalizer: it stays recorded and is not counted twice.
        let half = job(json!({}), serde_json::to_value(&d.status).unwrap());
        let again = later(&half, std::slice::from_ref(&done));
        assert_eq!((again.status.succeeded, again.release.len()), (None, 1));
        let d = later(&half, &[free(&done)]);
        assert_eq!((d.status.succeeded, has(&d, "Complete").as_deref()), (Some(1), Some("CompletionsReached")));
        assert!(d.status.completion_time.is_some());
        assert_eq!(d.events, [(false, "Completed".into(), "Job completed".into())]);
    }

    #[test]
    fn failures_back_off_and_reach_the_limit() {
        let failed = [pod("a", "Failed", None)];
        let limit = |n: i32| job(json!({"backoffLimit": n}), json!({}));
        let d = at(&limit(1), &failed, "2026-01-01T00:00:05Z");
        assert_eq!((d.create.len(), d.again), (0, Some("2026-01-01T00:00:10Z".parse().unwrap())));
        assert_eq!(d.back_off.failures, 1);
        assert_eq!(at(&limit(1), &failed, "2026-01-01T00:00:10Z").create.len(), 1);
        let d = later(&limit(0), &failed);
        assert_eq!(has(&d, "FailureTarget").as_deref(), Some("BackoffLimitExceeded"));
        let d = later(&job(json!({"backoffLimit": 0}), serde_json::to_value(&d.status).unwrap()), &[free(&failed[0])]);
        assert_eq!((d.status.failed, has(&d, "Failed").as_deref()), (Some(1), Some("BackoffLimitExceeded")));
        assert_eq!(d.events[0].2, "Job has reached the specified backoff limit");
        assert_eq!(BackOff::after(1).as_secs(), 10);
        assert_eq!(BackOff::after(4).as_secs(), 80);
        assert_eq!(BackOff::after(40).as_secs(), 600);
        assert_eq!(BackOff::after(400).as_secs(), 600);
    }

    #[test]
    fn indexes_are_done_once_each() {
        let indexed = |fields: Value| {
            let mut all = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2});
            for (key, value) in fields.as_object().unwrap() {
                all[key] = value.clone();
            }
            all
        };
        let indexes = |d: &Decision| d.create.iter().filter_map(|n| n.index).collect::<Vec<_>>();
        assert_eq!(indexes(&later(&job(indexed(json!({})), json!({})), &[])), [0, 1]);
        let pods = [pod("a", "Succeeded", Some((0, 0))), pod("b", "Running", Some((1, 0)))];
        let d = later(&job(indexed(json!({})), json!({})), &pods);
        assert_eq!((indexes(&d), d.status.completed_indexes.as_deref()), (vec![2], Some("0")));
        assert_eq!(d.status.succeeded, Some(1));
        // The success policy ends it early.
        let policy = indexed(json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}));
        let d = later(&job(policy, json!({})), &pods);
        assert_eq!((has(&d, "SuccessCriteriaMet").as_deref(), d.delete.len()), (Some("SuccessPolicy"), 1));
        // Each index has its own limit.
        let each = indexed(json!({"backoffLimitPerIndex": 1, "backoffLimit": i32::MAX}));
        let d = later(&job(each.clone(), json!({})), &[pod("a", "Failed", Some((0, 0)))]);
        assert_eq!(d.create[0], New { index: Some(0), failures: Some(1) });
        assert!(d.release.is_empty(), "it is kept until the next one is there");
        let both = [pod("a", "Failed", Some((0, 0))), pod("b", "Failed", Some((0, 1)))];
        let d = later(&job(each, json!({})), &both);
        assert_eq!((d.status.failed_indexes.as_deref(), indexes(&d)), (Some("0"), vec![1, 2]));
        assert_eq!(d.release.len(), 2);
        let max = indexed(json!({"backoffLimitPerIndex": 0, "backoffLimit": i32::MAX, "maxFailedIndexes": 0}));
        let d = later(&job(max, json!({})), &both[..1]);
        assert_eq!(has(&d, "FailureTarget").as_deref(), Some("MaxFailedIndexesExceeded"));
    }

    #[test]
    fn suspending_deletes_and_resuming_starts_anew() {
        let running = [pod("a", "Running", None)];
        let d = later(&job(json!({"suspend": true}), json!({})), &running);
        assert_eq!((d.delete.len(), has(&d, "Suspended").as_deref()), (1, Some("JobSuspended")));
        assert!(d.status.start_time.is_none());
        let d = later(&job(json!({}), serde_json::to_value(&d.status).unwrap()), &[]);
        assert_eq!((d.create.len(), has(&d, "Suspended")), (1, None));
        assert_eq!(d.events[0].1, "Resumed");
    }

    #[test]
    fn a_deadline_ends_it() {
        let fields = json!({"activeDeadlineSeconds": 60});
        let started = json!({"startTime": "2026-01-01T00:00:00Z"});
        let running = [pod("a", "Running", None)];
        let d = at(&job(fields.clone(), started.clone()), &running, "2026-01-01T00:00:59Z");
        assert_eq!((d.delete.len(), d.again), (0, Some("2026-01-01T00:01:00Z".parse().unwrap())));
        let d = at(&job(fields, started), &running, "2026-01-01T00:01:00Z");
        assert_eq!((d.delete.len(), has(&d, "FailureTarget").as_deref()), (1, Some("DeadlineExceeded")));
        assert_eq!(has(&d, "Failed"), None, "its pod is still there");
    }

    #[test]
    fn a_queue_of_work_is_done_when_all_have_ended() {
        let queue = json!({"completions": null, "parallelism": 2});
        let d = later(&job(queue.clone(), json!({})), &[pod("a", "Succeeded", None), pod("b", "Running", None)]);
        assert_eq!((d.create.len(), d.delete.len(), has(&d, "SuccessCriteriaMet")), (0, 0, None));
        let d = later(&job(queue, json!({"succeeded": 1})), &[pod("b", "Succeeded", None)]);
        assert!(has(&d, "SuccessCriteriaMet").is_some());
    }
}
