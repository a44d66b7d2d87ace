//! Connection tracking: finding and forgetting flows.
//!
//! A UDP flow keeps going to the destination that was chosen for its first packet for as long as packets
//! come, also when that destination is gone. So whoever removes a destination forgets its flows.

use std::net::{IpAddr, SocketAddr};

use crate::{
    Error, Result,
    netlink::{Attributes, Message, Socket},
    nft::{Family, nfgenmsg},
};

const CTNETLINK_GET: u16 = 1;
const CTNETLINK_DELETE: u16 = 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const NFGENMSG_LEN: usize = 4;

/// A tracked flow with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    pub source: SocketAddr,
    /// Where the first packet was sent to.
    pub destination: SocketAddr,
    /// Who answers: differs from `destination` when the destination was rewritten.
    pub replier: SocketAddr,
}

/// The flows of one family and IP protocol, on a socket from [`nft::socket`](crate::nft::socket).
pub fn flows(socket: &mut Socket, family: Family, protocol: u8) -> Result<Vec<Flow>> {
    let message = Message::new(message_type(CTNETLINK_GET), 0, &nfgenmsg(family.number(), 0));
    let replies = socket.dump(message).map_err(Error::netlink("list tracked connections"))?;
    Ok(replies
        .iter()
        .filter_map(|reply| parse(reply.attributes(NFGENMSG_LEN)))
        .filter(|flow| flow.protocol == protocol)
        .collect())
}

/// Forgets a flow; the next packet is a first one again. A flow that ended meanwhile is fine.
pub fn forget(socket: &mut Socket, flow: &Flow) -> Result<()> {
    let family = Family::of(flow.destination.ip()).number();
    let mut message = Message::new(message_type(CTNETLINK_DELETE), 0, &nfgenmsg(family, 0));
    message.nest(TUPLE_ORIG, |tuple| {
        tuple.nest(TUPLE_IP, |ip| {
            for (address, kinds) in
                [(flow.source.ip(), (IP_V4_SRC, IP_V6_SRC)), (flow.destination.ip(), (IP_V4_DST, IP_V6_DST))]
            {
                match address {
                    IpAddr::V4(address) => ip.bytes(kinds.0, &address.octets()),
                    IpAddr::V6(address) => ip.bytes(kinds.1, &address.octets()),
                };
            }
        });
        tuple.nest(TUPLE_PROTO, |proto| {
            proto.u8(PROTO_NUM, flow.protocol);
            proto.bytes(PROTO_SRC_PORT, &flow.source.port().to_be_bytes());
            proto.bytes(PROTO_DST_PORT, &flow.destination.port().to_be_bytes());
        });
    });
    match socket.request(message) {
        Err(error) if !error.is(libc::ENOENT) => {
            Err(Error::netlink(format!("forget the flow to {}", flow.destination))(error))
        }
        _ => Ok(()),
    }
}

/// Forgets the flows of a family and protocol for which `stale` holds, and returns how many there were.
pub fn forget_where(
    socket: &mut Socket,
    family: Family,
    protocol: u8,
    mut stale: impl FnMut(&Flow) -> bool,
) -> Result<usize> {
    let mut forgotten = 0;
    for flow in flows(socket, family, protocol)? {
        if stale(&flow) {
            forget(socket, &flow)?;
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

fn message_type(kind: u16) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8).unwrap_or_default() | kind
}

fn parse(flow: Attributes<'_>) -> Option<Flow> {
    let (protocol, source, destination) = parse_tuple(flow.nested(TUPLE_ORIG))?;
    let (_, replier, _) = parse_tuple(flow.nested(TUPLE_REPLY))?;
    Some(Flow { protocol, source, destination, replier })
}

fn parse_tuple(tuple: Attributes<'_>) -> Option<(u8, SocketAddr, SocketAddr)> {
    let ip = tuple.nested(TUPLE_IP);
    let address = |v4, v6| match (ip.get(v4), ip.get(v6)) {
        (Some(address), _) => Some(IpAddr::from(<[u8; 4]>::try_from(address).ok()?)),
        (None, Some(address)) => Some(IpAddr::from(<[u8; 16]>::try_from(address).ok()?)),
        (None, None) => None,
    };
    let proto = tuple.nested(TUPLE_PROTO);
    let port = |kind| Some(u16::from_be_bytes(proto.get(kind)?.try_into().ok()?));
    Some((
        *proto.get(PROTO_NUM)?.first()?,
        SocketAddr::new(address(IP_V4_SRC, IP_V6_SRC)?, port(PROTO_SRC_PORT)?),
        SocketAddr::new(address(IP_V4_DST, IP_V6_DST)?, port(PROTO_DST_PORT)?),
    ))
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;
    use crate::{
        NetNs,
        nft::{self, BaseChain, Batch, ChainKind, Hook, Reg, Rule, ct_state},
    };

    #[test]
    fn udp_flows_are_listed_and_forgotten() {
        const UDP: u8 = 17;
        for (family, other, localhost) in
            [(Family::Ip, Family::Ip6, "127.0.0.1:0"), (Family::Ip6, Family::Ip, "[::1]:0")]
        {
            let namespace = NetNs::create().unwrap();
            let mut socket = nft::socket_in(namespace.as_fd()).unwrap();
            // Tracking starts only when a rule asks for it.
            let mut batch = Batch::new(family, "skiff-test");
            let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 };
            batch.add_table().add_base_chain("output", base);
            batch.add_rule("output", Rule::new().ct_state(Reg(0), ct_state::NEW).counter());
            batch.commit(&mut socket).unwrap();
            let (client, server) = namespace
                .run(|| {
                    let server = UdpSocket::bind(localhost).unwrap();
                    let client = UdpSocket::bind(localhost).unwrap();
                    client.send_to(b"x", server.local_addr().unwrap()).unwrap();
                    (client.local_addr().unwrap(), server.local_addr().unwrap())
                })
                .unwrap();
            let listed = flows(&mut socket, family, UDP).unwrap();
            assert_eq!(listed.len(), 1);
            assert_eq!((listed[0].source, listed[0].destination), (client, server));
            assert_eq!(flows(&mut socket, other, UDP).unwrap(), []);
            let to_server = |flow: &Flow| flow.destination.port() == server.port();
            assert_eq!(forget_where(&mut socket, family, UDP, to_server).unwrap(), 1);
            assert_eq!(flows(&mut socket, family, UDP).unwrap(), []);
            forget(&mut socket, &listed[0]).unwrap();
        }
    }
}
