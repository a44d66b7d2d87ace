//! `kubectl apply`: from the client's side with a three-way patch, or from the server's.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::{Flag, Takes},
    out::tell,
    patch::{self, LAST_APPLIED},
    print::Printer,
    rest::query,
    targets::Target,
};

pub(crate) const COMMAND: Command = Command {
    name: "apply",
    about: "Apply a configuration to a resource by file name or stdin",
    usage: "(-f FILENAME | -k DIRECTORY)",
    flags: &[FLAGS, super::delete::OPTIONS, crate::print::FLAGS, cli::FILES, cli::SELECTOR, cli::DRY_RUN],
    subcommands: &[super::last_applied::VIEW],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-client-side-apply"),
    Flag::bool("force-conflicts", "If true, server-side apply will force the changes against conflicts."),
    Flag::bool("overwrite", "Automatically resolve conflicts between the modified and live configuration.").or("true"),
    Flag::bool("server-side", "If true, apply runs in the server instead of the client."),
    VALIDATE,
];

/// How strictly the server looks at fields.
pub(crate) const VALIDATE: Flag =
    Flag::new("validate", Takes::Optional("strict"), "Must be one of: strict (or true), warn, ignore (or false).")
        .or("strict");

/// Another writer may come between.
pub(super) const RETRIES: usize = 5;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The `fieldValidation` that the flags ask for.
pub(crate) fn validation(cli: &Cli) -> Result<&'static str> {
    match cli.flags.text("validate") {
        "strict" | "true" => Ok("Strict"),
        "warn" => Ok("Warn"),
        "ignore" | "false" => Ok("Ignore"),
        other => Err(Error::text(format!(
            "invalid - validate option {other:?}; must be one of: strict (or true), warn, ignore (or false)"
        ))),
    }
}

/// How a call applies.
struct Apply<'a> {
    cli: &'a Cli,
    printer: Printer,
    dry_run: DryRun,
    manager: String,
    validation: &'static str,
}

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    if flags.is("server-side") && flags.is("force") {
        return Err(Error::text("--force cannot be used with --server-side"));
    }
    let dry_run = cli.dry_run()?;
    if flags.is("server-side") && dry_run == DryRun::Client {
        return Err(Error::text(
            "--dry-run=client doesn't work with --server-side (did you mean --dry-run=server instead?)",
        ));
    }
    if flags.is("force-conflicts") && !flags.is("server-side") {
        return Err(Error::text("--force-conflicts only works with --server-side"));
    }
    let files = cli.file_names()?;
    if let Some(unexpected) = cli.args().first() {
        return Err(cli.usage(format!("Unexpected args: [{unexpected}]")));
    }
    if files.is_empty() {
        return Err(Error::text("must specify one of -f and -k"));
    }
    let manager = match flags.is("server-side") && !flags.given("field-manager") {
        true => "kubectl",
        false => flags.text("field-manager"),
    };
    let apply = Apply {
        cli,
        printer: Printer::of(flags, false)?,
        dry_run,
        manager: manager.to_owned(),
        validation: validation(cli)?,
    };
    let (targets, mut errors) = apply.targets(&files).await?;
    let whole = !apply.printer.is_human() && flags.text("output") != "name";
    let mut applied = Vec::new();
    for target in targets {
        match apply.one(&target).await {
            Ok((object, _)) if whole => applied.push(object),
            Ok((object, done)) => apply.printer.done(&object, &format!("{done}{}", dry_run.suffix()))?,
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors)?;
    match applied.as_slice() {
        [] => Ok(()),
        [one] => apply.printer.print(one),
        _ => apply.printer.print(&json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": applied})),
    }
}

impl Apply<'_> {
    /// What the files hold, and what of it the server does not know.
    async fn targets(&self, files: &[String]) -> Result<(Vec<Target>, Vec<Error>)> {
        let manifests = crate::files::read(files, self.cli.flags.is("recursive")).await?;
        if manifests.is_empty() {
            return Err(Error::text("no objects passed to apply"));
        }
        let selector = skiff_api::selector::LabelSelector::parse(self.cli.flags.text("selector"));
        let selector = selector.map_err(|error| Error::text(error.to_string()))?;
        let (mut targets, mut errors) = (Vec::new(), Vec::new());
        for manifest in manifests {
            if !selector.matches_value(manifest.object["metadata"].get("labels")) {
                continue;
            }
            match self.cli.manifest_target(manifest.object, &manifest.source).await {
                Ok(target) => targets.push(target),
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => errors.push(error),
            }
        }
        Ok((targets, errors))
    }

    /// The object as it is then, and what was done.
    async fn one(&self, target: &Target) -> Result<(Value, &'static str)> {
        if target.name.is_none()
            && let Some(prefix) = target.manifest["metadata"]["generateName"].as_str()
        {
            return Err(Error::text(format!("from {prefix}: cannot use generate name with apply")));
        }
        match self.cli.flags.is("server-side") {
            true => Ok((self.server_side(target).await?, "serverside-applied")),
            false => self.client_side(target).await,
        }
    }

    fn parameters(&self, force: &str) -> String {
        query(&[
            ("dryRun", self.dry_run.parameter()),
            ("fieldManager", &self.manager),
            ("fieldValidation", self.validation),
            ("force", force),
        ])
    }

    async fn client_side(&self, target: &Target) -> Result<(Value, &'static str)> {
        let rest = self.cli.rest()?;
        let mut modified = target.manifest.clone();
        patch::remember(&mut modified);
        let current = match rest.get(&target.path()).await {
            Ok(current) => current,
            Err(error) if error.is_not_found() => {
                patch::without_nulls(&mut modified);
                if self.dry_run != DryRun::Client {
                    let path = target.resource.path(target.namespace.as_deref());
                    let created = rest.post(&format!("{path}{}", self.parameters("")), &modified).await;
                    modified = created.map_err(|error| error.when("creating", &target.source))?;
                }
                return Ok((modified, "created"));
            }
            Err(error) => {
                let verb = format!("retrieving current configuration of:\n{}\nfrom server for:", info(target));
                return Err(error.when(&verb, &target.source));
            }
        };
        if current["metadata"]["annotations"][LAST_APPLIED].is_null() {
            tell!(
                "Warning: resource {} is missing the {LAST_APPLIED} annotation which is required by kubectl apply. kubectl apply should only be used on resources created declaratively by either kubectl create --save-config or kubectl apply. The missing annotation will be patched automatically.",
                format!("{}/{}", target.resource.plural, target.name.as_deref().unwrap_or_default())
            );
        }
        let (object, changed) = self.patch(target, modified, current).await?;
        if !object["metadata"]["deletionTimestamp"].is_null() {
            tell!(
                "Warning: Detected changes to resource {} which is currently being deleted.",
                target.name.as_deref().unwrap_or_default()
            );
        }
        Ok((object, if changed { "configured" } else { "unchanged" }))
    }

    async fn patch(&self, target: &Target, modified: Value, mut current: Value) -> Result<(Value, bool)> {
        let rest = self.cli.rest()?;
        let type_name = target.resource.type_name();
        for attempt in 0..=RETRIES {
            let original = patch::remembered(&current);
            let (kind, patch) = match &type_name {
                Some(name) => ("strategic-merge", patch::three_way_strategic(&original, &modified, &current, name)),
                None => ("merge", patch::three_way_merge(&original, &modified, &current)),
            };
            if patch.as_object().is_some_and(|patch| patch.is_empty()) {
                return Ok((current, false));
            }
            if self.dry_run == DryRun::Client {
                match &type_name {
                    Some(name) => skiff_api::patch::strategic(&mut current, &patch, name)
                        .map_err(|error| Error::text(format!("applying patch locally: {error}")))?,
                    None => skiff_api::patch::merge(&mut current, &patch),
                }
                return Ok((current, true));
            }
            match rest.patch(&format!("{}{}", target.path(), self.parameters("")), kind, &patch).await {
                Ok(object) => return Ok((object, true)),
                Err(error) if error.reason() == "Conflict" && attempt < RETRIES => {
                    if attempt > 0 {
                        tokio::time::sleep(RETRY_AFTER).await;
                    }
                    current = rest.get(&target.path()).await?;
                }
                Err(error) if matches!(error.reason(), "Conflict" | "Invalid") && self.cli.flags.is("force") => {
                    return Ok((self.replace(target, modified).await?, true));
                }
                Err(error) => {
                    let text = crate::print::json::compact(&patch);
                    let verb = format!("applying patch:\n{text}\nto:\n{}\nfor:", info(target));
                    return Err(error.when("patching", &target.source).when(&verb, &target.source));
                }
            }
        }
        Err(Error::text("too many conflicts"))
    }

    /// `--force`: what cannot be changed is deleted and made anew.
    async fn replace(&self, target: &Target, modified: Value) -> Result<Value> {
        let rest = self.cli.rest()?;
        let grace_period = self.cli.flags.int("grace-period")?.max(0);
        let options = super::delete::Options { propagation: super::delete::propagation(self.cli)?, grace_period };
        super::delete::delete(&rest, target, &options, DryRun::None).await?;
        super::delete::wait(self.cli, vec![(target.clone(), String::new())], None).await?;
        let path = target.resource.path(target.namespace.as_deref());
        rest.post(&format!("{path}{}", self.parameters("")), &modified).await
    }

    async fn server_side(&self, target: &Target) -> Result<Value> {
        let rest = self.cli.rest()?;
        let force = if self.cli.flags.is("force-conflicts") { "true" } else { "false" };
        let path = format!("{}{}", target.path(), self.parameters(force));
        let applied = match rest.patch(&path, "apply", &target.manifest).await {
            Err(error) if error.reason() == "Conflict" => return Err(conflict(&error)),
            other => other?,
        };
        if self.manager != "kubectl" || self.dry_run != DryRun::None {
            return Ok(applied);
        }
        match super::last_applied::take_over(&rest, target, applied.clone()).await {
            Ok(false) => Ok(applied),
            Ok(true) => rest.patch(&path, "apply", &target.manifest).await,
            Err(error) => {
                tell!(
                    "Warning: server rejected managed fields migration to Server-Side Apply. This is non-fatal and will be retried next time you apply. Error: {error}"
                );
                Ok(applied)
            }
        }
    }
}

fn conflict(error: &Error) -> Error {
    Error::text(format!(
        "{error}\nPlease review the fields above--they currently have other managers. Here\nare the ways you can resolve this warning:\n* If you intend to manage all of these fields, please re-run the apply\n  command with the `--force-conflicts` flag.\n* If you do not intend to manage all of the fields, please edit your\n  manifest to remove references to the fields that should keep their\n  current managers.\n* You may co-own fields by updating your manifest to match the existing\n  value; in this case, you'll become the manager if the other manager(s)\n  stop managing the field (remove it from their configuration).\nSee https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts"
    ))
}

/// As messages describe a target.
fn info(target: &Target) -> String {
    let resource = &target.resource;
    let version = resource.api_version();
    format!(
        "Resource: \"{version}, Resource={}\", GroupVersionKind: \"{version}, Kind={}\"\nName: {:?}, Namespace: {:?}",
        resource.plural,
        resource.kind,
        target.name.as_deref().unwrap_or_default(),
        target.namespace.as_deref().unwrap_or_default(),
    )
}
