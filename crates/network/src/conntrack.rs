//! Connection tracking: finding and forgetting flows.
//!
//! A UDP flow keeps going to the destination that was chosen for its first packet for as long as packets
//! come, also when that destination is gone. So whoever removes a destination forgets its flows.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    Error, Result,
    netlink::{Attributes, Message, Socket},
    nft::nfgenmsg,
};

const CTNETLINK_GET: u16 = 1;
const CTNETLINK_DELETE: u16 = 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const NFGENMSG_LEN: usize = 4;

/// A tracked IPv4 flow with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    pub source: SocketAddrV4,
    /// Where the first packet was sent to.
    pub destination: SocketAddrV4,
    /// Who answers: differs from `destination` when the destination was rewritten.
    pub replier: SocketAddrV4,
}

/// The flows of one IP protocol, on a socket from [`nft::socket`](crate::nft::socket).
pub fn flows(socket: &mut Socket, protocol: u8) -> Result<Vec<Flow>> {
    let message = Message::new(message_type(CTNETLINK_GET), 0, &nfgenmsg(family(), 0));
    let replies = socket.dump(message).map_err(Error::netlink("list tracked connections"))?;
    Ok(replies
        .iter()
        .filter_map(|reply| parse(reply.attributes(NFGENMSG_LEN)))
        .filter(|flow| flow.protocol == protocol)
        .collect())
}

/// Forgets a flow; the next packet is a first one again. A flow that ended meanwhile is fine.
pub fn forget(socket: &mut Socket, flow: &Flow) -> Result<()> {
    let mut message = Message::new(message_type(CTNETLINK_DELETE), 0, &nfgenmsg(family(), 0));
    message.nest(TUPLE_ORIG, |tuple| {
        tuple.nest(TUPLE_IP, |ip| {
            ip.bytes(IP_V4_SRC, &flow.source.ip().octets());
            ip.bytes(IP_V4_DST, &flow.destination.ip().octets());
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

/// Forgets the flows of a protocol for which `stale` holds, and returns how many there were.
pub fn forget_where(socket: &mut Socket, protocol: u8, mut stale: impl FnMut(&Flow) -> bool) -> Result<usize> {
    let mut forgotten = 0;
    for flow in flows(socket, protocol)? {
        if stale(&flow) {
            forget(socket, &flow)?;
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

fn family() -> u8 {
    crate::nft::Family::Ip.number()
}

fn message_type(kind: u16) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8).unwrap_or_default() | kind
}

fn parse(flow: Attributes<'_>) -> Option<Flow> {
    let (protocol, source, destination) = parse_tuple(flow.nested(TUPLE_ORIG))?;
    let (_, replier, _) = parse_tuple(flow.nested(TUPLE_REPLY))?;
    Some(Flow { protocol, source, destination, replier })
}

fn parse_tuple(tuple: Attributes<'_>) -> Option<(u8, SocketAddrV4, SocketAddrV4)> {
    let ip = tuple.nested(TUPLE_IP);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(kind)?).ok()?));
    let proto = tuple.nested(TUPLE_PROTO);
    let port = |kind| Some(u16::from_be_bytes(proto.get(kind)?.try_into().ok()?));
    Some((
        *proto.get(PROTO_NUM)?.first()?,
        SocketAddrV4::new(address(IP_V4_SRC)?, port(PROTO_SRC_PORT)?),
        SocketAddrV4::new(address(IP_V4_DST)?, port(PROTO_DST_PORT)?),
    ))
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;
    use crate::{
        NetNs,
        nft::{self, BaseChain, Batch, ChainKind, Family, Hook, Reg, Rule, ct_state},
    };

    #[test]
    fn udp_flows_are_listed_and_forgotten() {
        const UDP: u8 = 17;
        let namespace = NetNs::create().unwrap();
        let mut socket = nft::socket_in(namespace.as_fd()).unwrap();
        // Tracking starts only when a rule asks for it.
        let mut batch = Batch::new(Family::Ip, "skiff-test");
        let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 };
        batch.add_table().add_base_chain("output", base);
        batch.add_rule("output", Rule::new().ct_state(Reg(0), ct_state::NEW).counter());
        batch.commit(&mut socket).unwrap();
        let (client, server) = namespace
            .run(|| {
                let server = UdpSocket::bind("127.0.0.1:0").unwrap();
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.send_to(b"x", server.local_addr().unwrap()).unwrap();
                (client.local_addr().unwrap(), server.local_addr().unwrap())
            })
            .unwrap();
        let listed = flows(&mut socket, UDP).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(std::net::SocketAddr::V4(listed[0].source), client);
        assert_eq!(std::net::SocketAddr::V4(listed[0].destination), server);
        assert_eq!(forget_where(&mut socket, UDP, |flow| flow.destination.port() == server.port()).unwrap(), 1);
        assert_eq!(flows(&mut socket, UDP).unwrap(), []);
        forget(&mut socket, &listed[0]).unwrap();
    }
}
