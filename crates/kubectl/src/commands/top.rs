//! `kubectl top`.

use serde_json::Value;
use skiff_api::quantity::Quantity;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{self, tell},
    print::tabs::Tabs,
    rest::query,
};

pub(crate) const COMMAND: Command = Command {
    name: "top",
    about: "Display resource (CPU/memory) usage",
    usage: "SUBCOMMAND",
    flags: &[],
    subcommands: &[
        Command {
            name: "node",
            about: "Display resource (CPU/memory) usage of nodes",
            usage: "[NAME | -l label]",
            flags: &[NODE_FLAGS, SHARED, cli::SELECTOR],
            subcommands: &[],
            run: Some(|cli| Box::pin(nodes(cli))),
        },
        Command {
            name: "pod",
            about: "Display resource (CPU/memory) usage of pods",
            usage: "[NAME | -l label]",
            flags: &[POD_FLAGS, SHARED, cli::SELECTOR],
            subcommands: &[],
            run: Some(|cli| Box::pin(pods(cli))),
        },
    ],
    run: None,
};

const SHARED: &[Flag] = &[
    Flag::bool("no-headers", "If present, print output without headers"),
    Flag::text("sort-by", "If non-empty, sort list using specified field. The field can be either 'cpu' or 'memory'."),
    Flag::bool("use-protocol-buffers", "Taken, but JSON is used.").or("true"),
];
const NODE_FLAGS: &[Flag] = &[Flag::bool(
    "show-capacity",
    "Print node resources based on Capacity instead of Allocatable(default) of the nodes.",
)];
const POD_FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    Flag::bool("containers", "If present, print usage of containers within a pod."),
    Flag::text("field-selector", "Selector (field query) to filter on, supports '=', '==', and '!='."),
    Flag::bool("sum", "Print the sum of the resource usage"),
];

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";
const MEBIBYTE: i64 = 1024 * 1024;

/// CPU in thousandths, memory in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    cpu: i64,
    memory: i64,
}

impl Usage {
    fn of(list: &Value) -> Usage {
        let quantity = |name: &str| list[name].as_str().and_then(|text| text.parse::<Quantity>().ok());
        Usage {
            cpu: quantity("cpu").map_or(0, |quantity| quantity.millis()),
            memory: quantity("memory").map_or(0, |quantity| quantity.units()),
        }
    }

    fn add(&mut self, other: Usage) {
        self.cpu += other.cpu;
        self.memory += other.memory;
    }

    fn cells(self) -> String {
        format!("{}m\t{}Mi", self.cpu, self.memory / MEBIBYTE)
    }
}

/// Metrics, of one object or of all that the selectors let through.
async fn metrics(cli: &Cli, path: &str) -> Result<Vec<Value>> {
    let rest = cli.rest()?;
    if let Some(name) = cli.args().first() {
        return Ok(vec![rest.get(&format!("{METRICS}{path}/{name}")).await?]);
    }
    let selectors =
        [("labelSelector", cli.flags.text("selector")), ("fieldSelector", cli.flags.text("field-selector"))];
    let list = rest.get(&format!("{METRICS}{path}{}", query(&selectors))).await;
    let list = list.map_err(|error| match error.is_not_found() {
        true => Error::text("Metrics API not available"),
        false => error,
    })?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn check(cli: &Cli) -> Result<()> {
    if cli.args().len() > 1 {
        return Err(cli.usage(format!("unexpected args: [{}]", cli.args().join(" "))));
    }
    if !cli.args().is_empty() && cli.flags.given("selector") {
        return Err(Error::text("only one of NAME or --selector can be provided"));
    }
    match cli.flags.text("sort-by") {
        "" | "cpu" | "memory" => Ok(()),
        _ => Err(Error::text("--sort-by accepts only cpu or memory")),
    }
}

/// In the order of `--sort-by`, the largest first; else by name.
fn sort<T>(cli: &Cli, rows: &mut [T], usage: impl Fn(&T) -> Usage, name: impl Fn(&T) -> String) {
    match cli.flags.text("sort-by") {
        "cpu" => rows.sort_by_key(|row| -usage(row).cpu),
        "memory" => rows.sort_by_key(|row| -usage(row).memory),
        _ => rows.sort_by_key(name),
    }
}

/// Lines whose cells all end in a tab, as upstream prints them.
fn print(cli: &Cli, titles: &str, lines: &[String]) {
    let mut text = String::new();
    if !cli.flags.is("no-headers") {
        text.push_str(&format!("{titles}\t\n"));
    }
    lines.iter().for_each(|line| text.push_str(&format!("{line}\t\n")));
    out::text(&Tabs::of_tables().align(&text));
}

async fn nodes(cli: &Cli) -> Result<()> {
    check(cli)?;
    let mut all = metrics(cli, "/nodes").await?;
    let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    sort(cli, &mut all, |node| Usage::of(&node["usage"]), name);
    let known = cli.rest()?.get("/api/v1/nodes").await?;
    let field = if cli.flags.is("show-capacity") { "capacity" } else { "allocatable" };
    let mut lines = Vec::new();
    for node in &all {
        let (name, used) = (name(node), Usage::of(&node["usage"]));
        let mut nodes = known["items"].as_array().into_iter().flatten();
        let whole =
            nodes.find(|node| node["metadata"]["name"] == name.as_str()).map(|node| Usage::of(&node["status"][field]));
        let part = |used: i64, whole: Option<i64>| match whole.filter(|whole| *whole > 0) {
            Some(whole) => format!("{}%", (used as f64 / whole as f64 * 100.0) as i64),
            None => "<unknown>".to_owned(),
        };
        let cpu = part(used.cpu, whole.map(|whole| whole.cpu));
        let memory = part(used.memory, whole.map(|whole| whole.memory));
        lines.push(format!("{name}\t{}m\t{cpu}\t{}Mi\t{memory}", used.cpu, used.memory / MEBIBYTE));
    }
    if lines.is_empty() {
        tell!("No resources found");
        return Ok(());
    }
    print(cli, "NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%)", &lines);
    Ok(())
}

async fn pods(cli: &Cli) -> Result<()> {
    check(cli)?;
    let (flags, everywhere) = (&cli.flags, cli.flags.is("all-namespaces"));
    let path = match everywhere {
        true => "/pods".to_owned(),
        false => format!("/namespaces/{}/pods", cli.namespace()?),
    };
    let mut all = metrics(cli, &path).await?;
    let of_pod = |pod: &Value| {
        let mut sum = Usage::default();
        pod["containers"].as_array().into_iter().flatten().for_each(|c| sum.add(Usage::of(&c["usage"])));
        sum
    };
    let text = |pod: &Value, field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    sort(cli, &mut all, of_pod, |pod| match everywhere {
        true => format!("{}/{}", text(pod, "namespace"), text(pod, "name")),
        false => text(pod, "name"),
    });
    let mut lines = Vec::new();
    let mut sum = Usage::default();
    for pod in &all {
        let place = if everywhere { format!("{}\t", text(pod, "namespace")) } else { String::new() };
        sum.add(of_pod(pod));
        if !flags.is("containers") {
            lines.push(format!("{place}{}\t{}", text(pod, "name"), of_pod(pod).cells()));
            continue;
        }
        let mut containers: Vec<&Value> = pod["containers"].as_array().into_iter().flatten().collect();
        containers.sort_by_key(|container| container["name"].as_str());
        for container in containers {
            let name = container["name"].as_str().unwrap_or_default();
            lines.push(format!("{place}{}\t{name}\t{}", text(pod, "name"), Usage::of(&container["usage"]).cells()));
        }
    }
    if lines.is_empty() {
        match everywhere {
            true => tell!("No resources found"),
            false => tell!("No resources found in {} namespace.", cli.namespace()?),
        }
        return Ok(());
    }
    let place = if everywhere { "NAMESPACE\t" } else { "" };
    let titles = if flags.is("containers") { "POD\tNAME" } else { "NAME" };
    if flags.is("sum") {
        let empty = if flags.is("containers") { "\t" } else { "" };
        let skip = if everywhere { "\t" } else { "" };
        lines.push(format!("{skip}{empty}\t________\t________"));
        lines.push(format!("{skip}{empty}\t{}", sum.cells()));
    }
    print(cli, &format!("{place}{titles}\tCPU(cores)\tMEMORY(bytes)"), &lines);
    Ok(())
}
