//! skiff: Kubernetes as one binary. Here are only the ways in; what they lead to is wired in the modules.

mod certificates;
mod cmd;
mod control_plane;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Local clusters
    #[command(subcommand)]
    Cluster(cmd::cluster::ClusterCommand),
    /// Images on the nodes of a cluster
    #[command(subcommand)]
    Image(cmd::image::ImageCommand),
}

fn main() -> ExitCode {
    // Before anything else, because it must not have threads: the first process of a node.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == skiff_cluster::init::SUBCOMMAND) {
        return skiff_cluster::init::node_init_main(arguments);
    }
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Server(args) => cmd::server::run(args),
        Command::Cluster(command) => cmd::cluster::run(command, "skiff"),
        Command::Image(command) => cmd::image::run(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cmd::complain(&error);
            ExitCode::FAILURE
        }
    }
}
