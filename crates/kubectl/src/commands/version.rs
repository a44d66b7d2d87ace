//! `kubectl version`, `kubectl cluster-info`.

use serde_json::{Value, json};

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::say,
    print::yaml,
    rest::query,
};

pub(crate) const VERSION: Command = Command {
    name: "version",
    about: "Print the client and server version information",
    usage: "[flags]",
    flags: &[&[
        Flag::bool("client", "If true, shows client version only (no server required)."),
        Flag::text("output", "One of 'yaml' or 'json'.").short('o'),
    ]],
    subcommands: &[],
    run: Some(|cli| Box::pin(version(cli))),
};

pub(crate) const CLUSTER_INFO: Command = Command {
    name: "cluster-info",
    about: "Display cluster information",
    usage: "[flags]",
    flags: &[],
    subcommands: &[],
    run: Some(|cli| Box::pin(cluster_info(cli))),
};

/// The release whose behaviour this program has.
const KUBERNETES: &str = "v1.36.0";
/// Versions that may be so far apart are supported with each other.
const SUPPORTED_SKEW: i64 = 1;

async fn version(cli: &Cli) -> Result<()> {
    let git_version = format!("{KUBERNETES}+skiff{}", env!("CARGO_PKG_VERSION"));
    let client = json!({
        "major": "1", "minor": "36", "gitVersion": git_version, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    });
    let server = match cli.flags.is("client") {
        true => Ok(Value::Null),
        false => match cli.rest() {
            Ok(rest) => rest.get("/version").await,
            Err(error) => Err(error),
        },
    };
    let mut all = json!({"clientVersion": client});
    if let Ok(server) = &server
        && !server.is_null()
    {
        all["serverVersion"] = server.clone();
    }
    match cli.flags.text("output") {
        "" => {
            say!("Client Version: {git_version}");
            if let Some(version) = all["serverVersion"]["gitVersion"].as_str() {
                say!("Server Version: {version}");
                warn_of_skew(&all["serverVersion"]);
            }
        }
        "yaml" => say!("{}", yaml::to_string(&all)),
        "json" => say!("{}", serde_json::to_string_pretty(&all).unwrap_or_default()),
        _ => return Err(Error::text("--output must be 'yaml' or 'json'")),
    }
    server.map(drop)
}

fn warn_of_skew(server: &Value) {
    let minor = server["minor"].as_str().unwrap_or_default().trim_end_matches('+').parse::<i64>().unwrap_or(36);
    if (minor - 36).abs() > SUPPORTED_SKEW {
        crate::out::tell!(
            "WARNING: version difference between client (1.36) and server (1.{minor}) exceeds the supported minor version skew of +/-1"
        );
    }
}

async fn cluster_info(cli: &Cli) -> Result<()> {
    let rest = cli.rest()?;
    let namespace = cli.flags.some("namespace").unwrap_or("kube-system");
    let selector = query(&[("labelSelector", "kubernetes.io/cluster-service=true")]);
    let services = rest.get(&format!("/api/v1/namespaces/{namespace}/services{selector}")).await?;
    let server = rest.config.server.trim_end_matches('/');
    say!("Kubernetes control plane is running at {server}");
    for service in services["items"].as_array().into_iter().flatten() {
        let (metadata, spec) = (&service["metadata"], &service["spec"]);
        let name = metadata["name"].as_str().unwrap_or_default();
        let shown = metadata["labels"]["kubernetes.io/name"].as_str().unwrap_or(name);
        let port = &spec["ports"][0];
        let scheme = if port["port"] == 443 || port["name"] == "https" { "https:" } else { "" };
        let port = match port["name"].as_str() {
            Some(name) if !name.is_empty() => format!(":{name}"),
            _ if scheme.is_empty() => String::new(),
            _ => ":".to_owned(),
        };
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        say!("{shown} is running at {server}/api/v1/namespaces/{namespace}/services/{scheme}{name}{port}/proxy");
    }
    say!("\nTo further debug and diagnose cluster problems, use 'kubectl cluster-info dump'.");
    Ok(())
}
