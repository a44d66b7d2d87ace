//! Reaching the pods of other nodes: plain routes on a shared segment, VXLAN everywhere else.
//!
//! Everything follows from the list of nodes: the VXLAN device of a node has the base address of the
//! node's pod range and the hardware address derived from it, so that nothing has to be announced.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::{
    Result, Subnet,
    links::{Hop, Links, Route, mac_of},
};

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub address: Ipv4Addr,
    pub pod_cidr: Subnet,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub address: Ipv4Addr,
    /// The segment that the address is on, from the interface's prefix length.
    pub segment: Subnet,
    /// Name of the interface with the address.
    pub interface: String,
    pub pod_cidr: Subnet,
    /// The range of all pods; routes inside it belong to this module.
    pub cluster_cidr: Subnet,
}

/// How the pod range of another node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Route { node: Ipv4Addr },
    Vxlan { node: Ipv4Addr },
}

/// Decides the way to each other node's pods. Nodes without a usable range and this node are left out.
pub fn plan(local: &Local, peers: &[Peer]) -> BTreeMap<Subnet, Way> {
    peers
        .iter()
        .filter(|peer| peer.address != local.address && peer.pod_cidr != local.pod_cidr)
        .map(|peer| {
            let node = peer.address;
            let way = if local.segment.contains(node) { Way::Route { node } } else { Way::Vxlan { node } };
            (peer.pod_cidr, way)
        })
        .collect()
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
    tunnels: BTreeMap<Subnet, Ipv4Addr>,
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
        let tunnels: BTreeMap<Subnet, Ipv4Addr> = plan
            .iter()
            .filter_map(|(range, way)| match way {
                Way::Vxlan { node } => Some((*range, *node)),
                Way::Route { .. } => None,
            })
            .collect();
        let vxlan = match tunnels.is_empty() && self.tunnels.is_empty() {
            true => None,
            false => Some(self.ensure_vxlan()?),
        };
        let wanted: Vec<Route> = plan
            .iter()
            .map(|(range, way)| Route {
                destination: *range,
                hop: match (way, vxlan) {
                    (Way::Vxlan { .. }, Some(link)) => Hop::Gateway { gateway: range.base(), link, onlink: true },
                    (Way::Route { node } | Way::Vxlan { node }, _) => {
                        Hop::Gateway { gateway: *node, link: self.uplink, onlink: false }
                    }
                },
            })
            .collect();
        let present = self.links.own_routes()?;
        let ours = |route: &&Route| {
            let destination = route.destination;
            self.local.cluster_cidr.contains(destination.base())
                && destination.prefix() > self.local.cluster_cidr.prefix()
                && matches!(route.hop, Hop::Gateway { .. })
        };
        let stale: Vec<Route> = present.iter().filter(ours).filter(|r| !wanted.contains(r)).copied().collect();
        let missing: Vec<Route> = wanted.iter().filter(|r| !present.contains(r)).copied().collect();
        if let Some(vxlan) = vxlan {
            for (range, node) in &self.tunnels {
                if tunnels.get(range) != Some(node) {
                    let base = range.base();
                    self.links.forget_vxlan_peer(vxlan, base, mac_of(base), *node)?;
                }
            }
            for (range, node) in &tunnels {
                let base = range.base();
                self.links.ensure_neighbour(vxlan, base, mac_of(base))?;
                self.links.ensure_forwarding(vxlan, mac_of(base), *node)?;
            }
        }
        for route in &stale {
            // A replacement takes the old route's place by itself.
            if !missing.iter().any(|new| new.destination == route.destination) {
                self.links.delete_route(route)?;
            }
        }
        self.links.ensure_routes(&missing)?;
        self.tunnels = tunnels;
        Ok(())
    }

    fn ensure_vxlan(&mut self) -> Result<u32> {
        let base = self.local.pod_cidr.base();
        let link = self.links.ensure_vxlan(VXLAN, VXLAN_ID, VXLAN_PORT, self.local.address, mac_of(base))?;
        self.links.ensure_address(link, base, 32)?;
        Ok(link)
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

    #[test]
    fn nodes_on_the_segment_get_routes_and_others_tunnels() {
        let local = Local {
            address: Ipv4Addr::new(172, 18, 0, 2),
            segment: subnet("172.18.0.0/16"),
            interface: "eth0".to_owned(),
            pod_cidr: subnet("10.244.0.0/24"),
            cluster_cidr: subnet("10.244.0.0/16"),
        };
        let peer = |address: &str, range: &str| Peer { address: address.parse().unwrap(), pod_cidr: subnet(range) };
        let peers = [
            peer("172.18.0.2", "10.244.0.0/24"),
            peer("172.18.0.3", "10.244.1.0/24"),
            peer("192.0.2.9", "10.244.2.0/24"),
        ];
        let plan = plan(&local, &peers);
        assert_eq!(plan.len(), 2);
        assert_eq!(plan[&subnet("10.244.1.0/24")], Way::Route { node: Ipv4Addr::new(172, 18, 0, 3) });
        assert_eq!(plan[&subnet("10.244.2.0/24")], Way::Vxlan { node: Ipv4Addr::new(192, 0, 2, 9) });
    }

    /// Two nodes joined by a cable, each with an address of its "pod range" on loopback: the datagram
    /// and its answer cross by route, then, with the segment made small, by VXLAN.
    #[test]
    fn packets_cross_by_route_and_by_vxlan() {
        let nodes = [NetNs::create().unwrap(), NetNs::create().unwrap()];
        let mut links = nodes.each_ref().map(|node| Links::open_in(node.as_fd()).unwrap());
        let far = VethEnd { namespace: Some(nodes[1].as_fd()), ..VethEnd::new("eth0") };
        links[0].add_veth(VethEnd::new("eth0"), far, None).unwrap();
        links[1].set_up("eth0").unwrap();
        let address = |n: u8| Ipv4Addr::new(172, 18, 0, n + 2);
        let pod = |n: u8| Ipv4Addr::new(10, 244, n, 9);
        let range = |n: u8| Subnet::new(pod(n), 24).unwrap();
        for (n, links) in (0u8..).zip(&mut links) {
            let eth0 = links.index("eth0").unwrap();
            links.ensure_address(eth0, address(n), 16).unwrap();
            let lo = links.index("lo").unwrap();
            links.ensure_address(lo, pod(n), 32).unwrap();
        }
        let peers: Vec<Peer> = (0..2).map(|n| Peer { address: address(n), pod_cidr: range(n) }).collect();
        let open = |n: u8, segment: &str| {
            let local = Local {
                address: address(n),
                segment: subnet(segment),
                interface: "eth0".to_owned(),
                pod_cidr: range(n),
                cluster_cidr: subnet("10.244.0.0/16"),
            };
            nodes[usize::from(n)].run(|| {
                sysctl::set("net/ipv4/ip_forward", "1").unwrap();
                NodeRoutes::open(local).unwrap()
            })
        };
        let sockets = [0u8, 1].map(|n| {
            let socket = nodes[usize::from(n)].run(|| UdpSocket::bind((pod(n), 7)).unwrap()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            socket
        });
        let cross = || {
            let mut buffer = [0; 8];
            sockets[0].send_to(b"ping", SocketAddr::from((pod(1), 7))).unwrap();
            let (_, from) = sockets[1].recv_from(&mut buffer).unwrap();
            assert_eq!(from, SocketAddr::from((pod(0), 7)));
            sockets[1].send_to(b"pong", from).unwrap();
            sockets[0].recv_from(&mut buffer).unwrap();
        };
        let mut routes = [0, 1].map(|n| open(n, "172.18.0.0/16").unwrap());
        for routes in &mut routes {
            routes.apply(&peers).unwrap();
            routes.apply(&peers).unwrap();
        }
        cross();
        let mut routes = [0, 1].map(|n| open(n, "172.18.0.0/32").unwrap());
        for routes in &mut routes {
            routes.apply(&peers).unwrap();
            routes.apply(&peers).unwrap();
        }
        assert!(links[0].find(VXLAN).unwrap().is_some());
        cross();
        routes[0].apply(&[]).unwrap();
        assert_eq!(links[0].own_routes().unwrap(), []);
    }
}
