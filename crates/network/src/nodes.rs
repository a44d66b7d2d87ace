//! Reaching the pods of other nodes: plain routes on a shared segment, VXLAN everywhere else.
//!
//! Everything follows from the list of nodes: the VXLAN device of a node has the base address of the
//! node's pod range and the hardware address derived from it, so that nothing has to be announced.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    Result, Subnet,
    links::{Hop, Links, Mac, Route, mac_of},
};

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The primary one first.
    pub addresses: Vec<IpAddr>,
    /// One of each family, the primary one first.
    pub pod_cidrs: Vec<Subnet>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Each address with the segment that it is on, from the interface's prefix length; the primary one first.
    pub addresses: Vec<(IpAddr, Subnet)>,
    /// Name of the interface with the addresses.
    pub interface: String,
    /// One of each family, the primary one first.
    pub pod_cidrs: Vec<Subnet>,
    /// The ranges of all pods; routes inside them belong to this module.
    pub cluster_cidrs: Vec<Subnet>,
}

/// How a pod range of another node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Route {
        node: IpAddr,
    },
    /// In packets between the nodes' primary addresses, to the device with this hardware address.
    Vxlan {
        node: IpAddr,
        mac: Mac,
    },
}

/// Decides the way to each other node's pods. Nodes without a usable range and this node are left out.
///
/// A range is reached by a route where both nodes have addresses of its family on one segment. So a cluster whose
/// nodes have IPv4 addresses only can have pods of both families.
pub fn plan(local: &Local, peers: &[Peer]) -> BTreeMap<Subnet, Way> {
    let is_own = |peer: &&Peer| {
        local.addresses.iter().any(|(own, _)| peer.addresses.contains(own))
            || local.pod_cidrs.iter().any(|own| peer.pod_cidrs.contains(own))
    };
    let mut ways = BTreeMap::new();
    for peer in peers.iter().filter(|peer| !is_own(peer)) {
        for range in &peer.pod_cidrs {
            let segment = local.addresses.iter().map(|(_, segment)| segment).find(|s| s.is_like(range.base()));
            let near = segment.and_then(|segment| peer.addresses.iter().find(|node| segment.contains(**node)));
            let way = near.map(|node| Way::Route { node: *node }).or_else(|| tunnel(local, peer));
            ways.extend(way.map(|way| (*range, way)));
        }
    }
    ways
}

/// `None`: the nodes have no addresses of the same family.
fn tunnel(local: &Local, peer: &Peer) -> Option<Way> {
    let (own, _) = local.addresses.first()?;
    let node = *peer.addresses.iter().find(|node| node.is_ipv4() == own.is_ipv4())?;
    Some(Way::Vxlan { node, mac: mac_of(peer.pod_cidrs.first()?.base()) })
}

const VXLAN: &str = "skiff.vxlan";
const VXLAN_ID: u32 = 1;
/// The port that Linux and flannel use; IANA's 4789 is often taken by the underlay.
const VXLAN_PORT: u16 = 8472;

/// Applies plans in the namespace in which it was opened.
#[derive(Debug)]
pub struct NodeRoutes {
    links: Links,
    local: Local,
    uplink: u32,
    /// VXLAN peers that were added, so that they can be taken back.
    tunnels: BTreeMap<Subnet, (IpAddr, Mac)>,
}

impl NodeRoutes {
    /// # Errors
    /// If the node's interface does not exist.
    pub fn open(local: Local) -> Result<Self> {
        let mut links = Links::open()?;
        let uplink = links.index(&local.interface)?;
        Ok(Self { links, local, uplink, tunnels: BTreeMap::new() })
    }

    /// Makes the routes those that lead to `peers`. Calling it again with the same peers changes nothing.
    pub fn apply(&mut self, peers: &[Peer]) -> Result<()> {
        let plan = plan(&self.local, peers);
        let tunnels: BTreeMap<Subnet, (IpAddr, Mac)> = plan
            .iter()
            .filter_map(|(range, way)| match way {
                Way::Vxlan { node, mac } => Some((*range, (*node, *mac))),
                Way::Route { .. } => None,
            })
            .collect();
        let vxlan = match tunnels.is_empty() && self.tunnels.is_empty() {
            true => None,
            false => self.ensure_vxlan()?,
        };
        let wanted: Vec<Route> = plan
            .iter()
            .map(|(range, way)| Route {
                destination: *range,
                hop: match (way, vxlan) {
                    (Way::Vxlan { .. }, Some(link)) => Hop::Gateway { gateway: range.base(), link, onlink: true },
                    (Way::Route { node } | Way::Vxlan { node, .. }, _) => {
                        Hop::Gateway { gateway: *node, link: self.uplink, onlink: false }
                    }
                },
            })
            .collect();
        let mut present = Vec::new();
        for range in &self.local.cluster_cidrs {
            present.extend(self.links.own_routes(*range)?);
        }
        let ours = |route: &&Route| {
            let destination = route.destination;
            let inside = |all: &Subnet| all.contains(destination.base()) && destination.prefix() > all.prefix();
            self.local.cluster_cidrs.iter().any(inside) && matches!(route.hop, Hop::Gateway { .. })
        };
        let stale: Vec<Route> = present.iter().filter(ours).filter(|r| !wanted.contains(r)).copied().collect();
        let missing: Vec<Route> = wanted.iter().filter(|r| !present.contains(r)).copied().collect();
        if let Some(vxlan) = vxlan {
            for (range, (node, mac)) in &self.tunnels {
                if tunnels.get(range) != Some(&(*node, *mac)) {
                    self.links.forget_vxlan_peer(vxlan, range.base(), *mac, *node)?;
                }
            }
            for (range, (node, mac)) in &tunnels {
                self.links.ensure_neighbour(vxlan, range.base(), *mac)?;
                self.links.ensure_forwarding(vxlan, *mac, *node)?;
            }
        }
        for route in &stale {
            // A replacement takes the old route's place by itself. Not for IPv6: there the old route, which has the
            // new one's gateway in it, would speak against the new one.
            let replaced = missing.iter().any(|new| new.destination == route.destination);
            if !replaced || !route.destination.is_ipv4() {
                self.links.delete_route(route)?;
            }
        }
        self.links.ensure_routes(&missing)?;
        self.tunnels = tunnels;
        Ok(())
    }

    /// `None`: the node has neither address nor range, so that it plans no tunnels.
    fn ensure_vxlan(&mut self) -> Result<Option<u32>> {
        let (Some((address, _)), Some(range)) = (self.local.addresses.first(), self.local.pod_cidrs.first()) else {
            return Ok(None);
        };
        let base = range.base();
        let link = self.links.ensure_vxlan(VXLAN, VXLAN_ID, VXLAN_PORT, *address, mac_of(base))?;
        // The node's own packets to pods have this source. IPv6 takes another of the node's addresses by itself, and
        // the base of a range is the one of any router there.
        if base.is_ipv4() {
            self.links.ensure_address(link, base, 32)?;
        }
        Ok(Some(link))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, UdpSocket},
        os::fd::AsFd,
        time::Duration,
    };

    use super::*;
    use crate::{NetNs, links::VethEnd, sysctl};

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn peer(addresses: &[&str], ranges: &[&str]) -> Peer {
        Peer {
            addresses: addresses.iter().map(|a| ip(a)).collect(),
            pod_cidrs: ranges.iter().map(|r| subnet(r)).collect(),
        }
    }

    #[test]
    fn nodes_on_the_segment_get_routes_and_others_tunnels() {
        let local = Local {
            addresses: vec![(ip("172.18.0.2"), subnet("172.18.0.0/16")), (ip("fc00::2"), subnet("fc00::/64"))],
            interface: "eth0".to_owned(),
            pod_cidrs: vec![subnet("10.244.0.0/24"), subnet("fd00:10:244::/64")],
            cluster_cidrs: vec![subnet("10.244.0.0/16"), subnet("fd00:10:244::/56")],
        };
        let peers = [
            peer(&["172.18.0.2", "fc00::2"], &["10.244.0.0/24", "fd00:10:244::/64"]),
            peer(&["172.18.0.3", "fc00::3"], &["10.244.1.0/24", "fd00:10:244:1::/64"]),
            peer(&["192.0.2.9", "2001:db8::9"], &["10.244.2.0/24", "fd00:10:244:2::/64"]),
            peer(&["172.18.0.5"], &["10.244.3.0/24", "fd00:10:244:3::/64"]),
        ];
        let plan = plan(&local, &peers);
        let mac = |range: &str| mac_of(subnet(range).base());
        let far = Way::Vxlan { node: ip("192.0.2.9"), mac: mac("10.244.2.0/24") };
        let expected = [
            ("10.244.1.0/24", Way::Route { node: ip("172.18.0.3") }),
            ("10.244.2.0/24", far),
            ("10.244.3.0/24", Way::Route { node: ip("172.18.0.5") }),
            ("fd00:10:244:1::/64", Way::Route { node: ip("fc00::3") }),
            ("fd00:10:244:2::/64", far),
            // A node without an IPv6 address has IPv6 pods too.
            ("fd00:10:244:3::/64", Way::Vxlan { node: ip("172.18.0.5"), mac: mac("10.244.3.0/24") }),
        ];
        assert_eq!(plan, expected.map(|(range, way)| (subnet(range), way)).into());
    }

    /// Two nodes joined by a cable, each with addresses of its "pod ranges" on loopback: the datagrams
    /// and their answers cross by route, then, with the segments made small, by VXLAN.
    #[test]
    fn packets_cross_by_route_and_by_vxlan() {
        let nodes = [NetNs::create().unwrap(), NetNs::create().unwrap()];
        let mut links = nodes.each_ref().map(|node| Links::open_in(node.as_fd()).unwrap());
        let far = VethEnd { namespace: Some(nodes[1].as_fd()), ..VethEnd::new("eth0") };
        links[0].add_veth(VethEnd::new("eth0"), far, None).unwrap();
        links[1].set_up("eth0").unwrap();
        let addresses = |n: u8| [ip(&format!("172.18.0.{}", n + 2)), ip(&format!("fc00::{}", n + 2))];
        let pods = |n: u8| [ip(&format!("10.244.{n}.9")), ip(&format!("fd00:10:244:{n}::9"))];
        let ranges = |n: u8| [(pods(n)[0], 24), (pods(n)[1], 64)].map(|(pod, len)| Subnet::new(pod, len).unwrap());
        for (n, links) in (0u8..).zip(&mut links) {
            links.set_up("lo").unwrap();
            let eth0 = links.index("eth0").unwrap();
            let lo = links.index("lo").unwrap();
            for (address, prefix) in addresses(n).into_iter().zip([16, 64]) {
                links.ensure_address(eth0, address, prefix).unwrap();
            }
            for pod in pods(n) {
                links.ensure_address(lo, pod, Subnet::host(pod).prefix()).unwrap();
            }
        }
        let peers: Vec<Peer> =
            (0..2).map(|n| Peer { addresses: addresses(n).to_vec(), pod_cidrs: ranges(n).to_vec() }).collect();
        let open = |n: u8, prefixes: [u8; 2]| {
            let segments = addresses(n).into_iter().zip(prefixes);
            let local = Local {
                addresses: segments.map(|(address, len)| (address, Subnet::new(address, len).unwrap())).collect(),
                interface: "eth0".to_owned(),
                pod_cidrs: ranges(n).to_vec(),
                cluster_cidrs: vec![subnet("10.244.0.0/16"), subnet("fd00:10:244::/56")],
            };
            nodes[usize::from(n)].run(|| {
                sysctl::set("net/ipv4/ip_forward", "1").unwrap();
                NodeRoutes::open(local).unwrap()
            })
        };
        let cross = || {
            for family in 0..2 {
                let sockets = [0u8, 1].map(|n| {
                    let bind = || UdpSocket::bind((pods(n)[family], 7)).unwrap();
                    let socket = nodes[usize::from(n)].run(bind).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                    socket
                });
                let mut buffer = [0; 8];
                sockets[0].send_to(b"ping", SocketAddr::from((pods(1)[family], 7))).unwrap();
                let (_, from) = sockets[1].recv_from(&mut buffer).unwrap();
                assert_eq!(from, SocketAddr::from((pods(0)[family], 7)));
                sockets[1].send_to(b"pong", from).unwrap();
                sockets[0].recv_from(&mut buffer).unwrap();
            }
        };
        for (prefixes, tunnels) in [([16, 64], false), ([32, 128], true), ([16, 128], true), ([16, 64], true)] {
            let mut routes = [0, 1].map(|n| open(n, prefixes).unwrap());
            for routes in &mut routes {
                routes.apply(&peers).unwrap();
                routes.apply(&peers).unwrap();
            }
            assert_eq!(links[0].find(VXLAN).unwrap().is_some(), tunnels);
            cross();
        }
        let mut routes = open(0, [16, 128]).unwrap();
        routes.apply(&peers).unwrap();
        routes.apply(&[]).unwrap();
        for all in [Subnet::ALL_IPV4, Subnet::ALL_IPV6] {
            assert_eq!(links[0].own_routes(all).unwrap(), []);
        }
    }
}
