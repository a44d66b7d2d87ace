//! `kubectl diff`.

use serde_json::Value;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out, patch,
    print::yaml,
    rest::query,
    targets::Target,
};

pub(crate) const COMMAND: Command = Command {
    name: "diff",
    about: "Diff the live version against a would-be applied version",
    usage: "-f FILENAME",
    flags: &[FLAGS, cli::FILES, cli::SELECTOR],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-client-side-apply"),
    Flag::bool("force-conflicts", "If true, server-side apply will force the changes against conflicts."),
    Flag::bool("server-side", "If true, apply runs in the server instead of the client."),
    Flag::bool("show-managed-fields", "If true, include managed fields in the diff."),
];

/// Lines shown around a difference.
const CONTEXT: usize = 3;

/// Errors end with 2, as 1 says that there are differences.
async fn run(cli: &Cli) -> Result<()> {
    match differences(cli).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::Exit(1)),
        Err(error) => Err(Error::Code(error.code() + 1, Box::new(error))),
    }
}

async fn differences(cli: &Cli) -> Result<bool> {
    let files = cli.file_names()?;
    if let Some(unexpected) = cli.args().first() {
        return Err(cli.usage(format!("Unexpected args: [{unexpected}]")));
    }
    if files.is_empty() {
        return Err(Error::text("must specify one of -f and -k"));
    }
    let mut found = false;
    for target in cli.file_targets(&files).await? {
        let (mut live, mut merged) = both(cli, &target).await?;
        for object in [&mut live, &mut merged] {
            hide(object, cli.flags.is("show-managed-fields"));
        }
        if target.resource.kind == "Secret" && target.resource.group.is_empty() {
            mask(&mut live, &mut merged);
        }
        let text = |object: &Value| if object.is_null() { String::new() } else { yaml::to_string(object) };
        let (before, after) = (text(&live), text(&merged));
        if before == after {
            continue;
        }
        found = true;
        let resource = &target.resource;
        let version = match resource.group.as_str() {
            "" => resource.version.clone(),
            group => format!("{group}.{}", resource.version),
        };
        let place = target.namespace.as_deref().unwrap_or_default();
        let name = target.name.as_deref().unwrap_or_default();
        let file = format!("{version}.{}.{place}.{name}", resource.kind);
        let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S%.9f %z").to_string();
        let (left, right) = (format!("/tmp/LIVE/{file}"), format!("/tmp/MERGED/{file}"));
        let difference = similar::TextDiff::from_lines(&before, &after);
        let mut unified = difference.unified_diff();
        let unified =
            unified.context_radius(CONTEXT).header(&format!("{left}\t{now}"), &format!("{right}\t{now}")).to_string();
        out::text(&format!("diff -u -N {left} {right}\n{unified}"));
    }
    Ok(found)
}

/// What is there, and what an apply would make of it.
async fn both(cli: &Cli, target: &Target) -> Result<(Value, Value)> {
    let (flags, rest) = (&cli.flags, cli.rest()?);
    let server_side = flags.is("server-side");
    let live = match rest.get(&target.path()).await {
        Ok(live) => live,
        Err(error) if error.is_not_found() => Value::Null,
        Err(error) => return Err(error),
    };
    let manager = match server_side && !flags.given("field-manager") {
        true => "kubectl",
        false => flags.text("field-manager"),
    };
    let force = if server_side && flags.is("force-conflicts") { "true" } else { "" };
    let parameters = query(&[("dryRun", "All"), ("fieldManager", manager), ("force", force)]);
    let path = format!("{}{parameters}", target.path());
    if server_side {
        return Ok((live, rest.patch(&path, "apply", &target.manifest).await?));
    }
    let mut modified = target.manifest.clone();
    patch::remember(&mut modified);
    if live.is_null() {
        let path = format!("{}{parameters}", target.resource.path(target.namespace.as_deref()));
        patch::without_nulls(&mut modified);
        return Ok((live, rest.post(&path, &modified).await?));
    }
    let original = patch::remembered(&live);
    let (kind, patch) = match target.resource.type_name() {
        Some(name) => ("strategic-merge", patch::three_way_strategic(&original, &modified, &live, &name)),
        None => ("merge", patch::three_way_merge(&original, &modified, &live)),
    };
    let merged = rest.patch(&path, kind, &patch).await?;
    Ok((live, merged))
}

/// Who owns what, and what was applied last, is not what people compare.
fn hide(object: &mut Value, managed_fields: bool) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if !managed_fields {
        metadata.shift_remove("managedFields");
    }
    let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
    let empty = annotations.is_some_and(|annotations| {
        annotations.shift_remove(patch::LAST_APPLIED);
        annotations.is_empty()
    });
    if empty {
        metadata.shift_remove("annotations");
    }
}

/// Values of Secrets are not shown, only whether they differ.
fn mask(live: &mut Value, merged: &mut Value) {
    let data = |object: &Value| object["data"].as_object().cloned().unwrap_or_default();
    let (before, after) = (data(live), data(merged));
    let show = |object: &mut Value, key: &str, text: &str| {
        if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
            data.insert(key.to_owned(), text.into());
        }
    };
    for (key, value) in &before {
        let changed = after.get(key).is_some_and(|other| other != value);
        show(live, key, if changed { "*** (before)" } else { "***" });
    }
    for (key, value) in &after {
        let changed = before.get(key).is_some_and(|other| other != value);
        show(merged, key, if changed { "*** (after)" } else { "***" });
    }
}
