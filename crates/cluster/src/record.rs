//! What is remembered of a cluster: `cluster.json`.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use skiff_network::Subnet;

use crate::{
    Error, Home, Limits, Result,
    home::write_atomically,
    node_config::{Ipv6Ranges, PortMapping, Role, Settings},
    spec::ExtraMount,
};

/// A cluster as it was created. Whether it runs is seen from its processes, not from here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The kubeconfig context: `skiff-NAME`, or `kind-NAME` when created as `kind`.
    pub context: String,
    /// The file that the context was merged into.
    pub kubeconfig: PathBuf,
    pub isolated: bool,
    /// Tells the uplinks of clusters apart; each has its own pair of addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<u16>,
    pub api_address: Ipv4Addr,
    pub api_port: u16,
    pub pod_subnet: Subnet,
    pub service_subnet: Subnet,
    /// Of a dual-stack cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Ranges>,
    pub disable_default_cni: bool,
    pub bootstrap_token: String,
    pub nodes: Vec<NodeRecord>,
    #[serde(default)]
    pub settings: Settings,
    /// Of each node.
    #[serde(default)]
    pub limits: Limits,
}

/// A node as it was created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    pub name: String,
    pub role: Role,
    pub address: Ipv4Addr,
    /// In a dual-stack cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_address: Option<Ipv6Addr>,
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    #[serde(default)]
    pub mounts: Vec<ExtraMount>,
}

impl ClusterRecord {
    pub fn control_plane(&self) -> Option<&NodeRecord> {
        self.nodes.iter().find(|node| node.role == Role::ControlPlane)
    }

    pub(crate) fn write(&self, home: &Home) -> Result<()> {
        let path = home.cluster(&self.name).join("cluster.json");
        let action = || Error::io(format!("write {}", path.display()));
        let content = serde_json::to_vec_pretty(self).map_err(|e| action()(e.into()))?;
        // The token is in it.
        write_atomically(&path, &content, 0o600).map_err(action())
    }

    /// `None` if there is no such cluster, or one that is just being created.
    pub(crate) fn read(home: &Home, name: &str) -> Result<Option<Self>> {
        let path = home.cluster(name).join("cluster.json");
        let action = || Error::io(format!("read {}", path.display()));
        match fs::read(&path) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content).map_err(|e| action()(e.into()))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(action()(error)),
        }
    }

    /// All clusters, by name.
    pub(crate) fn all(home: &Home) -> Result<Vec<Self>> {
        let directory = home.clusters();
        let action = || Error::io(format!("read {}", directory.display()));
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(action()(error)),
        };
        let mut clusters = Vec::new();
        for entry in entries {
            let entry = entry.map_err(action())?;
            if let Some(name) = entry.file_name().to_str() {
                clusters.extend(Self::read(home, name)?);
            }
        }
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(clusters)
    }
}
