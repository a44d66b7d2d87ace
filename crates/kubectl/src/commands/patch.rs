//! `kubectl patch`.

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    print::Printer,
    rest::query,
};

pub(crate) const COMMAND: Command = Command {
    name: "patch",
    about: "Update fields of a resource",
    usage: "(-f FILENAME | TYPE NAME) [-p PATCH|--patch-file FILE]",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-patch"),
    Flag::text("patch", "The patch to be applied to the resource JSON file.").short('p'),
    Flag::text("patch-file", "A file containing a patch to be applied to the resource."),
    Flag::text("subresource", "If specified, patch will operate on the subresource of the requested object."),
    Flag::text("type", "The type of patch being provided; one of [json merge strategic]").or("strategic"),
];

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let kind = match flags.text("type").to_lowercase().as_str() {
        "strategic" => "strategic-merge",
        "merge" => "merge",
        "json" => "json",
        other => return Err(Error::text(format!("--type must be one of [json merge strategic], not {other:?}"))),
    };
    let text = match (flags.given("patch"), flags.given("patch-file")) {
        (true, true) => return Err(Error::text("cannot specify --patch and --patch-file together")),
        (true, false) => flags.text("patch").to_owned(),
        (false, true) => {
            let path = flags.text("patch-file");
            let failed = |error| {
                Error::text(format!(
                    "unable to read patch file: {}",
                    crate::files::go_io(path.as_ref(), "open", &error)
                ))
            };
            std::fs::read_to_string(path).map_err(failed)?
        }
        (false, false) => String::new(),
    };
    if text.is_empty() {
        return Err(Error::text("must specify --patch or --patch-file containing the contents of the patch"));
    }
    let parsed = match text.trim_start().starts_with(['{', '[']) {
        true => skiff_api::decode::json(text.as_bytes()),
        false => skiff_api::decode::yaml(&text),
    };
    let patch = parsed.map_err(|error| Error::text(format!("unable to parse {text:?}: {error}")))?.value;
    let printer = Printer::of(flags, false)?;
    let dry_run = cli.dry_run()?;
    let subresource = flags.text("subresource");
    let items = cli.all_items(cli.args()).await?;
    for item in &items {
        let mut object = item.object.clone();
        if dry_run == DryRun::Client {
            let type_name = item.resource.type_name().unwrap_or_default();
            let done = match kind {
                "strategic-merge" => skiff_api::patch::strategic(&mut object, &patch, &type_name),
                "merge" => {
                    skiff_api::patch::merge(&mut object, &patch);
                    Ok(())
                }
                _ => skiff_api::patch::json(&mut object, &patch),
            };
            done.map_err(|error| Error::text(error.to_string()))?;
        } else {
            let below = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
            let parameters = query(&[("dryRun", dry_run.parameter()), ("fieldManager", flags.text("field-manager"))]);
            object = cli.rest()?.patch(&format!("{}{below}{parameters}", item.path()), kind, &patch).await?;
        }
        let changed = object != item.object;
        let done = if changed { "patched" } else { "patched (no change)" };
        printer.done(&object, done)?;
    }
    Ok(())
}
