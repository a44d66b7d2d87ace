//! Ingresses, their classes, and network policies.

pub(crate) mod ingress;
pub(crate) mod ingressclass;
pub(crate) mod networkpolicy;

use std::net::IpAddr;

/// A range of addresses of either family.
#[derive(Clone, Copy, Debug)]
struct Cidr {
    /// The first address, in the lowest bits.
    base: u128,
    /// How long addresses are.
    bits: u32,
    prefix: u32,
}

impl Cidr {
    fn mask(self) -> u128 {
        let host = self.bits - self.prefix;
        if host >= 128 { 0 } else { (u128::MAX >> (128 - self.bits)) & (u128::MAX << host) }
    }
}

/// Whether a text is a range of addresses.
pub(crate) fn is_cidr(text: &str) -> bool {
    parse_cidr(text).is_some()
}

/// A range such as `10.0.0.0/8`; its address may be any one in it.
fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/')?;
    let (base, bits) = match address.parse().ok()? {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let plain = prefix.bytes().all(|b| b.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
    let prefix = prefix.parse().ok().filter(|prefix| plain && *prefix <= bits)?;
    let range = Cidr { base, bits, prefix };
    Some(Cidr { base: base & range.mask(), ..range })
}
