//! `kubectl rollout pause`, `resume` and `restart`.

use serde_json::{Value, json};

use super::{MANAGER, SHARED, workloads};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    print::Printer,
    rest::query,
    targets::Item,
};

const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

pub(super) const PAUSE: Command = Command {
    name: "pause",
    about: "Mark the provided resource as paused",
    usage: "RESOURCE",
    flags: &[MANAGER, crate::print::FLAGS, SHARED[0], SHARED[1]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli, "paused", pause))),
};
pub(super) const RESUME: Command = Command {
    name: "resume",
    about: "Resume a paused resource",
    usage: "RESOURCE",
    flags: &[MANAGER, crate::print::FLAGS, SHARED[0], SHARED[1]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli, "resumed", resume))),
};
pub(super) const RESTART: Command = Command {
    name: "restart",
    about: "Restart a resource",
    usage: "RESOURCE",
    flags: &[MANAGER, crate::print::FLAGS, SHARED[0], SHARED[1]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli, "restarted", restart))),
};

async fn run(cli: &Cli, done: &str, change: fn(&Item) -> Result<Value, &'static str>) -> Result<()> {
    let printer = Printer::of(&cli.flags, false)?;
    let mut errors = Vec::new();
    for item in workloads(cli).await? {
        let patch = match change(&item) {
            Ok(patch) => patch,
            Err(why) => {
                errors.push(Error::text(format!("{} {:?} {why}", item.resource.full_plural(), item.name())));
                continue;
            }
        };
        let path = format!("{}{}", item.path(), query(&[("fieldManager", cli.flags.text("field-manager"))]));
        match cli.rest()?.patch(&path, "strategic-merge", &patch).await {
            Ok(object) => printer.done(&object, done)?,
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) => errors.push(Error::text(format!("failed to patch: {error}"))),
        }
    }
    Error::all(errors)
}

fn is_paused(item: &Item) -> bool {
    item.object["spec"]["paused"] == true
}

fn pause(item: &Item) -> Result<Value, &'static str> {
    match item.resource.kind.as_str() {
        "Deployment" if is_paused(item) => Err("is already paused"),
        "Deployment" => Ok(json!({"spec": {"paused": true}})),
        _ => Err("pausing is not supported"),
    }
}

fn resume(item: &Item) -> Result<Value, &'static str> {
    match item.resource.kind.as_str() {
        "Deployment" if !is_paused(item) => Err("is not paused"),
        "Deployment" => Ok(json!({"spec": {"paused": null}})),
        _ => Err("resuming is not supported"),
    }
}

fn restart(item: &Item) -> Result<Value, &'static str> {
    match item.resource.kind.as_str() {
        "Deployment" if is_paused(item) => Err("can't restart paused deployment (run rollout resume first)"),
        "Deployment" | "DaemonSet" | "StatefulSet" => {
            let now = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
            let now = now.strip_suffix("+00:00").map(|time| format!("{time}Z")).unwrap_or(now);
            let annotations = json!({RESTARTED_AT: now});
            Ok(json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}))
        }
        _ => Err("restarting is not supported"),
    }
}
