use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::Error;

/// A range of addresses in CIDR notation. The host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

/// An address as a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The bytes of an address, as they stand in packets and netlink messages.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// How many bits the addresses of this family have.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with this number, of the family of another one.
fn like(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        // What is added to an IPv4 address has been kept within its 32 bits.
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

impl Subnet {
    /// All IPv4 addresses.
    pub const ALL_IPV4: Self = Self { base: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };
    /// All IPv6 addresses.
    pub const ALL_IPV6: Self = Self { base: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 };

    /// The range that holds `address`; host bits are cleared. `None` for a prefix over 32, or 128.
    pub fn new(address: impl Into<IpAddr>, prefix: u8) -> Option<Self> {
        let address = address.into();
        let mask = mask_of(address, prefix)?;
        Some(Self { base: like(address, bits(address) & mask), prefix })
    }

    /// The range of one address.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let base = address.into();
        Self { base, prefix: width(base) }
    }

    pub fn base(&self) -> IpAddr {
        self.base
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn is_ipv4(&self) -> bool {
        self.base.is_ipv4()
    }

    /// Whether an address or a range is of the same family.
    pub fn is_like(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4()
    }

    fn mask_bits(&self) -> u128 {
        mask_of(self.base, self.prefix).unwrap_or_default()
    }

    pub fn mask(&self) -> IpAddr {
        like(self.base, self.mask_bits())
    }

    /// The last address, which is the broadcast address of an IPv4 segment.
    pub fn last(&self) -> IpAddr {
        let all = mask_of(self.base, width(self.base)).unwrap_or_default();
        like(self.base, bits(self.base) | (all & !self.mask_bits()))
    }

    /// The `n`-th address counted from the base, if it lies in the range.
    pub fn nth(&self, n: u32) -> Option<IpAddr> {
        let number = bits(self.base).checked_add(n.into())?;
        (number <= bits(self.last())).then(|| like(self.base, number))
    }

    /// Which address of the range this is: the other way round than [`nth`](Self::nth).
    pub fn index_of(&self, address: IpAddr) -> Option<u32> {
        self.contains(address).then(|| u32::try_from(bits(address) - bits(self.base)).ok())?
    }

    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.is_like(address) && bits(address) & self.mask_bits() == bits(self.base)
    }

    /// Whether there is an address in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

/// `None`: the prefix is longer than addresses are.
fn mask_of(family: IpAddr, prefix: u8) -> Option<u128> {
    let width = width(family);
    let host = width.checked_sub(prefix)?;
    let all = u128::MAX >> (128 - u32::from(width));
    Some(all & u128::MAX.checked_shl(host.into()).unwrap_or_default())
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Self::new(address.parse::<IpAddr>().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| {
            Error::Invalid(format!("{text:?} is not a range of addresses like 10.244.0.0/24 or fd00:10:244::/64"))
        })
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_counts() {
        let range: Subnet = "10.244.3.7/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.244.3.0/24");
        assert_eq!(range.nth(1), Some([10, 244, 3, 1].into()));
        assert_eq!(range.nth(256), None);
        assert_eq!(range.last(), IpAddr::from([10, 244, 3, 255]));
        assert!(range.contains(Ipv4Addr::new(10, 244, 3, 255)));
        assert!(!range.contains(Ipv4Addr::new(10, 244, 4, 0)));
        let all: Subnet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn both_families_count_alike() {
        let range: Subnet = "fd00:10:244:3::7/64".parse().unwrap();
        assert_eq!(range.to_string(), "fd00:10:244:3::/64");
        assert_eq!(range.nth(0x1_0001).unwrap().to_string(), "fd00:10:244:3::1:1");
        assert_eq!(range.index_of("fd00:10:244:3::1:1".parse().unwrap()), Some(0x1_0001));
        assert_eq!(range.index_of("fd00:10:244:3:1::".parse().unwrap()), None, "too far for a number of 32 bits");
        assert_eq!(range.last().to_string(), "fd00:10:244:3:ffff:ffff:ffff:ffff");
        assert_eq!(range.mask().to_string(), "ffff:ffff:ffff:ffff::");
        assert!(!range.contains(Ipv4Addr::new(10, 244, 3, 1)));
        assert_eq!(Subnet::host("fd00::1".parse::<IpAddr>().unwrap()).last().to_string(), "fd00::1");
        let last: Subnet = "255.255.255.255/32".parse().unwrap();
        assert_eq!((last.nth(0), last.nth(1)), (Some(Ipv4Addr::BROADCAST.into()), None));
        assert!(Subnet::ALL_IPV6.contains(Ipv6Addr::LOCALHOST) && Subnet::ALL_IPV4.last() == Ipv4Addr::BROADCAST);
        let wide: Subnet = "fd00:10:244::/56".parse().unwrap();
        assert!(wide.overlaps(&range) && range.overlaps(&wide) && !range.overlaps(&Subnet::ALL_IPV4));
    }
}
