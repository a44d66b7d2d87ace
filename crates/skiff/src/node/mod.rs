//! A node: container runtime, pod network, kubelet and Service proxy, joined by the interfaces that Kubernetes has
//! between them.

mod images;
mod network;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Taint;
use skiff_client::Informers;
use skiff_cluster::{
    NodeConfig,
    control::NodeControl,
    host_ports::{HostNet, HostPorts},
    load_balancer::PortManager,
    node_config::{CONTROL_SOCKET, Component, Role},
};
use skiff_images::ImageStore;
use skiff_kubelet::KUBELET_PORT;
use skiff_network::{
    nft::Family,
    nodes::{Local, NodeRoutes},
};
use skiff_pki::Pair;
use skiff_proxy::Members;
use skiff_runtime::{Runtime, RuntimeConfig};
use tokio::task::JoinSet;

use crate::components::Components;

/// Where the runtime serves CRI, for crictl and the like.
const CRI_SOCKET: &str = "/run/skiff/cri.sock";

/// What a node needs beside its configuration.
pub(crate) struct Setup<'a> {
    pub(crate) config: &'a NodeConfig,
    /// Acts as the node.
    pub(crate) client: kube::Client,
    /// May write the status of Services; used on the control plane.
    pub(crate) services: Informers,
    /// With which the kubelet serves.
    pub(crate) serving: Pair,
    /// The cluster's authority.
    pub(crate) authority_pem: String,
    /// Those that can be stopped and started; the node adds its own.
    pub(crate) components: Components,
}

/// A node that runs.
pub(crate) struct Node {
    pub(crate) runtime: Arc<Runtime>,
    tasks: JoinSet<()>,
    components: Components,
}

impl Node {
    /// Lets go of everything; pods go on.
    pub(crate) fn close(mut self) {
        self.components.stop_all();
        self.tasks.abort_all();
        self.runtime.close();
    }
}

/// The name of the image that is this program.
pub(crate) fn builtin_image() -> String {
    format!("{}:{}", skiff_images::BUILTIN_REPOSITORY, env!("CARGO_PKG_VERSION"))
}

/// Opens the image store, with the image that is this program in it.
fn open_images(root: &Path) -> Result<ImageStore> {
    let images =
        ImageStore::open(root).with_context(|| format!("cannot open the image store in {}", root.display()))?;
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let builtin = skiff_images::Builtin { program, version: env!("CARGO_PKG_VERSION").to_owned() };
    images.ensure_builtin(&builtin).context("cannot make the built-in image")?;
    Ok(images)
}

/// Starts all parts of a node.
pub(crate) async fn start(setup: Setup<'_>) -> Result<Node> {
    let Setup { config, client, services, serving, authority_pem, components } = setup;
    let informers = Informers::new(client.clone());
    let images = open_images(&config.data_dir.join("images"))?;
    let pod_network = network::PodNetworks::new(config);
    let mut runtime_config = RuntimeConfig::new(&config.data_dir.join("runtime"), Path::new("/run/skiff/runtime"));
    runtime_config.version = env!("CARGO_PKG_VERSION").to_owned();
    let runtime = Runtime::open(runtime_config, images.clone(), pod_network.clone())
        .await
        .context("cannot start the container runtime")?;
    // What survived holds its layers by now; what pulls left that were broken off, nobody holds.
    if let Err(error) = tokio::task::spawn_blocking(move || images.collect_garbage()).await? {
        tracing::warn!(%error, "cannot look for layers that nothing needs");
    }
    let runtime = Arc::new(runtime);
    let mut tasks = JoinSet::new();

    let served = runtime.clone();
    tasks.spawn(async move {
        if let Err(error) =
            skiff_cri::serve_unix(Path::new(CRI_SOCKET), served.clone(), served, std::future::pending()).await
        {
            tracing::error!(%error, "the CRI socket is not served");
        }
    });
    tasks.spawn(pod_network.clone().follow(informers.clone(), config.node_name.clone()));
    tasks.spawn(follow_routes(informers.clone(), config.clone()));
    let members = Members::default();
    add_proxy(&components, config, &informers, &members)?;
    let families: Vec<Family> = config.pod_subnets().iter().map(|range| Family::of(range.base())).collect();
    let policies =
        skiff_proxy::Policies::open(&config.node_name, &families).context("cannot enforce network policies")?;
    tasks.spawn(skiff_proxy::serve_health(config.node_name.clone(), config.any_address(), informers.clone()));
    tasks.spawn(skiff_proxy::follow_policies(policies, informers.clone()));

    let (runtime_client, image_client) = skiff_cri::connect_in_process(runtime.clone(), runtime.clone());
    let ports = PortManager::new(HostPorts::new(host_net(config)?), config);
    let control = Arc::new(NodeControl {
        ports: ports.clone(),
        images: images::Loader(runtime.clone()),
        components: components.clone(),
    });
    tasks.spawn(async move {
        if let Err(error) = skiff_cluster::control::serve(Path::new(CONTROL_SOCKET), control).await {
            tracing::error!(%error, "the control socket is not served");
        }
    });
    if config.role == Role::ControlPlane {
        tasks.spawn(skiff_cluster::load_balancer::run(ports, services));
    } else {
        tasks.spawn(async move { ports.keep_trying().await });
    }
    let mut kubelet = kubelet_config(config, serving, authority_pem)?;
    kubelet.traffic = Some(Arc::new(ProxyTraffic(members)));
    components.add(Component::Kubelet, !config.settings.disable.contains(&Component::Kubelet), move || {
        let kubelet = skiff_kubelet::run(
            kubelet.clone(),
            client.clone(),
            informers.clone(),
            runtime_client.clone(),
            image_client.clone(),
            std::future::pending(),
        );
        async move {
            if let Err(error) = kubelet.await {
                tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the kubelet ended");
            }
        }
        .boxed()
    });
    Ok(Node { runtime, tasks, components })
}

/// What the node's Service proxy tells the kubelet.
#[derive(Debug)]
struct ProxyTraffic(Members);

impl skiff_kubelet::Traffic for ProxyTraffic {
    fn left(&self, pod: IpAddr) -> BoxFuture<'_, ()> {
        self.0.left(pod).boxed()
    }
}

/// The Service proxy. That it cannot work on this machine is said at once.
fn add_proxy(components: &Components, config: &NodeConfig, informers: &Informers, members: &Members) -> Result<()> {
    let info = skiff_proxy::NodeInfo {
        name: config.node_name.clone(),
        pod_cidrs: config.pod_subnets(),
        service_cidrs: config.service_subnets(),
        zone: config.labels.get("topology.kubernetes.io/zone").cloned(),
    };
    let run = !config.settings.disable.contains(&Component::Proxy);
    let open = move || skiff_proxy::Proxy::open(info.clone());
    let first = match run {
        true => Some(open().context("cannot set up the Service proxy")?),
        false => None,
    };
    let (first, informers, members) = (parking_lot::Mutex::new(first), informers.clone(), members.clone());
    components.add(Component::Proxy, run, move || {
        let proxy = first.lock().take().map_or_else(&open, Ok);
        let (informers, members) = (informers.clone(), members.clone());
        async move {
            match proxy {
                Ok(proxy) => skiff_proxy::run(proxy, informers, members).await,
                Err(error) => tracing::error!(%error, "cannot set up the Service proxy"),
            }
        }
        .boxed()
    });
    Ok(())
}

/// The network namespace in which users are: the host's of a sandboxed node, else the node's own.
pub(crate) fn host_net(config: &NodeConfig) -> Result<HostNet> {
    if config.host.netns_fd < 0 {
        return HostNet::current().context("cannot look at this machine's network");
    }
    HostNet::inherited(&config.host).context("the host's network namespace was not handed over")
}

/// Routes to the pods of the other nodes, as soon as this one has its own range.
async fn follow_routes(informers: Informers, config: NodeConfig) {
    let nodes = informers.informer::<k8s_openapi::api::core::v1::Node>();
    let mut changes = nodes.subscribe();
    while let Some(change) = changes.recv().await {
        let node = change.object();
        if node.metadata.name.as_deref() != Some(&config.node_name) {
            continue;
        }
        let Some(pod_cidrs) = network::ranges_of(node) else { continue };
        let local = Local {
            addresses: config.addresses(),
            interface: config.interface.clone(),
            pod_cidrs,
            cluster_cidrs: config.pod_subnets(),
        };
        match NodeRoutes::open(local) {
            Ok(routes) => return skiff_proxy::follow_nodes(routes, informers).await,
            Err(error) => tracing::error!(error = error.chain(), "routes to other nodes cannot be made"),
        }
    }
}

fn kubelet_config(config: &NodeConfig, serving: Pair, authority_pem: String) -> Result<skiff_kubelet::Config> {
    let mut kubelet = skiff_kubelet::Config::new(&config.node_name, IpAddr::V4(config.node_ip));
    kubelet.node_ips = config.node_ips();
    kubelet.labels = config.labels.clone();
    if config.role == Role::ControlPlane {
        kubelet.labels.insert("node-role.kubernetes.io/control-plane".to_owned(), String::new());
    }
    kubelet.taints = config
        .taints
        .iter()
        .map(|t| Taint {
            key: t.key.clone(),
            value: Some(t.value.clone()).filter(|v| !v.is_empty()),
            effect: t.effect.clone(),
            time_added: None,
        })
        .collect();
    kubelet.version = skiff_apiserver::git_version();
    kubelet.cluster_dns = vec![IpAddr::V4(config.cluster_dns)];
    kubelet.cgroup_mount = Some(PathBuf::from("/sys/fs/cgroup"));
    kubelet.server = Some(skiff_kubelet::ServerConfig {
        listen: SocketAddr::new(config.any_address(), KUBELET_PORT),
        certificate_pem: serving.certificate_pem,
        key_pem: serving.key_pem,
        client_ca_pem: authority_pem,
    });
    let settings = &config.settings;
    // The disk of a sandbox is the whole machine's, and so is what fills it: as in kind, it evicts nobody unless asked.
    let sandboxed = config.host.netns_fd >= 0;
    if let Some(text) = settings.eviction_hard.as_deref().or(sandboxed.then_some("memory.available<100Mi")) {
        kubelet.eviction_hard = text.parse().context("--eviction-hard")?;
    }
    if let Some(seconds) = settings.eviction_pressure_transition_period_s {
        kubelet.eviction_pressure_transition = Duration::from_secs(seconds);
    }
    if sandboxed {
        kubelet.image_gc_high = 100;
    }
    kubelet.image_gc_high = settings.image_gc_high_threshold.unwrap_or(kubelet.image_gc_high);
    kubelet.image_gc_low = settings.image_gc_low_threshold.unwrap_or(kubelet.image_gc_low);
    Ok(kubelet)
}
