//! What makes pods: Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, CronJobs.

use serde_json::Value;

use super::{
    Describer, array, containers, controller, date, go_list, int, labels, or_none, selector, show, str,
    text::{Text, line},
};
use crate::{error::Result, rollout, time};

fn head(w: &mut Text, object: &Value) {
    line!(w, 0, "Name:\t{}", str(&object["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&object["metadata"]["namespace"]));
}

fn labels_and_annotations(w: &mut Text, object: &Value) {
    w.labels("Labels", &object["metadata"]["labels"]);
    w.annotations("Annotations", &object["metadata"]["annotations"]);
}

fn controlled_by(w: &mut Text, object: &Value) {
    if let Some(owner) = controller(object) {
        line!(w, 0, "Controlled By:\t{}/{}", str(&owner["kind"]), str(&owner["name"]));
    }
}

fn conditions(w: &mut Text, object: &Value) {
    let conditions = array(&object["status"]["conditions"]);
    if conditions.is_empty() {
        return;
    }
    line!(w, 0, "Conditions:");
    line!(w, 0, "  Type\tStatus\tReason");
    line!(w, 1, "----\t------\t------");
    for condition in conditions {
        line!(w, 1, "{} \t{}\t{}", str(&condition["type"]), str(&condition["status"]), str(&condition["reason"]));
    }
}

pub(super) async fn deployment(describer: &Describer<'_>, w: &mut Text, object: &Value) -> Result<()> {
    let (spec, status) = (&object["spec"], &object["status"]);
    head(w, object);
    line!(w, 0, "CreationTimestamp:\t{}", date(&object["metadata"]["creationTimestamp"]));
    labels_and_annotations(w, object);
    line!(w, 0, "Selector:\t{}", selector(&spec["selector"]));
    line!(
        w,
        0,
        "Replicas:\t{} desired | {} updated | {} total | {} available | {} unavailable",
        int(&spec["replicas"]),
        int(&status["updatedReplicas"]),
        int(&status["replicas"]),
        int(&status["availableReplicas"]),
        int(&status["unavailableReplicas"]),
    );
    line!(w, 0, "StrategyType:\t{}", str(&spec["strategy"]["type"]));
    line!(w, 0, "MinReadySeconds:\t{}", int(&spec["minReadySeconds"]));
    let update = &spec["strategy"]["rollingUpdate"];
    if update.is_object() {
        let (unavailable, surge) = (show(&update["maxUnavailable"]), show(&update["maxSurge"]));
        line!(w, 0, "RollingUpdateStrategy:\t{unavailable} max unavailable, {surge} max surge");
    }
    containers::template(w, &spec["template"]);
    conditions(w, object);
    let namespace = object["metadata"]["namespace"].as_str();
    let sets = describer.list("replicasets.apps", namespace, &selector(&spec["selector"]), "").await?;
    let sets = rollout::owned(&sets, object);
    let new = rollout::current_set(&sets, &spec["template"]);
    let old: Vec<&Value> = sets
        .iter()
        .copied()
        .filter(|set| new.is_none_or(|new| new["metadata"]["uid"] != set["metadata"]["uid"]))
        .collect();
    if !sets.is_empty() {
        line!(w, 0, "OldReplicaSets:\t{}", replica_sets(&old));
        line!(w, 0, "NewReplicaSet:\t{}", replica_sets(&new.into_iter().collect::<Vec<_>>()));
    }
    Ok(())
}

fn replica_sets(sets: &[&Value]) -> String {
    let texts: Vec<String> = sets
        .iter()
        .map(|set| {
            let (have, want) = (int(&set["status"]["replicas"]), int(&set["spec"]["replicas"]));
            format!("{} ({have}/{want} replicas created)", str(&set["metadata"]["name"]))
        })
        .collect();
    or_none(&texts.join(", ")).to_owned()
}

/// What those that only keep a number of pods have behind their heads.
async fn replicas(describer: &Describer<'_>, w: &mut Text, object: &Value, chosen: &str) -> Result<()> {
    let (have, want) = (int(&object["status"]["replicas"]), int(&object["spec"]["replicas"]));
    line!(w, 0, "Replicas:\t{have} current / {want} desired");
    line!(w, 0, "Pods Status:\t{}", describer.pod_statuses(object, chosen).await?);
    containers::template(w, &object["spec"]["template"]);
    conditions(w, object);
    Ok(())
}

pub(super) async fn replica_set(describer: &Describer<'_>, w: &mut Text, object: &Value) -> Result<()> {
    let chosen = selector(&object["spec"]["selector"]);
    head(w, object);
    line!(w, 0, "Selector:\t{}", or_none(&chosen));
    labels_and_annotations(w, object);
    controlled_by(w, object);
    replicas(describer, w, object, &chosen).await
}

pub(super) async fn replication_controller(describer: &Describer<'_>, w: &mut Text, object: &Value) -> Result<()> {
    let chosen = labels(&object["spec"]["selector"]);
    head(w, object);
    line!(w, 0, "Selector:\t{chosen}");
    labels_and_annotations(w, object);
    replicas(describer, w, object, &chosen).await
}

pub(super) async fn stateful_set(describer: &Describer<'_>, w: &mut Text, object: &Value) -> Result<()> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let chosen = selector(&spec["selector"]);
    head(w, object);
    line!(w, 0, "CreationTimestamp:\t{}", date(&object["metadata"]["creationTimestamp"]));
    line!(w, 0, "Selector:\t{chosen}");
    labels_and_annotations(w, object);
    line!(w, 0, "Replicas:\t{} desired | {} total", int(&spec["replicas"]), int(&status["replicas"]));
    line!(w, 0, "Update Strategy:\t{}", str(&spec["updateStrategy"]["type"]));
    let update = &spec["updateStrategy"]["rollingUpdate"];
    if let Some(partition) = update["partition"].as_i64() {
        line!(w, 1, "Partition:\t{partition}");
        if !update["maxUnavailable"].is_null() {
            line!(w, 1, "MaxUnavailable:\t{}", show(&update["maxUnavailable"]));
        }
    }
    line!(w, 0, "Pods Status:\t{}", describer.pod_statuses(object, &chosen).await?);
    containers::template(w, &spec["template"]);
    let templates = array(&spec["volumeClaimTemplates"]);
    if templates.is_empty() {
        line!(w, 0, "Volume Claims:\t<none>");
        return Ok(());
    }
    line!(w, 0, "Volume Claims:");
    for claim in templates {
        line!(w, 1, "Name:\t{}", str(&claim["metadata"]["name"]));
        line!(w, 1, "StorageClass:\t{}", str(&claim["spec"]["storageClassName"]));
        w.labels_at("  ", "Labels", &claim["metadata"]["labels"]);
        w.labels_at("  ", "Annotations", &claim["metadata"]["annotations"]);
        let capacity = show(&claim["spec"]["resources"]["requests"]["storage"]);
        line!(w, 1, "Capacity:\t{}", if capacity.is_empty() { "<default>" } else { &capacity });
        line!(w, 1, "Access Modes:\t{}", go_list(&claim["spec"]["accessModes"]));
    }
    Ok(())
}

pub(super) async fn daemon_set(describer: &Describer<'_>, w: &mut Text, object: &Value) -> Result<()> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let chosen = selector(&spec["selector"]);
    head(w, object);
    line!(w, 0, "Selector:\t{chosen}");
    line!(w, 0, "Node-Selector:\t{}", labels(&spec["template"]["spec"]["nodeSelector"]));
    labels_and_annotations(w, object);
    for (title, field) in [
        ("Desired Number of Nodes Scheduled", "desiredNumberScheduled"),
        ("Current Number of Nodes Scheduled", "currentNumberScheduled"),
        ("Number of Nodes Scheduled with Up-to-date Pods", "updatedNumberScheduled"),
        ("Number of Nodes Scheduled with Available Pods", "numberAvailable"),
        ("Number of Nodes Misscheduled", "numberMisscheduled"),
    ] {
        line!(w, 0, "{title}: {}", int(&status[field]));
    }
    line!(w, 0, "Pods Status:\t{}", describer.pod_statuses(object, &chosen).await?);
    containers::template(w, &spec["template"]);
    Ok(())
}

pub(super) fn job(w: &mut Text, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    head(w, object);
    line!(w, 0, "Selector:\t{}", selector(&spec["selector"]));
    labels_and_annotations(w, object);
    controlled_by(w, object);
    if let Some(parallelism) = spec["parallelism"].as_i64() {
        line!(w, 0, "Parallelism:\t{parallelism}");
    }
    match spec["completions"].as_i64() {
        Some(completions) => line!(w, 0, "Completions:\t{completions}"),
        None => line!(w, 0, "Completions:\t<unset>"),
    }
    for (title, field) in [
        ("Completion Mode", "completionMode"),
        ("Suspend", "suspend"),
        ("Backoff Limit", "backoffLimit"),
        ("TTL Seconds After Finished", "ttlSecondsAfterFinished"),
    ] {
        if !spec[field].is_null() {
            line!(w, 0, "{title}:\t{}", show(&spec[field]));
        }
    }
    let (start, end) = (&status["startTime"], &status["completionTime"]);
    if start.is_string() {
        line!(w, 0, "Start Time:\t{}", date(start));
    }
    if end.is_string() {
        line!(w, 0, "Completed At:\t{}", date(end));
    }
    let seconds = |value: &Value| str(value).parse::<jiff::Timestamp>().map(jiff::Timestamp::as_second);
    if let (Ok(start), Ok(end)) = (seconds(start), seconds(end)) {
        line!(w, 0, "Duration:\t{}", time::short(end - start));
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64() {
        line!(w, 0, "Active Deadline Seconds:\t{seconds}s");
    }
    let ready = status["ready"].as_i64().map(|ready| format!(" ({ready} Ready)")).unwrap_or_default();
    let count = |field: &str| int(&status[field]);
    let (active, succeeded, failed) = (count("active"), count("succeeded"), count("failed"));
    line!(w, 0, "Pods Statuses:\t{active} Active{ready} / {succeeded} Succeeded / {failed} Failed");
    if spec["completionMode"] == "Indexed" {
        line!(w, 0, "Completed Indexes:\t{}", or_none(str(&status["completedIndexes"])));
    }
    containers::template(w, &spec["template"]);
}

pub(super) fn cron_job(w: &mut Text, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    let unset = |value: &Value| if value.is_null() { "<unset>".to_owned() } else { show(value) };
    head(w, object);
    labels_and_annotations(w, object);
    line!(w, 0, "Schedule:\t{}", str(&spec["schedule"]));
    line!(w, 0, "Concurrency Policy:\t{}", str(&spec["concurrencyPolicy"]));
    line!(w, 0, "Suspend:\t{}", if spec["suspend"].is_null() { "<unset>" } else { super::truth(&spec["suspend"]) });
    line!(w, 0, "Time Zone:\t{}", unset(&spec["timeZone"]));
    line!(w, 0, "Successful Job History Limit:\t{}", unset(&spec["successfulJobsHistoryLimit"]));
    line!(w, 0, "Failed Job History Limit:\t{}", unset(&spec["failedJobsHistoryLimit"]));
    match spec["startingDeadlineSeconds"].as_i64() {
        Some(seconds) => line!(w, 0, "Starting Deadline Seconds:\t{seconds}s"),
        None => line!(w, 0, "Starting Deadline Seconds:\t<unset>"),
    }
    let job = &spec["jobTemplate"]["spec"];
    match job["selector"].is_null() {
        true => line!(w, 0, "Selector:\t<unset>"),
        false => line!(w, 0, "Selector:\t{}", selector(&job["selector"])),
    }
    line!(w, 0, "Parallelism:\t{}", unset(&job["parallelism"]));
    line!(w, 0, "Completions:\t{}", unset(&job["completions"]));
    if let Some(seconds) = job["activeDeadlineSeconds"].as_i64() {
        line!(w, 0, "Active Deadline Seconds:\t{seconds}s");
    }
    containers::template(w, &job["template"]);
    match status["lastScheduleTime"].is_string() {
        true => line!(w, 0, "Last Schedule Time:\t{}", date(&status["lastScheduleTime"])),
        false => line!(w, 0, "Last Schedule Time:\t<unset>"),
    }
    let active: Vec<_> = array(&status["active"]).iter().map(|job| str(&job["name"])).collect();
    line!(w, 0, "Active Jobs:\t{}", or_none(&active.join(", ")));
}
