//! `kubectl rollout history`.

use serde_json::Value;

use super::{SHARED, replica_sets, revisions, workloads};
use crate::{
    cli::{Cli, Command},
    describe,
    error::{Error, Result},
    flags::Flag,
    out::say,
    print::{self, Printer, tabs::Tabs},
    targets::Item,
};

pub(super) const COMMAND: Command = Command {
    name: "history",
    about: "View rollout history",
    usage: "(TYPE NAME | TYPE/NAME) [flags]",
    flags: &[FLAGS, crate::print::FLAGS, SHARED[0], SHARED[1]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] =
    &[Flag::int("revision", "See the details, including podTemplate of the revision specified").or("0")];

const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

async fn run(cli: &Cli) -> Result<()> {
    let revision = cli.flags.int("revision")?;
    if revision < 0 {
        return Err(Error::text(format!("revision must be a positive integer: {revision}")));
    }
    let printer = Printer::of(&cli.flags, false)?;
    for item in workloads(cli).await? {
        let history = history(cli, &item).await?;
        let missing = || Error::text("unable to find the specified revision");
        let chosen = || history.iter().find(|(number, _)| *number == revision).ok_or_else(missing);
        if !printer.is_human() {
            match revision {
                0 => history.iter().try_for_each(|(_, object)| printer.print(object))?,
                _ => printer.print(&chosen()?.1)?,
            }
            continue;
        }
        let name = print::name(&item.object);
        if revision > 0 {
            let template = template(&item, &chosen()?.1)?;
            say!("{name} with revision #{revision}\n{}", describe::pod_template(&template));
            continue;
        }
        let mut table = "REVISION\tCHANGE-CAUSE\n".to_owned();
        for (number, object) in &history {
            let cause = object["metadata"]["annotations"][CHANGE_CAUSE].as_str().filter(|cause| !cause.is_empty());
            table.push_str(&format!("{number}\t{}\n", cause.unwrap_or("<none>")));
        }
        say!("{name} \n{}", Tabs::of_descriptions().align(&table));
    }
    Ok(())
}

/// Revisions by number, with what has them.
async fn history(cli: &Cli, item: &Item) -> Result<Vec<(i64, Value)>> {
    let mut all: Vec<(i64, Value)> = match item.resource.kind.as_str() {
        "Deployment" => {
            let sets = replica_sets(cli, item).await?;
            sets.into_iter().map(|set| (crate::rollout::revision(&set), set)).filter(|(n, _)| *n > 0).collect()
        }
        "StatefulSet" | "DaemonSet" => {
            let found = revisions(cli, item).await?;
            found.into_iter().map(|revision| (revision["revision"].as_i64().unwrap_or(0), revision)).collect()
        }
        _ => {
            let why = super::no_visitor(&item.resource);
            return Err(Error::text(format!("error retrieving history for {why}")));
        }
    };
    all.sort_by_key(|(number, _)| *number);
    Ok(all)
}

/// The template of a revision.
fn template(item: &Item, revision: &Value) -> Result<Value> {
    if item.resource.kind == "Deployment" {
        return Ok(revision["spec"]["template"].clone());
    }
    let mut object = item.object.clone();
    let type_name = item.resource.type_name().unwrap_or_default();
    skiff_api::patch::strategic(&mut object, &revision["data"], &type_name)
        .map_err(|error| Error::text(error.to_string()))?;
    Ok(object["spec"]["template"].clone())
}
