//! `kubectl label` and `kubectl annotate`.

use serde_json::{Map, Value, json};

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    out::say,
    print::{self, Printer},
    rest::query,
};

pub(crate) const LABEL: Command = Command {
    name: "label",
    about: "Update the labels on a resource",
    usage: "[--overwrite] (-f FILENAME | TYPE NAME) KEY_1=VAL_1 ... KEY_N=VAL_N [--resource-version=version]",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::SELECTOR, cli::ALL, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli, &LABELS))),
};

pub(crate) const ANNOTATE: Command = Command {
    name: "annotate",
    about: "Update the annotations on a resource",
    usage: "[--overwrite] (-f FILENAME | TYPE NAME) KEY_1=VAL_1 ... KEY_N=VAL_N [--resource-version=version]",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::SELECTOR, cli::ALL, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli, &ANNOTATIONS))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If true, check the specified action in all namespaces.").short('A'),
    Flag::text("field-manager", "Name of the manager used to track field ownership."),
    Flag::text("field-selector", "Selector (field query) to filter on, supports '=', '==', and '!='."),
    Flag::bool("list", "If true, display the labels or annotations for a given resource."),
    Flag::bool("overwrite", "If true, allow labels or annotations to be overwritten."),
    Flag::text(
        "resource-version",
        "If non-empty, the update will only succeed if this is the current resource-version for the object.",
    ),
];

/// What the two commands differ in.
struct Words {
    field: &'static str,
    one: &'static str,
    done: &'static str,
    undone: &'static str,
    manager: &'static str,
}
const LABELS: Words =
    Words { field: "labels", one: "label", done: "labeled", undone: "unlabeled", manager: "kubectl-label" };
const ANNOTATIONS: Words = Words {
    field: "annotations",
    one: "annotation",
    done: "annotated",
    undone: "annotated",
    manager: "kubectl-annotate",
};

async fn run(cli: &Cli, words: &Words) -> Result<()> {
    let flags = &cli.flags;
    let is_change = |arg: &&String| arg.contains('=') || arg.ends_with('-') && arg.len() > 1;
    let split = cli.args().iter().position(|arg| is_change(&arg)).unwrap_or(cli.args().len());
    let (what, changes) = cli.args().split_at(split);
    if what.is_empty() && cli.file_names()?.is_empty() {
        return Err(Error::text("one or more resources must be specified as <resource> <name> or <resource>/<name>"));
    }
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    for change in changes {
        match change.split_once('=') {
            Some((key, value)) => set.push((key.to_owned(), value.to_owned())),
            None if change.ends_with('-') => remove.push(change[..change.len() - 1].to_owned()),
            None => {
                return Err(Error::text(format!(
                    "all resources must be specified before {} changes: {change}",
                    words.one
                )));
            }
        }
    }
    if changes.is_empty() && !flags.is("list") {
        return Err(Error::text(format!("at least one {} update is required", words.one)));
    }
    if let Some((key, _)) = set.iter().find(|(key, _)| remove.contains(key)) {
        let what = if words.one == "label" { "a label" } else { "an annotation" };
        return Err(Error::text(format!("can not both modify and remove {what} in the same command: {key}")));
    }
    for (key, value) in set.iter().filter(|_| words.one == "label") {
        let wrong = skiff_api::names::label_value(value);
        if !wrong.is_empty() {
            return Err(Error::text(format!(
                "invalid label value: {:?}: {}",
                format!("{key}={value}"),
                wrong.join(";")
            )));
        }
    }
    let dry_run = cli.dry_run()?;
    let printer = Printer::of(flags, false)?;
    let targets = cli.targets(what, false).await?;
    let (items, errors) = cli.items(&targets).await?;
    let mut errors = errors;
    for item in items {
        if flags.is("list") {
            let several = targets.len() > 1 || targets.iter().any(|target| target.name.is_none());
            list(&item.object, words, several);
            if changes.is_empty() {
                continue;
            }
        }
        match change(cli, &item, words, &set, &remove, dry_run).await {
            Ok((object, done)) if flags.is("list") => drop((object, done)),
            Ok((object, done)) => printer.done(&object, &format!("{done}{}", dry_run.suffix()))?,
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors)
}

fn list(object: &Value, words: &Words, several: bool) {
    let indent = if several { " " } else { "" };
    if several {
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), print::name(object));
        let rest = &name[kind.len().min(name.len())..];
        say!("Listing {} for {kind}{}{rest}:", words.field, if rest.starts_with('/') { "." } else { "" });
    }
    let mut lines: Vec<String> = object["metadata"][words.field]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{indent}{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    lines.sort();
    lines.iter().for_each(|line| say!("{line}"));
}

async fn change(
    cli: &Cli,
    item: &crate::targets::Item,
    words: &Words,
    set: &[(String, String)],
    remove: &[String],
    dry_run: DryRun,
) -> Result<(Value, &'static str)> {
    let before = item.object["metadata"][words.field].as_object().cloned().unwrap_or_default();
    let mut patch = Map::new();
    let mut refused = Vec::new();
    for (key, value) in set {
        match before.get(key).and_then(Value::as_str) {
            Some(known) if known == value => {}
            Some(known) if !cli.flags.is("overwrite") => refused.push(match words.one {
                "label" => format!("'{key}' already has a value ({known}), and --overwrite is false"),
                _ => format!("--overwrite is false but found the following declared annotation(s): '{key}' already has a value ({known})"),
            }),
            _ => drop(patch.insert(key.clone(), value.clone().into())),
        }
    }
    if !refused.is_empty() {
        return Err(Error::text(refused.join(", ")));
    }
    let mut removed = 0;
    for key in remove {
        match before.contains_key(key) {
            true => {
                removed += 1;
                patch.insert(key.clone(), Value::Null);
            }
            false if words.one == "label" => say!("label {key:?} not found."),
            false => {}
        }
    }
    let done = match (words.one, patch.is_empty()) {
        ("label", true) => return Ok((item.object.clone(), "not labeled")),
        ("label", false) if removed == patch.len() => words.undone,
        _ => words.done,
    };
    let mut patch = json!({"metadata": {words.field: patch}});
    if !cli.flags.text("resource-version").is_empty() {
        patch["metadata"]["resourceVersion"] = cli.flags.text("resource-version").into();
    }
    let mut object = item.object.clone();
    if dry_run == DryRun::Client {
        skiff_api::patch::merge(&mut object, &patch);
        return Ok((object, done));
    }
    let manager = cli.flags.some("field-manager").unwrap_or(words.manager);
    let path = format!("{}{}", item.path(), query(&[("dryRun", dry_run.parameter()), ("fieldManager", manager)]));
    Ok((cli.rest()?.patch(&path, "merge", &patch).await?, done))
}
