//! A CSI driver for the end-to-end tests: volumes are directories of one directory that all nodes share.
//!
//! `controller` serves the identity and controller services and does what the sidecars of a driver do (provision,
//! attach, resize, snapshot) with that service; `node` serves the identity and node services and registers with the
//! kubelet. Every call is noted in the file `calls` beside the volumes, for tests to read. Not part of skiff.

mod controller;
mod disk;
mod identity;
mod node;
mod sidecars;

use std::{path::PathBuf, sync::Arc};

use clap::Parser;
use skiff_csi::{ControllerServer, IdentityServer, NodeServer, RegistrationServer, Routes, listen, serve};

use crate::disk::Disk;

#[derive(Parser)]
struct Args {
    /// The driver's name
    #[arg(long)]
    driver: String,
    /// What all nodes share
    #[arg(long)]
    data: PathBuf,
    /// Where to listen
    #[arg(long)]
    socket: PathBuf,
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// The controller service, and what sidecars do with it
    Controller,
    /// The node service
    Node(NodeArgs),
}

#[derive(clap::Args)]
struct NodeArgs {
    /// Where the kubelet looks for plugins
    #[arg(long)]
    registration: PathBuf,
    /// The driver's socket as the kubelet sees it
    #[arg(long)]
    endpoint: String,
    /// The node's identity
    #[arg(long)]
    node_id: String,
    /// How many volumes it takes; 0: any number
    #[arg(long, default_value_t = 0)]
    max_volumes: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    // The first of two equal choices wins.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = Args::parse();
    let disk = Arc::new(Disk::new(args.data)?);
    let identity = identity::Driver { name: args.driver.clone(), controller: matches!(args.role, Role::Controller) };
    let routes = Routes::default().with(IdentityServer::new(identity));
    let listener = listen(&args.socket)?;
    let ended = async {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut signal) = signal {
            signal.recv().await;
        }
    };
    match args.role {
        Role::Controller => {
            let routes = routes.with(ControllerServer::new(controller::Controller { disk }));
            tokio::select! {
                () = serve(listener, routes, ended) => {}
                () = sidecars::run(args.driver, args.socket) => {}
            }
        }
        Role::Node(node) => {
            let socket = node.registration.join(format!("{}-reg.sock", args.driver));
            let registrar = node::Registrar { name: args.driver, endpoint: node.endpoint.clone() };
            let registration = Routes::default().with(RegistrationServer::new(registrar));
            let routes =
                routes.with(NodeServer::new(node::Node { disk, id: node.node_id, max_volumes: node.max_volumes }));
            let registry = listen(&socket)?;
            tokio::select! {
                () = serve(listener, routes, ended) => {}
                () = serve(registry, registration, std::future::pending()) => {}
            }
            // The kubelet takes this as the driver's end.
            std::fs::remove_file(socket)?;
        }
    }
    Ok(())
}
