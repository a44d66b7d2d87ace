//! `skiff ingress`: the Ingress controller, as it runs in its pod.

use std::io;

use skiff_client::{Config, https};

/// Runs until SIGTERM.
pub(crate) fn run() -> anyhow::Result<()> {
    super::log_to_stderr();
    crate::certificates::choose_provider();
    let connect = || {
        let config = Config::in_cluster()?.with_user_agent("skiff-ingress");
        https(&config)
    };
    skiff_ingress::main(
        || connect().map_err(|e| io::Error::other(format!("{:#}", anyhow::Error::from(e)))),
        Default::default(),
    )?;
    Ok(())
}
