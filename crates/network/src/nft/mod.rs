//! nftables over netlink: atomic batches of tables, chains, rules, sets and maps.
//!
//! ```no_run
//! use skiff_network::nft::{Batch, Family, Field, Key, Reg, Rule, Set, Verdict};
//! # fn main() -> skiff_network::Result<()> {
//! let mut batch = Batch::new(Family::Ip, "example");
//! batch.add_table();
//! batch.add_set(&Set::vmap("ports", &[Field::Protocol, Field::Port]));
//! batch.add_elements("ports", [Key::new().protocol(6).port(80).verdict(Verdict::Drop)]);
//! batch.add_chain("check");
//! let rule = Rule::new().l4proto(Reg(0)).dport(Reg(1)).vmap(Reg(0), "ports");
//! batch.add_rule("check", rule);
//! batch.commit(&mut skiff_network::nft::socket()?)
//! # }
//! ```
//!
//! A batch is applied as a whole or not at all. Names are not checked here: the kernel does.

mod batch;
mod element;
mod list;
mod rule;
mod set;
#[cfg(test)]
mod tests;

pub use batch::{BaseChain, Batch, ChainKind, Hook};
pub use element::{Data, Element, Key, Verdict};
pub use list::{chains, elements, rules, tables};
pub use rule::{CtKey, DynsetOp, FibResult, Meta, Op, Reg, Rule, ct_state, ct_status};
pub use set::{Field, Set, SetData};

use crate::{Error, Result, netlink::Socket};

/// The packets that a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ip,
    Ip6,
    Inet,
    Bridge,
}

impl Family {
    /// The family of an address.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::Ip } else { Self::Ip6 }
    }

    /// An address in a key or value; of tables that see several families, IPv4's.
    pub fn address(self) -> Field {
        match self {
            Self::Ip6 => Field::Ipv6,
            _ => Field::Ipv4,
        }
    }

    /// How many registers an address takes.
    pub fn registers(self) -> u8 {
        match self {
            Self::Ip6 => 4,
            _ => 1,
        }
    }

    pub(crate) fn number(self) -> u8 {
        let number = match self {
            Self::Ip => libc::NFPROTO_IPV4,
            Self::Ip6 => libc::NFPROTO_IPV6,
            Self::Inet => libc::NFPROTO_INET,
            Self::Bridge => libc::NFPROTO_BRIDGE,
        };
        u8::try_from(number).unwrap_or_default()
    }
}

/// A netfilter socket in the caller's network namespace.
pub fn socket() -> Result<Socket> {
    Socket::open(libc::NETLINK_NETFILTER).map_err(Error::io("open a netfilter socket"))
}

/// A netfilter socket in another network namespace.
pub fn socket_in(namespace: std::os::fd::BorrowedFd<'_>) -> Result<Socket> {
    Socket::open_in(namespace, libc::NETLINK_NETFILTER).map_err(Error::io("open a netfilter socket"))
}

pub(crate) fn message_type(kind: i32) -> u16 {
    u16::try_from((libc::NFNL_SUBSYS_NFTABLES << 8) | kind).unwrap_or_default()
}

/// The four bytes after the netlink header of every netfilter message: family, version, resource.
pub(crate) fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// A comment in the form in which the nft tool shows it: type 0, length, text with NUL.
pub(crate) fn comment_data(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(MAX_COMMENT);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let text = &comment.as_bytes()[..end];
    let mut data = Vec::with_capacity(text.len() + 3);
    data.push(0);
    data.push(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    data.extend_from_slice(text);
    data.push(0);
    data
}

/// The nft tool's own limit; longer comments are cut.
const MAX_COMMENT: usize = 128;

/// Attribute numbers of linux/netfilter/nf_tables.h that the libc crate lacks.
pub(crate) mod attr {
    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const RULE_USERDATA: u16 = 7;
    pub(crate) const SET_TABLE: u16 = 1;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LEN: u16 = 5;
    pub(crate) const SET_DATA_TYPE: u16 = 6;
    pub(crate) const SET_DATA_LEN: u16 = 7;
    pub(crate) const SET_DESC: u16 = 9;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_DESC_SIZE: u16 = 1;
    pub(crate) const SET_DESC_CONCAT: u16 = 2;
    pub(crate) const SET_FIELD_LEN: u16 = 1;
    pub(crate) const ELEM_KEY: u16 = 1;
    pub(crate) const ELEM_DATA: u16 = 2;
    pub(crate) const ELEM_TIMEOUT: u16 = 4;
    pub(crate) const ELEM_USERDATA: u16 = 6;
    pub(crate) const ELEM_KEY_END: u16 = 10;
    pub(crate) const ELEM_LIST_TABLE: u16 = 1;
    pub(crate) const ELEM_LIST_SET: u16 = 2;
    pub(crate) const ELEM_LIST_ELEMENTS: u16 = 3;
    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;
}
