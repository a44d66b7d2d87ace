use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// An IPv4 range in CIDR notation. The host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The range that holds `address`; host bits are cleared. `None` for a prefix over 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { base: Ipv4Addr::from(u32::from(address) & mask_of(prefix)), prefix })
    }

    /// The range of one address.
    pub fn host(address: Ipv4Addr) -> Self {
        Self { base: address, prefix: 32 }
    }

    pub fn base(&self) -> Ipv4Addr {
        self.base
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask_of(self.prefix))
    }

    /// The last address, which is the broadcast address of a segment.
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) | !mask_of(self.prefix))
    }

    /// The `n`-th address counted from the base, if it lies in the range.
    pub fn nth(&self, n: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(u32::from(self.base).checked_add(n)?);
        self.contains(address).then_some(address)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask_of(self.prefix) == u32::from(self.base)
    }
}

fn mask_of(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or_default()
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
            Self::new(address.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| Error::Invalid(format!("{text:?} is not an IPv4 range like 10.244.0.0/24")))
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
        assert_eq!(range.nth(1), Some(Ipv4Addr::new(10, 244, 3, 1)));
        assert_eq!(range.nth(256), None);
        assert_eq!(range.last(), Ipv4Addr::new(10, 244, 3, 255));
        assert!(range.contains(Ipv4Addr::new(10, 244, 3, 255)));
        assert!(!range.contains(Ipv4Addr::new(10, 244, 4, 0)));
        let all: Subnet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
