//! The pods' network as the runtime sees it: the built-in one, called directly, or any CNI plugin that somebody
//! configured.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Node;
use parking_lot::RwLock;
use skiff_client::Informers;
use skiff_cluster::NodeConfig;
use skiff_network::{
    PodNetwork as Builtin, PodNetworkConfig, Subnet, cni,
    hostport::{HostPort, Protocol},
};
use skiff_runtime::{CniNetwork, NetworkError, PodNetwork, PodNetworkRequest};

const CNI_DIR: &str = "/etc/cni/net.d";
const CNI_BIN_DIR: &str = "/opt/cni/bin";
const CNI_CACHE_DIR: &str = "/var/lib/cni/cache";
/// Our own configuration, so that crictl and foreign runtimes use the same network.
const OWN_CONFIG: &str = "10-skiff.conflist";
/// The pods' end of their link.
const INTERFACE: &str = "eth0";

/// The ranges of the pods of a node, the primary one first; none as long as it has not been given any.
pub(super) fn ranges_of(node: &Node) -> Option<Vec<Subnet>> {
    let spec = node.spec.as_ref()?;
    let all = match spec.pod_cidrs.as_deref() {
        None | Some([]) => spec.pod_cidr.as_slice(),
        Some(all) => all,
    };
    let ranges = all.iter().map(|range| range.parse()).collect::<Result<Vec<_>, _>>().ok()?;
    (!ranges.is_empty()).then_some(ranges)
}

/// Chooses between the built-in network and foreign plugins, by what lies in the CNI directory.
pub(super) struct PodNetworks {
    builtin: RwLock<Option<Arc<Builtin>>>,
    foreign: CniNetwork,
    disabled: bool,
    masquerade_except: Option<Vec<Subnet>>,
}

impl PodNetworks {
    pub(super) fn new(config: &NodeConfig) -> Arc<PodNetworks> {
        let segments = config.addresses().into_iter().map(|(_, segment)| segment);
        let inside = config.pod_subnets().into_iter().chain(config.service_subnets()).chain(segments).collect();
        Arc::new(PodNetworks {
            builtin: RwLock::new(None),
            foreign: CniNetwork::new(Path::new(CNI_DIR), &[PathBuf::from(CNI_BIN_DIR)], Path::new(CNI_CACHE_DIR)),
            disabled: config.disable_default_cni,
            masquerade_except: (!config.isolated).then_some(inside),
        })
    }

    /// Sets the built-in network up once the node has its range, and again if that changes.
    pub(super) async fn follow(self: Arc<Self>, informers: Informers, node: String) {
        if self.disabled {
            return;
        }
        let nodes = informers.informer::<Node>();
        let mut changes = nodes.subscribe();
        let mut current: Option<Vec<Subnet>> = None;
        while let Some(change) = changes.recv().await {
            let object = change.object();
            if object.metadata.name.as_deref() != Some(&node) {
                continue;
            }
            let Some(ranges) = ranges_of(object).filter(|r| Some(r) != current.as_ref()) else { continue };
            match self.open(&ranges) {
                Ok(()) => current = Some(ranges),
                Err(error) => tracing::error!(%error, ?ranges, "the pod network cannot be set up"),
            }
        }
    }

    fn open(&self, ranges: &[Subnet]) -> anyhow::Result<()> {
        let mut config = PodNetworkConfig::new(ranges.to_vec());
        config.masquerade_except = self.masquerade_except.clone();
        let conflist = cni::conflist(&config);
        let network = Builtin::open(config)?;
        std::fs::create_dir_all(CNI_DIR)?;
        std::fs::write(Path::new(CNI_DIR).join(OWN_CONFIG), conflist)?;
        *self.builtin.write() = Some(Arc::new(network));
        Ok(())
    }

    /// Whether somebody's own configuration wins: the first in the directory, as runtimes choose it.
    fn is_foreign(&self) -> bool {
        let Ok(entries) = std::fs::read_dir(CNI_DIR) else { return self.disabled };
        let mut names: Vec<String> = entries
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| [".conf", ".conflist", ".json"].iter().any(|end| n.ends_with(end)))
            .collect();
        names.sort();
        match names.first() {
            Some(first) => first != OWN_CONFIG,
            None => self.disabled,
        }
    }

    fn builtin(&self) -> Result<Arc<Builtin>, NetworkError> {
        self.builtin.read().clone().ok_or(NetworkError::NotInitialized)
    }
}

fn host_ports(pod: &PodNetworkRequest) -> Vec<HostPort> {
    pod.port_mappings
        .iter()
        .map(|m| HostPort {
            host_ip: m.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
            host_port: m.host_port,
            container_port: m.container_port,
            protocol: match m.protocol {
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
        })
        .collect()
}

impl PodNetwork for PodNetworks {
    fn status(&self) -> Result<(), NetworkError> {
        if self.is_foreign() { self.foreign.status() } else { self.builtin().map(|_| ()) }
    }

    fn setup<'a>(&'a self, pod: &'a PodNetworkRequest) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>> {
        if self.is_foreign() {
            return self.foreign.setup(pod);
        }
        async move {
            let builtin = self.builtin()?;
            let (id, netns, ports) = (pod.sandbox_id.clone(), pod.netns.clone(), host_ports(pod));
            blocking(move || {
                let namespace =
                    File::open(&netns).map_err(|e| NetworkError::Other(format!("{}: {e}", netns.display())))?;
                let address = builtin
                    .setup(&id, namespace.as_fd(), INTERFACE, &ports)
                    .map_err(|e| NetworkError::Other(e.chain()))?;
                Ok(address.ips.into_iter().map(|ip| ip.address).collect())
            })
            .await
        }
        .boxed()
    }

    fn teardown<'a>(&'a self, pod: &'a PodNetworkRequest) -> BoxFuture<'a, Result<(), NetworkError>> {
        if self.is_foreign() {
            return self.foreign.teardown(pod);
        }
        async move {
            // Before the node has its range nothing was connected in this life; records of an earlier one are kept
            // until the network is there to take them back.
            let builtin = self.builtin()?;
            let id = pod.sandbox_id.clone();
            blocking(move || builtin.teardown(&id, INTERFACE).map_err(|e| NetworkError::Other(e.chain()))).await
        }
        .boxed()
    }
}

/// Netlink calls are short but wait for the kernel; they do not belong on the runtime's few threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(NetworkError::Other(e.to_string())))
}
