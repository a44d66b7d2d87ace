//! `kubectl set`: parts of the template of a workload.

use serde_json::{Map, Value, json};

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    out::say,
    patch,
    print::Printer,
    rest::query,
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "set",
    about: "Set specific features on objects",
    usage: "SUBCOMMAND",
    flags: &[],
    subcommands: &[ENV, IMAGE, RESOURCES, SELECTOR, SERVICE_ACCOUNT],
    run: None,
};

const MANAGER: &[Flag] =
    &[Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-set")];

/// A command's own flags, how it chooses objects by label if it does, and the flags that all have.
const fn with_shared(own: &'static [Flag], selector: &'static [Flag]) -> [&'static [Flag]; 7] {
    [own, selector, MANAGER, crate::print::FLAGS, cli::FILES, cli::ALL, cli::DRY_RUN]
}

const IMAGE: Command = Command {
    name: "image",
    about: "Update the image of a pod template",
    usage: "(-f FILENAME | TYPE NAME) CONTAINER_NAME_1=CONTAINER_IMAGE_1 ... CONTAINER_NAME_N=CONTAINER_IMAGE_N",
    flags: &with_shared(&[], cli::SELECTOR),
    subcommands: &[],
    run: Some(|cli| Box::pin(image(cli))),
};
const ENV: Command = Command {
    name: "env",
    about: "Update environment variables on a pod template",
    usage: "RESOURCE/NAME KEY_1=VAL_1 ... KEY_N=VAL_N",
    flags: &with_shared(
        &[
            Flag::text("containers", "The names of containers in the selected pod templates to change")
                .short('c')
                .or("*"),
            Flag::bool("list", "If true, display the environment and any changes in the standard format."),
            Flag::array("env", "Specify a key-value pair for an environment variable to set into each container.")
                .short('e'),
            Flag::bool("overwrite", "If true, allow environment to be overwritten.").or("true"),
        ],
        cli::SELECTOR,
    ),
    subcommands: &[],
    run: Some(|cli| Box::pin(env(cli))),
};
const RESOURCES: Command = Command {
    name: "resources",
    about: "Update resource requests/limits on objects with pod templates",
    usage: "(-f FILENAME | TYPE NAME)  ([--limits=LIMITS & --requests=REQUESTS]",
    flags: &with_shared(
        &[
            Flag::text("containers", "The names of containers in the selected pod templates to change")
                .short('c')
                .or("*"),
            Flag::text(
                "limits",
                "The resource requirement limits for this container.  For example, 'cpu=100m,memory=256Mi'.",
            ),
            Flag::text(
                "requests",
                "The resource requirement requests for this container.  For example, 'cpu=100m,memory=256Mi'.",
            ),
        ],
        cli::SELECTOR,
    ),
    subcommands: &[],
    run: Some(|cli| Box::pin(resources(cli))),
};
const SELECTOR: Command = Command {
    name: "selector",
    about: "Set the selector on a resource",
    usage: "(-f FILENAME | TYPE NAME) EXPRESSIONS [--resource-version=version]",
    flags: &with_shared(
        &[Flag::text(
            "resource-version",
            "If non-empty, the selectors update will only succeed if this is the current resource-version for the object.",
        )],
        &[],
    ),
    subcommands: &[],
    run: Some(|cli| Box::pin(selector(cli))),
};
const SERVICE_ACCOUNT: Command = Command {
    name: "serviceaccount",
    about: "Update the service account of a resource",
    usage: "(-f FILENAME | TYPE NAME) SERVICE_ACCOUNT",
    flags: &with_shared(&[], &[]),
    subcommands: &[],
    run: Some(|cli| Box::pin(service_account(cli))),
};

/// The pod, or template of one, within an object.
fn pod_spec(object: &mut Value) -> Result<&mut Value> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let path: &[&str] = match kind.as_str() {
        "Pod" => &["spec"],
        "CronJob" => &["spec", "jobTemplate", "spec", "template", "spec"],
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => {
            &["spec", "template", "spec"]
        }
        kind => return Err(Error::text(format!("the object is not a pod or does not have a pod template: {kind}"))),
    };
    Ok(path.iter().fold(object, |value, field| &mut value[*field]))
}

/// Containers whose name fits; `*` is all, of those that start a pod too if `init`.
fn containers<'a>(spec: &'a mut Value, name: &str, init: bool) -> Vec<&'a mut Value> {
    let mut found = Vec::new();
    let Some(map) = spec.as_object_mut() else { return found };
    for (field, list) in map.iter_mut() {
        if field != "containers" && !(init && field == "initContainers") {
            continue;
        }
        for container in list.as_array_mut().into_iter().flatten() {
            if name == "*" || container["name"] == name {
                found.push(container);
            }
        }
    }
    found
}

/// Words about objects, and those that contain `=` or end in `-`.
fn split(cli: &Cli) -> (Vec<String>, Vec<String>) {
    let is_pair = |word: &&String| word.contains('=') || word.ends_with('-');
    let (pairs, what): (Vec<_>, Vec<_>) = cli.args().iter().partition(is_pair);
    (what.into_iter().cloned().collect(), pairs.into_iter().cloned().collect())
}

/// Changes each object, and says what was done.
async fn each(cli: &Cli, what: &[String], done: &str, change: impl Fn(&mut Value) -> Result<()>) -> Result<()> {
    let printer = Printer::of(&cli.flags, false)?;
    let dry_run = cli.dry_run()?;
    let items = cli.all_items(what).await?;
    let mut errors = Vec::new();
    for item in &items {
        match one(cli, item, dry_run, &change).await {
            Ok(Some(object)) => printer.done(&object, &format!("{done}{}", dry_run.suffix()))?,
            Ok(None) => {}
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors)
}

/// The changed object, or nothing if nothing changes.
async fn one(
    cli: &Cli,
    item: &Item,
    dry_run: DryRun,
    change: &impl Fn(&mut Value) -> Result<()>,
) -> Result<Option<Value>> {
    let mut changed = item.object.clone();
    change(&mut changed)?;
    let (kind, patch) = match item.resource.type_name() {
        Some(name) => ("strategic-merge", patch::two_way_strategic(&item.object, &changed, &name)),
        None => ("merge", patch::two_way_merge(&item.object, &changed)),
    };
    if patch.as_object().is_some_and(|patch| patch.is_empty()) {
        return Ok(None);
    }
    if dry_run == DryRun::Client {
        return Ok(Some(changed));
    }
    let parameters = query(&[("dryRun", dry_run.parameter()), ("fieldManager", cli.flags.text("field-manager"))]);
    let path = format!("{}{parameters}", item.path());
    let sent = cli.rest()?.patch(&path, kind, &patch).await;
    sent.map(Some).map_err(|error| match error {
        error @ Error::Status(_) => Error::text(format!(
            "failed to patch {} update to pod template: {error}",
            match cli.command.rsplit(' ').next() {
                Some("image") => "image",
                Some("env") => "env",
                Some("resources") => "resources",
                _ => "object",
            }
        )),
        other => other,
    })
}

async fn image(cli: &Cli) -> Result<()> {
    let (what, pairs) = split(cli);
    if what.is_empty() && cli.file_names()?.is_empty() {
        return Err(Error::text(
            "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '<resource> <name>'\n   '<resource>'",
        ));
    }
    if pairs.is_empty() {
        return Err(Error::text("at least one image update is required"));
    }
    let images: Vec<(&str, &str)> = pairs.iter().filter_map(|pair| pair.split_once('=')).collect();
    if images.len() > 1 && images.iter().any(|(name, _)| *name == "*") {
        return Err(Error::text(
            "all containers are already specified by *, but saw more than one container_name=container_image pairs",
        ));
    }
    each(cli, &what, "image updated", |object| {
        let spec = pod_spec(object)?;
        for (name, image) in &images {
            let found = containers(spec, name, true);
            if found.is_empty() {
                return Err(Error::text(format!("unable to find container named {name:?}")));
            }
            found.into_iter().for_each(|container| container["image"] = (*image).into());
        }
        Ok(())
    })
    .await
}

async fn env(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let (what, mut pairs) = split(cli);
    pairs.extend(flags.list("env").iter().cloned());
    if what.is_empty() && cli.file_names()?.is_empty() {
        return Err(Error::text("one or more resources must be specified as <resource> <name> or <resource>/<name>"));
    }
    if flags.is("list") {
        for item in cli.all_items(&what).await? {
            let mut object = item.object.clone();
            for container in containers(pod_spec(&mut object)?, flags.text("containers"), true) {
                say!(
                    "# {} {}, container {}",
                    item.resource.kind,
                    item.name(),
                    container["name"].as_str().unwrap_or_default()
                );
                for variable in container["env"].as_array().into_iter().flatten() {
                    let name = variable["name"].as_str().unwrap_or_default();
                    match variable["valueFrom"].is_object() {
                        false => say!("{name}={}", variable["value"].as_str().unwrap_or_default()),
                        true => say!("# {name} from {}", source(&variable["valueFrom"])),
                    }
                }
            }
        }
        return Ok(());
    }
    if pairs.is_empty() {
        return Ok(());
    }
    each(cli, &what, "env updated", |object| {
        let found = containers(pod_spec(object)?, flags.text("containers"), true);
        if found.is_empty() {
            return Err(Error::text(format!("does not have any containers matching {:?}", flags.text("containers"))));
        }
        for container in found {
            let variables = container["env"].as_array().cloned().unwrap_or_default();
            container["env"] = changed(variables, &pairs, flags.is("overwrite"))?.into();
            if container["env"].as_array().is_some_and(|list| list.is_empty())
                && let Some(map) = container.as_object_mut()
            {
                map.shift_remove("env");
            }
        }
        Ok(())
    })
    .await
}

fn source(from: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if from["configMapKeyRef"].is_object() {
        let map = &from["configMapKeyRef"];
        return format!("configmap {}, key {}", text(&map["name"]), text(&map["key"]));
    }
    if from["secretKeyRef"].is_object() {
        let secret = &from["secretKeyRef"];
        return format!("secret {}, key {}", text(&secret["name"]), text(&secret["key"]));
    }
    match from["fieldRef"].is_object() {
        true => format!("field path {}", text(&from["fieldRef"]["fieldPath"])),
        false => format!("resource field {}", text(&from["resourceFieldRef"]["resource"])),
    }
}

/// Variables with `A=b` set and `A-` taken away.
fn changed(mut variables: Vec<Value>, pairs: &[String], overwrite: bool) -> Result<Vec<Value>> {
    for pair in pairs {
        match pair.split_once('=') {
            Some((name, value)) => {
                let entry = json!({"name": name, "value": value});
                match variables.iter_mut().find(|variable| variable["name"] == name) {
                    Some(known) if !overwrite && known["value"] != value => {
                        return Err(Error::text(format!(
                            "'{name}' already has a value ({}), and --overwrite is false",
                            known["value"].as_str().unwrap_or_default()
                        )));
                    }
                    Some(known) => *known = entry,
                    None => variables.push(entry),
                }
            }
            None => {
                let name = pair.trim_end_matches('-');
                variables.retain(|variable| variable["name"] != name);
            }
        }
    }
    Ok(variables)
}

async fn resources(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let parse = |text: &str| -> Result<Map<String, Value>> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (name, quantity) = pair.split_once('=').ok_or_else(|| {
                    Error::text(format!("invalid argument syntax {pair}, expected <resource>=<value>"))
                })?;
                quantity.parse::<skiff_api::quantity::Quantity>().map_err(|error| Error::text(error.to_string()))?;
                Ok((name.to_owned(), quantity.into()))
            })
            .collect()
    };
    let (limits, requests) = (parse(flags.text("limits"))?, parse(flags.text("requests"))?);
    if limits.is_empty() && requests.is_empty() {
        return Err(Error::text(
            "you must specify an update to requests or limits (in the form of --requests/--limits)",
        ));
    }
    each(cli, cli.args(), "resource requirements updated", |object| {
        let found = containers(pod_spec(object)?, flags.text("containers"), false);
        if found.is_empty() {
            return Err(Error::text(format!("unable to find container named {}", flags.text("containers"))));
        }
        for container in found {
            for (field, values) in [("limits", &limits), ("requests", &requests)] {
                for (name, quantity) in values {
                    container["resources"][field][name] = quantity.clone();
                }
            }
        }
        Ok(())
    })
    .await
}

async fn selector(cli: &Cli) -> Result<()> {
    let (what, pairs) = split(cli);
    if pairs.is_empty() {
        return Err(Error::text("a selector is required"));
    }
    let text = pairs.join(",");
    let labels: Map<String, Value> =
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.into())).collect();
    each(cli, &what, "selector updated", |object| match object["kind"] == "Service" {
        true => {
            object["spec"]["selector"] = labels.clone().into();
            Ok(())
        }
        false => Err(Error::text("selector is only available for services")),
    })
    .await
}

async fn service_account(cli: &Cli) -> Result<()> {
    let Some((account, what)) = cli.args().split_last() else {
        return Err(Error::text("serviceaccount is required"));
    };
    each(cli, what, "serviceaccount updated", |object| {
        pod_spec(object)?["serviceAccountName"] = account.clone().into();
        Ok(())
    })
    .await
}
