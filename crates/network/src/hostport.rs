//! Host ports: ports of the node that lead to a port of one pod.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, Subnet, conntrack,
    ipam::Ipam,
    netlink::Socket,
    nft::{
        self, BaseChain, Batch, ChainKind, CtKey, Element, Family, FibResult, Field, Hook, Key, Meta, Op, Reg, Rule,
        Set, Verdict, ct_status,
    },
};

/// The nftables table of the pod network: host ports and the masquerading of what leaves the cluster.
pub const TABLE: &str = "skiff-pods";
const BY_ADDRESS: &str = "hostports-by-address";
const ANY_ADDRESS: &str = "hostports";
const HAIRPIN: &str = "hairpin";
const RTN_LOCAL: u32 = 2;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    #[serde(rename = "TCP", alias = "tcp")]
    Tcp,
    #[serde(rename = "UDP", alias = "udp")]
    Udp,
    #[serde(rename = "SCTP", alias = "sctp")]
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One host port, with the field names of the CNI `portMappings` capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The node's address to listen on; every one if absent, empty, `0.0.0.0` or `::`.
    #[serde(
        rename = "hostIP",
        default,
        deserialize_with = "optional_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    #[serde(default)]
    pub protocol: Protocol,
}

/// CNI runtimes send an empty string where there is no address.
fn optional_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    match text.as_str() {
        "" | "0.0.0.0" | "::" => Ok(None),
        other => other.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

impl HostPort {
    /// Both cannot be served by one node.
    fn conflicts(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        same_address && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

/// The rules that do not change with pods.
#[derive(Debug, Clone)]
pub struct TableConfig {
    /// The bridge that pods hang on.
    pub bridge: String,
    /// The node's ranges; each family has a table.
    pub pod_cidrs: Vec<Subnet>,
    /// Replace the source of what pods send to anywhere else than these.
    pub masquerade_except: Option<Vec<Subnet>>,
}

/// Replaces the whole tables by ones that fit the configuration and the recorded pods, each in one step.
pub fn rebuild(socket: &mut Socket, config: &TableConfig, ipam: &Ipam) -> Result<()> {
    config.pod_cidrs.iter().try_for_each(|range| rebuild_family(socket, config, *range, ipam))
}

fn rebuild_family(socket: &mut Socket, config: &TableConfig, pods: Subnet, ipam: &Ipam) -> Result<()> {
    let family = Family::of(pods.base());
    let rule = || Rule::of(family);
    // Where what follows an address is loaded.
    let after = family.registers();
    let mut batch = Batch::new(family, TABLE);
    batch.delete_table().add_table();
    let address = family.address();
    let front = [Field::Protocol, Field::Port];
    let front_with_address = [address, Field::Protocol, Field::Port];
    let target = [address, Field::Port];
    batch.add_set(&Set::map(BY_ADDRESS, &front_with_address, &target));
    batch.add_set(&Set::map(ANY_ADDRESS, &front, &target));
    batch.add_set(&Set::plain(HAIRPIN, &[address, address]));
    batch.add_chain("hostports");
    let (found, found_port) = (Reg(8), Reg(8 + after));
    let by_address = rule().daddr(Reg(0)).l4proto(Reg(after)).dport(Reg(after + 1));
    batch.add_rule("hostports", by_address.map(Reg(0), BY_ADDRESS, found).dnat(found, found_port));
    let any = rule().l4proto(Reg(0)).dport(Reg(1));
    batch.add_rule("hostports", any.map(Reg(0), ANY_ADDRESS, found).dnat(found, found_port));
    let nat = |hook, priority| BaseChain { kind: ChainKind::Nat, hook, priority };
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        batch.add_base_chain(name, nat(hook, -100));
        let local = rule().fib_daddr(Reg(0), FibResult::AddressType);
        let local = local.cmp(Reg(0), Op::Eq, &RTN_LOCAL.to_ne_bytes());
        // What comes from IPv6's loopback address can be sent to nobody else.
        let local = match family {
            Family::Ip6 => local.daddr(Reg(0)).in_subnet(Reg(0), Op::Neq, Subnet::host(Ipv6Addr::LOCALHOST)),
            _ => local,
        };
        batch.add_rule(name, local.verdict(Verdict::Jump("hostports".to_owned())));
    }
    batch.add_base_chain("postrouting", nat(Hook::Postrouting, 100));
    let rewritten = || rule().ct(Reg(0), CtKey::Status).any_bit(Reg(0), ct_status::DNAT);
    if family == Family::Ip {
        let loopback = Subnet::new(Ipv4Addr::LOCALHOST, 8).expect("a constant");
        let from_localhost = rewritten().saddr(Reg(0)).in_subnet(Reg(0), Op::Eq, loopback);
        // To pods only: what stays on the loopback device must keep its source.
        let from_localhost = from_localhost.interface(Reg(4), Meta::OutputName, Op::Neq, "lo");
        batch.add_rule("postrouting", from_localhost.masquerade().comment("host ports from localhost"));
    }
    let hairpin = rewritten().saddr(Reg(0)).daddr(Reg(after)).lookup(Reg(0), HAIRPIN);
    batch.add_rule("postrouting", hairpin.masquerade().comment("a pod to its own host port"));
    if let Some(exceptions) = &config.masquerade_except {
        batch.add_chain("leaving");
        let from_pods = rule().saddr(Reg(0)).in_subnet(Reg(0), Op::Eq, pods);
        batch.add_rule("postrouting", from_pods.verdict(Verdict::Jump("leaving".to_owned())));
        for range in exceptions.iter().filter(|range| range.is_like(pods.base())) {
            let inside = rule().daddr(Reg(0)).in_subnet(Reg(0), Op::Eq, *range);
            batch.add_rule("leaving", inside.verdict(Verdict::Return));
        }
        batch.add_rule("leaving", rule().masquerade().comment("pods to outside the cluster"));
    }
    if family == Family::Ip6 {
        refuse_redirects(&mut batch, &config.bridge);
    }
    add_elements(&mut batch, pods, ipam)?;
    batch.commit(socket)
}

/// Packets between pods leave by the interface that they came from, which is no reason to tell the sender of a
/// shorter way. For IPv6 the kernel has no setting that keeps it from telling.
fn refuse_redirects(batch: &mut Batch, bridge: &str) {
    const ICMPV6: u8 = 58;
    const REDIRECT: u8 = 137;
    batch.add_base_chain("redirects", BaseChain { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 });
    let redirect = Rule::of(Family::Ip6).l4proto(Reg(0)).cmp(Reg(0), Op::Eq, &[ICMPV6]);
    let redirect = redirect.icmp_type(Reg(0)).cmp(Reg(0), Op::Eq, &[REDIRECT]);
    let redirect = redirect.interface(Reg(4), Meta::OutputName, Op::Eq, bridge);
    batch.add_rule("redirects", redirect.verdict(Verdict::Drop));
}

/// True if the table of each of these ranges' families is there.
pub fn exists(socket: &mut Socket, ranges: &[Subnet]) -> Result<bool> {
    for range in ranges {
        if !nft::tables(socket, Family::of(range.base()))?.iter().any(|name| name == TABLE) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the maps of these ranges' families agree with the recorded pods, each in one step.
pub fn synchronise(socket: &mut Socket, ranges: &[Subnet], ipam: &Ipam) -> Result<()> {
    for range in ranges {
        let mut batch = Batch::new(Family::of(range.base()), TABLE);
        batch.flush_set(BY_ADDRESS).flush_set(ANY_ADDRESS).flush_set(HAIRPIN);
        add_elements(&mut batch, *range, ipam)?;
        batch.commit(socket)?;
    }
    Ok(())
}

fn add_elements(batch: &mut Batch, range: Subnet, ipam: &Ipam) -> Result<()> {
    let pods = ipam.host_ports()?;
    let mut by_address = Vec::new();
    let mut any = Vec::new();
    let mut hairpin: Vec<Element> = Vec::new();
    for (pod, ports) in &pods {
        let Some(address) = ipam.addresses_of(pod.address).into_iter().find(|address| range.is_like(*address)) else {
            continue;
        };
        hairpin.push(Key::new().address(address).address(address).element());
        for port in ports.iter().filter(|port| port.host_ip.is_none_or(|own| range.is_like(own))) {
            let target = Key::new().address(address).port(port.container_port);
            let front = match port.host_ip {
                Some(address) => Key::new().address(address),
                None => Key::new(),
            };
            let front = front.protocol(port.protocol.number()).port(port.host_port);
            let list = if port.host_ip.is_some() { &mut by_address } else { &mut any };
            list.push(front.value(target).comment(&pod.attachment.container_id));
        }
    }
    batch.add_elements(BY_ADDRESS, by_address);
    batch.add_elements(ANY_ADDRESS, any);
    batch.add_elements(HAIRPIN, hairpin);
    Ok(())
}

/// Refuses ports that another pod of the node has, or that are wanted twice.
pub(crate) fn check_free(ipam: &Ipam, container_id: &str, wanted: &[HostPort]) -> Result<()> {
    let taken = |port: &HostPort, holder: &str| Error::HostPortTaken {
        port: port.host_port,
        protocol: port.protocol.as_str(),
        holder: holder.to_owned(),
    };
    for (index, port) in wanted.iter().enumerate() {
        if wanted[..index].iter().any(|other| other.conflicts(port)) {
            return Err(taken(port, container_id));
        }
    }
    for (pod, ports) in ipam.host_ports()? {
        let holder = &pod.attachment.container_id;
        if holder == container_id {
            continue;
        }
        for port in wanted {
            if ports.iter().any(|other| other.conflicts(port)) {
                return Err(taken(port, holder));
            }
        }
    }
    Ok(())
}

/// Forgets UDP flows to ports that have just come or gone, so that the next packet is judged anew.
pub(crate) fn forget_udp_flows(socket: &mut Socket, ranges: &[Subnet], ports: &[HostPort]) -> Result<()> {
    let udp: Vec<u16> = ports.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.host_port).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let number = Protocol::Udp.number();
    for range in ranges {
        let family = Family::of(range.base());
        conntrack::forget_where(socket, family, number, |flow| udp.contains(&flow.destination.port()))?;
    }
    Ok(())
}

/// A netfilter socket in the namespace, or the caller's own.
pub(crate) fn open_socket(namespace: Option<BorrowedFd<'_>>) -> Result<Socket> {
    match namespace {
        Some(namespace) => nft::socket_in(namespace),
        None => nft::socket(),
    }
}
