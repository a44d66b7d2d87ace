//! `skiff cluster …`: local clusters.

use std::{
    ffi::OsString,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use skiff_cluster::{
    Clusters, CreateOptions, Home,
    clusters::ClusterStatus,
    control::{Answer, Request},
    host_ports::Forward,
    node_config::Component,
    progress::Console,
    record::NodeRecord,
    spec::ClusterSpec,
};

use super::{limits::LimitArgs, settings::SettingArgs, table};

const DEFAULT_NAME: &str = "skiff";

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Create a cluster and make it kubectl's current context
    Create(Create),
    /// List the clusters of this machine
    List,
    /// Start a stopped cluster
    Start { name: Option<String> },
    /// Stop a cluster; its state stays
    Stop { name: Option<String> },
    /// Delete a cluster with everything that belongs to it
    Delete { name: Option<String> },
    /// Show, add and remove ports of this machine that lead into a cluster
    Ports(Ports),
    /// Run a command in a node; without one, a shell
    #[command(visible_alias = "ssh")]
    Exec(Exec),
    /// Show, stop and start the components of a running cluster one by one
    Components(Components),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The cluster's name [default: the configuration's, or skiff]
    name: Option<String>,
    /// A configuration file of kind (kind.x-k8s.io/v1alpha4)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many nodes: one control plane, the others workers
    #[arg(long, value_name = "N", conflicts_with = "config", value_parser = clap::value_parser!(u8).range(1..))]
    nodes: Option<u8>,
    /// No way out of the cluster
    #[arg(long, env = "SKIFF_ISOLATED", value_parser = clap::builder::FalseyValueParser::new())]
    isolated: bool,
    /// Run a page behind a load balancer, to see that all works
    #[arg(long)]
    demo: bool,
    /// How long to wait until the nodes are Ready and DNS answers; 0s: only until the API answers
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = duration)]
    wait: Duration,
    /// The kubeconfig to merge the context into [default: as kubectl finds it]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    settings: SettingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    name: Option<String>,
    /// The node [default: the control plane]
    #[arg(long)]
    node: Option<String>,
    /// The command and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Components {
    name: Option<String>,
    /// The node [default: the control plane]
    #[arg(long)]
    node: Option<String>,
    /// Stop a component until it is started again: apiserver, scheduler, controller-manager, kubelet, proxy
    #[arg(long, value_name = "COMPONENT")]
    stop: Vec<Component>,
    /// Start a component that was stopped
    #[arg(long, value_name = "COMPONENT")]
    start: Vec<Component>,
}

#[derive(Debug, Args)]
pub(crate) struct Ports {
    name: Option<String>,
    /// Open a port: HOST-PORT:NODE-PORT, with /udp behind it for UDP
    #[arg(long, value_name = "PORTS")]
    add: Vec<String>,
    /// Close a port that was opened with --add
    #[arg(long, value_name = "PORT")]
    remove: Vec<String>,
}

/// Accepts what kind's `--wait` does: `90s`, `2m`, `1m30s`, or plain seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut digits = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' => digits.push(c),
            'h' | 'm' | 's' => {
                let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration like 90s"))?;
                total += Duration::from_secs(
                    number
                        * match c {
                            'h' => 3600,
                            'm' => 60,
                            _ => 1,
                        },
                );
                digits.clear();
            }
            _ => return Err(format!("{text:?} is not a duration like 90s")),
        }
    }
    match (digits.as_str(), total.is_zero() && !text.is_empty()) {
        ("", _) if !text.is_empty() => Ok(total),
        (digits, true) => {
            digits.parse().map(Duration::from_secs).map_err(|_| format!("{text:?} is not a duration like 90s"))
        }
        _ => Err(format!("{text:?} is not a duration like 90s")),
    }
}

pub(crate) fn run(command: ClusterCommand) -> anyhow::Result<()> {
    let clusters = Clusters::new(Home::from_environment()?);
    let mut out = std::io::stdout().lock();
    let named = |name: Option<String>| name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
    match command {
        ClusterCommand::Create(create) => {
            let demo = create.demo;
            let created = clusters.create(&create.into_options()?, &mut Console::default())?;
            let record = &created.status.record;
            writeln!(
                out,
                "Cluster {:?} is ready after {:.1} s: kubectl's context is {}, the API server {}.",
                record.name,
                created.took.as_secs_f64(),
                record.context,
                created.status.server()
            )?;
            if demo {
                super::demo::run(&record.kubeconfig, &record.context, &mut out)?;
            }
        }
        ClusterCommand::List => table::write(&mut out, &rows(&clusters.list()?))?,
        ClusterCommand::Start { name } => {
            let status = clusters.start(&named(name), &mut Console::default())?;
            writeln!(out, "Cluster {:?} is running: {}.", status.record.name, status.server())?;
        }
        ClusterCommand::Stop { name } => {
            let status = clusters.stop(&named(name), &mut Console::default())?;
            writeln!(out, "Cluster {:?} is stopped.", status.record.name)?;
        }
        ClusterCommand::Delete { name } => {
            let name = named(name);
            clusters.delete(&name, &mut Console::default())?;
            writeln!(out, "Cluster {name:?} is deleted.")?;
        }
        ClusterCommand::Exec(exec) => {
            drop(out);
            std::process::exit(run_in_node(&clusters, &exec)?);
        }
        ClusterCommand::Components(components) => switch_components(&clusters, &components, &mut out)?,
        ClusterCommand::Ports(ports) => change_ports(&clusters, &ports, &mut out)?,
    }
    Ok(())
}

impl Create {
    fn into_options(self) -> anyhow::Result<CreateOptions> {
        let spec = match &self.config {
            Some(file) => ClusterSpec::read(file)?,
            None => ClusterSpec::of_size(usize::from(self.nodes.unwrap_or(1))),
        };
        spec.check().map_err(anyhow::Error::msg)?;
        Ok(CreateOptions {
            name: self.name,
            isolated: self.isolated,
            wait: (!self.wait.is_zero()).then_some(self.wait),
            kubeconfig: self.kubeconfig,
            settings: self.settings.into_settings()?,
            limits: self.limits.into_limits()?,
            ..CreateOptions::new(spec)
        })
    }
}

fn rows(clusters: &[ClusterStatus]) -> Vec<Vec<String>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let header = ["NAME", "STATUS", "NODES", "SERVER", "CONTEXT", "AGE"].map(str::to_owned).to_vec();
    let row = |status: &ClusterStatus| {
        let record = &status.record;
        vec![
            record.name.clone(),
            status.phase().to_owned(),
            format!("{}/{}", status.running.len(), record.nodes.len()),
            status.server(),
            record.context.clone(),
            age(now.saturating_sub(record.created)),
        ]
    };
    std::iter::once(header).chain(clusters.iter().map(row)).collect()
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A node of a cluster: the one that is asked for, or the control plane.
fn node_of(clusters: &Clusters, name: &str, node: Option<&str>) -> anyhow::Result<NodeRecord> {
    let record = clusters.get(name)?.record;
    let found = match node {
        Some(node) => record.nodes.iter().find(|n| n.name == node),
        None => record.control_plane(),
    };
    found.cloned().with_context(|| format!("cluster {name:?} has no node {:?}", node.unwrap_or("control-plane")))
}

/// The exit code of the command, as shells tell it.
fn run_in_node(clusters: &Clusters, asked: &Exec) -> anyhow::Result<i32> {
    let name = asked.name.as_deref().unwrap_or(DEFAULT_NAME);
    let node = node_of(clusters, name, asked.node.as_deref())?;
    let mut command = match asked.command.split_first() {
        Some((program, args)) => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
        None => Command::new("/bin/sh"),
    };
    let status = clusters.exec(name, &node.name, &mut command)?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn switch_components(clusters: &Clusters, asked: &Components, out: &mut dyn Write) -> anyhow::Result<()> {
    let name = asked.name.as_deref().unwrap_or(DEFAULT_NAME);
    let node = node_of(clusters, name, asked.node.as_deref())?;
    for (list, run) in [(&asked.stop, false), (&asked.start, true)] {
        for component in list {
            clusters.ask(name, &node.name, &Request::SetComponent { component: *component, run })?;
        }
    }
    let mut rows = vec![["NODE", "COMPONENT", "STATUS"].map(str::to_owned).to_vec()];
    if let Answer::Components(components) = clusters.ask(name, &node.name, &Request::ListComponents)? {
        rows.extend(components.into_iter().map(|(component, runs)| {
            let status = if runs { "running" } else { "stopped" };
            vec![node.name.clone(), component.name().to_owned(), status.to_owned()]
        }));
    }
    table::write(out, &rows)?;
    Ok(())
}

fn change_ports(clusters: &Clusters, ports: &Ports, out: &mut dyn Write) -> anyhow::Result<()> {
    let name = ports.name.as_deref().unwrap_or(DEFAULT_NAME);
    let status = clusters.get(name)?;
    let Some(node) = status.record.control_plane() else {
        bail!("cluster {name:?} has no control plane");
    };
    for text in &ports.add {
        let (host_port, node_port, protocol) = parse_port(text)?;
        let forward = Forward {
            protocol,
            listen: std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, host_port)),
            target: std::net::SocketAddr::from((node.address, node_port)),
        };
        if let Answer::Port(listen) = clusters.ask(name, &node.name, &Request::OpenPort { forward })? {
            writeln!(out, "{listen} leads to port {node_port} of {}.", node.name)?;
        }
    }
    for text in &ports.remove {
        let (host_port, _, protocol) = parse_port(text)?;
        let listen = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, host_port));
        clusters.ask(name, &node.name, &Request::ClosePort { protocol, listen })?;
    }
    if ports.add.is_empty() && ports.remove.is_empty() {
        let header = ["HOST", "PROTOCOL", "TARGET", "FOR", "PROBLEM"].map(str::to_owned).to_vec();
        let row = |port: skiff_cluster::control::PortStatus| {
            vec![
                port.forward.listen.to_string(),
                port.forward.protocol.to_string(),
                port.forward.target.to_string(),
                port.reason,
                port.problem.unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = std::iter::once(header).chain(clusters.ports(name)?.into_iter().map(row)).collect();
        table::write(out, &rows)?;
    }
    Ok(())
}

type Protocol = skiff_cluster::host_ports::Protocol;

/// `8080:30080`, `5353:53/udp`, or one number for both.
fn parse_port(text: &str) -> anyhow::Result<(u16, u16, Protocol)> {
    let wrong = || format!("{text:?} is not a port like 8080:30080 or 5353:53/udp");
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => bail!(wrong()),
    };
    let (host, node) = ports.split_once(':').unwrap_or((ports, ports));
    Ok((host.parse().with_context(wrong)?, node.parse().with_context(wrong)?, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ports_are_parsed() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        for bad in ["", "x", "5x", "1m30", "s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_port("8080:30080").unwrap(), (8080, 30080, Protocol::Tcp));
        assert_eq!(parse_port("53/udp").unwrap(), (53, 53, Protocol::Udp));
        assert!(parse_port("53/sctp").is_err());
        assert!(parse_port("99999").is_err());
    }
}
