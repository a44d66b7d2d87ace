//! skiff: Kubernetes as one binary. Here are only the ways in; what they lead to is wired in the modules.

mod addons;
mod backend;
mod certificates;
mod cmd;
mod components;
mod control_plane;
mod election;
mod etcd;
mod join;
mod machine;
mod node;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The subcommand with which the runtime starts a pod's supervisor.
const SUPERVISOR: &str = "runtime-supervisor";
/// The subcommand, and the name, under which this is kubectl.
const KUBECTL: &str = "kubectl";

/// The subcommand that shows the cluster in a browser, with kubectl's flags.
const DASHBOARD: &str = "dashboard";

/// Kubernetes as one binary.
#[derive(Parser)]
#[command(name = "skiff", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// A control plane on this machine
    Server(cmd::server::Args),
    /// A further node of a cluster
    Agent(cmd::agent::Args),
    /// The cluster's name server, as it runs in its pod
    #[command(hide = true)]
    Dns,
    /// The Ingress controller, as it runs in its pod
    #[command(hide = true)]
    Ingress,
    /// The page of the demonstration, as it runs in its pods
    #[command(hide = true)]
    Hello,
    /// Local clusters
    #[command(subcommand)]
    Cluster(cmd::cluster::ClusterCommand),
    /// Images on this machine and on the nodes of a cluster
    #[command(subcommand)]
    Image(cmd::image::ImageCommand),
    /// A cluster's state from a backup
    #[command(subcommand)]
    Snapshot(cmd::snapshot::SnapshotCommand),
    /// Kubernetes' command line
    #[command(disable_help_flag = true)]
    Kubectl,
    /// The cluster in a browser, with the credentials of the kubeconfig
    #[command(disable_help_flag = true)]
    Dashboard,
}

fn main() -> ExitCode {
    // Before anything else, because these must not have threads: a node's first process, a pod's supervisor, a step of
    // an image's build, and the network plugin, which is called by its own name.
    let mut arguments = std::env::args_os();
    let called_as = arguments.next().unwrap_or_default();
    let name = std::path::Path::new(&called_as).file_name().unwrap_or_default();
    if name == skiff_network::cni::PLUGIN_TYPE {
        return ExitCode::from(skiff_network::cni::cni_main());
    }
    if name == KUBECTL {
        return skiff_kubectl::main(arguments);
    }
    match arguments.next() {
        // Its words are its own, also those that look like flags of ours.
        Some(first) if first == KUBECTL => return skiff_kubectl::main(arguments),
        Some(first) if first == DASHBOARD => return skiff_kubectl::dashboard(arguments),
        Some(first) if first == skiff_cluster::init::SUBCOMMAND => {
            return skiff_cluster::init::node_init_main(arguments);
        }
        Some(first) if first == SUPERVISOR => return skiff_runtime::supervisor_main(),
        Some(first) if first == skiff_images::build::SUBCOMMAND => {
            return ExitCode::from(skiff_images::build::build_step_main(arguments));
        }
        _ => {}
    }
    let (done, prefix) = match name == "kind" {
        true => (cmd::kind::run(cmd::kind::Cli::parse()), "ERROR"),
        false => (run(Cli::parse()), "error"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cmd::complain(prefix, &error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Server(args) => cmd::server::run(args),
        Command::Agent(args) => cmd::agent::run(args),
        Command::Dns => cmd::dns::run(),
        Command::Ingress => cmd::ingress::run(),
        Command::Hello => cmd::hello::run(),
        Command::Cluster(command) => cmd::cluster::run(command),
        Command::Image(command) => cmd::image::run(command),
        Command::Snapshot(command) => cmd::snapshot::run(command),
        // Here for the help alone: `main` has answered them.
        Command::Kubectl | Command::Dashboard => Ok(()),
    }
}
