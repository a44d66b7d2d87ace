//! `kubectl rollout status`.

use serde_json::Value;

use super::{SHARED, workloads};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{self, tell},
    targets::Item,
    watching::{self, Change},
};

pub(super) const COMMAND: Command = Command {
    name: "status",
    about: "Show the status of the rollout",
    usage: "(TYPE NAME | TYPE/NAME) [flags]",
    flags: &[FLAGS, SHARED[0], SHARED[1]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::int("revision", "Pin to a specific revision for showing its status.").or("0"),
    Flag::duration("timeout", "The length of time to wait before ending watch, zero means never.").or("0s"),
    Flag::bool("watch", "Watch the status of the rollout until it's done.").short('w').or("true"),
];

async fn run(cli: &Cli) -> Result<()> {
    let items = workloads(cli).await?;
    if items.is_empty() {
        tell!("No resources found in {} namespace.", cli.namespace()?);
    }
    for item in &items {
        follow(cli, item).await?;
    }
    Ok(())
}

async fn follow(cli: &Cli, item: &Item) -> Result<()> {
    let flags = &cli.flags;
    let revision = flags.int("revision")?;
    let kind = item.resource.kind.as_str();
    if item.resource.group != "apps" || !matches!(kind, "Deployment" | "DaemonSet" | "StatefulSet") {
        let kind = item.resource.full_kind_name();
        return Err(Error::text(format!("no status viewer has been implemented for {kind}")));
    }
    let rest = cli.rest()?;
    let waiting = watching::until(&rest, &item.resource, Some(item.namespace()), item.name(), |change| match change {
        Change::Is(object) => {
            let (text, done) = match kind {
                "Deployment" => deployment(object, revision)?,
                "DaemonSet" => daemon_set(object)?,
                _ => stateful_set(object)?,
            };
            out::text(&format!("{text}\n"));
            Ok(done || !flags.is("watch"))
        }
        Change::Missing | Change::Gone => Err(Error::text("object has been deleted")),
    });
    let late = || Error::text("timed out waiting for the condition");
    watching::within(flags.duration("timeout")?.positive(), waiting, late).await
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn observed(object: &Value) -> bool {
    int(&object["metadata"]["generation"]) <= int(&object["status"]["observedGeneration"])
}

fn deployment(object: &Value, revision: i64) -> Result<(String, bool)> {
    let (name, status) = (object["metadata"]["name"].as_str().unwrap_or_default(), &object["status"]);
    let running = crate::rollout::revision(object);
    if revision > 0 && revision != running {
        return Err(Error::text(format!(
            "desired revision ({revision}) is different from the running revision ({running})"
        )));
    }
    if !observed(object) {
        return Ok(("Waiting for deployment spec update to be observed...".into(), false));
    }
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let progressing = conditions.find(|condition| condition["type"] == "Progressing");
    if progressing.is_some_and(|condition| condition["reason"] == "ProgressDeadlineExceeded") {
        return Err(Error::text(format!("deployment {name:?} exceeded its progress deadline")));
    }
    let wanted = int(&object["spec"]["replicas"]);
    let (updated, all) = (int(&status["updatedReplicas"]), int(&status["replicas"]));
    let available = int(&status["availableReplicas"]);
    let waiting = format!("Waiting for deployment {name:?} rollout to finish:");
    Ok(if updated < wanted {
        (format!("{waiting} {updated} out of {wanted} new replicas have been updated..."), false)
    } else if all > updated {
        (format!("{waiting} {} old replicas are pending termination...", all - updated), false)
    } else if available < updated {
        (format!("{waiting} {available} of {updated} updated replicas are available..."), false)
    } else {
        (format!("deployment {name:?} successfully rolled out"), true)
    })
}

fn only_rolling(object: &Value) -> Result<()> {
    match object["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        true => Ok(()),
        false => Err(Error::text("rollout status is only available for RollingUpdate strategy type")),
    }
}

fn daemon_set(object: &Value) -> Result<(String, bool)> {
    only_rolling(object)?;
    let (name, status) = (object["metadata"]["name"].as_str().unwrap_or_default(), &object["status"]);
    if !observed(object) {
        return Ok(("Waiting for daemon set spec update to be observed...".into(), false));
    }
    let wanted = int(&status["desiredNumberScheduled"]);
    let (updated, available) = (int(&status["updatedNumberScheduled"]), int(&status["numberAvailable"]));
    let waiting = format!("Waiting for daemon set {name:?} rollout to finish:");
    Ok(if updated < wanted {
        (format!("{waiting} {updated} out of {wanted} new pods have been updated..."), false)
    } else if available < wanted {
        (format!("{waiting} {available} of {wanted} updated pods are available..."), false)
    } else {
        (format!("daemon set {name:?} successfully rolled out"), true)
    })
}

fn stateful_set(object: &Value) -> Result<(String, bool)> {
    only_rolling(object)?;
    let (spec, status) = (&object["spec"], &object["status"]);
    if int(&status["observedGeneration"]) == 0 || !observed(object) {
        return Ok(("Waiting for statefulset spec update to be observed...".into(), false));
    }
    let (wanted, ready) = (int(&spec["replicas"]), int(&status["readyReplicas"]));
    if ready < wanted {
        return Ok((format!("Waiting for {} pods to be ready...", wanted - ready), false));
    }
    let updated = int(&status["updatedReplicas"]);
    let rolling = &spec["updateStrategy"]["rollingUpdate"];
    if rolling.is_object() {
        let goal = wanted - int(&rolling["partition"]);
        if !rolling["partition"].is_null() && updated < goal {
            let text = format!(
                "Waiting for partitioned roll out to finish: {updated} out of {goal} new pods have been updated..."
            );
            return Ok((text, false));
        }
        return Ok((format!("partitioned roll out complete: {updated} new pods have been updated..."), true));
    }
    let revision = |field: &str| status[field].as_str().unwrap_or_default();
    let (current, update) = (revision("currentRevision"), revision("updateRevision"));
    Ok(match current == update {
        false => (
            format!("waiting for statefulset rolling update to complete {updated} pods at revision {update}..."),
            false,
        ),
        true => {
            let pods = int(&status["currentReplicas"]);
            (format!("statefulset rolling update complete {pods} pods at revision {current}..."), true)
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployments_way_to_its_end() {
        let text = |status: Value| {
            let mut object = json!({"metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3}});
            object["status"] = status;
            deployment(&object, 0).unwrap()
        };
        assert_eq!(text(json!({})).0, "Waiting for deployment spec update to be observed...");
        let half = text(json!({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 4}));
        assert!(half.0.ends_with("1 out of 3 new replicas have been updated..."), "{half:?}");
        let done = json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3});
        assert_eq!(text(done), ("deployment \"web\" successfully rolled out".into(), true));
    }
}
