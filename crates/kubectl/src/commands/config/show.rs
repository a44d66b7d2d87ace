//! What stands in kubeconfig files.

use serde_json::{Value, json};

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    kubeconfig::LISTS,
    out::{self, say},
    print::{Printer, tabs::Tabs},
};

pub(super) const CURRENT_CONTEXT: Command = Command {
    name: "current-context",
    about: "Display the current-context",
    usage: "",
    flags: &[],
    subcommands: &[],
    run: Some(|cli| Box::pin(current_context(cli))),
};
pub(super) const GET_CLUSTERS: Command = Command {
    name: "get-clusters",
    about: "Display clusters defined in the kubeconfig",
    usage: "",
    flags: &[],
    subcommands: &[],
    run: Some(|cli| Box::pin(names(cli, "clusters"))),
};
pub(super) const GET_USERS: Command = Command {
    name: "get-users",
    about: "Display users defined in the kubeconfig",
    usage: "",
    flags: &[],
    subcommands: &[],
    run: Some(|cli| Box::pin(names(cli, "users"))),
};
pub(super) const GET_CONTEXTS: Command = Command {
    name: "get-contexts",
    about: "Describe one or many contexts",
    usage: "[(-o|--output=)name)]",
    flags: &[&[
        Flag::bool("no-headers", "When using the default or custom-column output format, don't print headers."),
        Flag::text("output", "Output format. One of: (name).").short('o'),
    ]],
    subcommands: &[],
    run: Some(|cli| Box::pin(get_contexts(cli))),
};
pub(super) const VIEW: Command = Command {
    name: "view",
    about: "Display merged kubeconfig settings or a specified kubeconfig file",
    usage: "[flags]",
    flags: &[VIEW_FLAGS],
    subcommands: &[],
    run: Some(|cli| Box::pin(view(cli))),
};

const VIEW_FLAGS: &[Flag] = &[
    Flag::bool("flatten", "Flatten the resulting kubeconfig file into self-contained output"),
    Flag::bool("minify", "Remove all information not used by current-context from the output"),
    Flag::bool("raw", "Display raw byte data and sensitive data"),
    Flag::text("output", "Output format: json, yaml, name, jsonpath=…").short('o').or("yaml"),
    Flag::bool("show-managed-fields", "If true, keep the managedFields when printing objects in JSON or YAML format."),
    Flag::bool(
        "allow-missing-template-keys",
        "If true, ignore any errors in templates when a field or map key is missing in the template.",
    )
    .or("true"),
];

async fn current_context(cli: &Cli) -> Result<()> {
    match cli.flags.some("context").unwrap_or(cli.kubeconfig()?.current_context()) {
        "" => Err(Error::text("current-context is not set")),
        name => {
            say!("{name}");
            Ok(())
        }
    }
}

async fn names(cli: &Cli, list: &str) -> Result<()> {
    say!("NAME");
    cli.kubeconfig()?.names(list).iter().for_each(|name| say!("{name}"));
    Ok(())
}

async fn get_contexts(cli: &Cli) -> Result<()> {
    let config = cli.kubeconfig()?;
    let (flags, args) = (&cli.flags, cli.args());
    let names = match args {
        [] => config.names("contexts"),
        given => given.to_vec(),
    };
    let only_names = match flags.text("output") {
        "" => false,
        "name" => true,
        other => return Err(Error::text(format!("output must be one of '' or 'name': {other}"))),
    };
    let mut errors = Vec::new();
    let mut table = String::new();
    if !flags.is("no-headers") {
        table.push_str("CURRENT\tNAME\tCLUSTER\tAUTHINFO\tNAMESPACE\n");
    }
    for name in &names {
        let Some((entry, _)) = config.find("contexts", name) else {
            errors.push(Error::text(format!("context {name} not found")));
            continue;
        };
        if only_names {
            say!("{name}");
            continue;
        }
        let text = |field: &str| entry["context"][field].as_str().unwrap_or_default();
        let mark = if *name == config.current_context() { "*" } else { "" };
        table.push_str(&format!("{mark}\t{name}\t{}\t{}\t{}\n", text("cluster"), text("user"), text("namespace")));
    }
    if !only_names {
        out::text(&Tabs::of_tables().align(&table));
    }
    Error::all(errors)
}

async fn view(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let mut merged = cli.kubeconfig()?.merged();
    if flags.is("minify") {
        minify(&mut merged, flags.some("context"))?;
    }
    if flags.is("flatten") {
        flatten(&mut merged)?;
    }
    if !flags.is("raw") {
        hide(&mut merged);
    }
    Printer::of(flags, false)?.print(&merged)
}

/// Leaves the current context with its cluster and user.
fn minify(config: &mut Value, wanted: Option<&str>) -> Result<()> {
    let name = wanted.unwrap_or(config["current-context"].as_str().unwrap_or_default()).to_owned();
    if name.is_empty() {
        return Err(Error::text("current-context must exist in order to minify"));
    }
    let contexts = config["contexts"].as_array().cloned().unwrap_or_default();
    let Some(context) = contexts.into_iter().find(|entry| entry["name"] == name) else {
        return Err(Error::text(format!("cannot locate context {name}")));
    };
    for (list, kept) in [("clusters", &context["context"]["cluster"]), ("users", &context["context"]["user"])] {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|entry| entry["name"] == *kept);
        }
    }
    config["contexts"] = json!([context]);
    config["current-context"] = name.into();
    Ok(())
}

/// Puts what stands in other files into this one.
fn flatten(config: &mut Value) -> Result<()> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    for (list, field) in LISTS {
        for entry in config[list].as_array_mut().into_iter().flatten() {
            for name in ["certificate-authority", "client-certificate", "client-key"] {
                let Some(path) = entry[field][name].as_str().map(str::to_owned) else { continue };
                let content = std::fs::read(&path)
                    .map_err(|error| Error::text(crate::files::go_io(path.as_ref(), "open", &error)))?;
                entry[field][format!("{name}-data")] = BASE64_STANDARD.encode(content).into();
                if let Some(map) = entry[field].as_object_mut() {
                    map.shift_remove(name);
                }
            }
        }
    }
    Ok(())
}

/// Data and secrets are only named.
fn hide(config: &mut Value) {
    for (list, field) in LISTS {
        for entry in config[list].as_array_mut().into_iter().flatten() {
            for name in ["certificate-authority-data", "client-certificate-data", "client-key-data"] {
                if entry[field][name].is_string() {
                    entry[field][name] = "DATA+OMITTED".into();
                }
            }
            for name in ["token", "password"] {
                if entry[field][name].is_string() {
                    entry[field][name] = "REDACTED".into();
                }
            }
        }
    }
}
