//! The subcommands: their flags, and a function each.

pub(crate) mod agent;
pub(crate) mod cluster;
pub(crate) mod demo;
pub(crate) mod dns;
pub(crate) mod hello;
pub(crate) mod image;
pub(crate) mod ingress;
pub(crate) mod kind;
mod limits;
pub(crate) mod server;
pub(crate) mod settings;
pub(crate) mod snapshot;
pub(crate) mod table;

use std::io::Write as _;

/// Says on standard error what went wrong, with all reasons.
pub(crate) fn complain(prefix: &str, error: &anyhow::Error) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{prefix}: {error:#}");
}

/// Writes logs to standard error; `RUST_LOG` chooses what.
pub(crate) fn log_to_stderr() {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// The runtime of daemons: two threads serve a small node, and a large one has more to lose by more.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context as _;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)))
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// What `skiff cluster` wrote for a node.
pub(crate) fn read_node_config(path: &std::path::Path) -> anyhow::Result<skiff_cluster::NodeConfig> {
    use anyhow::Context as _;
    skiff_cluster::NodeConfig::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Waits for SIGTERM or Ctrl-C.
pub(crate) async fn until_told_to_end() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
