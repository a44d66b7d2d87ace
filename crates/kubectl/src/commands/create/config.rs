//! `kubectl create configmap` and `kubectl create secret`.

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{MAKE, make, name, required};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    files::go_io,
    flags::Flag,
};

const SOURCES: &[Flag] = &[
    Flag::list("from-file", "Key file can be specified using its file path, or with a key: [key=]source.").short('\0'),
    Flag::array("from-literal", "Specify a key and literal value to insert (i.e. mykey=somevalue)"),
    Flag::list("from-env-file", "Specify the path to a file to read lines of key=val pairs."),
];

pub(super) const CONFIG_MAP: Command = Command {
    name: "configmap",
    about: "Create a config map from a local file, directory or literal value",
    usage: "NAME [--from-file=[key=]source] [--from-literal=key1=value1] [--dry-run=server|client|none]",
    flags: &[SOURCES, MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(config_map(cli))),
};

pub(super) const SECRET: Command = Command {
    name: "secret",
    about: "Create a secret using a specified subcommand",
    usage: "(docker-registry | generic | tls)",
    flags: &[],
    subcommands: &[
        Command {
            name: "docker-registry",
            about: "Create a secret for use with a Docker registry",
            usage: "NAME --docker-username=user --docker-password=password --docker-email=email [--docker-server=string]",
            flags: &[DOCKER, SOURCES, MAKE[0], MAKE[1], MAKE[2]],
            subcommands: &[],
            run: Some(|cli| Box::pin(docker(cli))),
        },
        Command {
            name: "generic",
            about: "Create a secret from a local file, directory, or literal value",
            usage: "NAME [--type=string] [--from-file=[key=]source] [--from-literal=key1=value1]",
            flags: &[&[Flag::text("type", "The type of secret to create")], SOURCES, MAKE[0], MAKE[1], MAKE[2]],
            subcommands: &[],
            run: Some(|cli| Box::pin(generic(cli))),
        },
        Command {
            name: "tls",
            about: "Create a TLS secret",
            usage: "NAME --cert=path/to/cert/file --key=path/to/key/file",
            flags: &[TLS, MAKE[0], MAKE[1], MAKE[2]],
            subcommands: &[],
            run: Some(|cli| Box::pin(tls(cli))),
        },
    ],
    run: None,
};

const DOCKER: &[Flag] = &[
    Flag::text("docker-username", "Username for Docker registry authentication"),
    Flag::text("docker-password", "Password for Docker registry authentication"),
    Flag::text("docker-email", "Email for Docker registry"),
    Flag::text("docker-server", "Server location for Docker registry").or("https://index.docker.io/v1/"),
];
const TLS: &[Flag] = &[
    Flag::text("cert", "Path to PEM encoded public key certificate."),
    Flag::text("key", "Path to private key associated with given certificate."),
];

/// Keys and contents, in the order in which they came.
type Entries = Vec<(String, Vec<u8>)>;

async fn config_map(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let (mut data, mut binary) = (Map::new(), Map::new());
    for (key, content) in entries(cli, "ConfigMap", &name)? {
        match String::from_utf8(content) {
            Ok(text) => drop(data.insert(key, text.into())),
            Err(error) => drop(binary.insert(key, BASE64_STANDARD.encode(error.into_bytes()).into())),
        }
    }
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    for (field, map) in [("data", data), ("binaryData", binary)] {
        if !map.is_empty() {
            object[field] = map.into();
        }
    }
    make(cli, object).await
}

async fn generic(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let entries = entries(cli, "Secret", &name)?;
    make(cli, secret(&name, cli.flags.text("type"), entries)).await
}

fn secret(name: &str, kind: &str, entries: Entries) -> Value {
    let data: Map<String, Value> =
        entries.into_iter().map(|(key, content)| (key, BASE64_STANDARD.encode(content).into())).collect();
    let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    if !data.is_empty() {
        object["data"] = data.into();
    }
    if !kind.is_empty() {
        object["type"] = kind.into();
    }
    object
}

async fn tls(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    required(cli, &["cert", "key"])?;
    let read = |flag: &str| {
        let path = Path::new(cli.flags.text(flag));
        let failed =
            |error| Error::text(format!("Cannot read file {}, {}", path.display(), go_io(path, "open", &error)));
        std::fs::read(path).map_err(failed)
    };
    let entries = vec![("tls.crt".to_owned(), read("cert")?), ("tls.key".to_owned(), read("key")?)];
    make(cli, secret(&name, "kubernetes.io/tls", entries)).await
}

async fn docker(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    const KIND: &str = "kubernetes.io/dockerconfigjson";
    if cli.flags.given("from-file") {
        let entries = entries(cli, "Secret", &name)?;
        return make(cli, secret(&name, KIND, entries)).await;
    }
    let text = |flag: &str| cli.flags.text(flag);
    if text("docker-username").is_empty() || text("docker-password").is_empty() {
        return Err(Error::text(
            "either --from-file or the combination of --docker-username, --docker-password and --docker-server is required",
        ));
    }
    let (user, password) = (text("docker-username"), text("docker-password"));
    let mut entry = json!({"username": user, "password": password});
    if !text("docker-email").is_empty() {
        entry["email"] = text("docker-email").into();
    }
    entry["auth"] = BASE64_STANDARD.encode(format!("{user}:{password}")).into();
    let config = json!({"auths": {text("docker-server"): entry}});
    let content = config.to_string().into_bytes();
    make(cli, secret(&name, KIND, vec![(".dockerconfigjson".to_owned(), content)])).await
}

/// What literals and files say.
fn entries(cli: &Cli, kind: &str, name: &str) -> Result<Entries> {
    let flags = &cli.flags;
    if flags.given("from-env-file") && (flags.given("from-file") || flags.given("from-literal")) {
        return Err(Error::text("from-env-file cannot be combined with from-file or from-literal"));
    }
    let mut entries = Entries::new();
    let mut add = |key: String, content: Vec<u8>| {
        let wrong = skiff_api::names::config_key(&key);
        if !wrong.is_empty() {
            return Err(Error::text(format!("{key:?} is not a valid key name for a {kind}: {}", wrong.join(","))));
        }
        if entries.iter().any(|(known, _)| *known == key) {
            let text =
                format!("cannot add key {key:?}, another key by that name already exists in Data for {kind} {name:?}");
            return Err(Error::text(match kind {
                "Secret" => format!("cannot add key {key}, another key by that name already exists"),
                _ => text,
            }));
        }
        entries.push((key, content));
        Ok(())
    };
    for source in flags.list("from-file") {
        let (key, path) = match source.split_once('=') {
            Some(("", _)) => return Err(Error::text(format!("key name for file path {} missing", &source[1..]))),
            Some((key, "")) => return Err(Error::text(format!("file path for key name {key} missing"))),
            Some((key, path)) => (Some(key), Path::new(path)),
            None => (None, Path::new(source)),
        };
        let meta = std::fs::metadata(path).map_err(|error| {
            let why = go_io(path, "stat", &error);
            Error::text(format!("error reading {}: {}", path.display(), why.rsplit(": ").next().unwrap_or_default()))
        })?;
        let read = |path: &Path| std::fs::read(path).map_err(|error| Error::text(go_io(path, "open", &error)));
        let file_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if meta.is_dir() {
            if key.is_some() {
                return Err(Error::text("cannot give a key name for a directory path"));
            }
            let mut paths: Vec<_> = std::fs::read_dir(path)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            for path in paths.iter().filter(|path| path.is_file() && !path.is_symlink()) {
                add(file_name(path), read(path)?)?;
            }
        } else {
            add(key.map_or_else(|| file_name(path), str::to_owned), read(path)?)?;
        }
    }
    for literal in flags.list("from-literal") {
        let Some((key, value)) = literal.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Error::text(format!("invalid literal source {literal}, expected key=value")));
        };
        // The shell leaves quotes that stand behind an equals sign.
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
        add(key.to_owned(), value.as_bytes().to_vec())?;
    }
    for file in flags.list("from-env-file") {
        let path = Path::new(file);
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::text(format!(
                "error reading {file}: {}",
                go_io(path, "open", &error).rsplit(": ").next().unwrap_or_default()
            ))
        })?;
        for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key, value.to_owned()),
                // A name alone takes the value of this process' environment.
                None => match std::env::var(line) {
                    Ok(value) => (line, value),
                    Err(_) => continue,
                },
            };
            add(key.to_owned(), value.into_bytes())?;
        }
    }
    Ok(entries)
}
