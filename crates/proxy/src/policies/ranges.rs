//! Arithmetic of what is allowed: ranges of addresses, each with ranges of ports.
//!
//! The kernel's sets take ranges in every field of a key but refuse elements that overlap. So what several
//! rules allow is cut into pieces that do not, each of which allows what any of the rules does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use skiff_network::{Subnet, nft::Family};

/// First and last address, as numbers; of which family, those who have them know.
pub(super) type Addresses = (u128, u128);

/// Every address of a family.
pub(super) fn everywhere(family: Family) -> Addresses {
    match family {
        Family::Ip6 => (0, u128::MAX),
        _ => (0, u32::MAX.into()),
    }
}

/// The addresses of a range.
pub(super) fn addresses_of(range: Subnet) -> Addresses {
    (number_of(range.base()), number_of(range.last()))
}

pub(super) fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The other way round.
pub(super) fn address_of(family: Family, number: u128) -> IpAddr {
    match family {
        Family::Ip6 => Ipv6Addr::from_bits(number).into(),
        // Numbers of this family come from its addresses.
        _ => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
    }
}

/// What is left of a range without these.
pub(super) fn without(range: Addresses, excepted: &[Addresses]) -> Vec<Addresses> {
    let mut left = vec![range];
    for &(first, last) in excepted {
        left = left
            .into_iter()
            .flat_map(|(from, to)| {
                let before = (from < first).then(|| (from, to.min(first.saturating_sub(1))));
                let after = (to > last).then(|| (from.max(last.saturating_add(1)), to));
                before.into_iter().chain(after)
            })
            .filter(|(from, to)| from <= to)
            .collect();
    }
    left
}

/// Which ports of which protocols.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Every packet, also of protocols without ports.
    pub(super) all: bool,
    /// By IP protocol number: first and last port, in order, neither overlapping nor adjacent.
    ranges: BTreeMap<u8, Vec<(u16, u16)>>,
}

impl Ports {
    pub(super) fn all() -> Self {
        Self { all: true, ranges: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.ranges.is_empty()
    }

    pub(super) fn add(&mut self, protocol: u8, first: u16, last: u16) {
        let ranges = self.ranges.entry(protocol).or_default();
        ranges.push((first, last));
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for &(first, last) in ranges.iter() {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        *ranges = merged;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.all |= other.all;
        for (protocol, ranges) in &other.ranges {
            for (first, last) in ranges {
                self.add(*protocol, *first, *last);
            }
        }
    }

    /// Ranges of protocols and of ports.
    fn pieces(&self) -> Vec<((u8, u8), (u16, u16))> {
        if self.all {
            return vec![((0, u8::MAX), (0, u16::MAX))];
        }
        let of_protocol = |(protocol, ranges): (&u8, &Vec<(u16, u16)>)| {
            let protocol = (*protocol, *protocol);
            ranges.iter().map(move |range| (protocol, *range)).collect::<Vec<_>>()
        };
        self.ranges.iter().flat_map(of_protocol).collect()
    }
}

/// A box of addresses, protocols and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub(super) addresses: Addresses,
    pub(super) protocols: (u8, u8),
    pub(super) ports: (u16, u16),
}

/// What is allowed, in any order and overlapping as it likes.
#[derive(Debug, Default)]
pub(super) struct Allowed(BTreeMap<Addresses, Ports>);

impl Allowed {
    pub(super) fn add(&mut self, addresses: Addresses, ports: &Ports) {
        if !ports.is_empty() {
            self.0.entry(addresses).or_default().merge(ports);
        }
    }

    /// The same in pieces that do not overlap.
    pub(super) fn pieces(&self) -> BTreeSet<Piece> {
        let claims: Vec<(&Addresses, &Ports)> = self.0.iter().collect();
        // At which address which claims begin, and where they have ended. `None`, behind every address: after the last
        // one there is.
        let edge = |address: Option<u128>| (address.is_none(), address.unwrap_or_default());
        type Claims = Vec<usize>;
        let mut edges: BTreeMap<(bool, u128), (Claims, Claims)> = BTreeMap::new();
        for (index, ((first, last), _)) in claims.iter().enumerate() {
            edges.entry(edge(Some(*first))).or_default().0.push(index);
            edges.entry(edge(last.checked_add(1))).or_default().1.push(index);
        }
        let mut segments: Vec<(Addresses, Ports)> = Vec::new();
        let mut active: BTreeSet<usize> = BTreeSet::new();
        let ends: Vec<(bool, u128)> = edges.keys().skip(1).copied().collect();
        for (((_, start), (begun, ended)), (_, end)) in edges.iter().zip(ends) {
            active.retain(|index| !ended.contains(index));
            active.extend(begun);
            if active.is_empty() {
                continue;
            }
            let mut ports = Ports::default();
            active.iter().for_each(|index| ports.merge(claims[*index].1));
            if ports.all {
                ports = Ports::all();
            }
            // One before the end, also where that is behind every address.
            let last = end.wrapping_sub(1);
            match segments.last_mut() {
                Some((before, same)) if before.1.wrapping_add(1) == *start && *same == ports => before.1 = last,
                _ => segments.push(((*start, last), ports)),
            }
        }
        let pieces = |(addresses, ports): (Addresses, Ports)| {
            ports.pieces().into_iter().map(move |(protocols, ports)| Piece { addresses, protocols, ports })
        };
        segments.into_iter().flat_map(pieces).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_without_others() {
        assert_eq!(without((10, 20), &[(12, 13), (20, 30)]), [(10, 11), (14, 19)]);
        assert_eq!(without((10, 20), &[(0, 100)]), []);
        assert_eq!(without(everywhere(Family::Ip6), &[(0, 9), (u128::MAX, u128::MAX)]), [(10, u128::MAX - 1)]);
        assert_eq!(without((10, 20), &[(30, 40)]), [(10, 20)]);
    }

    #[test]
    fn ports_merge() {
        let mut ports = Ports::default();
        for (first, last) in [(80, 80), (90, 100), (81, 81), (95, 110), (65535, 65535)] {
            ports.add(6, first, last);
        }
        assert_eq!(ports.ranges[&6], [(80, 81), (90, 110), (65535, 65535)]);
    }

    #[test]
    fn pieces_do_not_overlap_and_allow_what_the_claims_do() {
        let tcp = |port| {
            let mut ports = Ports::default();
            ports.add(6, port, port);
            ports
        };
        let mut allowed = Allowed::default();
        allowed.add((10, 20), &tcp(80));
        allowed.add((15, 15), &Ports::all());
        allowed.add((15, 30), &tcp(81));
        allowed.add((40, 40), &tcp(80));
        allowed.add((41, 41), &tcp(80));
        allowed.add((u128::MAX, u128::MAX), &tcp(9));
        let piece = |addresses, ports| Piece { addresses, protocols: (6, 6), ports };
        let expected = [
            piece((10, 14), (80, 80)),
            Piece { addresses: (15, 15), protocols: (0, 255), ports: (0, 65535) },
            piece((16, 20), (80, 81)),
            piece((21, 30), (81, 81)),
            piece((40, 41), (80, 80)),
            piece((u128::MAX, u128::MAX), (9, 9)),
        ];
        assert_eq!(allowed.pieces().into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn all_addresses_of_a_family_are_one_piece() {
        for family in [Family::Ip, Family::Ip6] {
            let mut allowed = Allowed::default();
            allowed.add(everywhere(family), &Ports::all());
            allowed.add((7, 7), &Ports::all());
            let pieces: Vec<Piece> = allowed.pieces().into_iter().collect();
            assert_eq!((pieces.len(), pieces[0].addresses), (1, everywhere(family)));
            let (_, last) = everywhere(family);
            assert_eq!(number_of(address_of(family, last)), last);
        }
    }
}
