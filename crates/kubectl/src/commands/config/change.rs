//! Changes of kubeconfig files.

use serde_json::{Map, Value, json};

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    kubeconfig::{File, LISTS},
    out::{say, tell},
};

/// A subcommand with these flags.
macro_rules! command {
    ($name:ident, $text:literal, $about:literal, $usage:literal, $flags:expr, $run:expr) => {
        pub(super) const $name: Command = Command {
            name: $text,
            about: $about,
            usage: $usage,
            flags: $flags,
            subcommands: &[],
            run: Some(|cli| Box::pin($run(cli))),
        };
    };
}

command!(USE_CONTEXT, "use-context", "Set the current-context in a kubeconfig file", "CONTEXT_NAME", &[], use_context);
command!(
    SET_CONTEXT,
    "set-context",
    "Set a context entry in kubeconfig",
    "[NAME | --current] [--cluster=cluster_nickname] [--user=user_nickname] [--namespace=namespace]",
    &[&[Flag::bool("current", "Modify the current context")]],
    set_context
);
command!(
    SET_CLUSTER,
    "set-cluster",
    "Set a cluster entry in kubeconfig",
    "NAME [--server=server] [--certificate-authority=path/to/certificate/authority] [--tls-server-name=example.com]",
    &[EMBED],
    set_cluster
);
command!(
    SET_CREDENTIALS,
    "set-credentials",
    "Set a user entry in kubeconfig",
    "NAME [--client-certificate=path/to/certfile] [--client-key=path/to/keyfile] [--token=bearer_token]",
    &[EMBED],
    set_credentials
);
command!(
    DELETE_CLUSTER,
    "delete-cluster",
    "Delete the specified cluster from the kubeconfig",
    "NAME",
    &[],
    delete_cluster
);
command!(DELETE_USER, "delete-user", "Delete the specified user from the kubeconfig", "NAME", &[], delete_user);
command!(
    DELETE_CONTEXT,
    "delete-context",
    "Delete the specified context from the kubeconfig",
    "NAME",
    &[],
    delete_context
);
command!(
    RENAME_CONTEXT,
    "rename-context",
    "Rename a context from the kubeconfig file",
    "CONTEXT_NAME NEW_NAME",
    &[],
    rename_context
);
command!(SET, "set", "Set an individual value in a kubeconfig file", "PROPERTY_NAME PROPERTY_VALUE", &[], set);
command!(UNSET, "unset", "Unset an individual value in a kubeconfig file", "PROPERTY_NAME", &[], unset);

const EMBED: &[Flag] = &[Flag::bool("embed-certs", "Embed the files named in the kubeconfig")];

/// The arguments, which must be so many.
fn words<const N: usize>(cli: &Cli) -> Result<&[String; N]> {
    cli.args().try_into().map_err(|_| cli.usage(format!("unexpected args: [{}]", cli.args().join(" "))))
}

async fn use_context(cli: &Cli) -> Result<()> {
    let [name] = words(cli)?;
    let config = cli.kubeconfig()?;
    if config.find("contexts", name).is_none() {
        return Err(Error::text(format!("no context exists with the name: {name:?}")));
    }
    let holder = config.files.iter().find(|file| file.content.contains_key("current-context")).cloned();
    let mut file = holder.unwrap_or_else(|| config.default_file());
    file.content.insert("current-context".into(), name.as_str().into());
    file.write()?;
    say!("Switched to context {name:?}.");
    Ok(())
}

/// Sets fields of an entry's part, and tells whether the entry was there.
fn put(cli: &Cli, list: &str, part: &str, name: &str, fields: &[(&str, Option<Value>)]) -> Result<bool> {
    let config = cli.kubeconfig()?;
    let known = config.find(list, name).map(|(entry, _)| entry.clone());
    let was_there = known.is_some();
    let mut entry = known.unwrap_or_else(|| json!({"name": name, part: {}}));
    let map = entry[part].as_object_mut();
    let Some(map) = map else { return Err(Error::text(format!("{list}.{name} has no {part}"))) };
    for (field, value) in fields {
        match value {
            Some(Value::Null) => drop(map.shift_remove(*field)),
            Some(value) => drop(map.insert((*field).to_owned(), value.clone())),
            None => {}
        }
    }
    let mut file = config.file_of(list, name);
    file.put(list, name, Some(entry));
    file.write()?;
    Ok(was_there)
}

async fn set_context(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let config = cli.kubeconfig()?;
    let name = match (flags.is("current"), cli.args()) {
        (true, []) => config.current_context().to_owned(),
        (false, [name]) => name.clone(),
        (true, _) => return Err(Error::text("you cannot specify both a context name and --current")),
        (false, _) => return Err(Error::text("you must specify a non-empty context name or --current")),
    };
    if name.is_empty() {
        return Err(Error::text("no current context is set"));
    }
    let given = |flag: &str| flags.some(flag).map(Value::from);
    let fields = [("cluster", given("cluster")), ("user", given("user")), ("namespace", given("namespace"))];
    let was_there = put(cli, "contexts", "context", &name, &fields)?;
    say!("Context {name:?} {}.", if was_there { "modified" } else { "created" });
    Ok(())
}

/// A file's name, or its content if that is to be embedded; the other form goes away.
fn certificate(cli: &Cli, flag: &'static str, data: &'static str) -> Result<[(&'static str, Option<Value>); 2]> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let Some(path) = cli.flags.some(flag) else { return Ok([(flag, None), (data, None)]) };
    if !cli.flags.is("embed-certs") {
        let absolute = std::path::absolute(path)?.to_string_lossy().into_owned();
        return Ok([(flag, Some(absolute.into())), (data, Some(Value::Null))]);
    }
    let content = std::fs::read(path).map_err(|error| {
        Error::text(format!(
            "could not read {flag} data from {path}: {}",
            crate::files::go_io(path.as_ref(), "open", &error)
        ))
    })?;
    Ok([(flag, Some(Value::Null)), (data, Some(BASE64_STANDARD.encode(content).into()))])
}

async fn set_cluster(cli: &Cli) -> Result<()> {
    let [name] = words(cli)?;
    let flags = &cli.flags;
    let mut fields = vec![
        ("server", flags.some("server").map(Value::from)),
        ("tls-server-name", flags.some("tls-server-name").map(Value::from)),
        (
            "insecure-skip-tls-verify",
            flags.given("insecure-skip-tls-verify").then(|| flags.is("insecure-skip-tls-verify").into()),
        ),
    ];
    fields.extend(certificate(cli, "certificate-authority", "certificate-authority-data")?);
    put(cli, "clusters", "cluster", name, &fields)?;
    say!("Cluster {name:?} set.");
    Ok(())
}

async fn set_credentials(cli: &Cli) -> Result<()> {
    let [name] = words(cli)?;
    let mut fields = vec![("token", cli.flags.some("token").map(Value::from))];
    fields.extend(certificate(cli, "client-certificate", "client-certificate-data")?);
    fields.extend(certificate(cli, "client-key", "client-key-data")?);
    put(cli, "users", "user", name, &fields)?;
    say!("User {name:?} set.");
    Ok(())
}

/// Takes an entry away from its file.
fn delete(cli: &Cli, list: &str, kind: &str, name: &str) -> Result<File> {
    let config = cli.kubeconfig()?;
    if config.find(list, name).is_none() {
        let path = config.default.display();
        return Err(Error::text(format!("cannot delete {kind} {name}, not in {path}")));
    }
    let mut file = config.file_of(list, name);
    file.put(list, name, None);
    file.write()?;
    Ok(file)
}

async fn delete_cluster(cli: &Cli) -> Result<()> {
    let [name] = words(cli)?;
    let file = delete(cli, "clusters", "cluster", name)?;
    say!("deleted cluster {name} from {}", file.path.display());
    Ok(())
}

async fn delete_user(cli: &Cli) -> Result<()> {
    let [name] = words(cli)?;
    let file = delete(cli, "users", "user", name)?;
    say!("deleted user {name} from {}", file.path.display());
    Ok(())
}

async fn delete_context(cli: &Cli) -> Result<()> {
    let [name] = words(cli)?;
    if cli.kubeconfig()?.current_context() == name {
        tell!(
            "warning: this removed your active context, use \"kubectl config use-context\" to select a different one"
        );
    }
    let file = delete(cli, "contexts", "context", name)?;
    say!("deleted context {name} from {}", file.path.display());
    Ok(())
}

async fn rename_context(cli: &Cli) -> Result<()> {
    let [old, new] = words(cli)?;
    let config = cli.kubeconfig()?;
    let path = config.default.display();
    let Some((entry, _)) = config.find("contexts", old) else {
        return Err(Error::text(format!("cannot rename the context {old:?}, it's not in {path}")));
    };
    if config.find("contexts", new).is_some() {
        return Err(Error::text(format!(
            "cannot rename the context {old:?}, the context {new:?} already exists in {path}"
        )));
    }
    let mut entry = entry.clone();
    entry["name"] = new.as_str().into();
    let mut file = config.file_of("contexts", old);
    file.put("contexts", old, None);
    file.put("contexts", new, Some(entry));
    if file.content.get("current-context").is_some_and(|current| current == old) {
        file.content.insert("current-context".into(), new.as_str().into());
    }
    file.write()?;
    say!("Context {old:?} renamed to {new:?}.");
    Ok(())
}

/// Where a property is: an entry of a list and the rest of the path, or a field of the file.
fn property(cli: &Cli, path: &str) -> Result<(File, Option<(&'static str, &'static str, String)>, Vec<String>)> {
    let config = cli.kubeconfig()?;
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let Some((list, part)) = LISTS.iter().find(|(list, _)| *list == first).copied() else {
        return Ok((config.default_file(), None, path.split('.').map(str::to_owned).collect()));
    };
    // Names may have dots in them: the longest that is there is meant.
    let names = config.names(list);
    let mut fitting: Vec<&String> =
        names.iter().filter(|name| rest == name.as_str() || rest.starts_with(&format!("{name}."))).collect();
    fitting.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let name = match fitting.first() {
        Some(name) => (*name).clone(),
        None => rest.split('.').next().unwrap_or_default().to_owned(),
    };
    let below = rest[name.len()..].trim_start_matches('.');
    let fields = below.split('.').filter(|field| !field.is_empty()).map(str::to_owned).collect();
    Ok((config.file_of(list, &name), Some((list, part, name)), fields))
}

async fn set(cli: &Cli) -> Result<()> {
    let [path, value] = words(cli)?;
    let (mut file, entry, fields) = property(cli, path)?;
    let value: Value = match value.as_str() {
        "true" => true.into(),
        "false" => false.into(),
        text => text.into(),
    };
    match entry {
        Some((list, part, name)) => {
            let mut entry = file.entry(list, &name).cloned().unwrap_or_else(|| json!({"name": name, part: Map::new()}));
            *fields.iter().fold(&mut entry[part], |at, field| &mut at[field.as_str()]) = value;
            file.put(list, &name, Some(entry));
        }
        None if fields == ["current-context"] => drop(file.content.insert("current-context".into(), value)),
        None => return Err(Error::text(format!("unknown property {path:?}"))),
    }
    file.write()?;
    say!("Property {path:?} set.");
    Ok(())
}

async fn unset(cli: &Cli) -> Result<()> {
    let [path] = words(cli)?;
    let (mut file, entry, fields) = property(cli, path)?;
    match (entry, fields.split_last()) {
        (Some((list, _, name)), None) => file.put(list, &name, None),
        (Some((list, part, name)), Some((last, above))) => {
            if let Some(mut entry) = file.entry(list, &name).cloned() {
                let holder = above.iter().fold(&mut entry[part], |at, field| &mut at[field.as_str()]);
                if let Some(map) = holder.as_object_mut() {
                    map.shift_remove(last);
                }
                file.put(list, &name, Some(entry));
            }
        }
        (None, _) if fields.len() == 1 => drop(file.content.shift_remove(&fields[0])),
        (None, _) => return Err(Error::text(format!("unknown property {path:?}"))),
    }
    file.write()?;
    say!("Property {path:?} unset.");
    Ok(())
}
