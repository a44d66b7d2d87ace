//! `kubectl create`: from files, or of a kind that it knows.

mod access;
mod config;
mod ingress;
mod jobs;
mod small;
mod workloads;

use serde_json::Value;

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    patch,
    print::Printer,
    rest::query,
};

pub(crate) const COMMAND: Command = Command {
    name: "create",
    about: "Create a resource from a file or from stdin",
    usage: "-f FILENAME",
    flags: &[OPTIONS, crate::print::FLAGS, cli::FILES, cli::SELECTOR, cli::DRY_RUN],
    subcommands: &[
        access::CLUSTER_ROLE,
        access::CLUSTER_ROLE_BINDING,
        config::CONFIG_MAP,
        jobs::CRON_JOB,
        workloads::DEPLOYMENT,
        ingress::INGRESS,
        jobs::JOB,
        small::NAMESPACE,
        small::PDB,
        small::PRIORITY_CLASS,
        small::QUOTA,
        access::ROLE,
        access::ROLE_BINDING,
        config::SECRET,
        workloads::SERVICE,
        small::SERVICE_ACCOUNT,
        small::TOKEN,
    ],
    run: Some(|cli| Box::pin(run(cli))),
};

/// The flags of all that create.
pub(crate) const OPTIONS: &[Flag] = &[
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-create"),
    Flag::bool("save-config", "If true, the configuration of current object will be saved in its annotation."),
    super::apply::VALIDATE,
];
/// What each subcommand takes beside its own.
const MAKE: [&[Flag]; 3] = [OPTIONS, crate::print::FLAGS, cli::DRY_RUN];

async fn run(cli: &Cli) -> Result<()> {
    let files = cli.file_names()?;
    if let Some(unknown) = cli.args().first() {
        return Err(cli.usage(format!("Unexpected args: [{unknown}]")));
    }
    if files.is_empty() {
        return Err(Error::text("must specify one of -f and -k"));
    }
    let printer = Printer::of(&cli.flags, false)?;
    let selector = skiff_api::selector::LabelSelector::parse(cli.flags.text("selector"));
    let selector = selector.map_err(|error| Error::text(error.to_string()))?;
    let mut errors = Vec::new();
    for target in cli.file_targets(&files).await? {
        if !selector.matches_value(target.manifest["metadata"].get("labels")) {
            continue;
        }
        let path = target.resource.path(target.namespace.as_deref());
        match create(cli, target.manifest, &path).await {
            Ok(object) => printer.done(&object, &done(cli)?)?,
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) => errors.push(error.when("creating", &target.source)),
        }
    }
    Error::all(errors)
}

/// `created`, and whether that was only tried.
fn done(cli: &Cli) -> Result<String> {
    Ok(format!("created{}", cli.dry_run()?.suffix()))
}

/// Creates an object below a path, as far as `--dry-run` lets it.
async fn create(cli: &Cli, mut object: Value, path: &str) -> Result<Value> {
    let dry_run = cli.dry_run()?;
    if cli.flags.is("save-config") {
        patch::remember(&mut object);
    }
    if dry_run == DryRun::Client {
        return Ok(object);
    }
    let manager = match cli.flags.text("field-manager") {
        "" => "kubectl-create",
        manager => manager,
    };
    let parameters = query(&[
        ("dryRun", dry_run.parameter()),
        ("fieldManager", manager),
        ("fieldValidation", super::apply::validation(cli)?),
    ]);
    cli.rest()?.post(&format!("{path}{parameters}"), &object).await
}

/// Creates an object that a subcommand has made, and says so.
async fn make(cli: &Cli, object: Value) -> Result<()> {
    let prefix = failure(&object);
    make_as(cli, object, "created", &prefix).await
}

/// Creates an object where its kind is; `word` is what was done then, and `failure` what messages begin with if it was
/// not, unless that is empty.
pub(crate) async fn make_as(cli: &Cli, object: Value, word: &str, failure: &str) -> Result<()> {
    let made = send(cli, object).await.map_err(|error| match error {
        error @ Error::Status(_) if !failure.is_empty() => Error::text(format!("{failure}{error}")),
        other => other,
    })?;
    tell(cli, &made, word)
}

/// Says what was done with an object.
pub(crate) fn tell(cli: &Cli, object: &Value, word: &str) -> Result<()> {
    Printer::of(&cli.flags, false)?.done(object, &format!("{word}{}", cli.dry_run()?.suffix()))
}

/// Creates an object where its kind is.
pub(crate) async fn send(cli: &Cli, mut object: Value) -> Result<Value> {
    Printer::of(&cli.flags, false)?;
    let dry_run = cli.dry_run()?;
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(known) = skiff_api::kinds::by_api_version(&api_version, &kind) else {
        return Err(Error::text(format!("no matches for kind {kind:?} in version {api_version:?}")));
    };
    let root = if known.group.is_empty() { "/api" } else { "/apis" };
    let path = match known.namespaced {
        true => {
            let namespace = cli.namespace()?;
            if dry_run != DryRun::Client || cli.namespace_is_forced()? {
                object["metadata"]["namespace"] = namespace.clone().into();
            }
            format!("{root}/{api_version}/namespaces/{namespace}/{}", known.plural)
        }
        false => format!("{root}/{api_version}/{}", known.plural),
    };
    create(cli, object, &path).await
}

/// How messages begin that say why an object was not made; for some kinds it is the server's message alone.
fn failure(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default();
    match kind {
        "Secret" => "failed to create secret ".to_owned(),
        "Service" => format!("failed to create {} service: ", object["spec"]["type"].as_str().unwrap_or_default()),
        "PodDisruptionBudget" => "failed to create poddisruptionbudgets: ".to_owned(),
        "ResourceQuota" => "failed to create quota: ".to_owned(),
        "Namespace" | "Role" | "ClusterRole" => String::new(),
        kind => format!("failed to create {}: ", kind.to_lowercase()),
    }
}

/// The only argument of a subcommand.
fn name(cli: &Cli) -> Result<String> {
    let count = cli.flags.dash.unwrap_or(cli.args().len());
    match count {
        1 => Ok(cli.args()[0].clone()),
        count => Err(cli.usage(format!("exactly one NAME is required, got {count}"))),
    }
}

/// A flag that must be there.
pub(crate) fn required<'a>(cli: &'a Cli, flags: &[&'a str]) -> Result<()> {
    let missing: Vec<_> = flags.iter().filter(|flag| !cli.flags.given(flag)).map(|flag| format!("{flag:?}")).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::text(format!("required flag(s) {} not set", missing.join(", ")))),
    }
}
