//! `kubectl rollout undo`.

use serde_json::{Map, Value, json};

use super::{MANAGER, SHARED, replica_sets, revisions, workloads};
use crate::{
    cli::{self, Cli, Command, DryRun},
    describe,
    error::{Error, Result},
    flags::Flag,
    out::tell,
    patch::LAST_APPLIED,
    print::Printer,
    rest::query,
    rollout,
    targets::Item,
};

pub(super) const COMMAND: Command = Command {
    name: "undo",
    about: "Undo a previous rollout",
    usage: "(TYPE NAME | TYPE/NAME) [flags]",
    flags: &[FLAGS, MANAGER, crate::print::FLAGS, SHARED[0], SHARED[1], cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] =
    &[Flag::int("to-revision", "The revision to rollback to. Default to 0 (last revision).").or("0")];

/// Annotations of a Deployment that are its own, whatever it is rolled back to.
const OWN: [&str; 6] = [
    LAST_APPLIED,
    "deployment.kubernetes.io/revision",
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];

async fn run(cli: &Cli) -> Result<()> {
    let revision = cli.flags.int("to-revision")?;
    if revision < 0 {
        return Err(Error::text(format!("revision must be a positive integer: {revision}")));
    }
    let printer = Printer::of(&cli.flags, false)?;
    let dry_run = cli.dry_run()?;
    for item in workloads(cli).await? {
        if !item.object["metadata"]["annotations"][LAST_APPLIED].is_null() {
            tell!(
                "Warning: resource {}/{} was previously managed with 'kubectl apply'. Rolling back will not update the {LAST_APPLIED} annotation, which may cause unexpected behavior on future 'kubectl apply' operations. Consider using 'kubectl apply' with your previous configuration file instead.",
                item.resource.plural,
                item.name()
            );
        }
        let done = match item.resource.kind.as_str() {
            "Deployment" => deployment(cli, &item, revision, dry_run).await?,
            "StatefulSet" | "DaemonSet" => controlled(cli, &item, revision, dry_run).await?,
            _ => {
                let why = super::no_visitor(&item.resource);
                return Err(Error::text(format!("error retrieving rollbacker for {why}")));
            }
        };
        printer.done(&item.object, &format!("{done}{}", dry_run.suffix()))?;
    }
    Ok(())
}

fn not_found(revision: i64) -> Error {
    Error::text(format!("unable to find specified revision {revision} in history"))
}

async fn deployment(cli: &Cli, item: &Item, revision: i64, dry_run: DryRun) -> Result<String> {
    let object = &item.object;
    let sets = replica_sets(cli, item).await?;
    let mut numbers: Vec<(i64, &Value)> = sets.iter().map(|set| (rollout::revision(set), set)).collect();
    numbers.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let set = match revision {
        0 => numbers
            .get(1)
            .map(|(_, set)| *set)
            .ok_or_else(|| Error::text(format!("no rollout history found for deployment {:?}", item.name())))?,
        _ => numbers
            .iter()
            .find(|(number, _)| *number == revision)
            .map(|(_, set)| *set)
            .ok_or_else(|| not_found(revision))?,
    };
    let template = rollout::without_hash(&set["spec"]["template"]);
    if dry_run == DryRun::Client {
        return Ok(describe::pod_template(&set["spec"]["template"]));
    }
    if object["spec"]["paused"] == true {
        return Err(Error::text(
            "you cannot rollback a paused deployment; resume it first with 'kubectl rollout resume' and try again",
        ));
    }
    if template == object["spec"]["template"] {
        return Ok(format!("skipped rollback (current template already matches revision {revision})"));
    }
    let mut annotations = Map::new();
    let of = |object: &Value| object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.extend(of(object).into_iter().filter(|(key, _)| OWN.contains(&key.as_str())));
    annotations.extend(of(set).into_iter().filter(|(key, _)| !OWN.contains(&key.as_str())));
    let patch = json!([
        {"op": "replace", "path": "/spec/template", "value": template},
        {"op": "replace", "path": "/metadata/annotations", "value": annotations},
    ]);
    send(cli, item, "json", &patch, revision, dry_run).await
}

async fn controlled(cli: &Cli, item: &Item, revision: i64, dry_run: DryRun) -> Result<String> {
    let history = revisions(cli, item).await?;
    if revision == 0 && history.len() <= 1 {
        return Err(Error::text("no last revision to roll back to"));
    }
    let chosen = match revision {
        0 => history.get(history.len().wrapping_sub(2)),
        _ => history.iter().find(|known| known["revision"] == revision),
    };
    let chosen = chosen.ok_or_else(|| not_found(revision))?;
    let mut object = item.object.clone();
    let type_name = item.resource.type_name().unwrap_or_default();
    skiff_api::patch::strategic(&mut object, &chosen["data"], &type_name)
        .map_err(|error| Error::text(error.to_string()))?;
    if dry_run == DryRun::Client {
        return Ok(format!("will roll back to {}", describe::pod_template(&object["spec"]["template"])));
    }
    if object["spec"]["template"] == item.object["spec"]["template"] {
        return Ok(format!("skipped rollback (current template already matches revision {revision})"));
    }
    send(cli, item, "strategic-merge", &chosen["data"], revision, dry_run).await
}

async fn send(cli: &Cli, item: &Item, kind: &str, patch: &Value, revision: i64, dry_run: DryRun) -> Result<String> {
    let parameters = query(&[("dryRun", dry_run.parameter()), ("fieldManager", cli.flags.text("field-manager"))]);
    let sent = cli.rest()?.patch(&format!("{}{parameters}", item.path()), kind, patch).await;
    sent.map_err(|error| match error {
        error @ Error::Status(_) => Error::text(format!("failed restoring revision {revision}: {error}")),
        other => other,
    })?;
    Ok("rolled back".to_owned())
}
