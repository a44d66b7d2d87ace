//! What is known of the nodes: what each has, and what the pods on it ask for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Container, Node, Pod},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use skiff_api::quantity::Quantity;

use crate::plugins::terms::Terms;

/// Amounts by resource name: millicores of `cpu`, whole units of everything else.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// CPU that a container counts for when scores are compared though it asks for none, as upstream.
const DEFAULT_MILLICORES: i64 = 100;
/// The same for memory: 200 MB.
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// A port of the host that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) ip: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub(crate) fn conflicts(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// A pod with what the plugins ask of it, computed once.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(crate) pod: Arc<Pod>,
    pub(crate) requests: Amounts,
    /// CPU and memory with something assumed for containers that ask for nothing.
    pub(crate) scored: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) terms: Arc<Terms>,
}

impl PodInfo {
    pub(crate) fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
    }

    pub(crate) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn new(pod: Arc<Pod>) -> PodInfo {
        let spec = pod.spec.as_ref();
        let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let inits = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let mut requests = Amounts::new();
        let (mut cpu, mut memory) = (0, 0);
        for container in containers {
            let asked = requests_of(container);
            cpu += asked.get("cpu").copied().unwrap_or(DEFAULT_MILLICORES);
            memory += asked.get("memory").copied().unwrap_or(DEFAULT_MEMORY_BYTES);
            add(&mut requests, &asked, 1);
        }
        // Init containers run one at a time, beside the restartable ones that started before them.
        let mut sidecars = Amounts::new();
        let mut most = Amounts::new();
        for container in inits {
            let mut asked = requests_of(container);
            if container.restart_policy.as_deref() == Some("Always") {
                add(&mut sidecars, &asked, 1);
                add(&mut requests, &asked, 1);
                max(&mut most, &sidecars);
            } else {
                add(&mut asked, &sidecars, 1);
                max(&mut most, &asked);
            }
        }
        max(&mut requests, &most);
        if let Some(overhead) = spec.and_then(|s| s.overhead.as_ref()) {
            add(&mut requests, &amounts(overhead), 1);
        }
        let ports = containers
            .iter()
            .chain(inits.iter().filter(|c| c.restart_policy.as_deref() == Some("Always")))
            .flat_map(|c| c.ports.iter().flatten())
            .filter(|p| p.host_port.unwrap_or(0) > 0)
            .map(|p| HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: p.host_port.unwrap_or(0),
            })
            .collect();
        let terms = Arc::new(Terms::of(&pod));
        PodInfo { requests, scored: (cpu, memory), ports, terms, pod }
    }
}

fn requests_of(container: &Container) -> Amounts {
    container.resources.as_ref().and_then(|r| r.requests.as_ref()).map(amounts).unwrap_or_default()
}

/// Quantities as numbers. The API server has checked that they are quantities.
pub(crate) fn amounts(list: &BTreeMap<String, ApiQuantity>) -> Amounts {
    list.iter()
        .filter_map(|(name, q)| {
            let q: Quantity = q.0.parse().ok()?;
            Some((name.clone(), if name == "cpu" { q.millis() } else { q.units() }))
        })
        .collect()
}

fn add(to: &mut Amounts, what: &Amounts, sign: i64) {
    for (name, n) in what {
        *to.entry(name.clone()).or_default() += sign * n;
    }
}

fn max(to: &mut Amounts, other: &Amounts) {
    for (name, n) in other {
        let slot = to.entry(name.clone()).or_default();
        *slot = (*slot).max(*n);
    }
}

/// A node and what is on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    /// None for a node that pods name but that is not there (yet, or any more).
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) allocatable: Amounts,
    pub(crate) requested: Amounts,
    pub(crate) scored: (i64, i64),
    pub(crate) pods: HashMap<String, PodInfo>,
}

impl NodeInfo {
    /// The node with some pods more and some less.
    pub(crate) fn changed<'a>(
        &self,
        without: impl IntoIterator<Item = &'a str>,
        with: impl IntoIterator<Item = &'a PodInfo>,
    ) -> NodeInfo {
        let mut node = self.clone();
        for uid in without {
            node.take(uid);
        }
        for pod in with {
            node.put(pod.uid().to_owned(), pod.clone());
        }
        node
    }

    /// The value of a label of the node.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn put(&mut self, uid: String, info: PodInfo) {
        self.take(&uid);
        add(&mut self.requested, &info.requests, 1);
        self.scored.0 += info.scored.0;
        self.scored.1 += info.scored.1;
        self.pods.insert(uid, info);
    }

    fn take(&mut self, uid: &str) -> bool {
        let Some(info) = self.pods.remove(uid) else { return false };
        add(&mut self.requested, &info.requests, -1);
        self.scored.0 -= info.scored.0;
        self.scored.1 -= info.scored.1;
        true
    }

    /// How many pods the node may have.
    pub(crate) fn max_pods(&self) -> i64 {
        self.allocatable.get("pods").copied().unwrap_or(0)
    }

    pub(crate) fn name(&self) -> &str {
        self.node.as_ref().and_then(|n| n.metadata.name.as_deref()).unwrap_or_default()
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    by_name: BTreeMap<String, NodeInfo>,
    /// Node of each pod by UID, also of those that are only assumed to be there.
    placed: HashMap<String, String>,
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

impl Nodes {
    /// A node that is new or changed.
    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.by_name.entry(name).or_default();
        info.allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()).map(amounts).unwrap_or_default();
        info.node = Some(node);
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.by_name.get_mut(name) {
            info.node = None;
            if info.pods.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    /// A pod that is on a node, or that is about to be.
    pub(crate) fn place(&mut self, info: PodInfo, node: &str) {
        let uid = uid(&info.pod);
        self.remove_pod(&uid);
        self.placed.insert(uid.clone(), node.to_owned());
        self.by_name.entry(node.to_owned()).or_default().put(uid, info);
    }

    /// A pod that is gone or over, or whose binding failed. Whether it was on a node.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.placed.remove(uid) else { return false };
        let Some(info) = self.by_name.get_mut(&node) else { return false };
        let taken = info.take(uid);
        if info.node.is_none() && info.pods.is_empty() {
            self.by_name.remove(&node);
        }
        taken
    }

    /// The nodes that are there.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &NodeInfo> {
        self.by_name.values().filter(|n| n.node.is_some())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(v: serde_json::Value) -> PodInfo {
        PodInfo::new(Arc::new(serde_json::from_value(v).unwrap()))
    }

    #[test]
    fn init_containers_count_by_their_maximum() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = c("100m");
        sidecar["restartPolicy"] = "Always".into();
        let info = pod(json!({"metadata": {"uid": "1"}, "spec": {
            "initContainers": [sidecar, c("2")], "containers": [c("500m"), c("1")]}}));
        assert_eq!(info.requests["cpu"], 2100);
    }

    #[test]
    fn what_is_placed_is_taken_away_again() {
        let mut nodes = Nodes::default();
        nodes.set_node(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2"}}}))
                .unwrap(),
        ));
        let info = pod(
            json!({"metadata": {"uid": "1"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}),
        );
        nodes.place(info.clone(), "n");
        nodes.place(info, "n");
        assert_eq!(nodes.iter().next().unwrap().requested["cpu"], 1000);
        assert!(nodes.remove_pod("1"));
        assert_eq!(nodes.iter().next().unwrap().requested["cpu"], 0);
        assert!(!nodes.remove_pod("1"));
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let p = |ip: &str, port| HostPort { ip: ip.into(), protocol: "TCP".into(), port };
        assert!(p("", 80).conflicts(&p("10.0.0.1", 80)));
        assert!(!p("10.0.0.2", 80).conflicts(&p("10.0.0.1", 80)));
        assert!(!p("", 80).conflicts(&p("", 81)));
    }
}
