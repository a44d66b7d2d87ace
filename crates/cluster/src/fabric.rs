//! The network that joins the nodes of a cluster.
//!
//! A network namespace of its own, kept by a bind mount, with a bridge that has the gateway's address.
//! It knows the pod and Service ranges as unreachable: a packet to them that a node did not rewrite ends
//! here with an ICMP answer. Without `--isolated` one veth pair leads from here to the host, where the
//! cluster's traffic is masqueraded; with it there is no such pair, and nothing else leads out.
//!
//! A dual-stack cluster has an IPv6 segment as well, from which nothing leads out in either case: forwarding on the host
//! would change how the host itself gets its IPv6 addresses and routes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

use skiff_network::{
    NetNs, Result, Subnet,
    links::{Hop, Links, Route, VethEnd, mac_of},
    netns,
    nft::{self, BaseChain, Batch, ChainKind, Family, Hook, Meta, Op, Reg, Rule},
    sysctl,
};

use crate::{
    Home,
    record::{ClusterRecord, NodeRecord},
};

const BRIDGE: &str = "fabric";
const UPLINK: &str = "uplink";
/// The interface inside each node.
pub(crate) const NODE_INTERFACE: &str = "eth0";
/// Uplinks are /30 ranges of this one: link-local, so that they are nobody's real network.
const UPLINKS: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 200, 0), 55 * 64);

/// The nodes' range, the one that kind's documents show. Clusters do not see each other's.
pub(crate) fn segment() -> Subnet {
    Subnet::new(Ipv4Addr::new(172, 18, 0, 0), 16).expect("a constant")
}

/// The IPv6 range of the nodes, kind's too.
pub(crate) fn ipv6_segment() -> Subnet {
    Subnet::new(Ipv6Addr::new(0xfc00, 0xf853, 0xccd, 0xe793, 0, 0, 0, 0), 64).expect("a constant")
}

fn gateway() -> IpAddr {
    segment().nth(1).expect("the range is larger")
}

fn ipv6_gateway() -> IpAddr {
    ipv6_segment().nth(1).expect("the range is larger")
}

/// The address of the n-th node, counted from zero.
pub(crate) fn node_address(index: usize) -> Option<Ipv4Addr> {
    match segment().nth(u32::try_from(index).ok()? + 2)? {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Its IPv6 address in a dual-stack cluster.
pub(crate) fn node_ipv6_address(index: usize) -> Option<Ipv6Addr> {
    match ipv6_segment().nth(u32::try_from(index).ok()? + 2)? {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// The n-th address of an IPv4 range, or its base if that has been checked too little.
pub(crate) fn ipv4_of(range: Subnet, n: u32) -> Ipv4Addr {
    match range.nth(n).unwrap_or(range.base()) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// Opens or creates the cluster's fabric, complete with its way out.
pub(crate) fn ensure(home: &Home, cluster: &ClusterRecord) -> Result<NetNs> {
    let pin = home.fabric(&cluster.name);
    let fabric = if is_namespace(&pin) {
        NetNs::open(&pin)?
    } else {
        // A file that is not a namespace is left from before a reboot.
        netns::unpin(&pin)?;
        NetNs::create_pinned(&pin)?
    };
    fabric.run(|| quiet_forwarding(cluster.ipv6.is_some()))??;
    let mut links = Links::open_in(fabric.as_fd())?;
    let bridge = links.ensure_bridge(BRIDGE, Some(mac_of(gateway())), None)?;
    links.ensure_address(bridge, gateway(), segment().prefix())?;
    let unreachable = |destination| Route { destination, hop: Hop::Unreachable };
    let mut routes = vec![unreachable(cluster.pod_subnet), unreachable(cluster.service_subnet)];
    if cluster.isolated {
        routes.push(unreachable(Subnet::ALL_IPV4));
    }
    if let Some(ipv6) = cluster.ipv6 {
        links.ensure_address(bridge, ipv6_gateway(), ipv6_segment().prefix())?;
        routes.extend([ipv6.pod_subnet, ipv6.service_subnet, Subnet::ALL_IPV6].map(unreachable));
    }
    links.ensure_routes(&routes)?;
    if let Some(number) = cluster.uplink {
        ensure_uplink(&fabric, &mut links, &cluster.name, number)?;
    }
    Ok(fabric)
}

/// Removes the fabric and what the cluster has on the host.
pub(crate) fn remove(home: &Home, cluster: &ClusterRecord) -> Result<()> {
    if let Some(number) = cluster.uplink {
        Links::open()?.delete(&host_interface(number))?;
        let mut batch = Batch::new(Family::Ip, host_table(&cluster.name));
        batch.delete_table();
        batch.commit(&mut nft::socket()?)?;
    }
    netns::unpin(&home.fabric(&cluster.name))
}

/// A new network namespace for a node, connected to the fabric.
pub(crate) fn connect_node(fabric: &NetNs, cluster: &ClusterRecord, node: &NodeRecord) -> Result<NetNs> {
    let namespace = NetNs::create()?;
    namespace.run(|| quiet_forwarding(cluster.ipv6.is_some()))??;
    let mut outside = Links::open_in(fabric.as_fd())?;
    let [.., third, fourth] = node.address.octets();
    let port = format!("node-{third}-{fourth}");
    outside.delete(&port)?;
    let near = VethEnd { master: Some(outside.index(BRIDGE)?), ..VethEnd::new(&port) };
    let far = VethEnd {
        mac: Some(mac_of(node.address.into())),
        namespace: Some(namespace.as_fd()),
        ..VethEnd::new(NODE_INTERFACE)
    };
    outside.add_veth(near, far, None)?;
    let mut inside = Links::open_in(namespace.as_fd())?;
    inside.set_up(NODE_INTERFACE)?;
    let link = inside.index(NODE_INTERFACE)?;
    inside.ensure_address(link, node.address, segment().prefix())?;
    let by = |gateway, destination| Route { destination, hop: Hop::Gateway { gateway, link, onlink: false } };
    let by_gateway = |destination| by(gateway(), destination);
    // A local packet to a Service needs a route before its destination can be rewritten.
    let mut routes = vec![by_gateway(cluster.service_subnet)];
    routes.push(match cluster.isolated {
        // Said by the node itself, so that pods learn at once that there is no way out.
        true => Route { destination: Subnet::ALL_IPV4, hop: Hop::Unreachable },
        false => by_gateway(Subnet::ALL_IPV4),
    });
    if let (Some(ipv6), Some(address)) = (cluster.ipv6, node.ipv6_address) {
        inside.ensure_address(link, address, ipv6_segment().prefix())?;
        routes.push(by(ipv6_gateway(), ipv6.service_subnet));
        routes.push(Route { destination: Subnet::ALL_IPV6, hop: Hop::Unreachable });
    }
    inside.ensure_routes(&routes)?;
    // Asking makes the carriers take effect at once, from the node outwards (see Links::find).
    inside.index(NODE_INTERFACE)?;
    for link in [&port, BRIDGE] {
        outside.index(link)?;
    }
    Ok(namespace)
}

/// Forwarding on, and everything off that would take a short way past the IP layer.
fn quiet_forwarding(ipv6: bool) -> Result<()> {
    if ipv6 {
        quiet_ipv6_forwarding()?;
    }
    sysctl::set("net/ipv4/ip_forward", "1")?;
    sysctl::set("net/ipv4/conf/all/send_redirects", "0")?;
    sysctl::set("net/ipv4/conf/default/send_redirects", "0")?;
    // What cannot be reached answers each time: the kernel's one "unreachable" in a second for each sender leaves
    // every other connection of a pod to its time-out.
    sysctl::set("net/ipv4/icmp_ratelimit", "0")?;
    let bridge_netfilter = "net/bridge/bridge-nf-call-iptables";
    if sysctl::is_on(bridge_netfilter) {
        sysctl::set(bridge_netfilter, "0")?;
    }
    Ok(())
}

/// The same for IPv6, before there are interfaces: nobody asks whether an address is taken, which would keep the first
/// packets waiting for a second.
fn quiet_ipv6_forwarding() -> Result<()> {
    sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
    sysctl::set("net/ipv6/conf/default/accept_dad", "0")?;
    sysctl::set("net/ipv6/icmp/ratelimit", "0")?;
    let bridge_netfilter = "net/bridge/bridge-nf-call-ip6tables";
    if sysctl::is_on(bridge_netfilter) {
        sysctl::set(bridge_netfilter, "0")?;
    }
    Ok(())
}

fn host_interface(number: u16) -> String {
    format!("skiff{number}")
}

fn host_table(cluster: &str) -> String {
    format!("skiff-{cluster}")
}

fn uplink_range(number: u16) -> Subnet {
    let base = u32::from(UPLINKS.0) + u32::from(number % UPLINKS.1) * 4;
    Subnet::new(Ipv4Addr::from_bits(base), 30).expect("a constant prefix")
}

/// The first uplink that neither another cluster nor an interface of the host has.
pub(crate) fn free_uplink(taken: &[u16]) -> Result<Option<u16>> {
    let mut links = Links::open()?;
    for number in 0..UPLINKS.1 {
        if !taken.contains(&number) && links.find(&host_interface(number))?.is_none() {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn ensure_uplink(fabric: &NetNs, inside: &mut Links, cluster: &str, number: u16) -> Result<()> {
    let name = host_interface(number);
    let range = uplink_range(number);
    let (host, own) = (range.nth(1).expect("a /30"), range.nth(2).expect("a /30"));
    let mut outside = Links::open()?;
    if outside.find(&name)?.is_none() {
        let far = VethEnd { namespace: Some(fabric.as_fd()), ..VethEnd::new(UPLINK) };
        outside.add_veth(VethEnd::new(&name), far, None)?;
    }
    inside.set_up(UPLINK)?;
    let link = inside.index(UPLINK)?;
    inside.ensure_address(link, own, range.prefix())?;
    let out = Route { destination: Subnet::ALL_IPV4, hop: Hop::Gateway { gateway: host, link, onlink: false } };
    inside.ensure_routes(&[out])?;
    let outer = outside.index(&name)?;
    outside.ensure_address(outer, host, range.prefix())?;
    sysctl::set("net/ipv4/ip_forward", "1")?;
    let fabric_rule = Rule::new().interface(Reg(0), Meta::OutputName, Op::Eq, UPLINK);
    masquerade("skiff-fabric", fabric_rule).commit(&mut nft::socket_in(fabric.as_fd())?)?;
    let host_rule = Rule::new().saddr(Reg(0)).in_subnet(Reg(0), Op::Eq, range);
    let host_rule = host_rule.interface(Reg(4), Meta::OutputName, Op::Neq, &name);
    masquerade(&host_table(cluster), host_rule).commit(&mut nft::socket()?)
}

fn masquerade(table: &str, matching: Rule) -> Batch {
    let mut batch = Batch::new(Family::Ip, table);
    let base = BaseChain { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100 };
    batch.delete_table().add_table().add_base_chain("postrouting", base);
    batch.add_rule("postrouting", matching.masquerade());
    batch
}

fn is_namespace(path: &std::path::Path) -> bool {
    const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == NSFS_MAGIC)
}
