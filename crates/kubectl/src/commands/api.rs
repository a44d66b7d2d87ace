//! `kubectl api-resources` and `kubectl api-versions`.

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{self, say},
    print::tabs::Tabs,
};

pub(crate) const RESOURCES: Command = Command {
    name: "api-resources",
    about: "Print the supported API resources on the server",
    usage: "[flags]",
    flags: &[&[
        Flag::text("api-group", "Limit to resources in the specified API group."),
        Flag::bool("cached", "Use the cached list of resources if available."),
        Flag::list("categories", "Limit to resources that belong to the specified categories."),
        Flag::bool(
            "namespaced",
            "If false, non-namespaced resources will be returned, otherwise returning namespaced resources by default.",
        )
        .or("true"),
        Flag::bool("no-headers", "When using the default or custom-column output format, don't print headers."),
        Flag::text("output", "Output format. One of: (wide, name).").short('o'),
        Flag::text(
            "sort-by",
            "If non-empty, sort list of resources using specified field. The field can be either 'name' or 'kind'.",
        ),
        Flag::list("verbs", "Limit to resources that support the specified verbs."),
    ]],
    subcommands: &[],
    run: Some(|cli| Box::pin(resources(cli))),
};

pub(crate) const VERSIONS: Command = Command {
    name: "api-versions",
    about: "Print the supported API versions on the server, in the form of \"group/version\"",
    usage: "",
    flags: &[],
    subcommands: &[],
    run: Some(|cli| Box::pin(versions(cli))),
};

async fn resources(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    if !cli.args().is_empty() {
        return Err(cli.usage(format!("unexpected arguments: [{}]", cli.args().join(" "))));
    }
    let output = flags.text("output");
    if !matches!(output, "" | "wide" | "name") {
        return Err(Error::text(format!("--output {output} is not available")));
    }
    let sort_by = flags.text("sort-by");
    if !matches!(sort_by, "" | "name" | "kind") {
        return Err(Error::text("--sort-by accepts only name or kind"));
    }
    let discovery = cli.discovery().await?;
    let mut chosen: Vec<_> = discovery
        .resources
        .iter()
        .filter(|resource| resource.preferred && !resource.verbs.is_empty())
        .filter(|resource| flags.some("api-group").is_none_or(|group| resource.group == group))
        .filter(|resource| !flags.given("namespaced") || resource.namespaced == flags.is("namespaced"))
        .filter(|resource| flags.list("verbs").iter().all(|verb| resource.verbs.contains(verb)))
        .filter(|resource| flags.list("categories").iter().all(|category| resource.categories.contains(category)))
        .collect();
    match sort_by {
        "name" => chosen.sort_by_key(|resource| resource.plural.clone()),
        "kind" => chosen.sort_by_key(|resource| resource.kind.clone()),
        _ => chosen.sort_by_key(|resource| (resource.group.clone(), resource.plural.clone())),
    }
    if output == "name" {
        chosen.iter().for_each(|resource| say!("{}", resource.full_plural()));
        return Ok(());
    }
    let mut table = String::new();
    if !flags.is("no-headers") {
        table.push_str("NAME\tSHORTNAMES\tAPIVERSION\tNAMESPACED\tKIND");
        table.push_str(if output == "wide" { "\tVERBS\tCATEGORIES\n" } else { "\n" });
    }
    for resource in chosen {
        let short = resource.short_names.join(",");
        let (version, kind) = (resource.api_version(), &resource.kind);
        table.push_str(&format!("{}\t{short}\t{version}\t{}\t{kind}", resource.plural, resource.namespaced));
        if output == "wide" {
            table.push_str(&format!("\t{}\t{}", resource.verbs.join(","), resource.categories.join(",")));
        }
        table.push('\n');
    }
    out::text(&Tabs::of_tables().align(&table));
    Ok(())
}

async fn versions(cli: &Cli) -> Result<()> {
    let mut versions = cli.discovery().await?.versions.clone();
    versions.sort();
    versions.iter().for_each(|version| say!("{version}"));
    Ok(())
}
