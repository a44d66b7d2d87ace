//! Policies, pods and namespaces into what the pods of this node may receive and send: a pure function.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort,
        },
    },
    apimachinery::pkg::{apis::meta::v1, util::intstr::IntOrString},
};
use skiff_api::selector::LabelSelector;
use skiff_network::{Subnet, hostport::Protocol, nft::Family};

use super::ranges::{Addresses, Allowed, Piece, Ports, addresses_of, everywhere, number_of, without};

/// Seen from a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// Pods that the same policies select, and that mean the same numbers by the ports' names, share a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) direction: Direction,
    /// `namespace/name`.
    policies: Vec<String>,
    /// Of ingress rules, whose ports are those of the selected pod.
    named: BTreeMap<NamedPort, Vec<u16>>,
}

type NamedPort = (u8, String);

/// What is to be enforced on this node, in one address family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// By address of a pod of this node. Pods without an entry are free.
    pub(super) pods: BTreeMap<(Direction, IpAddr), Group>,
    /// Of every group, whom and what it allows; everything else is dropped.
    pub(super) groups: BTreeMap<Group, BTreeSet<Piece>>,
}

type Labels = BTreeMap<String, String>;

/// A pod with an address of its own.
#[derive(Debug)]
struct PodFacts<'a> {
    address: IpAddr,
    namespace: &'a str,
    labels: Option<&'a Labels>,
    ports: Vec<(NamedPort, u16)>,
    local: bool,
}

/// What of a pod matters here; changes of anything else are no news.
pub(super) fn facts_differ(old: &Pod, new: &Pod) -> bool {
    let addresses = |pod: &Pod| (addresses_of_pod(pod), pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
    old.metadata.labels != new.metadata.labels || addresses(old) != addresses(new)
}

/// The addresses of a pod that is neither over nor in its node's network.
fn addresses_of_pod(pod: &Pod) -> Vec<IpAddr> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
    if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    listed.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect()
}

fn facts<'a>(family: Family, pod: &'a Pod, node: &str) -> Option<PodFacts<'a>> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let name = port.name.clone().filter(|name| !name.is_empty())?;
        Some(((protocol(port.protocol.as_deref())?, name), u16::try_from(port.container_port).ok()?))
    });
    Some(PodFacts {
        address: addresses_of_pod(pod).into_iter().find(|address| Family::of(*address) == family)?,
        namespace: pod.metadata.namespace.as_deref()?,
        labels: pod.metadata.labels.as_ref(),
        ports: named.collect(),
        local: spec.node_name.as_deref() == Some(node),
    })
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp.number()),
        Some("UDP") => Some(Protocol::Udp.number()),
        Some("SCTP") => Some(Protocol::Sctp.number()),
        Some(_) => None,
    }
}

#[derive(Debug)]
struct Policy {
    key: String,
    namespace: String,
    pods: LabelSelector,
    /// `None`: says nothing of this direction.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Policy {
    fn rules(&self, direction: Direction) -> Option<&Vec<Rule>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

#[derive(Debug)]
struct Rule {
    /// `None`: everybody.
    peers: Option<Vec<Peer>>,
    /// What is said by number.
    ports: Ports,
    named: BTreeSet<NamedPort>,
}

#[derive(Debug)]
enum Peer {
    Block(Vec<Addresses>),
    /// `namespaces` absent: the policy's own. `pods` absent: all.
    Pods {
        namespaces: Option<LabelSelector>,
        pods: Option<LabelSelector>,
    },
}

fn selector(selector: &v1::LabelSelector) -> Option<LabelSelector> {
    // The API server refuses what cannot be parsed, so that nothing is selected only by what got past it.
    let value = serde_json::to_value(selector).ok()?;
    LabelSelector::from_value(&value).ok()
}

fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector.matches(|key| labels?.get(key).map(String::as_str))
}

fn compile(family: Family, policy: &NetworkPolicy) -> Option<Policy> {
    let spec = policy.spec.as_ref()?;
    let namespace = policy.metadata.namespace.clone()?;
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let says = |what: &str| types.iter().any(|name| name == what);
    let ingress = types.is_empty() || says("Ingress");
    let egress = says("Egress") || (types.is_empty() && spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    let of_ingress =
        |rule: &NetworkPolicyIngressRule| compile_rule(family, rule.from.as_deref(), rule.ports.as_deref());
    let of_egress = |rule: &NetworkPolicyEgressRule| compile_rule(family, rule.to.as_deref(), rule.ports.as_deref());
    Some(Policy {
        key: format!("{namespace}/{}", policy.metadata.name.as_deref()?),
        namespace,
        pods: spec.pod_selector.as_ref().map_or_else(|| Some(LabelSelector::default()), selector)?,
        ingress: ingress.then(|| spec.ingress.iter().flatten().map(of_ingress).collect()),
        egress: egress.then(|| spec.egress.iter().flatten().map(of_egress).collect()),
    })
}

fn compile_rule(family: Family, peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Rule {
    let peers = peers.filter(|peers| !peers.is_empty());
    let mut rule = Rule {
        peers: peers.map(|peers| peers.iter().filter_map(|peer| compile_peer(family, peer)).collect()),
        ports: Ports::default(),
        named: BTreeSet::new(),
    };
    let ports = ports.unwrap_or_default();
    if ports.is_empty() {
        rule.ports = Ports::all();
    }
    for port in ports {
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            continue;
        };
        match &port.port {
            None => rule.ports.add(protocol, 0, u16::MAX),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                if let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(last)) {
                    rule.ports.add(protocol, first, last);
                }
            }
            Some(IntOrString::String(name)) => drop(rule.named.insert((protocol, name.clone()))),
        }
    }
    rule
}

fn compile_peer(family: Family, peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(IPBlock { cidr, except }) = &peer.ip_block {
        // Ranges of the other address family concern nobody here.
        let of_family = |text: &String| text.parse().ok().filter(|range: &Subnet| Family::of(range.base()) == family);
        let range = of_family(cidr)?;
        let except: Vec<Addresses> = except.iter().flatten().filter_map(of_family).map(addresses_of).collect();
        return Some(Peer::Block(without(addresses_of(range), &except)));
    }
    let compiled = |given: &Option<v1::LabelSelector>| match given {
        Some(given) => selector(given).map(Some),
        None => Some(None),
    };
    Some(Peer::Pods { namespaces: compiled(&peer.namespace_selector)?, pods: compiled(&peer.pod_selector)? })
}

struct World<'a> {
    family: Family,
    pods: Vec<PodFacts<'a>>,
    namespaces: BTreeMap<&'a str, Option<&'a Labels>>,
}

/// What is to be enforced on `node`, in one address family.
pub(super) fn wanted(
    family: Family,
    node: &str,
    policies: &[Arc<NetworkPolicy>],
    pods: &[Arc<Pod>],
    namespaces: &[Arc<Namespace>],
) -> Wanted {
    let world = World {
        family,
        pods: pods.iter().filter_map(|pod| facts(family, pod, node)).collect(),
        namespaces: namespaces
            .iter()
            .filter_map(|ns| Some((ns.metadata.name.as_deref()?, ns.metadata.labels.as_ref())))
            .collect(),
    };
    let mut policies: Vec<Policy> = policies.iter().filter_map(|policy| compile(family, policy)).collect();
    policies.sort_by(|a, b| a.key.cmp(&b.key));
    let mut wanted = Wanted::default();
    for pod in world.pods.iter().filter(|pod| pod.local) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let selects = |policy: &&Policy| {
                policy.namespace == pod.namespace
                    && policy.rules(direction).is_some()
                    && matches(&policy.pods, pod.labels)
            };
            let selecting: Vec<&Policy> = policies.iter().filter(selects).collect();
            if selecting.is_empty() {
                continue;
            }
            let group = Group {
                direction,
                policies: selecting.iter().map(|policy| policy.key.clone()).collect(),
                named: named_ports(&selecting, direction, pod),
            };
            if !wanted.groups.contains_key(&group) {
                let allowed = world.allowed(&group, &selecting);
                wanted.groups.insert(group.clone(), allowed.pieces());
            }
            wanted.pods.insert((direction, pod.address), group);
        }
    }
    wanted
}

/// What the names in ingress rules mean for the selected pod.
fn named_ports(policies: &[&Policy], direction: Direction, pod: &PodFacts<'_>) -> BTreeMap<NamedPort, Vec<u16>> {
    if direction == Direction::Egress {
        return BTreeMap::new();
    }
    let names = policies.iter().filter_map(|policy| policy.rules(direction)).flatten().flat_map(|rule| &rule.named);
    names.map(|named| (named.clone(), numbers(pod, named))).collect()
}

fn numbers(pod: &PodFacts<'_>, named: &NamedPort) -> Vec<u16> {
    let ports = pod.ports.iter().filter(|(name, _)| name == named).map(|(_, number)| *number);
    ports.collect::<BTreeSet<_>>().into_iter().collect()
}

impl World<'_> {
    fn allowed(&self, group: &Group, policies: &[&Policy]) -> Allowed {
        let mut allowed = Allowed::default();
        for policy in policies {
            for rule in policy.rules(group.direction).into_iter().flatten() {
                let mut ports = rule.ports.clone();
                for named in &rule.named {
                    for number in group.named.get(named).into_iter().flatten() {
                        ports.add(named.0, *number, *number);
                    }
                }
                self.allow(&mut allowed, policy, rule, &ports);
                if group.direction == Direction::Egress && !rule.named.is_empty() {
                    self.allow_named(&mut allowed, policy, rule);
                }
            }
        }
        allowed
    }

    fn allow(&self, allowed: &mut Allowed, policy: &Policy, rule: &Rule, ports: &Ports) {
        let Some(peers) = &rule.peers else {
            return allowed.add(everywhere(self.family), ports);
        };
        for peer in peers {
            match peer {
                Peer::Block(ranges) => ranges.iter().for_each(|range| allowed.add(*range, ports)),
                Peer::Pods { .. } => {
                    for pod in self.pods.iter().filter(|pod| self.is_peer(pod, peer, policy)) {
                        allowed.add((number_of(pod.address), number_of(pod.address)), ports);
                    }
                }
            }
        }
    }

    /// In egress rules a port's name means what each receiving pod calls so.
    fn allow_named(&self, allowed: &mut Allowed, policy: &Policy, rule: &Rule) {
        let is_meant = |pod: &&PodFacts<'_>| match &rule.peers {
            None => true,
            Some(peers) => peers.iter().any(|peer| self.is_peer(pod, peer, policy)),
        };
        for pod in self.pods.iter().filter(is_meant) {
            let mut ports = Ports::default();
            for named in &rule.named {
                numbers(pod, named).into_iter().for_each(|number| ports.add(named.0, number, number));
            }
            allowed.add((number_of(pod.address), number_of(pod.address)), &ports);
        }
    }

    fn is_peer(&self, pod: &PodFacts<'_>, peer: &Peer, policy: &Policy) -> bool {
        match peer {
            Peer::Block(ranges) => {
                let address = number_of(pod.address);
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&address))
            }
            Peer::Pods { namespaces, pods } => {
                let in_namespace = match namespaces {
                    None => policy.namespace == pod.namespace,
                    Some(selector) => {
                        self.namespaces.get(pod.namespace).is_some_and(|labels| matches(selector, *labels))
                    }
                };
                in_namespace && pods.as_ref().is_none_or(|selector| matches(selector, pod.labels))
            }
        }
    }
}
