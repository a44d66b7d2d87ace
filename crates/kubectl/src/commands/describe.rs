//! `kubectl describe`.

use crate::{
    cli::{self, Cli, Command},
    describe::Describer,
    error::{Error, Result},
    flags::Flag,
    out::{self, say, tell},
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "describe",
    about: "Show details of a specific resource or group of resources",
    usage: "(-f FILENAME | TYPE [NAME_PREFIX | -l label] | TYPE/NAME)",
    flags: &[FLAGS, cli::FILES, cli::SELECTOR],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    Flag::int("chunk-size", "Return large lists in chunks rather than all at once.").or("500"),
    Flag::bool("show-events", "If true, display events related to the described object.").or("true"),
];

async fn run(cli: &Cli) -> Result<()> {
    if cli.args().is_empty() && cli.file_names()?.is_empty() {
        return Err(Error::text(
            "You must specify the type of resource to describe. Use \"kubectl api-resources\" for a complete list of supported resources.",
        ));
    }
    let targets = cli.targets(cli.args(), true).await?;
    let (items, mut errors) = cli.items(&targets).await?;
    let events = cli.flags.is("show-events");
    let only_prefix = matches!((cli.args(), errors.as_slice()), ([_, _], [error]) if error.is_not_found());
    if only_prefix && let Some(not_found) = errors.pop() {
        return matching(cli, &cli.args()[0], &cli.args()[1], not_found).await;
    }
    let alone = items.len() == 1 && errors.is_empty();
    let describer = Describer::new(cli, events && (alone || cli.flags.given("show-events")));
    for (i, item) in items.iter().enumerate() {
        match describer.describe(item).await {
            Ok(text) => out::text(&format!("{}{text}", if i == 0 { "" } else { "\n\n" })),
            Err(error) => errors.push(error),
        }
    }
    if items.is_empty() && errors.is_empty() {
        match cli.flags.is("all-namespaces") || !targets.iter().all(|target| target.resource.namespaced) {
            true if cli.flags.is("all-namespaces") => tell!("No resources found"),
            _ => tell!("No resources found in {} namespace.", cli.namespace()?),
        }
    }
    Error::all(errors)
}

/// A name that is nobody's may be the beginning of names.
async fn matching(cli: &Cli, kind: &str, prefix: &str, not_found: Error) -> Result<()> {
    let resource = cli.resource(kind).await?;
    let namespace = cli.namespace()?;
    let place = resource.namespaced.then_some(namespace.as_str());
    let (_, objects) = cli.list(resource, place, &crate::targets::Selectors::default()).await?;
    let describer = Describer::new(cli, cli.flags.given("show-events") && cli.flags.is("show-events"));
    let mut found = false;
    for object in objects {
        let item = Item { resource: resource.clone(), object };
        if item.name().starts_with(prefix) {
            found = true;
            say!("{}", describer.describe(&item).await?);
        }
    }
    if found { Ok(()) } else { Err(not_found) }
}
