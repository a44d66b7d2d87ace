//! A node on a real machine, for `skiff server` and `skiff agent` without `skiff cluster`: what the node is told comes
//! from flags and from the machine itself.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, bail};
use skiff_cluster::{
    NodeConfig,
    node_config::{AgentConfig, HostConfig, Role, ServerConfig, Settings},
};
use skiff_network::{Subnet, links::Links};

/// What the flags say of a machine.
pub(crate) struct Machine<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) node_name: Option<String>,
    pub(crate) node_ip: Ipv4Addr,
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
fn link_of(address: Ipv4Addr) -> Result<(String, Subnet)> {
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

impl Machine<'_> {
    /// The node's configuration. There is no host around it: it is the host.
    pub(crate) fn node_config(self, server: Option<ServerConfig>, agent: Option<AgentConfig>) -> Result<NodeConfig> {
        let (interface, segment) = link_of(self.node_ip)?;
        let service_subnet: Subnet = self.service_cidr.parse()?;
        Ok(NodeConfig {
            cluster_name: "skiff".to_owned(),
            node_name: self.node_name.map_or_else(host_name, Ok)?,
            role: if server.is_some() { Role::ControlPlane } else { Role::Worker },
            node_ip: self.node_ip,
            interface,
            segment,
            pod_subnet: self.pod_cidr.parse()?,
            service_subnet,
            cluster_dns: service_subnet.nth(10).context("the range of the Services is too small for DNS")?,
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

    #[test]
    fn an_address_leads_to_its_link() {
        let (link, segment) = link_of(Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!((link.as_str(), segment.prefix()), ("lo", 8));
        assert!(link_of(Ipv4Addr::new(192, 0, 2, 1)).is_err());
    }
}
