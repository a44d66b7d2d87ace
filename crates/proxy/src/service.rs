//! One Service as elements of the proxy's maps, those of each address family by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::EndpointSlice,
};
use skiff_network::{
    Subnet,
    hostport::Protocol,
    nft::{Element, Family, Key, Verdict},
};

use crate::{
    endpoints,
    table::{self, Affinity, Chain, Entry, Front, List, Map},
};

/// What the proxy knows of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The Node object's name: tells which endpoints are local.
    pub name: String,
    /// The range of all pods, of each family that is to be proxied. Traffic from elsewhere to cluster addresses is
    /// masqueraded.
    pub pod_cidrs: Vec<Subnet>,
    /// Packets to addresses of these ranges that belong to no Service are dropped.
    pub service_cidrs: Vec<Subnet>,
    /// From `topology.kubernetes.io/zone`, for hints.
    pub zone: Option<String>,
}

/// The node as one address family has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) pod_cidr: Subnet,
    pub(crate) service_cidr: Option<Subnet>,
    pub(crate) zone: Option<String>,
}

impl NodeInfo {
    pub(crate) fn views(&self) -> Vec<View> {
        let view = |pod_cidr: &Subnet| View {
            name: self.name.clone(),
            family: Family::of(pod_cidr.base()),
            pod_cidr: *pod_cidr,
            service_cidr: self.service_cidrs.iter().find(|range| range.is_like(pod_cidr.base())).copied(),
            zone: self.zone.clone(),
        };
        self.pod_cidrs.iter().map(view).collect()
    }
}

impl View {
    /// The addresses of this family.
    fn own<'a>(&self, texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
        let addresses = texts.into_iter().filter_map(|text| text.parse().ok());
        addresses.filter(|address| self.pod_cidr.is_like(*address)).collect()
    }
}

/// Identifies a map's element: the map, its key and, for ranges, the last key.
pub(crate) type Slot = (Map, Key, Option<Key>);

/// What one Service wants of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) elements: BTreeMap<Slot, Element>,
    pub(crate) chains: BTreeSet<Chain>,
    /// Endpoints in the order of their numbers, by Service port.
    pub(crate) order: BTreeMap<PortKey, [Vec<SocketAddr>; 2]>,
    /// Where UDP packets to this Service may end up; everything else that is tracked is stale.
    pub(crate) udp: Vec<UdpFront>,
}

/// A port within its Service.
pub(crate) type PortKey = (String, Protocol);

/// A UDP address of a Service with all endpoints that it may lead to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UdpFront {
    /// `None`: a node port, on any address of the node.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) endpoints: BTreeSet<SocketAddr>,
}

impl Wants {
    fn add(&mut self, map: Map, element: Element) {
        let slot = (map, element.key.clone(), element.key_end.clone());
        self.elements.insert(slot, element);
    }
}

/// Numbers for Service ports. Even ones name all endpoints, the next odd ones those of this node.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next: u32,
    free: Vec<u32>,
    taken: BTreeMap<(String, PortKey), u32>,
}

impl Numbers {
    pub(crate) fn of(&mut self, service: &str, port: &PortKey) -> u32 {
        let key = (service.to_owned(), port.clone());
        if let Some(number) = self.taken.get(&key) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.next += 2;
            self.next
        });
        self.taken.insert(key, number);
        number
    }

    /// Gives back the numbers of a Service's ports that are not in `kept`.
    pub(crate) fn release(&mut self, service: &str, kept: impl Fn(&PortKey) -> bool) {
        let free = &mut self.free;
        self.taken.retain(|(name, port), number| {
            let keep = name != service || kept(port);
            if !keep {
                free.push(*number);
            }
            keep
        });
    }
}

const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const DEFAULT_AFFINITY_S: i32 = 10_800;

/// Whether the proxy has anything to do with a Service.
fn is_proxied(service: &Service, spec: &ServiceSpec) -> bool {
    let labels = service.metadata.labels.as_ref();
    let labelled = |label| labels.is_some_and(|labels| labels.contains_key(label));
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    !labelled(SERVICE_PROXY_NAME)
        && !labelled(HEADLESS)
        && spec.type_.as_deref() != Some("ExternalName")
        && !matches!(address, "" | "None")
}

/// Turns a Service and its slices into wants. `previous` is what the same Service wanted before: its
/// endpoints keep their numbers, so that one that comes or goes changes two elements and not all.
pub(crate) fn wants(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &View,
    previous: Option<&Wants>,
    numbers: &mut Numbers,
) -> Wants {
    let mut wants = Wants::default();
    let Some(spec) = service.spec.as_ref().filter(|spec| is_proxied(service, spec)) else {
        return wants;
    };
    if node.own(cluster_ips(spec)).is_empty() {
        return wants;
    }
    let name = format!(
        "{}/{}",
        service.metadata.namespace.as_deref().unwrap_or_default(),
        service.metadata.name.as_deref().unwrap_or_default()
    );
    for port in spec.ports.iter().flatten() {
        let context = PortContext { service, spec, port, name: &name, node };
        context.add_to(&mut wants, slices, previous, numbers);
    }
    wants
}

/// The cluster addresses of all families.
fn cluster_ips(spec: &ServiceSpec) -> Vec<&String> {
    match spec.cluster_ips.as_deref() {
        None | Some([]) => spec.cluster_ip.iter().collect(),
        Some(listed) => listed.iter().collect(),
    }
}

struct PortContext<'a> {
    service: &'a Service,
    spec: &'a ServiceSpec,
    port: &'a ServicePort,
    name: &'a str,
    node: &'a View,
}

impl PortContext<'_> {
    fn add_to(
        &self,
        wants: &mut Wants,
        slices: &[Arc<EndpointSlice>],
        previous: Option<&Wants>,
        numbers: &mut Numbers,
    ) {
        let protocol = match self.port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(_) => return,
        };
        let Ok(number) = u16::try_from(self.port.port) else {
            return;
        };
        let key: PortKey = (self.port.name.clone().unwrap_or_default(), protocol);
        let endpoints = endpoints::of_port(self.port, slices, self.node);
        let before = previous.and_then(|previous| previous.order.get(&key));
        let order = [(0, &endpoints.cluster), (1, &endpoints.local)].map(|(list, wanted)| {
            let before = before.map(|lists| lists[list].as_slice()).unwrap_or_default();
            stable_order(before, wanted)
        });
        let id = numbers.of(self.name, &key);
        let comment = match key.0.is_empty() {
            true => self.name.to_owned(),
            false => format!("{}:{}", self.name, key.0),
        };
        let port = Port {
            protocol,
            number,
            id,
            comment,
            clusters: u32::try_from(order[0].len()).unwrap_or(u32::MAX),
            locals: u32::try_from(order[1].len()).unwrap_or(u32::MAX),
            affinity: self.affinity(),
            any: endpoints.any,
        };
        let local_needed = self.is_local_only(self.spec.internal_traffic_policy.as_deref())
            || self.is_local_only(self.spec.external_traffic_policy.as_deref());
        for (list, endpoints) in order.iter().enumerate() {
            // The second list costs nothing where no policy asks for it.
            if list == 1 && !local_needed {
                continue;
            }
            let id = id + u32::try_from(list).unwrap_or_default();
            for (index, endpoint) in (0u32..).zip(endpoints) {
                let target = Key::new().address(endpoint.ip()).port(endpoint.port());
                let slot = Key::new().number(id).number(index);
                wants.add(Map::Endpoints, slot.value(target).comment(&port.comment));
                if port.affinity.is_some() {
                    let live = Key::new().number(id).address(endpoint.ip()).port(endpoint.port());
                    wants.add(Map::AffinityEndpoints, live.element());
                }
            }
        }
        for address in &endpoints.hairpin {
            wants.add(Map::Hairpin, Key::new().address(*address).address(*address).element());
        }
        self.add_cluster_address(wants, &port);
        self.add_external_addresses(wants, &port);
        if protocol == Protocol::Udp {
            let all: BTreeSet<SocketAddr> = endpoints.cluster.union(&endpoints.local).copied().collect();
            wants.udp.extend(self.udp_fronts(number, &all));
        }
        wants.order.insert(key, order);
    }

    fn is_local_only(&self, policy: Option<&str>) -> bool {
        policy == Some("Local")
    }

    fn affinity(&self) -> Option<Affinity> {
        if self.spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = self.spec.session_affinity_config.as_ref();
        let seconds = config.and_then(|config| config.client_ip.as_ref()).and_then(|client| client.timeout_seconds);
        let seconds = seconds.unwrap_or(DEFAULT_AFFINITY_S);
        Some(Affinity { timeout_s: u32::try_from(seconds).unwrap_or_default().max(1) })
    }

    fn add_cluster_address(&self, wants: &mut Wants, port: &Port) {
        let local = self.is_local_only(self.spec.internal_traffic_policy.as_deref());
        let available = if local { port.locals } else { port.clusters };
        for address in self.node.own(cluster_ips(self.spec)) {
            wants.add(Map::ClusterIps, Key::new().address(address).element());
            let front = Front::Address;
            if available == 0 {
                port.refuse(wants, Some(address), port.number);
                continue;
            }
            let list = if local { List::Local } else { List::Cluster };
            let entry = Entry::Cluster { list, endpoints: available };
            port.lead(wants, Some(address), port.number, front, entry);
        }
    }

    /// Addresses outside of the Service range: external ones and those of load balancers.
    fn external_ips(&self) -> Vec<IpAddr> {
        let external = self.node.own(self.spec.external_ips.iter().flatten());
        external.into_iter().chain(self.load_balancer_ips()).collect()
    }

    /// Those whose traffic arrives with the address unchanged.
    fn load_balancer_ips(&self) -> Vec<IpAddr> {
        let status = self.service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|balancer| balancer.ingress.as_ref());
        let unchanged = ingress.into_iter().flatten().filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        self.node.own(unchanged.filter_map(|ingress| ingress.ip.as_ref()))
    }

    fn node_port(&self) -> Option<u16> {
        let port = self.port.node_port.and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port != 0)
    }

    fn add_external_addresses(&self, wants: &mut Wants, port: &Port) {
        let local = self.is_local_only(self.spec.external_traffic_policy.as_deref());
        let entry = match local {
            true => Entry::ExternalLocal { clusters: port.clusters, locals: port.locals },
            false => Entry::External { endpoints: port.clusters },
        };
        let reachable = if local { port.locals } else { port.clusters };
        let fronts = self.external_ips().into_iter().map(|address| (Some(address), port.number, Front::Address));
        let node_port = self.node_port().map(|number| (None, number, Front::NodePort));
        for (address, number, front) in fronts.chain(node_port) {
            // Pods and the node itself may use the endpoints of other nodes also under policy Local.
            if port.clusters > 0 {
                port.lead(wants, address, number, front, entry);
            }
            if reachable == 0 {
                port.refuse(wants, address, number);
            }
        }
        let ranges: Vec<Subnet> = self
            .spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|text| text.trim().parse().ok())
            .filter(|range: &Subnet| range.is_like(self.node.pod_cidr.base()))
            .collect();
        if ranges.is_empty() {
            return;
        }
        for address in self.load_balancer_ips() {
            let front = port.key(Some(address), port.number);
            wants.add(Map::Restricted, front.clone().element().comment(&port.comment));
            for range in &ranges {
                wants.add(Map::AllowedSources, Element::in_subnet(front.clone(), *range));
            }
        }
    }

    fn udp_fronts(&self, number: u16, endpoints: &BTreeSet<SocketAddr>) -> Vec<UdpFront> {
        let addresses = self.node.own(cluster_ips(self.spec)).into_iter().chain(self.external_ips());
        let fronts = addresses.map(|address| (Some(address), number));
        let fronts = fronts.chain(self.node_port().map(|port| (None, port)));
        fronts.map(|(address, port)| UdpFront { address, port, endpoints: endpoints.clone() }).collect()
    }
}

struct Port {
    protocol: Protocol,
    number: u16,
    id: u32,
    comment: String,
    clusters: u32,
    locals: u32,
    affinity: Option<Affinity>,
    any: bool,
}

impl Port {
    fn key(&self, address: Option<IpAddr>, number: u16) -> Key {
        let key = match address {
            Some(address) => Key::new().address(address),
            None => Key::new(),
        };
        key.protocol(self.protocol.number()).port(number)
    }

    fn lead(&self, wants: &mut Wants, address: Option<IpAddr>, number: u16, front: Front, entry: Entry) {
        let chain = Chain::Entry { front, entry, affinity: self.affinity };
        let (verdicts, ids) = match front {
            Front::Address => (Map::Services, Map::ServiceIds),
            Front::NodePort => (Map::NodePorts, Map::NodePortIds),
        };
        let key = self.key(address, number);
        let goto = Verdict::Goto(chain.name());
        wants.add(verdicts, key.clone().verdict(goto).comment(&self.comment));
        wants.add(ids, key.value(Key::new().number(self.id)));
        wants.chains.extend(chain.with_those_it_needs());
    }

    /// Nobody to lead to. Without any endpoint the client is told; if only this node has none, the
    /// packet is dropped, so that a load balancer tries another node.
    fn refuse(&self, wants: &mut Wants, address: Option<IpAddr>, number: u16) {
        let map = match address {
            Some(_) => Map::NoEndpoints,
            None => Map::NoEndpointNodePorts,
        };
        let verdict = match self.any {
            true => Verdict::Drop,
            false => Verdict::Goto(table::REJECT.to_owned()),
        };
        wants.add(map, self.key(address, number).verdict(verdict).comment(&self.comment));
    }
}

/// The wanted endpoints in an order that differs as little as possible from the previous one.
fn stable_order(previous: &[SocketAddr], wanted: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
    let mut new: Vec<SocketAddr> =
        wanted.iter().filter(|endpoint| !previous.contains(endpoint)).rev().copied().collect();
    let mut order = previous.to_vec();
    let mut index = 0;
    while let Some(endpoint) = order.get(index) {
        if wanted.contains(endpoint) {
            index += 1;
        } else if let Some(replacement) = new.pop() {
            order[index] = replacement;
            index += 1;
        } else {
            order.swap_remove(index);
        }
    }
    order.extend(new.into_iter().rev());
    order
}

#[cfg(test)]
mod tests;
