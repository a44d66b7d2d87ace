//! `skiff server`: a control plane, and the node that it runs on.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::Context as _;

use crate::control_plane::{self, Options};

/// Flags of `skiff server`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the state is kept
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// Address that the API is served on
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: Ipv4Addr,
    /// Port that the API is served on
    #[arg(long, default_value_t = 6443)]
    port: u16,
    /// Address under which other machines and pods reach this one
    #[arg(long, default_value = "127.0.0.1")]
    node_ip: Ipv4Addr,
    /// Range of the Services' addresses
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: String,
    /// Range of the pods' addresses
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: String,
}

/// Runs until the process is told to end.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    super::log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((args.bind_address, args.port))
            .await
            .with_context(|| format!("cannot listen on {}:{}", args.bind_address, args.port))?;
        let options = Options {
            data_dir: args.data_dir,
            node_ip: args.node_ip,
            port: args.port,
            service_cidr: args.service_cidr,
            pod_cidr: args.pod_cidr,
            names: Vec::new(),
        };
        let control_plane = control_plane::start(options).await?;
        tokio::spawn(control_plane.server.clone().serve(listener, control_plane.tls.clone()));
        tracing::info!(port = args.port, "the API is served");
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(())
    })
}
