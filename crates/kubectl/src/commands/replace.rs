//! `kubectl replace`.

use super::delete;
use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    patch,
    print::Printer,
    rest::query,
};

pub(crate) const COMMAND: Command = Command {
    name: "replace",
    about: "Replace a resource by file name or stdin",
    usage: "-f FILENAME",
    flags: &[FLAGS, delete::OPTIONS, crate::print::FLAGS, cli::FILES, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-replace"),
    Flag::bool("save-config", "If true, the configuration of current object will be saved in its annotation."),
    Flag::text("subresource", "If specified, replace will operate on the subresource of the requested object."),
    super::apply::VALIDATE,
];

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let files = cli.file_names()?;
    if files.is_empty() {
        return Err(Error::text("must specify one of -f and -k"));
    }
    let force = flags.is("force");
    if flags.int("grace-period")? >= 0 && !force {
        return Err(Error::text("--grace-period must have --force specified"));
    }
    let printer = Printer::of(flags, false)?;
    let dry_run = cli.dry_run()?;
    let rest = cli.rest()?;
    let mut errors = Vec::new();
    for mut target in cli.file_targets(&files).await? {
        // Whoever has been applied before stays so.
        if flags.is("save-config") || !target.manifest["metadata"]["annotations"][patch::LAST_APPLIED].is_null() {
            patch::remember(&mut target.manifest);
        }
        if dry_run == DryRun::Client {
            printer.done(&target.manifest, "replaced (dry run)")?;
            continue;
        }
        let parameters = query(&[
            ("dryRun", dry_run.parameter()),
            ("fieldManager", flags.text("field-manager")),
            ("fieldValidation", super::apply::validation(cli)?),
        ]);
        let below = match flags.text("subresource") {
            "" => String::new(),
            name => format!("/{name}"),
        };
        let mut verb = "replacing";
        let replaced = if force {
            let grace_period = flags.int("grace-period")?;
            let options = delete::Options { propagation: delete::propagation(cli)?, grace_period };
            match delete::delete(&rest, &target, &options, dry_run).await {
                Ok(_) => {
                    let namespace = target.namespace.as_deref().unwrap_or_default();
                    let place =
                        if target.resource.namespaced { format!(" from {namespace} namespace") } else { String::new() };
                    let name = target.name.as_deref().unwrap_or_default();
                    crate::out::say!("{} \"{name}\" deleted{place}", target.resource.full_kind());
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.when("deleting", &target.source)),
            }
            delete::wait(cli, vec![(target.clone(), String::new())], flags.duration("timeout")?.positive()).await?;
            verb = "creating";
            let path = target.resource.path(target.namespace.as_deref());
            rest.post(&format!("{path}{parameters}"), &target.manifest).await
        } else {
            rest.put(&format!("{}{below}{parameters}", target.path()), &target.manifest).await
        };
        match replaced {
            Ok(object) => printer.done(&object, &format!("replaced{}", dry_run.suffix()))?,
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) => errors.push(error.when(verb, &target.source)),
        }
    }
    Error::all(errors)
}
