//! `kubectl cordon`, `uncordon`, `drain` and `taint`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    out::{say, tell},
    print::Printer,
    rest::query,
    targets::{Item, Selectors},
};

pub(crate) const CORDON: Command = Command {
    name: "cordon",
    about: "Mark node as unschedulable",
    usage: "NODE",
    flags: &[cli::SELECTOR, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(schedulable(cli, true))),
};
pub(crate) const UNCORDON: Command = Command {
    name: "uncordon",
    about: "Mark node as schedulable",
    usage: "NODE",
    flags: &[cli::SELECTOR, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(schedulable(cli, false))),
};
pub(crate) const DRAIN: Command = Command {
    name: "drain",
    about: "Drain node in preparation for maintenance",
    usage: "NODE",
    flags: &[DRAIN_FLAGS, cli::SELECTOR, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(drain(cli))),
};
pub(crate) const TAINT: Command = Command {
    name: "taint",
    about: "Update the taints on one or more nodes",
    usage: "NODE NAME KEY_1=VAL_1:TAINT_EFFECT_1 ... KEY_N=VAL_N:TAINT_EFFECT_N",
    flags: &[
        &[
            Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-taint"),
            Flag::bool("overwrite", "If true, allow taints to be overwritten."),
        ],
        crate::print::FLAGS,
        cli::SELECTOR,
        cli::ALL,
        cli::DRY_RUN,
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(taint(cli))),
};

const DRAIN_FLAGS: &[Flag] = &[
    Flag::bool("delete-emptydir-data", "Continue even if there are pods using emptyDir."),
    Flag::bool("disable-eviction", "Force drain to use delete, even if eviction is supported."),
    Flag::bool("force", "Continue even if there are pods that do not declare a controller."),
    Flag::int("grace-period", "Period of time in seconds given to each pod to terminate gracefully.").or("-1"),
    Flag::bool("ignore-daemonsets", "Ignore DaemonSet-managed pods."),
    Flag::text("pod-selector", "Label selector to filter pods on the node"),
    Flag::duration("timeout", "The length of time to wait before giving up, zero means infinite").or("0s"),
];

/// How long an eviction that a budget refuses waits before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How often deleted pods are looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

async fn nodes(cli: &Cli) -> Result<Vec<Item>> {
    let names = cli.args();
    match (names.is_empty(), cli.flags.given("selector")) {
        (true, false) => {
            return Err(cli.usage(format!("USAGE: {} NODE [flags]", cli.command)));
        }
        (false, true) => return Err(cli.usage("cannot specify both a node name and a --selector option")),
        _ => {}
    }
    let mut args = vec!["nodes".to_owned()];
    args.extend(names.iter().map(|name| name.strip_prefix("node/").unwrap_or(name).to_owned()));
    cli.all_items(&args).await
}

async fn schedulable(cli: &Cli, cordon: bool) -> Result<()> {
    for node in nodes(cli).await? {
        mark(cli, &node, cordon).await?;
    }
    Ok(())
}

async fn mark(cli: &Cli, node: &Item, cordon: bool) -> Result<()> {
    let (name, word) = (node.name(), if cordon { "cordoned" } else { "uncordoned" });
    let dry_run = cli.dry_run()?;
    if (node.object["spec"]["unschedulable"] == true) == cordon {
        say!("node/{name} already {word}{}", dry_run.suffix());
        return Ok(());
    }
    if dry_run != DryRun::Client {
        let value = if cordon { Value::Bool(true) } else { Value::Null };
        let path = format!("{}{}", node.path(), query(&[("dryRun", dry_run.parameter())]));
        cli.rest()?.patch(&path, "strategic-merge", &json!({"spec": {"unschedulable": value}})).await?;
    }
    say!("node/{name} {word}{}", dry_run.suffix());
    Ok(())
}

async fn drain(cli: &Cli) -> Result<()> {
    let nodes = nodes(cli).await?;
    for node in &nodes {
        mark(cli, node, true).await?;
    }
    for node in &nodes {
        let pods = chosen(cli, node).await?;
        let limit = cli.flags.duration("timeout")?.positive();
        let emptied = empty(cli, pods);
        let late = || Error::text("global timeout reached: ".to_owned() + cli.flags.text("timeout"));
        crate::watching::within(limit, emptied, late).await?;
        say!("node/{} drained{}", node.name(), cli.dry_run()?.suffix());
    }
    Ok(())
}

/// The pods that have to leave; those that may not be touched without being asked are an error.
async fn chosen(cli: &Cli, node: &Item) -> Result<Vec<Value>> {
    let flags = &cli.flags;
    let selectors =
        Selectors { labels: flags.text("pod-selector").to_owned(), fields: format!("spec.nodeName={}", node.name()) };
    let resource = cli.resource("pods").await?;
    let pods = cli.list(resource, None, &selectors).await?.1;
    let mut leaving = Vec::new();
    let (mut daemons, mut unmanaged, mut local) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let name = format!("{}/{}", text("namespace"), text("name"));
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let mut owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let owner = owners.find(|owner| owner["controller"] == true);
        if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
            continue;
        }
        if owner.is_some_and(|owner| owner["kind"] == "DaemonSet") && !ended {
            daemons.push(name);
            continue;
        }
        let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        if volumes.any(|volume| volume["emptyDir"].is_object()) && !ended {
            local.push(name.clone());
        }
        if owner.is_none() && !ended {
            unmanaged.push(name);
        }
        leaving.push(pod);
    }
    let mut refused = Vec::new();
    let mut warnings = Vec::new();
    let mut check = |names: &[String], allowed: bool, error: &str, flag: &str, warning: &str| {
        if names.is_empty() {
            return;
        }
        match allowed {
            false => refused.push(format!("cannot delete {error} (use {flag}): {}", names.join(", "))),
            true if !warning.is_empty() => warnings.push(format!("{warning}: {}", names.join(", "))),
            true => {}
        }
    };
    check(
        &daemons,
        flags.is("ignore-daemonsets"),
        "DaemonSet-managed Pods",
        "--ignore-daemonsets to ignore",
        "ignoring DaemonSet-managed Pods",
    );
    check(
        &local,
        flags.is("delete-emptydir-data"),
        "Pods with local storage",
        "--delete-emptydir-data to override",
        "",
    );
    check(
        &unmanaged,
        flags.is("force"),
        "Pods that declare no controller",
        "--force to override",
        "deleting Pods that declare no controller",
    );
    if !refused.is_empty() {
        let all = match refused.as_slice() {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        let name = node.name();
        tell!("error: unable to drain node {name:?} due to error: {all}, continuing command...");
        tell!("There are pending nodes to be drained:\n {name}");
        return Err(Error::Plain(refused.join("\n")));
    }
    if !warnings.is_empty() {
        tell!("Warning: {}", warnings.join("; "));
    }
    Ok(leaving)
}

/// Evicts pods and waits until they are gone.
async fn empty(cli: &Cli, pods: Vec<Value>) -> Result<()> {
    let flags = &cli.flags;
    let dry_run = cli.dry_run()?;
    let verb = if flags.is("disable-eviction") { "deleting" } else { "evicting" };
    for pod in &pods {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        say!("{verb} pod {}/{}{}", text("namespace"), text("name"), dry_run.suffix());
    }
    if dry_run == DryRun::Client {
        return Ok(());
    }
    futures::future::try_join_all(pods.iter().map(|pod| evict(cli, pod))).await?;
    Ok(())
}

async fn evict(cli: &Cli, pod: &Value) -> Result<()> {
    let (flags, rest, dry_run) = (&cli.flags, cli.rest()?, cli.dry_run()?);
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    let grace_period = flags.int("grace-period")?;
    if grace_period >= 0 {
        options["gracePeriodSeconds"] = grace_period.into();
    }
    let parameters = query(&[("dryRun", dry_run.parameter())]);
    loop {
        let asked = match flags.is("disable-eviction") {
            true => rest.delete(&format!("{path}{parameters}"), &options).await,
            false => {
                let eviction = json!({
                    "apiVersion": "policy/v1", "kind": "Eviction",
                    "metadata": {"name": name, "namespace": namespace}, "deleteOptions": options,
                });
                rest.post(&format!("{path}/eviction{parameters}"), &eviction).await
            }
        };
        match asked {
            Ok(_) => break,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.reason() == "TooManyRequests" => {
                tell!("error when evicting pods/{name:?} -n {namespace:?} (will retry after 5s): {error}");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => {
                return Err(Error::text(format!("error when evicting pods/{name:?} -n {namespace:?}: {error}")));
            }
        }
    }
    if dry_run != DryRun::None {
        return Ok(());
    }
    loop {
        match rest.get(&path).await {
            Err(error) if error.is_not_found() => break,
            Ok(other) if other["metadata"]["uid"] != pod["metadata"]["uid"] => break,
            Ok(_) => tokio::time::sleep(LOOK_AGAIN).await,
            Err(error) => return Err(error),
        }
    }
    say!("pod/{name} {}", if flags.is("disable-eviction") { "deleted" } else { "evicted" });
    Ok(())
}

async fn taint(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let is_taint = |word: &&String| word.contains([':', '=']) || word.ends_with('-');
    let split = cli.args().iter().position(|word| is_taint(&word)).unwrap_or(cli.args().len());
    let (what, words) = cli.args().split_at(split);
    if what.is_empty() {
        return Err(Error::text("one or more resources must be specified as <resource> <name>"));
    }
    if words.is_empty() {
        return Err(Error::text("at least one taint update is required"));
    }
    let changes: Vec<Change> = words.iter().map(|word| Change::parse(word)).collect::<Result<_>>()?;
    let dry_run = cli.dry_run()?;
    let printer = Printer::of(flags, false)?;
    for node in cli.all_items(what).await? {
        if node.resource.kind != "Node" {
            return Err(Error::text(format!("invalid resource type {}, only node(s) is supported", what[0])));
        }
        let mut taints = node.object["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let mut done = "untainted";
        for change in &changes {
            if change.apply(&node, &mut taints, flags.is("overwrite"))? {
                done = "tainted";
            }
        }
        let patch = json!({"spec": {"taints": taints}});
        if dry_run != DryRun::Client {
            let parameters = query(&[("dryRun", dry_run.parameter()), ("fieldManager", flags.text("field-manager"))]);
            let patch = crate::patch::two_way_strategic(
                &json!({"spec": {"taints": node.object["spec"]["taints"].as_array().cloned().unwrap_or_default()}}),
                &patch,
                "api.core.v1.Node",
            );
            cli.rest()?.patch(&format!("{}{parameters}", node.path()), "strategic-merge", &patch).await?;
        }
        printer.done(&node.object, done)?;
    }
    Ok(())
}

/// A taint to set, or to take away.
struct Change {
    key: String,
    value: String,
    effect: String,
    remove: bool,
}

impl Change {
    fn parse(word: &str) -> Result<Change> {
        let (text, remove) = word.strip_suffix('-').map_or((word, false), |text| (text, true));
        let (pair, effect) = text.split_once(':').unwrap_or((text, ""));
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return Err(Error::usage("taint", format!("invalid taint effect: {effect}, unsupported taint effect")));
        }
        if !remove && effect.is_empty() {
            return Err(Error::text(format!("invalid taint spec: {word}")));
        }
        Ok(Change { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned(), remove })
    }

    /// Whether a taint was set.
    fn apply(&self, node: &Item, taints: &mut Vec<Value>, overwrite: bool) -> Result<bool> {
        let same = |taint: &Value| {
            taint["key"] == self.key.as_str() && (self.effect.is_empty() || taint["effect"] == self.effect.as_str())
        };
        if self.remove {
            let before = taints.len();
            taints.retain(|taint| !same(taint));
            if taints.len() == before {
                let effect = if self.effect.is_empty() { String::new() } else { format!(":{}", self.effect) };
                return Err(Error::text(format!("taint \"{}{effect}\" not found", self.key)));
            }
            return Ok(false);
        }
        if taints.iter().any(same) && !overwrite {
            return Err(Error::text(format!(
                "node {} already has {} taint(s) with same effect(s) and --overwrite is false",
                node.name(),
                self.key
            )));
        }
        taints.retain(|taint| !same(taint));
        let mut taint = json!({"key": self.key, "effect": self.effect});
        if !self.value.is_empty() {
            taint["value"] = self.value.clone().into();
        }
        taints.push(taint);
        Ok(true)
    }
}
