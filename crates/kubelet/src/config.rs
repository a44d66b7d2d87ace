//! What a kubelet is told.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Taint;

use crate::eviction::EvictionThresholds;

/// Everything that a kubelet has to know about its node and cluster. [`Config::new`] has upstream's defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's own name, shown as address of type `Hostname` and to pods in the node's network.
    pub hostname: String,
    /// The addresses under which pods and the API server reach the node: one, or one of each family with the primary
    /// one first.
    pub node_ips: Vec<IpAddr>,
    /// Further labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Taints that the Node object gets when it is registered.
    pub taints: Vec<Taint>,
    /// Shown as `nodeInfo.kubeletVersion`: the API server's `gitVersion`.
    pub version: String,
    /// Name servers of pods with DNS policy `ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain, `cluster.local`.
    pub cluster_domain: String,
    /// Where pods' volumes and the kubelet's own state are: `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// Where containers' logs are: `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// How many pods the node takes.
    pub max_pods: u32,
    /// The node's resolver configuration, for pods with DNS policy `Default`.
    pub resolv_conf: PathBuf,
    /// Where the cgroup hierarchies are mounted; `None` if the kubelet is not to make cgroups for pods.
    pub cgroup_mount: Option<PathBuf>,
    /// Parent of the pods' cgroups: `/kubepods`.
    pub cgroup_parent: String,
    /// Of what the node must not have less; else pods are evicted.
    pub eviction_hard: EvictionThresholds,
    /// How long a pressure is told after it was seen last.
    pub eviction_pressure_transition: Duration,
    /// How full the disk is, in percent, when unused images are removed; 100: never.
    pub image_gc_high: u8,
    /// Down to where they are removed.
    pub image_gc_low: u8,
    /// The kubelet's own HTTPS server; `None` for no server.
    pub server: Option<ServerConfig>,
    /// What sends requests to the node's pods, if it can be asked.
    pub traffic: Option<Arc<dyn Traffic>>,
}

/// What sends requests to the node's pods: its Service proxy.
pub trait Traffic: std::fmt::Debug + Send + Sync {
    /// Waits until no new connection is sent to the pod with this address.
    fn left(&self, pod: IpAddr) -> BoxFuture<'_, ()>;
}

/// How the kubelet serves its API to the API server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen; the port is 10250 usually.
    pub listen: SocketAddr,
    /// The serving certificate (chain), PEM.
    pub certificate_pem: String,
    /// Its key, PEM.
    pub key_pem: String,
    /// The authority that signs clients' certificates, PEM.
    pub client_ca_pem: String,
}

impl std::fmt::Debug for ServerConfig {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// The port of the kubelet's server.
pub const KUBELET_PORT: u16 = 10250;

impl Config {
    /// The node's addresses as text.
    pub(crate) fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(IpAddr::to_string).collect()
    }

    /// A node of this name and address with upstream's defaults, and no server.
    pub fn new(node_name: &str, node_ip: IpAddr) -> Config {
        Config {
            node_name: node_name.to_owned(),
            hostname: node_name.to_owned(),
            node_ips: vec![node_ip],
            labels: BTreeMap::new(),
            taints: Vec::new(),
            version: "v1.36.0".to_owned(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            root_dir: "/var/lib/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            max_pods: 110,
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_mount: Some("/sys/fs/cgroup".into()),
            cgroup_parent: "/kubepods".to_owned(),
            eviction_hard: EvictionThresholds::default(),
            eviction_pressure_transition: Duration::from_secs(300),
            image_gc_high: 85,
            image_gc_low: 80,
            server: None,
            traffic: None,
        }
    }

    /// The directory of a pod: volumes, hosts file, termination messages.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// The directory of a pod's logs.
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
