//! The subcommands: their flags, and a function each.

pub(crate) mod cluster;
pub(crate) mod image;
pub(crate) mod server;
pub(crate) mod table;

use std::io::Write as _;

/// Says on standard error what went wrong, with all reasons.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
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
