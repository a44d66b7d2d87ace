//! What the daemon in a node is told: the contract between `skiff cluster` and `skiff server` / `skiff agent`.
//!
//! The node's first process runs `skiff server --node-config /var/lib/skiff/node.json` in a control plane
//! and `skiff agent --node-config /var/lib/skiff/node.json` in a worker. All paths are the node's own.
//! The daemon inherits two descriptors, open over every restart, whose numbers stand in [`HostConfig`].
//!
//! The server writes [`ADMIN_KUBECONFIG`] (mode 0600, server `https://127.0.0.1:PORT`) once it serves, and
//! [`CA_CERTIFICATE`] before that: `cluster create` waits for both.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use skiff_network::{Subnet, hostport::Protocol};

/// Where the file lies inside a node.
pub const NODE_CONFIG: &str = "/var/lib/skiff/node.json";
/// The daemon's state.
pub const DATA_DIR: &str = "/var/lib/skiff";
/// The certificate authority of the API server, PEM, written by the server.
pub const CA_CERTIFICATE: &str = "/var/lib/skiff/pki/ca.crt";
/// The administrator's kubeconfig, written by the server.
pub const ADMIN_KUBECONFIG: &str = "/var/lib/skiff/admin.conf";
/// The socket of [`control`](crate::control), opened by the daemon.
pub const CONTROL_SOCKET: &str = "/run/skiff/control.sock";
/// Output of the daemon and of the node's first process.
pub const LOG_FILE: &str = "/var/log/skiff.log";
/// Where the program is inside a node.
pub const PROGRAM: &str = "/opt/skiff/bin/skiff";

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    ControlPlane,
    Worker,
}

/// Everything that a daemon has to know about its node and cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    pub cluster_name: String,
    pub node_name: String,
    pub role: Role,
    /// The address on [`interface`](Self::interface).
    pub node_ip: Ipv4Addr,
    pub interface: String,
    /// The segment that all nodes of the cluster share.
    pub segment: Subnet,
    /// The range of all pods of the cluster; nodes get a /24 each.
    pub pod_subnet: Subnet,
    pub service_subnet: Subnet,
    /// What the node has of IPv6 in a dual-stack cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NodeIpv6>,
    /// The address of the DNS Service: the tenth of the service range.
    pub cluster_dns: Ipv4Addr,
    pub data_dir: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// Another network plugin will be installed: write no CNI configuration.
    pub disable_default_cni: bool,
    /// No way out of the cluster: nothing is masqueraded, and there is no upstream DNS.
    pub isolated: bool,
    /// Shared secret with which workers join; the server accepts it, agents present it.
    pub bootstrap_token: String,
    pub host: HostConfig,
    /// Only for a control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerConfig>,
    /// Only for a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentConfig>,
    /// Host ports that lead to ports of this node (kind's `extraPortMappings`).
    #[serde(default)]
    pub extra_port_mappings: Vec<PortMapping>,
    /// What differs from the components' defaults.
    #[serde(default)]
    pub settings: Settings,
}

/// The IPv6 ranges of a dual-stack cluster, whose primary family is IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipv6Ranges {
    /// The range of all pods; nodes get a /64 each.
    pub pod_subnet: Subnet,
    pub service_subnet: Subnet,
}

/// A node's part in IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeIpv6 {
    /// The address on the node's interface and the segment that it is on. Without one the pods of this node are reached
    /// by its IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<(Ipv6Addr, Subnet)>,
    #[serde(flatten)]
    pub ranges: Ipv6Ranges,
}

/// Settings of the components in a node, named as upstream's flags are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Components that are not to run here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disable: Vec<Component>,
    /// Of the controller manager, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_monitor_grace_period_s: Option<u64>,
    /// Of the kubelet: `memory.available<100Mi,nodefs.available<10%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction_hard: Option<String>,
    /// Of the kubelet, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction_pressure_transition_period_s: Option<u64>,
    /// Of the kubelet, percent of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_gc_high_threshold: Option<u8>,
    /// Of the kubelet, percent of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_gc_low_threshold: Option<u8>,
    /// Of the API server: a file with an EncryptionConfiguration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_provider_config: Option<PathBuf>,
}

/// A part of a node's daemon that can be left out, or stopped and started again while the others go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The API's listeners; in-process clients are cut off with it.
    Apiserver,
    Scheduler,
    ControllerManager,
    Kubelet,
    Proxy,
    /// The cluster's DNS add-on.
    Dns,
}

impl Component {
    pub const ALL: [Self; 6] =
        [Self::Apiserver, Self::Scheduler, Self::ControllerManager, Self::Kubelet, Self::Proxy, Self::Dns];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apiserver => "apiserver",
            Self::Scheduler => "scheduler",
            Self::ControllerManager => "controller-manager",
            Self::Kubelet => "kubelet",
            Self::Proxy => "proxy",
            Self::Dns => "dns",
        }
    }
}

impl std::str::FromStr for Component {
    type Err = String;

    /// With or without `kube-`, as upstream's programs are called.
    fn from_str(text: &str) -> Result<Self, String> {
        let short = text.strip_prefix("kube-").unwrap_or(text);
        Self::ALL
            .into_iter()
            .find(|c| c.name() == short)
            .ok_or_else(|| format!("{text:?} is no component: {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A taint of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    pub key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
}

/// What leads from the node to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostConfig {
    /// A descriptor of the host's network namespace, for [`HostNet`](crate::host_ports::HostNet).
    pub netns_fd: i32,
    /// A descriptor of the host's /proc, to name the holder of a taken port.
    pub proc_fd: i32,
}

/// How the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerConfig {
    /// On the host, through [`HostNet::listen_tcp`](crate::host_ports::HostNet::listen_tcp).
    pub host_address: Ipv4Addr,
    pub host_port: u16,
    /// On the node's own address, where nodes and pods reach it.
    pub fabric_port: u16,
}

/// How a worker joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    pub server_url: String,
    /// PEM.
    pub ca_certificate: String,
}

/// A host port and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub listen_address: Ipv4Addr,
    pub host_port: u16,
    /// The port of the node, where a NodePort, hostPort or host-network pod answers.
    pub container_port: u16,
    pub protocol: Protocol,
}

impl NodeConfig {
    fn with_ipv6(&self, ipv4: Subnet, of: impl Fn(Ipv6Ranges) -> Subnet) -> Vec<Subnet> {
        std::iter::once(ipv4).chain(self.ipv6.map(|ipv6| of(ipv6.ranges))).collect()
    }

    /// The ranges of the cluster's pods, the primary one first.
    pub fn pod_subnets(&self) -> Vec<Subnet> {
        self.with_ipv6(self.pod_subnet, |ranges| ranges.pod_subnet)
    }

    /// The ranges of the cluster's Services, the primary one first.
    pub fn service_subnets(&self) -> Vec<Subnet> {
        self.with_ipv6(self.service_subnet, |ranges| ranges.service_subnet)
    }

    /// The node's addresses with their segments, the primary one first.
    pub fn addresses(&self) -> Vec<(IpAddr, Subnet)> {
        let ipv6 = self.ipv6.and_then(|ipv6| ipv6.node).map(|(address, segment)| (address.into(), segment));
        std::iter::once((self.node_ip.into(), self.segment)).chain(ipv6).collect()
    }

    /// The node's addresses, the primary one first.
    pub fn node_ips(&self) -> Vec<IpAddr> {
        self.addresses().into_iter().map(|(address, _)| address).collect()
    }

    /// The address that stands for all addresses of the node.
    pub fn any_address(&self) -> IpAddr {
        match self.ipv6 {
            Some(_) => Ipv6Addr::UNSPECIFIED.into(),
            None => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// Reads the file that `--node-config` names.
    pub fn read(path: &std::path::Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }
}
