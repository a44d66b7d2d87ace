//! `kubectl rollout`.

mod changes;
mod history;
mod status;
mod undo;

use serde_json::Value;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "rollout",
    about: "Manage the rollout of a resource",
    usage: "SUBCOMMAND",
    flags: &[],
    subcommands: &[history::COMMAND, changes::PAUSE, changes::RESTART, changes::RESUME, status::COMMAND, undo::COMMAND],
    run: None,
};

/// What all of them take.
const MANAGER: &[Flag] =
    &[Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-rollout")];
const SHARED: [&[Flag]; 2] = [cli::FILES, cli::SELECTOR];

/// The workloads that a line names.
async fn workloads(cli: &Cli) -> Result<Vec<Item>> {
    if cli.args().is_empty() && cli.file_names()?.is_empty() {
        return Err(Error::text("required resource not specified"));
    }
    let targets = cli.targets(cli.args(), true).await?;
    let (items, errors) = cli.items(&targets).await?;
    Error::all(errors)?;
    Ok(items)
}

/// What a StatefulSet or DaemonSet was before, the oldest first.
async fn revisions(cli: &Cli, item: &Item) -> Result<Vec<Value>> {
    let path = format!("/apis/apps/v1/namespaces/{}/controllerrevisions", item.namespace());
    let list = cli.rest()?.get(&path).await?;
    let uid = &item.object["metadata"]["uid"];
    let owned = |revision: &&Value| {
        let mut owners = revision["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.any(|owner| owner["controller"] == true && owner["uid"] == *uid)
    };
    let mut own: Vec<Value> = list["items"].as_array().into_iter().flatten().filter(owned).cloned().collect();
    own.sort_by_key(|revision| revision["revision"].as_i64());
    Ok(own)
}

/// The ReplicaSets of a Deployment.
async fn replica_sets(cli: &Cli, item: &Item) -> Result<Vec<Value>> {
    let path = format!("/apis/apps/v1/namespaces/{}/replicasets", item.namespace());
    let list = cli.rest()?.get(&path).await?;
    let sets = list["items"].as_array().cloned().unwrap_or_default();
    Ok(crate::rollout::owned(&sets, &item.object).into_iter().cloned().collect())
}

/// Says that a kind has no revisions.
fn no_visitor(resource: &crate::discovery::Resource) -> String {
    let name = resource.full_kind_name();
    format!("{name:?}, no visitor method exists for {{{} {}}}", resource.group, resource.kind)
}
