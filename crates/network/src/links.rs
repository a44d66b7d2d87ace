//! Links, addresses, routes and neighbours over rtnetlink.

use std::{
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::{
    Error, Result, Subnet,
    netlink::{Message, Reply, Socket, ne32, text},
    subnet::octets,
};

const IFINFO_LEN: usize = 16;
const RTMSG_LEN: usize = 12;
const RTNH_F_ONLINK: u32 = 4;
/// Hairpin mode.
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
/// An address that can be used at once: nobody else can have it, so nobody has to be asked.
const IFA_F_NODAD: u8 = 0x02;
/// Marks our routes, so that a re-synchronisation only ever removes what this crate added. Values
/// above RTPROT_STATIC are free for routing daemons; this one is not in iproute2's list.
const ROUTE_PROTOCOL: u8 = 83;

/// A 48-bit hardware address.
pub type Mac = [u8; 6];

/// The hardware address that belongs to a pod's address. Deriving it means that an address that is used
/// again keeps its hardware address: no neighbour entry anywhere is ever stale.
///
/// Of an IPv6 address the low half of the network's part and the host's part count: so neither two pods of
/// a node nor two nodes' ranges share one.
pub fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let octets = address.octets();
            std::array::from_fn(|i| octets[4 + i] ^ octets[12 + i])
        }
    };
    [0x0a, 0x58, a, b, c, d]
}

/// A link as the kernel reports it.
#[derive(Debug, Clone)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Option<Mac>,
    /// Index of the bridge that this link is a port of.
    pub master: Option<u32>,
    /// True for a bridge port that may not exchange frames with others like it.
    pub isolated: bool,
    /// `bridge`, `veth`, `vxlan`, …; empty for physical devices and loopback.
    pub kind: String,
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Straight onto the link of this index.
    Link { link: u32 },
    /// To a gateway. `onlink`: reachable over `link` even if no address of the link says so.
    Gateway { gateway: IpAddr, link: u32, onlink: bool },
    /// Answer with ICMP "unreachable"; `connect` fails at once.
    Unreachable,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: Subnet,
    pub hop: Hop,
}

/// One end of a new veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// The namespace to create it in; the socket's own if absent.
    pub namespace: Option<BorrowedFd<'a>>,
    /// Index of the bridge to become a port of.
    pub master: Option<u32>,
}

impl<'a> VethEnd<'a> {
    pub fn new(name: &'a str) -> Self {
        Self { name, mac: None, namespace: None, master: None }
    }
}

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

fn ifinfo(index: u32, up: bool) -> [u8; IFINFO_LEN] {
    let mut header = [0; IFINFO_LEN];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        let flag = libc::IFF_UP.cast_unsigned().to_ne_bytes();
        header[8..12].copy_from_slice(&flag);
        header[12..16].copy_from_slice(&flag);
    }
    header
}

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

impl Links {
    /// The links of the caller's namespace.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(libc::NETLINK_ROUTE).map_err(Error::io("open a route socket"))?;
        Ok(Self { socket })
    }

    /// The links of another namespace.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self> {
        let socket = Socket::open_in(namespace, libc::NETLINK_ROUTE).map_err(Error::io("open a route socket"))?;
        Ok(Self { socket })
    }

    /// The link of this name, if there is one.
    ///
    /// Asking also makes the kernel act at once on a change of the link's carrier, which it otherwise
    /// does up to a second later; until then the link drops what it is to send.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = Message::new(libc::RTM_GETLINK, 0, &ifinfo(0, false));
        message.str(libc::IFLA_IFNAME, name);
        match self.socket.get(message) {
            Ok(reply) => Ok(parse_link(&reply)),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(Error::netlink(format!("look up the interface {name}"))(error)),
        }
    }

    /// The index of a link that has to exist.
    pub fn index(&mut self, name: &str) -> Result<u32> {
        let link = self.find(name)?;
        Ok(link.ok_or_else(|| Error::NoSuchLink(name.to_owned()))?.index)
    }

    /// All links of the namespace.
    pub fn list(&mut self) -> Result<Vec<Link>> {
        let message = Message::new(libc::RTM_GETLINK, 0, &ifinfo(0, false));
        let replies = self.socket.dump(message).map_err(Error::netlink("list network interfaces"))?;
        Ok(replies.iter().filter_map(parse_link).collect())
    }

    /// Creates a bridge and brings it up; an existing one of this name is only brought up.
    ///
    /// The hardware address is fixed from the start: otherwise a bridge takes the lowest one of its
    /// ports, changes it as pods come and go, and every neighbour entry for the gateway goes stale.
    pub fn ensure_bridge(&mut self, name: &str, mac: Option<Mac>, mtu: Option<u32>) -> Result<u32> {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &ifinfo(0, true));
        message.str(libc::IFLA_IFNAME, name);
        if let Some(mac) = mac {
            message.bytes(libc::IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = mtu {
            message.u32(libc::IFLA_MTU, mtu);
        }
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.str(libc::IFLA_INFO_KIND, "bridge");
        });
        match self.socket.request(message) {
            Err(error) if error.is(libc::EEXIST) => self.set_up(name)?,
            result => result.map_err(Error::netlink(format!("create the bridge {name}")))?,
        }
        self.index(name)
    }

    /// Creates a veth pair. The near end is up, the far one not: the kernel refuses to bring an end up
    /// that has no peer yet.
    pub fn add_veth(&mut self, near: VethEnd<'_>, far: VethEnd<'_>, mtu: Option<u32>) -> Result<()> {
        let describe = |message: &mut Message, end: &VethEnd<'_>| {
            message.str(libc::IFLA_IFNAME, end.name);
            if let Some(mac) = end.mac {
                message.bytes(libc::IFLA_ADDRESS, &mac);
            }
            if let Some(namespace) = end.namespace {
                message.u32(libc::IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned());
            }
            if let Some(mtu) = mtu {
                message.u32(libc::IFLA_MTU, mtu);
            }
        };
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &ifinfo(0, true));
        describe(&mut message, &near);
        if let Some(master) = near.master {
            message.u32(libc::IFLA_MASTER, master);
        }
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.str(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&ifinfo(0, false));
                    describe(peer, &far);
                });
            });
        });
        let action = format!("create the veth pair {} – {}", near.name, far.name);
        self.socket.request(message).map_err(Error::netlink(action))
    }

    /// Creates a VXLAN device without learning: neighbours and forwarding entries are given by us.
    pub fn ensure_vxlan(&mut self, name: &str, id: u32, port: u16, local: IpAddr, mac: Mac) -> Result<u32> {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &ifinfo(0, true));
        message.str(libc::IFLA_IFNAME, name);
        message.bytes(libc::IFLA_ADDRESS, &mac);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.str(libc::IFLA_INFO_KIND, "vxlan");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.u32(IFLA_VXLAN_ID, id);
                let local_kind = if local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                data.bytes(local_kind, &octets(local));
                data.u8(IFLA_VXLAN_LEARNING, 0);
                data.bytes(IFLA_VXLAN_PORT, &port.to_be_bytes());
            });
        });
        match self.socket.request(message) {
            Err(error) if error.is(libc::EEXIST) => self.set_up(name)?,
            result => result.map_err(Error::netlink(format!("create the VXLAN device {name}")))?,
        }
        self.index(name)
    }

    /// Brings a link up.
    pub fn set_up(&mut self, name: &str) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0, &ifinfo(0, true));
        message.str(libc::IFLA_IFNAME, name);
        self.socket.request(message).map_err(Error::netlink(format!("bring up the interface {name}")))
    }

    /// Forbids a bridge port to exchange frames with other isolated ports of its bridge, or lets it
    /// exchange them even with itself (which is what a pod needs that meets itself behind a Service).
    pub fn configure_port(&mut self, index: u32, isolated: bool) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0, &ifinfo(index, false));
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.str(libc::IFLA_INFO_SLAVE_KIND, "bridge");
            info.nest(libc::IFLA_INFO_SLAVE_DATA, |data| {
                data.u8(IFLA_BRPORT_ISOLATED, u8::from(isolated));
                data.u8(IFLA_BRPORT_MODE, u8::from(!isolated));
            });
        });
        self.socket.request(message).map_err(Error::netlink("configure a bridge port"))
    }

    /// Deletes a link; true if it was there.
    pub fn delete(&mut self, name: &str) -> Result<bool> {
        let mut message = Message::new(libc::RTM_DELLINK, 0, &ifinfo(0, false));
        message.str(libc::IFLA_IFNAME, name);
        match self.socket.request(message) {
            Ok(()) => Ok(true),
            Err(error) if error.is(libc::ENODEV) => Ok(false),
            Err(error) => Err(Error::netlink(format!("delete the interface {name}"))(error)),
        }
    }

    /// Gives a link an address; one that it already has is fine.
    pub fn ensure_address(&mut self, link: u32, address: impl Into<IpAddr>, prefix: u8) -> Result<()> {
        let address = address.into();
        let message = address_message(link, address, prefix);
        self.socket.request(message).map_err(Error::netlink(format!("add the address {address}/{prefix}")))
    }

    /// The addresses of a link with their prefix lengths, but for link-local ones of IPv6.
    pub fn addresses(&mut self, link: u32) -> Result<Vec<(IpAddr, u8)>> {
        // No family: all of them.
        let message = Message::new(libc::RTM_GETADDR, 0, &[0u8; 8]);
        let replies = self.socket.dump(message).map_err(Error::netlink("list addresses"))?;
        let is_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        Ok(replies
            .iter()
            .filter(|reply| reply.payload.get(4..).and_then(ne32) == Some(link))
            .filter_map(|reply| {
                let attributes = reply.attributes(8);
                // An IPv6 address has no other end.
                let address = attributes.get(libc::IFA_LOCAL).or_else(|| attributes.get(libc::IFA_ADDRESS));
                Some((ip(address?)?, *reply.payload.get(1)?))
            })
            .filter(|(address, _)| !is_local(*address))
            .collect())
    }

    /// Adds routes or replaces those to the same destinations, in one send.
    pub fn ensure_routes(&mut self, routes: &[Route]) -> Result<()> {
        let messages = routes.iter().map(|route| route_message(libc::RTM_NEWROUTE, REPLACE, route)).collect();
        let results = self.socket.requests(messages).map_err(Error::netlink("change routes"))?;
        for (result, route) in results.into_iter().zip(routes) {
            result.map_err(Error::netlink(format!("add the route to {}", route.destination)))?;
        }
        Ok(())
    }

    /// Deletes a route; one that is not there is fine.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        match self.socket.request(route_message(libc::RTM_DELROUTE, 0, route)) {
            Err(error) if !error.is(libc::ESRCH) => {
                Err(Error::netlink(format!("delete the route to {}", route.destination))(error))
            }
            _ => Ok(()),
        }
    }

    /// The routes of the main table that were added through this type, of the family of a range.
    pub fn own_routes(&mut self, like: Subnet) -> Result<Vec<Route>> {
        let mut header = [0u8; RTMSG_LEN];
        header[0] = family(like.base());
        let message = Message::new(libc::RTM_GETROUTE, 0, &header);
        let replies = self.socket.dump(message).map_err(Error::netlink("list routes"))?;
        Ok(replies.iter().filter_map(parse_own_route).collect())
    }

    /// Brings up the pod's end and gives it its addresses and routes, in one send.
    pub(crate) fn configure_pod_end(&mut self, link: u32, addresses: &[IpAddr], routes: &[Route]) -> Result<()> {
        let mut messages = vec![Message::new(libc::RTM_NEWLINK, 0, &ifinfo(link, true))];
        messages.extend(addresses.iter().map(|address| {
            let whole = Subnet::host(*address);
            address_message(link, *address, whole.prefix())
        }));
        messages.extend(routes.iter().map(|route| route_message(libc::RTM_NEWROUTE, REPLACE, route)));
        let action = || Error::netlink(format!("configure the pod addresses {addresses:?}"));
        for result in self.socket.requests(messages).map_err(action())? {
            result.map_err(action())?;
        }
        Ok(())
    }

    /// Sets the hardware address of a neighbour for good.
    pub fn ensure_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWNEIGH, REPLACE, &ndmsg(family(address), link, 0));
        message.bytes(libc::NDA_DST, &octets(address));
        message.bytes(libc::NDA_LLADDR, &mac);
        self.socket.request(message).map_err(Error::netlink(format!("add the neighbour {address}")))
    }

    /// Tells a VXLAN device behind which node a hardware address is.
    pub fn ensure_forwarding(&mut self, vxlan: u32, mac: Mac, node: IpAddr) -> Result<()> {
        let bridge = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
        let mut message = Message::new(libc::RTM_NEWNEIGH, REPLACE, &ndmsg(bridge, vxlan, libc::NTF_SELF));
        message.bytes(libc::NDA_LLADDR, &mac);
        message.bytes(libc::NDA_DST, &octets(node));
        self.socket.request(message).map_err(Error::netlink(format!("add the forwarding entry for {node}")))
    }

    /// Takes back [`ensure_neighbour`](Self::ensure_neighbour) and
    /// [`ensure_forwarding`](Self::ensure_forwarding); entries that are gone are fine.
    pub fn forget_vxlan_peer(&mut self, vxlan: u32, address: IpAddr, mac: Mac, node: IpAddr) -> Result<()> {
        let bridge = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
        let mut neighbour = Message::new(libc::RTM_DELNEIGH, 0, &ndmsg(family(address), vxlan, 0));
        neighbour.bytes(libc::NDA_DST, &octets(address));
        let mut forwarding = Message::new(libc::RTM_DELNEIGH, 0, &ndmsg(bridge, vxlan, libc::NTF_SELF));
        forwarding.bytes(libc::NDA_LLADDR, &mac).bytes(libc::NDA_DST, &octets(node));
        let action = || Error::netlink(format!("forget the node {node}"));
        for result in self.socket.requests(vec![neighbour, forwarding]).map_err(action())? {
            match result {
                Err(error) if !error.is(libc::ENOENT) => return Err(action()(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

fn address_message(link: u32, address: IpAddr, prefix: u8) -> Message {
    let mut header = [0u8; 8];
    header[0] = family(address);
    header[1] = prefix;
    if address.is_ipv6() {
        header[2] = IFA_F_NODAD;
    }
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWADDR, REPLACE, &header);
    message.bytes(libc::IFA_LOCAL, &octets(address));
    message.bytes(libc::IFA_ADDRESS, &octets(address));
    if address.is_ipv4()
        && prefix < 31
        && let Some(range) = Subnet::new(address, prefix)
    {
        message.bytes(libc::IFA_BROADCAST, &octets(range.last()));
    }
    message
}

fn route_message(kind: u16, flags: i32, route: &Route) -> Message {
    let mut header = [0u8; RTMSG_LEN];
    header[0] = family(route.destination.base());
    header[1] = route.destination.prefix();
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = ROUTE_PROTOCOL;
    header[6] = match route.hop {
        Hop::Link { .. } => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    header[7] = match route.hop {
        Hop::Unreachable => libc::RTN_UNREACHABLE,
        _ => libc::RTN_UNICAST,
    };
    if matches!(route.hop, Hop::Gateway { onlink: true, .. }) {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, flags, &header);
    if route.destination.prefix() > 0 {
        message.bytes(libc::RTA_DST, &octets(route.destination.base()));
    }
    match route.hop {
        Hop::Link { link } => {
            message.u32(libc::RTA_OIF, link);
        }
        Hop::Gateway { gateway, link, .. } => {
            message.bytes(libc::RTA_GATEWAY, &octets(gateway));
            message.u32(libc::RTA_OIF, link);
        }
        Hop::Unreachable => {}
    }
    message
}

fn parse_own_route(reply: &Reply) -> Option<Route> {
    let header = reply.payload.get(..RTMSG_LEN)?;
    if header[4] != libc::RT_TABLE_MAIN || header[5] != ROUTE_PROTOCOL {
        return None;
    }
    let attributes = reply.attributes(RTMSG_LEN);
    let base = match attributes.get(libc::RTA_DST) {
        Some(value) => ip(value)?,
        None if i32::from(header[0]) == libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        None => Subnet::ALL_IPV4.base(),
    };
    let link = attributes.get(libc::RTA_OIF).and_then(ne32);
    let hop = if header[7] == libc::RTN_UNREACHABLE {
        Hop::Unreachable
    } else {
        match attributes.get(libc::RTA_GATEWAY).and_then(ip) {
            Some(gateway) => Hop::Gateway { gateway, link: link?, onlink: ne32(&header[8..])? & RTNH_F_ONLINK != 0 },
            None => Hop::Link { link: link? },
        }
    };
    Some(Route { destination: Subnet::new(base, header[1])?, hop })
}

fn ndmsg(family: u8, link: u32, flags: u8) -> [u8; 12] {
    let mut header = [0u8; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    header[10] = flags;
    header
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

fn parse_link(reply: &Reply) -> Option<Link> {
    let header = reply.payload.get(..IFINFO_LEN)?;
    let attributes = reply.attributes(IFINFO_LEN);
    let info = attributes.nested(libc::IFLA_LINKINFO);
    let kind = info.get(libc::IFLA_INFO_KIND);
    let port = info.nested(libc::IFLA_INFO_SLAVE_DATA);
    Some(Link {
        index: ne32(&header[4..])?,
        name: text(attributes.get(libc::IFLA_IFNAME)?),
        up: ne32(&header[8..])? & libc::IFF_UP.cast_unsigned() != 0,
        mtu: attributes.get(libc::IFLA_MTU).and_then(ne32).unwrap_or_default(),
        mac: attributes.get(libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        master: attributes.get(libc::IFLA_MASTER).and_then(ne32),
        isolated: port.get(IFLA_BRPORT_ISOLATED) == Some(&[1]),
        kind: kind.map(text).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetNs;
    use std::os::fd::AsFd;

    #[test]
    fn bridge_veth_addresses_and_routes() {
        let host = NetNs::create().unwrap();
        let pod = NetNs::create().unwrap();
        let mut links = Links::open_in(host.as_fd()).unwrap();
        let gateway = IpAddr::from([10, 244, 0, 1]);
        let bridge = links.ensure_bridge("cni0", Some(mac_of(gateway)), None).unwrap();
        assert_eq!(links.ensure_bridge("cni0", None, None).unwrap(), bridge);
        links.ensure_address(bridge, gateway, 24).unwrap();
        links.ensure_address(bridge, gateway, 24).unwrap();
        assert_eq!(links.addresses(bridge).unwrap(), [(gateway, 24)]);

        let near = VethEnd { master: Some(bridge), ..VethEnd::new("veth1") };
        let far = VethEnd { namespace: Some(pod.as_fd()), ..VethEnd::new("eth0") };
        links.add_veth(near, far, Some(1400)).unwrap();
        let port = links.find("veth1").unwrap().unwrap();
        assert_eq!((port.master, port.mtu, port.up, port.kind.as_str()), (Some(bridge), 1400, true, "veth"));
        links.configure_port(port.index, true).unwrap();
        assert!(links.find("veth1").unwrap().unwrap().isolated);
        let inside = Links::open_in(pod.as_fd()).unwrap().find("eth0").unwrap().unwrap();
        assert!(!inside.up);

        let route = |destination: &str, hop| Route { destination: destination.parse().unwrap(), hop };
        let routes = [
            route("0.0.0.0/0", Hop::Unreachable),
            route("10.244.1.0/24", Hop::Gateway { gateway: [10, 244, 0, 9].into(), link: bridge, onlink: false }),
            route("10.245.0.0/24", Hop::Link { link: bridge }),
        ];
        links.ensure_routes(&routes).unwrap();
        links.ensure_routes(&routes).unwrap();
        let mut listed = links.own_routes(Subnet::ALL_IPV4).unwrap();
        listed.sort();
        assert_eq!(listed, routes);
        links.delete_route(&routes[1]).unwrap();
        links.delete_route(&routes[1]).unwrap();
        assert_eq!(links.own_routes(Subnet::ALL_IPV4).unwrap().len(), 2);

        assert!(links.delete("veth1").unwrap());
        assert!(!links.delete("veth1").unwrap());
        assert!(links.find("veth1").unwrap().is_none());
        assert!(matches!(links.index("veth1"), Err(Error::NoSuchLink(_))));
    }

    #[test]
    fn vxlan_peers_come_and_go() {
        let host = NetNs::create().unwrap();
        let mut links = Links::open_in(host.as_fd()).unwrap();
        let local = IpAddr::from([192, 0, 2, 1]);
        let vxlan = links.ensure_vxlan("skiff.1", 1, 8472, local, mac_of(local)).unwrap();
        let (peer, node) = (IpAddr::from([10, 244, 1, 0]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..2 {
            links.ensure_neighbour(vxlan, peer, mac_of(peer)).unwrap();
            links.ensure_forwarding(vxlan, mac_of(peer), node).unwrap();
        }
        links.forget_vxlan_peer(vxlan, peer, mac_of(peer), node).unwrap();
        links.forget_vxlan_peer(vxlan, peer, mac_of(peer), node).unwrap();
    }

    #[test]
    fn addresses_and_routes_of_ipv6() {
        let host = NetNs::create().unwrap();
        let mut links = Links::open_in(host.as_fd()).unwrap();
        let gateway: IpAddr = "fd00:10:244::1".parse().unwrap();
        let bridge = links.ensure_bridge("cni0", Some(mac_of(gateway)), None).unwrap();
        links.ensure_address(bridge, gateway, 64).unwrap();
        links.ensure_address(bridge, gateway, 64).unwrap();
        assert_eq!(links.addresses(bridge).unwrap(), [(gateway, 64)]);
        // Something has to be plugged in before there are routes.
        let near = VethEnd { master: Some(bridge), ..VethEnd::new("veth1") };
        links.add_veth(near, VethEnd::new("peer"), None).unwrap();
        links.set_up("peer").unwrap();
        links.index("veth1").unwrap();
        links.index("cni0").unwrap();
        let route = |destination: &str, hop| Route { destination: destination.parse().unwrap(), hop };
        let by = |gateway: &str, onlink| Hop::Gateway { gateway: gateway.parse().unwrap(), link: bridge, onlink };
        let routes = [
            route("::/0", Hop::Unreachable),
            route("fd00:10:96::/112", Hop::Link { link: bridge }),
            route("fd00:10:244:1::/64", by("fd00:10:244::9", false)),
            route("fd00:10:244:2::/64", by("fd00:10:244:2::", true)),
        ];
        links.ensure_routes(&routes).unwrap();
        links.ensure_routes(&routes).unwrap();
        let mut listed = links.own_routes(Subnet::ALL_IPV6).unwrap();
        listed.sort();
        assert_eq!(listed, routes);
        for _ in 0..2 {
            links.delete_route(&routes[2]).unwrap();
            links.delete_route(&routes[0]).unwrap();
        }
        assert_eq!(links.own_routes(Subnet::ALL_IPV6).unwrap().len(), 2);
        assert_eq!(links.own_routes(Subnet::ALL_IPV4).unwrap(), []);
        assert_ne!(mac_of("fd00:10:244:1::".parse().unwrap()), mac_of("fd00:10:244:2::".parse().unwrap()));
        assert_ne!(mac_of("fd00:10:244::2".parse().unwrap()), mac_of("fd00:10:244::3".parse().unwrap()));
    }
}
