//! What a cluster is to be: flags, and kind's configuration file (`kind.x-k8s.io/v1alpha4`).
//!
//! Fields that this program does not know are refused by name, those of kind that it cannot honour too:
//! a cluster that is silently different from what was asked for costs more than an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use skiff_network::{Subnet, hostport::Protocol};

use crate::{
    Error, Result,
    node_config::{Ipv6Ranges, PortMapping, Role},
};

/// A cluster to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// From the file; the command line's name wins.
    pub name: Option<String>,
    pub nodes: Vec<NodeSpec>,
    pub pod_subnet: Subnet,
    pub service_subnet: Subnet,
    /// Of a dual-stack cluster.
    pub ipv6: Option<Ipv6Ranges>,
    pub api_address: Ipv4Addr,
    /// Chosen freely if absent.
    pub api_port: Option<u16>,
    pub disable_default_cni: bool,
}

/// A node to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    pub role: Role,
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<PortMapping>,
    pub mounts: Vec<ExtraMount>,
}

/// A directory of the host that is seen inside a node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtraMount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(default)]
    pub read_only: bool,
}

const POD_SUBNET: &str = "10.244.0.0/16";
const SERVICE_SUBNET: &str = "10.96.0.0/12";
const IPV6_POD_SUBNET: &str = "fd00:10:244::/56";
const IPV6_SERVICE_SUBNET: &str = "fd00:10:96::/112";

impl ClusterSpec {
    /// One control plane and `nodes - 1` workers.
    pub fn of_size(nodes: usize) -> Self {
        let node = |role| NodeSpec { role, labels: BTreeMap::new(), ports: Vec::new(), mounts: Vec::new() };
        let workers = (1..nodes).map(|_| node(Role::Worker));
        Self {
            name: None,
            nodes: std::iter::once(node(Role::ControlPlane)).chain(workers).collect(),
            pod_subnet: POD_SUBNET.parse().expect("a constant"),
            service_subnet: SERVICE_SUBNET.parse().expect("a constant"),
            ipv6: None,
            api_address: Ipv4Addr::LOCALHOST,
            api_port: None,
            disable_default_cni: false,
        }
    }

    /// Reads a configuration file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
        Self::parse(&text).map_err(|message| Error::Config { file: file.to_owned(), message })
    }

    /// Parses a configuration; the error is one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if file.kind != "Cluster" {
            return Err(format!("kind is {:?}, expected \"Cluster\"", file.kind));
        }
        if !["kind.x-k8s.io/v1alpha4", "skiff/v1alpha4"].contains(&file.api_version.as_str()) {
            return Err(format!("apiVersion is {:?}, expected \"kind.x-k8s.io/v1alpha4\"", file.api_version));
        }
        let mut spec = Self::of_size(1);
        spec.name = file.name;
        if !file.nodes.is_empty() {
            spec.nodes = file.nodes.into_iter().map(FileNode::into_spec).collect::<Result<_, _>>()?;
        }
        let networking = file.networking;
        let dual = match networking.ip_family.as_deref() {
            None | Some("ipv4") => false,
            Some("dual") => true,
            Some(other) => {
                return Err(format!("networking.ipFamily {other:?} is not supported, only \"ipv4\" and \"dual\""));
            }
        };
        let (pods, second_pods) = subnets("podSubnet", networking.pod_subnet, dual, spec.pod_subnet, IPV6_POD_SUBNET)?;
        let (services, second_services) =
            subnets("serviceSubnet", networking.service_subnet, dual, spec.service_subnet, IPV6_SERVICE_SUBNET)?;
        (spec.pod_subnet, spec.service_subnet) = (pods, services);
        spec.ipv6 = match (second_pods, second_services) {
            (Some(pod_subnet), Some(service_subnet)) => Some(Ipv6Ranges { pod_subnet, service_subnet }),
            _ => None,
        };
        if let Some(address) = networking.api_server_address {
            let parsed = address.parse();
            spec.api_address =
                parsed.map_err(|_| format!("networking.apiServerAddress: {address:?} is not an IPv4 address"))?;
        }
        // kind takes -1 for a random port, which is what leaving it out means.
        spec.api_port = match networking.api_server_port {
            None | Some(-1 | 0) => None,
            Some(port) => {
                let port = u16::try_from(port);
                Some(port.map_err(|_| "networking.apiServerPort is not a port number".to_owned())?)
            }
        };
        spec.disable_default_cni = networking.disable_default_cni;
        if networking.kube_proxy_mode.is_some_and(|mode| mode == "none") {
            return Err("networking.kubeProxyMode \"none\" is not supported".to_owned());
        }
        spec.check()?;
        Ok(spec)
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), String> {
        let control_planes = self.nodes.iter().filter(|node| node.role == Role::ControlPlane).count();
        match control_planes {
            0 => return Err("a cluster needs a node with role control-plane".to_owned()),
            1 => {}
            n => return Err(format!("{n} nodes have role control-plane; local clusters have one")),
        }
        if self.nodes.len() > 250 {
            return Err(format!("{} nodes are more than the 250 that a local cluster can have", self.nodes.len()));
        }
        if self.pod_subnet.prefix() > 16 && self.nodes.len() > 1 << (24_u8.saturating_sub(self.pod_subnet.prefix())) {
            return Err(format!("networking.podSubnet {} has too few /24 ranges for the nodes", self.pod_subnet));
        }
        if self.pod_subnet.prefix() > 24 {
            return Err(format!("networking.podSubnet {} is smaller than a /24", self.pod_subnet));
        }
        if self.service_subnet.prefix() > 27 {
            return Err(format!("networking.serviceSubnet {} is smaller than a /27", self.service_subnet));
        }
        if self.pod_subnet.overlaps(&self.service_subnet) {
            return Err("networking.podSubnet and networking.serviceSubnet overlap".to_owned());
        }
        let segment = crate::fabric::segment();
        for (name, range) in [("podSubnet", self.pod_subnet), ("serviceSubnet", self.service_subnet)] {
            if range.overlaps(&segment) {
                return Err(format!("networking.{name} {range} overlaps the nodes' range {segment}"));
            }
        }
        if let Some(ipv6) = self.ipv6 {
            self.check_ipv6(ipv6)?;
        }
        let mut seen = BTreeSet::new();
        for port in self.nodes.iter().flat_map(|node| &node.ports) {
            if port.host_port != 0 && !seen.insert((port.protocol, port.listen_address, port.host_port)) {
                return Err(format!(
                    "extraPortMappings: host port {}/{} is mapped twice",
                    port.host_port, port.protocol
                ));
            }
        }
        Ok(())
    }
}

impl ClusterSpec {
    fn check_ipv6(&self, ipv6: Ipv6Ranges) -> Result<(), String> {
        let Ipv6Ranges { pod_subnet, service_subnet } = ipv6;
        if !(48..=64).contains(&pod_subnet.prefix()) {
            return Err(format!("networking.podSubnet {pod_subnet} is not between a /48 and a /64"));
        }
        if self.nodes.len() > 1 << (64 - pod_subnet.prefix()) {
            return Err(format!("networking.podSubnet {pod_subnet} has too few /64 ranges for the nodes"));
        }
        if !(64..=123).contains(&service_subnet.prefix()) {
            return Err(format!("networking.serviceSubnet {service_subnet} is not between a /64 and a /123"));
        }
        if pod_subnet.overlaps(&service_subnet) {
            return Err("networking.podSubnet and networking.serviceSubnet overlap".to_owned());
        }
        let segment = crate::fabric::ipv6_segment();
        for (name, range) in [("podSubnet", pod_subnet), ("serviceSubnet", service_subnet)] {
            if range.overlaps(&segment) {
                return Err(format!("networking.{name} {range} overlaps the nodes' range {segment}"));
            }
        }
        Ok(())
    }
}

/// The IPv4 range of a field and, in a dual-stack cluster, the IPv6 one after it.
fn subnets(
    field: &str,
    value: Option<String>,
    dual: bool,
    default: Subnet,
    default_ipv6: &str,
) -> Result<(Subnet, Option<Subnet>), String> {
    let ranges = match value {
        None if dual => vec![default, default_ipv6.parse().expect("a constant")],
        None => vec![default],
        Some(text) => text
            .split(',')
            .map(|one| one.trim().parse().map_err(|error| format!("networking.{field}: {error}")))
            .collect::<Result<Vec<Subnet>, _>>()?,
    };
    match ranges.as_slice() {
        [ipv4] if !dual && ipv4.is_ipv4() => Ok((*ipv4, None)),
        [ipv4, ipv6] if dual && ipv4.is_ipv4() && !ipv6.is_ipv4() => Ok((*ipv4, Some(*ipv6))),
        _ if dual => Err(format!(
            "networking.{field}: with networking.ipFamily \"dual\" it is an IPv4 range and an IPv6 range, as in \"{default},{default_ipv6}\""
        )),
        _ => Err(format!("networking.{field}: it is one IPv4 range, unless networking.ipFamily is \"dual\"")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    kind: String,
    api_version: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    nodes: Vec<FileNode>,
    #[serde(default)]
    networking: Networking,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileNode {
    #[serde(default = "control_plane")]
    role: Role,
    /// The node image. There is none here, so any is accepted and nothing is done with it.
    #[serde(default)]
    #[allow(dead_code)]
    image: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    extra_port_mappings: Vec<FilePort>,
    #[serde(default)]
    extra_mounts: Vec<ExtraMount>,
}

fn control_plane() -> Role {
    Role::ControlPlane
}

impl FileNode {
    fn into_spec(self) -> Result<NodeSpec, String> {
        let ports = self.extra_port_mappings.into_iter().map(FilePort::into_mapping).collect::<Result<_, _>>()?;
        for mount in &self.extra_mounts {
            if !mount.container_path.is_absolute()
                || mount.container_path.components().any(|c| c == std::path::Component::ParentDir)
            {
                return Err(format!("extraMounts: containerPath {:?} is not an absolute path", mount.container_path));
            }
        }
        Ok(NodeSpec { role: self.role, labels: self.labels, ports, mounts: self.extra_mounts })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FilePort {
    container_port: u16,
    #[serde(default)]
    host_port: u16,
    #[serde(default)]
    listen_address: Option<String>,
    #[serde(default)]
    protocol: Protocol,
}

impl FilePort {
    fn into_mapping(self) -> Result<PortMapping, String> {
        if self.protocol == Protocol::Sctp {
            return Err(format!("extraPortMappings: SCTP for container port {} is not supported", self.container_port));
        }
        let listen_address = match self.listen_address.as_deref() {
            // kind's default.
            None | Some("") => Ipv4Addr::UNSPECIFIED,
            Some(text) => {
                text.parse().map_err(|_| format!("extraPortMappings: listenAddress {text:?} is not an IPv4 address"))?
            }
        };
        Ok(PortMapping {
            listen_address,
            host_port: self.host_port,
            container_port: self.container_port,
            protocol: self.protocol,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Networking {
    ip_family: Option<String>,
    pod_subnet: Option<String>,
    service_subnet: Option<String>,
    api_server_address: Option<String>,
    api_server_port: Option<i32>,
    #[serde(default)]
    #[serde(rename = "disableDefaultCNI")]
    disable_default_cni: bool,
    kube_proxy_mode: Option<String>,
}

/// Names of the nodes in order, as kind gives them.
pub fn node_names(cluster: &str, nodes: &[NodeSpec]) -> Vec<String> {
    let mut workers = 0;
    let name = |node: &NodeSpec| match node.role {
        Role::ControlPlane => format!("{cluster}-control-plane"),
        Role::Worker => {
            workers += 1;
            match workers {
                1 => format!("{cluster}-worker"),
                n => format!("{cluster}-worker{n}"),
            }
        }
    };
    nodes.iter().map(name).collect()
}

/// Refuses names that cannot be part of a host name and a path.
pub fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME {
        "it is longer than 45 characters"
    } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.') {
        "only lower-case letters, digits, '-' and '.' are allowed"
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        "it has to start and end with a letter or digit"
    } else {
        return Ok(());
    };
    Err(Error::InvalidName { name: name.to_owned(), why })
}

/// A host name has at most 63 characters, and `-control-plane` and `-worker250` are appended.
const MAX_NAME: usize = 45;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_file_is_understood() {
        let spec = ClusterSpec::parse(
            "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: dev
networking:
  podSubnet: 10.10.0.0/16
  apiServerPort: 7443
  disableDefaultCNI: true
nodes:
- role: control-plane
  image: kindest/node:v1.36.0
  extraPortMappings:
  - containerPort: 30080
    hostPort: 8080
    protocol: TCP
    listenAddress: 127.0.0.1
  - {containerPort: 53, hostPort: 5353, protocol: udp}
- role: worker
  labels: {tier: front}
  extraMounts: [{hostPath: /tmp/x, containerPath: /data}]
- role: worker
",
        )
        .unwrap();
        assert_eq!(node_names("dev", &spec.nodes), ["dev-control-plane", "dev-worker", "dev-worker2"]);
        assert_eq!(spec.api_port, Some(7443));
        assert!(spec.disable_default_cni);
        assert_eq!(spec.pod_subnet.to_string(), "10.10.0.0/16");
        assert_eq!(spec.nodes[0].ports[0].listen_address, Ipv4Addr::LOCALHOST);
        assert_eq!(spec.nodes[0].ports[1].protocol, Protocol::Udp);
        assert_eq!(spec.nodes[1].labels["tier"], "front");
        assert_eq!(spec.nodes[1].mounts[0].container_path, Path::new("/data"));
    }

    #[test]
    fn a_dual_stack_cluster() {
        let parse = |networking: &str| {
            let head = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n";
            let spec = ClusterSpec::parse(&format!("{head}networking: {networking}")).unwrap();
            let ipv6 = spec.ipv6.map(|ipv6| format!("{} {}", ipv6.pod_subnet, ipv6.service_subnet));
            (format!("{} {}", spec.pod_subnet, spec.service_subnet), ipv6)
        };
        let ipv4 = "10.244.0.0/16 10.96.0.0/12".to_owned();
        assert_eq!(parse("{ipFamily: ipv4}"), (ipv4.clone(), None));
        assert_eq!(parse("{ipFamily: dual}"), (ipv4, Some("fd00:10:244::/56 fd00:10:96::/112".to_owned())));
        let own = "{ipFamily: dual, podSubnet: \"10.1.0.0/16, fd01::/48\", serviceSubnet: \"10.2.0.0/16,fd02::/108\"}";
        assert_eq!(parse(own), ("10.1.0.0/16 10.2.0.0/16".to_owned(), Some("fd01::/48 fd02::/108".to_owned())));
    }

    #[test]
    fn faults_are_named() {
        let head = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n";
        let fault = |rest: &str| ClusterSpec::parse(&format!("{head}{rest}")).unwrap_err();
        assert!(fault("featureGates: {X: true}").contains("featureGates"));
        assert!(fault("nodes: [{role: worker}]").contains("control-plane"));
        assert!(fault("nodes: [{role: control-plane}, {role: control-plane}]").starts_with("2 nodes"));
        assert!(fault("networking: {podSubnet: x}").starts_with("networking.podSubnet"));
        assert!(fault("networking: {ipFamily: ipv6}").contains("only \"ipv4\" and \"dual\""));
        assert!(fault("networking: {podSubnet: \"10.1.0.0/16,fd00::/56\"}").contains("unless networking.ipFamily"));
        for pair in ["10.1.0.0/16", "fd00::/56", "fd00::/56,10.1.0.0/16", "10.1.0.0/16,fd00::/56,fd01::/56"] {
            let text = format!("networking: {{ipFamily: dual, podSubnet: \"{pair}\"}}");
            assert!(fault(&text).contains("an IPv4 range and an IPv6 range"), "{pair}");
        }
        for (pair, message) in [("10.1.0.0/16,fd00::/65", "/48"), ("10.1.0.0/16,fd00:10:96::/64", "overlap")] {
            let text = format!("networking: {{ipFamily: dual, podSubnet: \"{pair}\"}}");
            assert!(fault(&text).contains(message), "{pair}: {}", fault(&text));
        }
        assert!(fault("networking: {podSubnet: 10.96.0.0/16}").contains("overlap"));
        assert!(fault("networking: {podSubnet: 172.18.0.0/16}").contains("overlaps the nodes"));
        let twice = "nodes: [{role: control-plane, extraPortMappings: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]}]";
        assert!(fault(twice).contains("mapped twice"));
        let other = ClusterSpec::parse("kind: Cluster\napiVersion: v1").unwrap_err();
        assert!(other.contains("kind.x-k8s.io/v1alpha4"));
    }

    #[test]
    fn names_are_checked() {
        for good in ["dev", "a", "my-cluster.2"] {
            check_name(good).unwrap();
        }
        for bad in ["", "Dev", "a/b", "..", "-a", "a-", &"x".repeat(46)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
