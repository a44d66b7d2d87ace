//! Whether a Job is due, which old ones go, and the status.

use std::{cmp::Reverse, sync::Arc};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::batch::v1::{CronJob, CronJobStatus, Job},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::ResourceExt as _;
use skiff_api::cron::{self, Schedule};

use crate::pods;

/// From how many missed times on the user is warned.
const MANY: usize = 100;

/// An event: whether it is a warning, its reason and its message.
pub(super) type Told = (bool, &'static str, String);

#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) status: CronJobStatus,
    /// Old Jobs beyond the limits, and those that are replaced.
    pub(super) delete: Vec<Arc<Job>>,
    /// The time for which a Job is to be started.
    pub(super) start: Option<Timestamp>,
    pub(super) events: Vec<Told>,
    pub(super) again: Option<Timestamp>,
}

/// How a Job ended, if it has.
fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    Some(&end.type_)
}

fn uid(job: &Job) -> &str {
    job.metadata.uid.as_deref().unwrap_or_default()
}

/// The name of the Job for a time: the CronJob's and the time in minutes.
pub(super) fn job_name(cron: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), time.as_second() / 60)
}

/// The Job for a time.
pub(super) fn job(cron: &CronJob, time: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let zone = zone(cron).unwrap_or(TimeZone::UTC);
    let stamp = time.to_zoned(zone);
    let stamp =
        if stamp.offset().is_zero() { time.to_string() } else { stamp.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string() };
    annotations.insert("batch.kubernetes.io/cronjob-scheduled-timestamp".into(), stamp);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, time)),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![pods::owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn zone(cron: &CronJob) -> Option<TimeZone> {
    match cron.spec.time_zone.as_deref() {
        None => Some(TimeZone::UTC),
        Some(name) => cron::time_zone(name),
    }
}

/// What to do now. `jobs` are the Jobs that the CronJob controls.
pub(super) fn decide(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Decision {
    let mut decision = Decision { status: cron.status.clone().unwrap_or_default(), ..Decision::default() };
    follow(jobs, &mut decision);
    tidy(cron, jobs, &mut decision);
    let spec = &cron.spec;
    if cron.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        schedule(cron, jobs, now, &mut decision);
    }
    decision.status.active = decision.status.active.take().filter(|a| !a.is_empty());
    decision
}

/// Brings the list of active Jobs up to date.
fn follow(jobs: &[Arc<Job>], decision: &mut Decision) {
    let active = decision.status.active.get_or_insert_default();
    let mut last = decision.status.last_successful_time.as_ref().map(|t| t.0);
    for job in jobs {
        let listed = active.iter().any(|r| r.uid.as_deref() == Some(uid(job)));
        let Some(end) = ended(job) else {
            if !listed {
                let message = format!("Saw a job that the controller did not create or forgot: {}", job.name_any());
                decision.events.push((true, "UnexpectedJob", message));
            }
            continue;
        };
        let completed = job.status.as_ref().and_then(|s| s.completion_time.as_ref()).map(|t| t.0);
        if end == "Complete" && completed > last {
            last = completed;
        }
        if listed {
            active.retain(|r| r.uid.as_deref() != Some(uid(job)));
            let message = format!("Saw completed job: {}, condition: {end}", job.name_any());
            decision.events.push((false, "SawCompletedJob", message));
        }
    }
    decision.status.last_successful_time = last.map(Time);
    active.retain(|r| {
        let there = jobs.iter().any(|j| r.uid.as_deref() == Some(uid(j)));
        if !there {
            let message = format!("Active job went missing: {}", r.name.clone().unwrap_or_default());
            decision.events.push((false, "MissingJob", message));
        }
        there
    });
}

/// Gives up the oldest Jobs beyond the limits.
fn tidy(cron: &CronJob, jobs: &[Arc<Job>], decision: &mut Decision) {
    let spec = &cron.spec;
    for (end, limit) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let going = |j: &Job| j.metadata.deletion_timestamp.is_some();
        let mut over: Vec<_> = jobs.iter().filter(|j| ended(j) == Some(end) && !going(j)).collect();
        over.sort_by_key(|j| {
            let start = j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
            (Reverse(start), j.name_any())
        });
        let keep = usize::try_from(limit).unwrap_or(0);
        decision.delete.extend(over.into_iter().skip(keep).cloned());
    }
}

/// Decides whether a Job is due.
fn schedule(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp, decision: &mut Decision) {
    let spec = &cron.spec;
    let parsed = match Schedule::parse(&spec.schedule) {
        Ok(parsed) => parsed,
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            decision.events.push((true, "UnparseableSchedule", message));
            return;
        }
    };
    let Some(zone) = zone(cron) else {
        let name = spec.time_zone.clone().unwrap_or_default();
        let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
        decision.events.push((true, "UnknownTimeZone", message));
        return;
    };
    decision.again = parsed.next(now, &zone);
    let Some(time) = last_missed(cron, &parsed, &zone, now, decision) else { return };
    let deadline = spec.starting_deadline_seconds;
    if deadline.is_some_and(|s| time.saturating_add(SignedDuration::from_secs(s)).is_ok_and(|t| t < now)) {
        decision.events.push((true, "MissSchedule", format!("Missed scheduled time to start a job: {time}")));
        return;
    }
    let name = job_name(cron, time);
    let active = decision.status.active.get_or_insert_default();
    let begun = decision.status.last_schedule_time.as_ref().is_some_and(|t| t.0 == time);
    if begun || active.iter().any(|r| r.name.as_ref() == Some(&name)) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            decision.events.push((false, "JobAlreadyActive", message.into()));
            return;
        }
        Some("Replace") => {
            let replaced = jobs.iter().filter(|j| active.iter().any(|r| r.uid.as_deref() == Some(uid(j))));
            decision.delete.extend(replaced.cloned());
            active.clear();
        }
        _ => {}
    }
    decision.start = Some(time);
}

/// The last time that has come since a Job was last started, or since the deadline would still be kept.
fn last_missed(
    cron: &CronJob,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    decision: &mut Decision,
) -> Option<Timestamp> {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let mut since = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
    if let Some(seconds) = cron.spec.starting_deadline_seconds {
        since = since.max(now.saturating_sub(SignedDuration::from_secs(seconds)).ok()?);
    }
    let mut found = schedule.next(since, zone).filter(|t| *t <= now)?;
    let mut missed = 1;
    while let Some(next) = schedule.next(found, zone).filter(|t| *t <= now) {
        found = next;
        missed += 1;
        // After a long time only the last day is gone through one by one.
        if missed == MANY + 1 {
            let day = now.saturating_sub(SignedDuration::from_hours(24)).ok()?;
            if let Some(later) = schedule.next(day, zone).filter(|t| *t > found && *t <= now) {
                found = later;
            }
        }
    }
    if missed > MANY {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        decision.events.push((true, "TooManyMissedTimes", message.into()));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cron(fields: Value, status: Value) -> CronJob {
        let mut spec = json!({"schedule": "*/10 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}}}});
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "tick", "namespace": "d", "uid": "u",
            "creationTimestamp": "2026-01-01T10:01:00Z"}, "spec": spec, "status": status}))
        .unwrap()
    }

    fn job(name: &str, end: &str, at: &str) -> Arc<Job> {
        let conditions = if end.is_empty() { json!([]) } else { json!([{"type": end, "status": "True"}]) };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status":
                {"conditions": conditions, "startTime": at, "completionTime": at}}))
            .unwrap(),
        )
    }

    fn at(cron: &CronJob, jobs: &[Arc<Job>], now: &str) -> Decision {
        decide(cron, jobs, now.parse().unwrap())
    }

    fn time(text: &str) -> Option<Timestamp> {
        Some(text.parse().unwrap())
    }

    fn reasons(decision: &Decision) -> Vec<&str> {
        decision.events.iter().map(|e| e.1).collect()
    }

    #[test]
    fn a_job_is_due_at_its_time() {
        let tick = cron(json!({}), json!({}));
        let d = at(&tick, &[], "2026-01-01T10:09:00Z");
        assert_eq!((d.start, d.again), (None, time("2026-01-01T10:10:00Z")));
        let d = at(&tick, &[], "2026-01-01T10:10:00Z");
        assert_eq!((d.start, d.again), (time("2026-01-01T10:10:00Z"), time("2026-01-01T10:20:00Z")));
        // Of several that were missed the last one counts.
        assert_eq!(at(&tick, &[], "2026-01-01T10:35:00Z").start, time("2026-01-01T10:30:00Z"));
        let done = cron(json!({}), json!({"lastScheduleTime": "2026-01-01T10:30:00Z"}));
        assert_eq!(at(&done, &[], "2026-01-01T10:35:00Z").start, None);
        assert_eq!(at(&cron(json!({"suspend": true}), json!({})), &[], "2026-01-01T10:35:00Z").start, None);
        assert_eq!(reasons(&at(&tick, &[], "2026-01-05T10:30:00Z")), ["TooManyMissedTimes"]);
        assert_eq!(at(&tick, &[], "2026-01-05T10:35:00Z").start, time("2026-01-05T10:30:00Z"));
    }

    #[test]
    fn names_have_the_time() {
        let tick = cron(json!({"timeZone": "Asia/Tokyo"}), json!({}));
        let made = self::super::job(&tick, "2026-01-01T10:10:00Z".parse().unwrap());
        assert_eq!(made.name_any(), "tick-29454370");
        assert_eq!(made.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2026-01-01T19:10:00+09:00");
        assert_eq!(made.labels()["a"], "b");
    }

    #[test]
    fn policies_for_what_still_runs() {
        let active = json!({"active": [{"name": "tick-1", "uid": "tick-1"}]});
        let running = [job("tick-1", "", "2026-01-01T10:00:00Z")];
        let with = |policy: &str| {
            at(&cron(json!({"concurrencyPolicy": policy}), active.clone()), &running, "2026-01-01T10:10:00Z")
        };
        assert!(with("Allow").start.is_some());
        let d = with("Forbid");
        assert_eq!((d.start, reasons(&d)), (None, vec!["JobAlreadyActive"]));
        let d = with("Replace");
        assert_eq!((d.start.is_some(), d.delete.len(), d.status.active), (true, 1, None));
    }

    #[test]
    fn a_deadline_is_kept_or_missed() {
        let tick = cron(json!({"startingDeadlineSeconds": 60}), json!({}));
        assert!(at(&tick, &[], "2026-01-01T10:10:59Z").start.is_some());
        assert_eq!(at(&tick, &[], "2026-01-01T10:12:00Z").start, None);
    }

    #[test]
    fn ended_jobs_leave_the_list_and_old_ones_go() {
        let status = json!({"active": [{"name": "b", "uid": "b"}, {"name": "gone", "uid": "gone"}],
            "lastScheduleTime": "2026-01-01T10:00:00Z"});
        let tick = cron(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}), status);
        let jobs = [
            job("a", "Complete", "2026-01-01T09:00:00Z"),
            job("b", "Complete", "2026-01-01T09:30:00Z"),
            job("c", "Failed", "2026-01-01T09:40:00Z"),
        ];
        let d = at(&tick, &jobs, "2026-01-01T10:01:00Z");
        assert_eq!(d.delete.iter().map(|j| j.name_any()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!((d.status.active.clone(), reasons(&d)), (None, vec!["SawCompletedJob", "MissingJob"]));
        assert_eq!(d.status.last_successful_time.unwrap().0, "2026-01-01T09:30:00Z".parse().unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let d = at(&cron(json!({"schedule": "often"}), json!({})), &[], "2026-01-01T10:10:00Z");
        assert_eq!(reasons(&d), ["UnparseableSchedule"]);
        let d = at(&cron(json!({"timeZone": "No/Where"}), json!({})), &[], "2026-01-01T10:10:00Z");
        assert_eq!(reasons(&d), ["UnknownTimeZone"]);
    }
}
