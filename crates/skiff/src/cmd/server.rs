//! `skiff server`: a control plane, and in a cluster's node also the node that it runs on.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use skiff_client::Informers;
use skiff_cluster::{NodeConfig, host_ports::HostNet, node_config::ServerConfig};
use skiff_pki::{Request, Usage};

use crate::{
    addons,
    control_plane::{self, ControlPlane, Options, client},
    node,
};

/// Flags of `skiff server`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What `skiff cluster` tells a node; all other flags are left out then
    #[arg(long, value_name = "FILE")]
    node_config: Option<PathBuf>,
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
pub(crate) fn run(args: Args) -> Result<()> {
    super::log_to_stderr();
    let runtime = super::runtime()?;
    runtime.block_on(async {
        match &args.node_config {
            Some(path) => in_node(&super::read_node_config(path)?).await,
            None => alone(args).await,
        }
    })
}

/// A control plane without a node.
async fn alone(args: Args) -> Result<()> {
    let listener = tokio::net::TcpListener::bind((args.bind_address, args.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.bind_address, args.port))?;
    let control_plane = control_plane::start(Options {
        data_dir: args.data_dir,
        node_ip: args.node_ip,
        port: args.port,
        service_cidr: args.service_cidr,
        pod_cidr: args.pod_cidr,
        names: Vec::new(),
        bootstrap_token: None,
    })
    .await?;
    tokio::spawn(control_plane.server.clone().serve(listener, control_plane.tls.clone()));
    control_plane.write_kubeconfig(args.port)?;
    tracing::info!(port = args.port, "the API is served");
    super::until_told_to_end().await
}

/// The control plane of a cluster and its node.
async fn in_node(config: &NodeConfig) -> Result<()> {
    let server = config.server.as_ref().context("the node's configuration says nothing of an API server")?;
    let control_plane = control_plane::start(Options {
        data_dir: config.data_dir.clone(),
        node_ip: config.node_ip,
        port: server.fabric_port,
        service_cidr: config.service_subnet.to_string(),
        pod_cidr: config.pod_subnet.to_string(),
        names: vec![config.node_name.clone()],
        bootstrap_token: Some(config.bootstrap_token.clone()),
    })
    .await?;
    serve(config, server, &control_plane).await?;
    control_plane.write_kubeconfig(server.host_port)?;
    tracing::info!(port = server.host_port, "the API is served");

    let addons = client(&control_plane.server, "system:kube-controller-manager", &[], "addon-manager");
    let cluster_dns = config.cluster_dns.to_string();
    tokio::spawn(async move {
        if let Err(error) = addons::ensure(addons, &node::builtin_image(), &cluster_dns).await {
            tracing::error!(error = format!("{error:#}"), "the cluster's DNS cannot be set up");
        }
    });
    let serving = control_plane.certificates.authority.issue(&Request {
        common_name: &format!("system:node:{}", config.node_name),
        organization: Some("system:nodes"),
        usage: Usage::Server,
        dns_names: std::slice::from_ref(&config.node_name),
        addresses: &[config.node_ip.into()],
    })?;
    let node = node::start(node::Setup {
        config,
        client: client(
            &control_plane.server,
            &format!("system:node:{}", config.node_name),
            &["system:nodes"],
            "kubelet",
        ),
        services: Informers::new(client(
            &control_plane.server,
            "system:kube-controller-manager",
            &[],
            "service-controller",
        )),
        serving,
        authority_pem: control_plane.certificates.authority.certificate_pem().to_owned(),
    })
    .await?;
    super::until_told_to_end().await?;
    node.close();
    Ok(())
}

/// The API on the host's loopback, for users, and on the node's own address, for nodes and pods.
async fn serve(config: &NodeConfig, server: &ServerConfig, control_plane: &ControlPlane) -> Result<()> {
    let host = HostNet::inherited(&config.host).context("the host's network namespace was not handed over")?;
    let on_host = host.listen_tcp(SocketAddrV4::new(server.host_address, server.host_port))?;
    let in_node = tokio::net::TcpListener::bind(("0.0.0.0", server.fabric_port))
        .await
        .with_context(|| format!("cannot listen on port {} of the node", server.fabric_port))?;
    for listener in [tokio::net::TcpListener::from_std(on_host)?, in_node] {
        tokio::spawn(control_plane.server.clone().serve(listener, control_plane.tls.clone()));
    }
    Ok(())
}
