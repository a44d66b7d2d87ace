//! `kubectl edit`.

use std::{path::Path, process::Command as Program};

use serde_json::Value;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{say, tell},
    patch,
    print::{Printer, json as json_printer, yaml},
    rest::query,
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "edit",
    about: "Edit a resource on the server",
    usage: "(RESOURCE/NAME | -f FILENAME)",
    flags: &[FLAGS, cli::FILES],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-edit"),
    Flag::text("output", "Output format. One of: (json, yaml).").short('o'),
    Flag::bool("show-managed-fields", "If true, keep the managedFields when printing objects in JSON or YAML format."),
    Flag::bool(
        "allow-missing-template-keys",
        "If true, ignore any errors in templates when a field or map key is missing in the template.",
    )
    .or("true"),
    super::apply::VALIDATE,
];

const HEAD: &str = "# Please edit the object below. Lines beginning with a '#' will be ignored,
# and an empty file will abort the edit. If an error occurs while saving this file will be
# reopened with the relevant failures.
#
";

async fn run(cli: &Cli) -> Result<()> {
    let printer = Printer::of(&cli.flags, false)?;
    let items = cli.all_items(cli.args()).await?;
    let mut errors = Vec::new();
    for item in &items {
        match edit(cli, item, &printer).await {
            Ok(()) => {}
            Err(error @ (Error::Unreachable { .. } | Error::Exit(_))) => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors)
}

fn as_json(cli: &Cli) -> bool {
    cli.flags.text("output") == "json"
}

/// Opens the editor until its text is taken, or left as it is.
async fn edit(cli: &Cli, item: &Item, printer: &Printer) -> Result<()> {
    let mut shown = item.object.clone();
    if !cli.flags.is("show-managed-fields")
        && let Some(metadata) = shown["metadata"].as_object_mut()
    {
        metadata.shift_remove("managedFields");
    }
    let original = match as_json(cli) {
        true => json_printer::to_string(&shown),
        false => yaml::to_string(&shown),
    };
    let suffix = if as_json(cli) { ".json" } else { ".yaml" };
    let mut file = tempfile::Builder::new().prefix("kubectl-edit-").suffix(suffix).tempfile()?;
    let mut text = original.clone();
    let mut complaint = String::new();
    loop {
        let before = format!("{HEAD}{complaint}{text}");
        std::fs::write(file.path(), &before)?;
        open(file.path())?;
        let after = std::fs::read_to_string(file.path())?;
        let edited = without_comments(&after);
        if !complaint.is_empty() && after == before {
            file.disable_cleanup(true);
            tell!("error: Edit cancelled, no valid changes were saved.");
            tell!("A copy of your changes has been stored to {:?}", file.path().display().to_string());
            return Err(Error::Exit(1));
        }
        if edited.trim().is_empty() {
            tell!("Edit cancelled, saved file was empty.");
            return Ok(());
        }
        if edited == without_comments(&original) {
            tell!("Edit cancelled, no changes made.");
            return Ok(());
        }
        text = edited;
        let refused = match parse(&text) {
            Ok(object) => match send(cli, item, &shown, &object).await {
                Ok(Some(object)) => return printer.done(&object, "edited"),
                Ok(None) => {
                    say!("{} skipped", crate::print::name(&item.object));
                    return Ok(());
                }
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let message = refused.message();
        tell!("{message}");
        let what = format!("{} {:?} was not valid:", item.resource.full_plural(), item.name());
        let lines: Vec<String> =
            message.lines().map(|line| format!("# * {}\n", line.trim_start_matches("* "))).collect();
        complaint = format!("# {what}\n{}#\n", lines.concat());
    }
}

/// `$KUBE_EDITOR`, `$EDITOR` or vi, which may have arguments.
fn open(path: &Path) -> Result<()> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = set("KUBE_EDITOR").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    // As a shell reads it, for what is quoted in it.
    let script = format!("{editor} \"$0\"");
    let ended = Program::new("/bin/sh").args(["-c", &script]).arg(path).status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::text(format!(
            "there was a problem with the editor {editor:?}: exit status {}",
            status.code().unwrap_or(1)
        ))),
        Err(error) => Err(Error::text(format!("unable to launch the editor {editor:?}: {error}"))),
    }
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).map(|line| format!("{line}\n")).collect()
}

fn parse(text: &str) -> Result<Value> {
    let parsed = match text.trim_start().starts_with('{') {
        true => skiff_api::decode::json(text.as_bytes()),
        false => skiff_api::decode::yaml(text),
    };
    parsed
        .map(|decoded| decoded.value)
        .map_err(|error| Error::text(format!("The edited file had a syntax error: {error}")))
}

/// The object as it is then, or nothing if nothing changes.
async fn send(cli: &Cli, item: &Item, before: &Value, after: &Value) -> Result<Option<Value>> {
    let identity =
        |object: &Value| [&object["apiVersion"], &object["kind"], &object["metadata"]["name"]].map(Value::clone);
    if identity(before) != identity(after) {
        return Err(Error::text("At least one of apiVersion, kind and name was changed"));
    }
    let (kind, patch) = match item.resource.type_name() {
        Some(name) => ("strategic-merge", patch::two_way_strategic(before, after, &name)),
        None => ("merge", patch::two_way_merge(before, after)),
    };
    if patch.as_object().is_some_and(|patch| patch.is_empty()) {
        return Ok(None);
    }
    let parameters = query(&[
        ("fieldManager", cli.flags.text("field-manager")),
        ("fieldValidation", super::apply::validation(cli)?),
    ]);
    cli.rest()?.patch(&format!("{}{parameters}", item.path()), kind, &patch).await.map(Some)
}
