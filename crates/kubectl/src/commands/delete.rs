//! `kubectl delete`.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::{Flag, Takes},
    out::{say, tell},
    rest::{Rest, query},
    targets::Target,
};

pub(crate) const COMMAND: Command = Command {
    name: "delete",
    about: "Delete resources by file names, stdin, resources and names, or by resources and label selector",
    usage: "([-f FILENAME] | TYPE [(NAME | -l label | --all)])",
    flags: &[FLAGS, OPTIONS, cli::FILES, cli::SELECTOR, cli::ALL, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    Flag::text("field-selector", "Selector (field query) to filter on, supports '=', '==', and '!='."),
    Flag::bool("ignore-not-found", "Treat \"resource not found\" as a successful delete."),
    Flag::bool("now", "If true, resources are signaled for immediate shutdown (same as --grace-period=1)."),
    Flag::text("output", "Output mode. Use \"-o name\" for shorter output (resource/name).").short('o'),
];

/// How objects are deleted; shared with the commands that delete on the way.
pub(crate) const OPTIONS: &[Flag] = &[
    Flag::new("cascade", Takes::Optional("background"), "Must be \"background\", \"orphan\", or \"foreground\".")
        .or("background"),
    Flag::bool("force", "If true, immediately remove resources from API and bypass graceful deletion."),
    Flag::int("grace-period", "Period of time in seconds given to the resource to terminate gracefully.").or("-1"),
    Flag::duration("timeout", "The length of time to wait before giving up on a delete, zero means determine a timeout from the size of the object.")
        .or("0s"),
    Flag::bool("wait", "If true, wait for resources to be gone before returning.").or("true"),
];

/// What an object is deleted with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) propagation: &'static str,
    /// In seconds; negative for the object's own.
    pub(crate) grace_period: i64,
}

impl Options {
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": self.propagation});
        if self.grace_period >= 0 {
            body["gracePeriodSeconds"] = self.grace_period.into();
        }
        body
    }
}

/// `--cascade` as the API has it.
pub(crate) fn propagation(cli: &Cli) -> Result<&'static str> {
    match cli.flags.text("cascade") {
        "background" | "true" => Ok("Background"),
        "orphan" | "false" => Ok("Orphan"),
        "foreground" => Ok("Foreground"),
        other => Err(Error::text(format!(
            "invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""
        ))),
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let mut grace_period = flags.int("grace-period")?;
    let force = flags.is("force");
    if flags.is("now") {
        if grace_period != -1 {
            return Err(Error::text("--now and --grace-period cannot be specified together"));
        }
        grace_period = 1;
    }
    if grace_period == 0 && !force {
        grace_period = 1;
    }
    if force && grace_period < 0 {
        grace_period = 0;
    }
    let short = match flags.text("output") {
        "" => false,
        "name" => true,
        other => return Err(Error::text(format!("unexpected -o output mode: {other}. We only support '-o name'"))),
    };
    if flags.is("all") && flags.given("selector") {
        return Err(Error::text("setting 'all' parameter but found a non empty selector. "));
    }
    if flags.is("all") && flags.given("field-selector") {
        return Err(Error::text("cannot set --all and --field-selector at the same time"));
    }
    let options = Options { propagation: propagation(cli)?, grace_period };
    let dry_run = cli.dry_run()?;
    let many = flags.is("all") || flags.given("selector") || flags.given("field-selector");
    let ignore = flags.is("ignore-not-found") || many && !flags.given("ignore-not-found");
    let targets = cli.targets(cli.args(), false).await?;
    if force && grace_period == 0 {
        tell!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    } else if force && grace_period > 0 {
        return Err(Error::text("--force and --grace-period greater than 0 cannot be specified together"));
    }
    let (single, errors) = one_by_one(cli, targets).await?;
    let mut errors: Vec<Error> = errors.into_iter().filter(|error| !(ignore && error.is_not_found())).collect();
    let mut warned = !cli.namespace_is_forced()? || flags.is("all-namespaces");
    let (mut gone, mut found) = (Vec::new(), 0);
    for target in single {
        if !warned && !target.resource.namespaced {
            tell!("Warning: deleting cluster-scoped resources, not scoped to the provided namespace");
            warned = true;
        }
        let deleted = match dry_run {
            DryRun::Client => Ok(Value::Null),
            _ => delete(&*cli.rest()?, &target, &options, dry_run).await,
        };
        match deleted {
            Ok(answer) => {
                found += 1;
                report(&target, grace_period, dry_run, short);
                gone.push((target, uid(&answer)));
            }
            Err(error) if error.is_not_found() && ignore => {}
            Err(error) => errors.push(error.when("deleting", &target.source)),
        }
    }
    Error::all(errors)?;
    if found == 0 {
        say!("No resources found");
        return Ok(());
    }
    if flags.is("wait") && dry_run == DryRun::None {
        wait(cli, gone, flags.duration("timeout")?.positive()).await?;
    }
    Ok(())
}

/// Targets that are one object each; lists are asked for.
async fn one_by_one(cli: &Cli, targets: Vec<Target>) -> Result<(Vec<Target>, Vec<Error>)> {
    let (mut single, mut errors) = (Vec::new(), Vec::new());
    for target in targets {
        if target.name.is_some() {
            single.push(target);
            continue;
        }
        let (items, failed) = cli.items(std::slice::from_ref(&target)).await?;
        errors.extend(failed);
        for item in items {
            let namespace = Some(item.namespace().to_owned()).filter(|namespace| !namespace.is_empty());
            single.push(Target { name: Some(item.name().to_owned()), namespace, ..target.clone() });
        }
    }
    Ok((single, errors))
}

/// Deletes an object and returns the answer.
pub(crate) async fn delete(rest: &Rest, target: &Target, options: &Options, dry_run: DryRun) -> Result<Value> {
    let path = format!("{}{}", target.path(), query(&[("dryRun", dry_run.parameter())]));
    rest.delete(&path, &options.body()).await
}

fn report(target: &Target, grace_period: i64, dry_run: DryRun, short: bool) {
    let (kind, name) = (target.resource.full_kind(), target.name.as_deref().unwrap_or_default());
    if short {
        say!("{kind}/{name}");
        return;
    }
    let done = if grace_period == 0 { "force deleted" } else { "deleted" };
    let place = match &target.namespace {
        Some(namespace) if target.resource.namespaced => format!(" from {namespace} namespace"),
        _ => String::new(),
    };
    say!("{kind} \"{name}\" {done}{place}{}", dry_run.suffix());
}

/// The deleted object's identity: an object of the same name may come after it.
fn uid(answer: &Value) -> String {
    let text = answer["details"]["uid"].as_str().or(answer["metadata"]["uid"].as_str());
    text.unwrap_or_default().to_owned()
}

/// Waits until objects are gone, or others have their names.
pub(crate) async fn wait(cli: &Cli, gone: Vec<(Target, String)>, limit: Option<Duration>) -> Result<()> {
    let rest = cli.rest()?;
    let deadline = limit.map(|limit| tokio::time::Instant::now() + limit);
    for (target, uid) in gone {
        let waited = until_gone(&rest, &target, &uid);
        let done = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, waited).await.unwrap_or_else(|_| {
                let name = target.name.as_deref().unwrap_or_default();
                Err(Error::text(format!("timed out waiting for the condition on {}/{name}", target.resource.plural)))
            }),
            None => waited.await,
        };
        match done {
            // Who may not look does not wait.
            Err(error) if matches!(error.reason(), "Forbidden" | "MethodNotAllowed") => {}
            other => other?,
        }
    }
    Ok(())
}

async fn until_gone(rest: &Rest, target: &Target, uid: &str) -> Result<()> {
    let name = target.name.as_deref().unwrap_or_default();
    let collection = target.resource.path(target.namespace.as_deref());
    loop {
        let selector = format!("metadata.name={name}");
        let list = rest.get(&format!("{collection}{}", query(&[("fieldSelector", &selector)]))).await?;
        match list["items"].as_array().and_then(|items| items.first()) {
            None => return Ok(()),
            Some(object) if !uid.is_empty() && object["metadata"]["uid"] != uid => return Ok(()),
            Some(_) => {}
        }
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let parameters = [("fieldSelector", selector.as_str()), ("watch", "true"), ("resourceVersion", version)];
        let mut events = rest.watch(&format!("{collection}{}", query(&parameters)), "application/json").await?;
        while let Some(event) = events.next().await {
            match event?["type"].as_str() {
                Some("DELETED") => return Ok(()),
                Some("ERROR") => break,
                _ => {}
            }
        }
    }
}
