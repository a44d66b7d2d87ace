//! `skiff server`: a control plane, and in a cluster's node also the node that it runs on.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures::FutureExt as _;
use skiff_apiserver::ApiServer;
use skiff_client::Informers;
use skiff_cluster::{
    NodeConfig,
    node_config::{Component, ServerConfig, Settings},
};
use skiff_network::Subnet;
use skiff_pki::{Request, Usage};
use tokio::net::TcpListener;

use super::settings::SettingArgs;

use crate::{
    addons,
    backend::{Backend, EtcdArgs},
    components::Components,
    control_plane::{self, ControlPlane, Options, client},
    election::elected,
    etcd,
    machine::{self, Machine},
    node,
};

/// How long the end of a server waits for telling of it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Run pods on this machine too; the address, one of its own, under which other machines and pods reach it. In a
    /// dual-stack cluster an IPv6 address may follow after a comma
    #[arg(long, value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Name of the node [default: the machine's]
    #[arg(long, requires = "node_ip")]
    node_name: Option<String>,
    /// Range of the Services' addresses. For a dual-stack cluster an IPv6 range follows after a comma:
    /// 10.96.0.0/16,fd00:10:96::/112
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: String,
    /// Range of the pods' addresses. For a dual-stack cluster an IPv6 range follows after a comma:
    /// 10.244.0.0/16,fd00:10:244::/56
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: String,
    /// Port of the etcd API, under which the state in the file of this machine can be reached; 0: none
    #[arg(long, default_value_t = etcd::PORT)]
    etcd_port: u16,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Further names and addresses under which the API is reached, such as those of a load balancer
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    apiserver_cert_extra_sans: Vec<String>,
    /// Components that are not to run here: scheduler,controller-manager,kubelet,proxy,dns
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    disable: Vec<Component>,
    /// Which objects are encrypted at rest, with which keys; an EncryptionConfiguration [default: Secrets, with a key
    /// made at the first start, pki/encryption.yaml of the data directory]
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Runs until the process is told to end.
pub(crate) fn run(args: Args) -> Result<()> {
    super::log_to_stderr();
    let runtime = super::runtime()?;
    runtime.block_on(async {
        match &args.node_config {
            Some(path) => in_node(&super::read_node_config(path)?, OnMachine::default()).await,
            None => on_machine(args).await,
        }
    })
}

/// What a control plane is told on a machine and not in a sandbox.
struct OnMachine {
    /// Where the API is served; in a sandbox it is on the host's loopback and in the whole node.
    bind: Option<Ipv4Addr>,
    etcd_port: u16,
    etcd: Option<EtcdArgs>,
    names: Vec<String>,
}

impl Default for OnMachine {
    fn default() -> OnMachine {
        OnMachine { bind: None, etcd_port: etcd::PORT, etcd: None, names: Vec::new() }
    }
}

/// A control plane on a machine, with a node if the flags say so.
async fn on_machine(args: Args) -> Result<()> {
    let settings = Settings {
        disable: args.disable,
        encryption_provider_config: args.encryption_provider_config,
        ..args.settings.into_settings()?
    };
    if settings.disable.contains(&Component::Apiserver) {
        bail!("the API server is what `skiff server` is; it cannot be left out (--disable)");
    }
    let token = machine::bootstrap_token(&args.data_dir)?;
    if !args.node_ip.is_empty() {
        let machine = Machine {
            data_dir: &args.data_dir,
            node_name: args.node_name,
            node_ips: &args.node_ip,
            pod_cidr: &args.pod_cidr,
            service_cidr: &args.service_cidr,
            token,
            settings,
        };
        let server = ServerConfig { host_address: Ipv4Addr::LOCALHOST, host_port: args.port, fabric_port: args.port };
        let config = machine.node_config(Some(server), None)?;
        let on_machine = OnMachine {
            bind: Some(args.bind_address),
            etcd_port: args.etcd_port,
            etcd: args.etcd.given(),
            names: args.apiserver_cert_extra_sans,
        };
        return in_node(&config, on_machine).await;
    }
    let listener = tokio::net::TcpListener::bind((args.bind_address, args.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.bind_address, args.port))?;
    let (components, data_dir) = (Components::default(), args.data_dir.clone());
    let control_plane = control_plane::start(Options {
        data_dir: args.data_dir,
        node_ip: if args.bind_address.is_unspecified() { Ipv4Addr::LOCALHOST } else { args.bind_address },
        further_ips: Vec::new(),
        port: args.port,
        service_cidr: args.service_cidr,
        pod_cidr: args.pod_cidr,
        etcd: args.etcd.given(),
        names: args.apiserver_cert_extra_sans,
        bootstrap_token: Some(token),
        settings,
        components: components.clone(),
    })
    .await?;
    tokio::spawn(control_plane.server.clone().serve(listener, control_plane.tls.clone()));
    control_plane.write_kubeconfig(args.port)?;
    let name = machine::host_name()?;
    if let Backend::Embedded(store) = &control_plane.store {
        etcd::Setup { data_dir, name, addresses: vec![Ipv4Addr::LOCALHOST], port: args.etcd_port }.start(store.clone());
    }
    tracing::info!(port = args.port, "the API is served");
    super::until_told_to_end().await?;
    leave(&control_plane.server).await;
    Ok(())
}

/// Pods are not led to this server any more.
async fn leave(server: &ApiServer) {
    match tokio::time::timeout(LEAVE_TIMEOUT, server.leave()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot tell that this API server ends"),
        Err(_) => tracing::warn!("cannot tell in time that this API server ends"),
    }
}

/// The control plane of a cluster and its node.
async fn in_node(config: &NodeConfig, on_machine: OnMachine) -> Result<()> {
    let server = config.server.as_ref().context("the node's configuration says nothing of an API server")?;
    let components = Components::default();
    let control_plane = control_plane::start(Options {
        data_dir: config.data_dir.clone(),
        node_ip: config.node_ip,
        further_ips: config.node_ips().into_iter().skip(1).collect(),
        port: server.fabric_port,
        service_cidr: joined(&config.service_subnets()),
        pod_cidr: joined(&config.pod_subnets()),
        etcd: on_machine.etcd,
        names: std::iter::once(config.node_name.clone()).chain(on_machine.names).collect(),
        bootstrap_token: Some(config.bootstrap_token.clone()),
        settings: config.settings.clone(),
        components: components.clone(),
    })
    .await?;
    serve(config, server, on_machine.bind, &control_plane, &components)?;
    control_plane.write_kubeconfig(server.host_port)?;
    if let Backend::Embedded(store) = &control_plane.store {
        let etcd = etcd::Setup {
            data_dir: config.data_dir.clone(),
            name: config.node_name.clone(),
            addresses: vec![Ipv4Addr::LOCALHOST, config.node_ip],
            port: on_machine.etcd_port,
        };
        etcd.start(store.clone());
    }
    tracing::info!(port = server.host_port, "the API is served");

    let addons = client(&control_plane.server, "system:kube-controller-manager", &[], "addon-manager");
    let cluster_dns = config.cluster_dns.to_string();
    let with_dns = !config.settings.disable.contains(&Component::Dns);
    let (own, identity) = (addons.clone(), control_plane.identity.clone());
    let follow = move || addons::ingress::follow(Informers::new(own.clone()), node::builtin_image()).boxed();
    match control_plane.store.is_shared() {
        true => {
            let client = addons.clone();
            tokio::spawn(async move { elected(client, "skiff-addon-manager", &identity, follow).await });
        }
        false => {
            tokio::spawn(follow());
        }
    }
    tokio::spawn(async move {
        if let Err(error) = addons::ensure(addons, &node::builtin_image(), &cluster_dns, with_dns).await {
            tracing::error!(error = format!("{error:#}"), "the cluster's DNS cannot be set up");
        }
    });
    let serving = control_plane.certificates.authority.issue(&Request {
        common_name: &format!("system:node:{}", config.node_name),
        organization: Some("system:nodes"),
        usage: Usage::Server,
        dns_names: std::slice::from_ref(&config.node_name),
        addresses: &config.node_ips(),
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
        components,
    })
    .await?;
    super::until_told_to_end().await?;
    leave(&control_plane.server).await;
    node.close();
    Ok(())
}

/// Ranges as flags name them.
fn joined(ranges: &[Subnet]) -> String {
    ranges.iter().map(Subnet::to_string).collect::<Vec<_>>().join(",")
}

/// The API on the host's loopback, for users, and on the node's own address, for nodes and pods.
fn serve(
    config: &NodeConfig,
    server: &ServerConfig,
    bind: Option<Ipv4Addr>,
    control_plane: &ControlPlane,
    components: &Components,
) -> Result<()> {
    let host = if bind.is_some() { None } else { Some(node::host_net(config)?) };
    let address = (bind.map_or_else(|| config.any_address(), IpAddr::V4), server.fabric_port);
    let on_host = SocketAddrV4::new(server.host_address, server.host_port);
    let listen = move || -> Result<Vec<TcpListener>> {
        let in_node = std::net::TcpListener::bind(address)
            .with_context(|| format!("cannot listen on port {} of the node", address.1))?;
        let host = host.as_ref().map(|host| host.listen_tcp(on_host)).transpose()?;
        let all = std::iter::once(in_node).chain(host);
        all.map(|l| l.set_nonblocking(true).and_then(|()| TcpListener::from_std(l)).map_err(Into::into)).collect()
    };
    // That it cannot be served at all is said at once.
    let first = parking_lot::Mutex::new(Some(listen()?));
    let (api, tls) = (control_plane.server.clone(), control_plane.tls.clone());
    components.add(Component::Apiserver, true, move || {
        let listeners = first.lock().take().map_or_else(&listen, Ok);
        let (api, tls) = (api.clone(), tls.clone());
        async move {
            let listeners = match listeners {
                Ok(listeners) => listeners,
                Err(error) => return tracing::error!(error = format!("{error:#}"), "the API is not served"),
            };
            let _open = Open::new(api.clone());
            let all = listeners.into_iter().map(|listener| api.clone().serve(listener, tls.clone()));
            futures::future::join_all(all).await;
        }
        .boxed()
    });
    Ok(())
}

/// Lets clients in this process in, as long as those on the network are.
struct Open(Arc<ApiServer>);

impl Open {
    fn new(server: Arc<ApiServer>) -> Open {
        server.set_open(true);
        Open(server)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set_open(false);
    }
}
