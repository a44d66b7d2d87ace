//! `skiff dns`: the cluster's name server, as it runs in the pod of that name.

use std::io;

use skiff_client::{Config, https};

/// Runs until SIGTERM.
pub(crate) fn run() -> anyhow::Result<()> {
    super::log_to_stderr();
    crate::certificates::choose_provider();
    let connect = || {
        let config = Config::in_cluster()?.with_user_agent("skiff-dns");
        https(&config)
    };
    skiff_dns::main(
        || connect().map_err(|e| io::Error::other(format!("{:#}", anyhow::Error::from(e)))),
        Default::default(),
    )?;
    Ok(())
}
