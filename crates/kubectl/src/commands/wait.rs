//! `kubectl wait`.

use std::time::Duration;

use serde_json::Value;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    print::{Printer, jsonpath},
    targets::{Selectors, Target},
    watching::{self, Change},
};

pub(crate) const COMMAND: Command = Command {
    name: "wait",
    about: "Wait for a specific condition on one or many resources",
    usage: "([-f FILENAME] | resource.group/resource.name | resource.group [(-l label | --all)]) [--for=create|--for=delete|--for condition=available|--for=jsonpath='{}'[=value]]",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::SELECTOR, cli::ALL],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    Flag::text("field-selector", "Selector (field query) to filter on, supports '=', '==', and '!='."),
    Flag::text(
        "for",
        "The condition to wait on: [create|delete|condition=condition-name[=condition-value]|jsonpath='{JSONPath expression}'=[JSONPath value]].",
    ),
    Flag::duration("timeout", "The length of time to wait before giving up.").or("30s"),
];

/// How often an object is looked for that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// A negative timeout is a week.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is waited for.
enum Goal {
    Created,
    Deleted,
    /// A condition's type and status, in lower case.
    Condition(String, String),
    /// A path, and the value wanted, or any.
    Path(jsonpath::Template, Option<String>),
}

impl Goal {
    fn parse(text: &str) -> Result<Goal> {
        let lower = text.to_lowercase();
        match lower.as_str() {
            "create" => return Ok(Goal::Created),
            "delete" => return Ok(Goal::Deleted),
            _ => {}
        }
        if let Some(condition) = lower.strip_prefix("condition=") {
            let (kind, status) = condition.split_once('=').unwrap_or((condition, "true"));
            return Ok(Goal::Condition(kind.to_owned(), status.to_owned()));
        }
        if lower.starts_with("jsonpath=") {
            let rest = text["jsonpath=".len()..].trim_matches(['\'', '"']);
            let end = rest.find('}').map_or(rest.len(), |end| end + 1);
            let (path, value) = rest.split_at(end);
            let path = jsonpath::Template::parse(&jsonpath::relaxed(path.trim_matches(['\'', '"']))?)?;
            let value =
                value.trim_start_matches(['\'', '"']).strip_prefix('=').map(|v| v.trim_matches(['\'', '"']).to_owned());
            return Ok(Goal::Path(path, value));
        }
        Err(Error::text(format!("unrecognized condition: {text:?}")))
    }

    fn reached(&self, object: &Value) -> Result<bool> {
        Ok(match self {
            Goal::Created => true,
            Goal::Deleted => false,
            Goal::Condition(kind, status) => {
                let generation = object["metadata"]["generation"].as_i64();
                let old = |seen: &Value| seen.as_i64().is_some_and(|seen| Some(seen) < generation);
                let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                let found = conditions.find(|c| c["type"].as_str().is_some_and(|t| t.to_lowercase() == *kind));
                found.is_some_and(|condition| {
                    !old(&condition["observedGeneration"])
                        && !old(&object["status"]["observedGeneration"])
                        && condition["status"].as_str().is_some_and(|s| s.to_lowercase() == *status)
                })
            }
            Goal::Path(path, wanted) => match (path.find(object).as_slice(), wanted) {
                ([], _) => false,
                ([_], None) => true,
                ([value], Some(_)) if value.is_object() || value.is_array() => {
                    return Err(Error::text(format!(
                        "jsonpath leads to a nested object or list which is not supported: {value}"
                    )));
                }
                ([value], Some(wanted)) => jsonpath::print(value) == *wanted,
                _ => return Err(Error::text("given jsonpath expression matches more than one list")),
            },
        })
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    if !flags.given("for") {
        return Err(Error::text("unrecognized condition: []"));
    }
    let goal = Goal::parse(flags.text("for"))?;
    let printer = Printer::of(flags, false)?;
    let limit = match flags.duration("timeout")? {
        limit if limit.is_negative() => WEEK,
        limit => limit.positive().unwrap_or_default(),
    };
    let deadline = tokio::time::Instant::now() + limit;
    let targets = cli.targets(cli.args(), false).await?;
    let mut errors = Vec::new();
    let mut seen = 0;
    for target in &targets {
        for target in single(cli, target, &goal, deadline).await? {
            seen += 1;
            if let Err(error) = one(cli, &target, &goal, deadline, &printer).await {
                errors.push(error);
            }
        }
    }
    if seen == 0 && !matches!(goal, Goal::Deleted) {
        return Err(Error::text("no matching resources found"));
    }
    Error::all(errors)
}

/// Lists become objects; an object that is to be made is waited for.
async fn single(cli: &Cli, target: &Target, goal: &Goal, deadline: tokio::time::Instant) -> Result<Vec<Target>> {
    if target.name.is_some() {
        return Ok(vec![target.clone()]);
    }
    loop {
        let listed = cli.list(&target.resource, target.namespace.as_deref(), &Selectors::of(cli)).await?.1;
        let text = |object: &Value, field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let found: Vec<Target> = listed
            .iter()
            .map(|object| Target { name: text(object, "name"), namespace: text(object, "namespace"), ..target.clone() })
            .collect();
        let wait = matches!(goal, Goal::Created) && found.is_empty();
        if !wait || tokio::time::Instant::now() >= deadline {
            return Ok(found);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn one(cli: &Cli, target: &Target, goal: &Goal, deadline: tokio::time::Instant, printer: &Printer) -> Result<()> {
    let rest = cli.rest()?;
    let (resource, name) = (&target.resource, target.name.as_deref().unwrap_or_default());
    if !matches!(goal, Goal::Created | Goal::Deleted) {
        rest.get(&target.path()).await?;
    }
    let mut last = Value::Null;
    let waiting = watching::until(&rest, resource, target.namespace.as_deref(), name, |change| match (change, goal) {
        (Change::Missing | Change::Gone, Goal::Deleted) => Ok(true),
        (Change::Missing | Change::Gone, Goal::Created) => Ok(false),
        (Change::Missing | Change::Gone, _) => Err(not_found(&target.resource.full_plural(), name)),
        (Change::Is(object), _) => {
            last = object.clone();
            last["apiVersion"] = resource.api_version().into();
            last["kind"] = resource.kind.clone().into();
            goal.reached(object)
        }
    });
    tokio::time::timeout_at(deadline, waiting).await.unwrap_or_else(|_| {
        Err(Error::text(format!("timed out waiting for the condition on {}/{name}", resource.plural)))
    })?;
    // Of what was never there nothing is said.
    if last.is_null() { Ok(()) } else { printer.done(&last, "condition met") }
}

fn not_found(resource: &str, name: &str) -> Error {
    Error::Status(serde_json::json!({"reason": "NotFound", "message": format!("{resource} {name:?} not found")}))
}
