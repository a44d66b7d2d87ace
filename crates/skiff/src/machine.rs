//! A node on a real machine, for `skiff server` and `skiff agent` without `skiff cluster`: what the node is told comes
//! from flags and from the machine itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use skiff_cluster::{
    NodeConfig,
    node_config::{AgentConfig, HostConfig, Ipv6Ranges, NodeIpv6, Role, ServerConfig, Settings},
};
use skiff_network::{Subnet, links::Links};

/// What the flags say of a machine.
pub(crate) struct Machine<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) node_name: Option<String>,
    /// One, or two of both families.
    pub(crate) node_ips: &'a [IpAddr],
    pub(crate) pod_cidr: &'a str,
    pub(crate) service_cidr: &'a str,
    pub(crate) token: String,
    pub(crate) settings: Settings,
}

/// The machine's own name, as a node is called.
pub(crate) fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the machine's name")?;
    Ok(name.trim().to_ascii_lowercase())
}

/// The link that has this address, and the range that it is in.
fn link_of(address: IpAddr) -> Result<(String, Subnet)> {
    let mut links = Links::open()?;
    for link in links.list()? {
        for (own, prefix) in links.addresses(link.index)? {
            if own == address {
                let segment = Subnet::new(own, prefix).context("an address with an impossible prefix")?;
                return Ok((link.name, segment));
            }
        }
    }
    bail!("no interface of this machine has the address {address} (--node-ip)")
}

/// The IPv4 range of a flag and, for a dual-stack cluster, the IPv6 one after it.
fn ranges(flag: &str, text: &str) -> Result<(Subnet, Option<Subnet>)> {
    let ranges = text.split(',').map(|one| one.trim().parse()).collect::<Result<Vec<Subnet>, _>>()?;
    match ranges.as_slice() {
        [ipv4] if ipv4.is_ipv4() => Ok((*ipv4, None)),
        [ipv4, ipv6] if ipv4.is_ipv4() && !ipv6.is_ipv4() => Ok((*ipv4, Some(*ipv6))),
        _ => bail!("{flag} {text} is neither an IPv4 range nor an IPv4 range and an IPv6 range"),
    }
}

/// The node's addresses, of which the IPv4 one comes first.
pub(crate) fn node_ips(ips: &[IpAddr]) -> Result<(Ipv4Addr, Option<Ipv6Addr>)> {
    match ips {
        [IpAddr::V4(ipv4)] => Ok((*ipv4, None)),
        [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] => Ok((*ipv4, Some(*ipv6))),
        _ => bail!("--node-ip is neither an IPv4 address nor an IPv4 address and an IPv6 address"),
    }
}

impl Machine<'_> {
    /// The node's configuration. There is no host around it: it is the host.
    pub(crate) fn node_config(self, server: Option<ServerConfig>, agent: Option<AgentConfig>) -> Result<NodeConfig> {
        let (node_ip, node_ipv6) = node_ips(self.node_ips)?;
        let (interface, segment) = link_of(node_ip.into())?;
        let (pod_subnet, ipv6_pods) = ranges("--pod-cidr", self.pod_cidr)?;
        let (service_subnet, ipv6_services) = ranges("--service-cidr", self.service_cidr)?;
        let ipv6 = match (ipv6_pods, ipv6_services) {
            (Some(pod_subnet), Some(service_subnet)) => {
                let ranges = Ipv6Ranges { pod_subnet, service_subnet };
                let node = node_ipv6.map(|address| Ok::<_, anyhow::Error>((address, link_of(address.into())?.1)));
                Some(NodeIpv6 { node: node.transpose()?, ranges })
            }
            (None, None) if node_ipv6.is_none() => None,
            (None, None) => {
                bail!("--node-ip has an IPv6 address, but --pod-cidr and --service-cidr have no such range")
            }
            _ => bail!("only one of --pod-cidr and --service-cidr has an IPv6 range"),
        };
        let Some(IpAddr::V4(cluster_dns)) = service_subnet.nth(10) else {
            bail!("the range of the Services is too small for DNS");
        };
        Ok(NodeConfig {
            cluster_name: "skiff".to_owned(),
            node_name: self.node_name.map_or_else(host_name, Ok)?,
            role: if server.is_some() { Role::ControlPlane } else { Role::Worker },
            node_ip,
            interface,
            segment,
            pod_subnet,
            service_subnet,
            ipv6,
            cluster_dns,
            data_dir: self.data_dir.to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            disable_default_cni: false,
            isolated: false,
            bootstrap_token: self.token,
            host: HostConfig { netns_fd: -1, proc_fd: -1 },
            server,
            agent,
            extra_port_mappings: Vec::new(),
            settings: self.settings,
        })
    }
}

/// The token of this control plane, made at its first start.
pub(crate) fn bootstrap_token(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("pki/bootstrap-token");
    if let Some(token) = skiff_pki::read(&path)? {
        return Ok(token.trim().to_owned());
    }
    let token = skiff_cluster::clusters::bootstrap_token()?;
    skiff_pki::write_private(&path, &token)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_kept() {
        let dir = std::env::temp_dir().join(format!("skiff-token-{}", std::process::id()));
        let token = bootstrap_token(&dir).unwrap();
        let (id, secret) = token.split_once('.').unwrap();
        assert_eq!((id.len(), secret.len()), (6, 16));
        assert_eq!(bootstrap_token(&dir).unwrap(), token);
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn config(node_ips: &[&str], pod_cidr: &str, service_cidr: &str) -> Result<NodeConfig> {
        let node_ips: Vec<IpAddr> = node_ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let machine = Machine {
            data_dir: Path::new("/"),
            node_name: Some("one".to_owned()),
            node_ips: &node_ips,
            pod_cidr,
            service_cidr,
            token: String::new(),
            settings: Settings::default(),
        };
        machine.node_config(None, None)
    }

    #[test]
    fn one_family_or_two() {
        let (pods, services) = ("10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/16,fd00:10:96::/112");
        let one = config(&["127.0.0.1"], "10.244.0.0/16", "10.96.0.0/16").unwrap();
        assert_eq!((one.ipv6, one.pod_subnets().len()), (None, 1));
        assert_eq!(one.any_address(), Ipv4Addr::UNSPECIFIED);
        let two = config(&["127.0.0.1"], pods, services).unwrap();
        assert_eq!((two.node_ips().len(), two.service_subnets().len()), (1, 2));
        assert_eq!(two.any_address(), Ipv6Addr::UNSPECIFIED);
        let text = serde_json::to_string(&two).unwrap();
        assert_eq!(serde_json::from_str::<NodeConfig>(&text).unwrap(), two);
        for (ips, pods, services) in [
            (&["127.0.0.1", "::1"][..], "10.244.0.0/16", "10.96.0.0/16"),
            (&["127.0.0.1"], pods, "10.96.0.0/16"),
            (&["127.0.0.1"], "fd00:10:244::/56,10.244.0.0/16", services),
            (&["::1", "127.0.0.1"], pods, services),
        ] {
            assert!(config(ips, pods, services).is_err(), "{ips:?} {pods} {services}");
        }
    }

    #[test]
    fn an_address_leads_to_its_link() {
        let (link, segment) = link_of(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert_eq!((link.as_str(), segment.prefix()), ("lo", 8));
        assert!(link_of(Ipv4Addr::new(192, 0, 2, 1).into()).is_err());
    }
}
