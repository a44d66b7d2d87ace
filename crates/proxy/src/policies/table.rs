//! The nftables table of policies of an address family, and how it gets from one state to the next.
//!
//! ```text
//! forward: known connection, or to itself ──▶ accept
//!          source ──egress-pods──▶ chain of its group: destination . protocol . port in the group's set, or drop
//!          destination ──ingress-pods──▶ the same with the source
//! ```
//!
//! A packet costs at most five lookups, however many policies, rules and peers there are. It is looked at after
//! destination NAT and before source NAT, so that policies see the pods' own addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use skiff_network::nft::{
    BaseChain, Batch, ChainKind, Element, Family, Field, Hook, Key, Reg, Rule, Set, Verdict, ct_state,
};

use super::{
    ranges::{Piece, address_of},
    wanted::{Direction, Group, Wanted},
};

/// The table's name.
pub(super) const TABLE: &str = "skiff-policies";
/// After the rules of Services, which answer for addresses that lead nowhere.
const PRIORITY: i32 = 10;
/// Pairs of a pod's address with itself.
const SELVES: &str = "selves";

/// What the kernel has.
#[derive(Debug, Default)]
pub(super) struct Written {
    wanted: Wanted,
    numbers: BTreeMap<Group, u32>,
    last_number: u32,
}

fn pods_map(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress-pods",
        Direction::Egress => "egress-pods",
    }
}

fn name_of(group: &Group, number: u32) -> String {
    match group.direction {
        Direction::Ingress => format!("ingress-{number}"),
        Direction::Egress => format!("egress-{number}"),
    }
}

fn element(family: Family, piece: &Piece) -> Element {
    let key = |number, protocol, port| Key::new().address(address_of(family, number)).protocol(protocol).port(port);
    let last = key(piece.addresses.1, piece.protocols.1, piece.ports.1);
    key(piece.addresses.0, piece.protocols.0, piece.ports.0).element().until(last)
}

fn write_group(batch: &mut Batch, family: Family, name: &str, direction: Direction) {
    batch.add_set(&Set::plain(name, &[family.address(), Field::Protocol, Field::Port]).interval());
    batch.add_chain(name);
    let peer = match direction {
        Direction::Ingress => Rule::of(family).saddr(Reg(0)),
        Direction::Egress => Rule::of(family).daddr(Reg(0)),
    };
    let after = family.registers();
    let peer = peer.l4proto(Reg(after)).dport(Reg(after + 1));
    batch.add_rule(name, peer.lookup(Reg(0), name).verdict(Verdict::Return));
    batch.add_rule(name, Rule::new().verdict(Verdict::Drop));
}

fn write_skeleton(batch: &mut Batch, family: Family) {
    let rule = || Rule::of(family);
    batch.delete_table().add_table();
    batch.add_set(&Set::plain(SELVES, &[family.address(), family.address()]));
    for direction in [Direction::Egress, Direction::Ingress] {
        batch.add_set(&Set::vmap(pods_map(direction), &[family.address()]));
    }
    let name = "forward";
    batch.add_base_chain(name, BaseChain { kind: ChainKind::Filter, hook: Hook::Forward, priority: PRIORITY });
    let known = rule().ct_state(Reg(0), ct_state::ESTABLISHED | ct_state::RELATED);
    batch.add_rule(name, known.verdict(Verdict::Accept));
    let itself = rule().saddr(Reg(0)).daddr(Reg(family.registers())).lookup(Reg(0), SELVES);
    batch.add_rule(name, itself.verdict(Verdict::Accept).comment("no pod can be kept from itself"));
    batch.add_rule(name, rule().saddr(Reg(0)).vmap(Reg(0), pods_map(Direction::Egress)));
    batch.add_rule(name, rule().daddr(Reg(0)).vmap(Reg(0), pods_map(Direction::Ingress)));
}

fn selves(wanted: &Wanted) -> BTreeSet<IpAddr> {
    wanted.pods.keys().map(|(_, address)| *address).collect()
}

impl Written {
    /// Writes what leads from here to there. The table is made anew unless `in_step`.
    pub(super) fn write(mut self, family: Family, wanted: Wanted, in_step: bool, batch: &mut Batch) -> Self {
        if !in_step {
            write_skeleton(batch, family);
            self = Self::default();
        }
        let gone: Vec<(Group, u32)> = self
            .numbers
            .iter()
            .filter(|(group, _)| !wanted.groups.contains_key(*group))
            .map(|(group, number)| (group.clone(), *number))
            .collect();
        for (group, pieces) in &wanted.groups {
            let name = match self.numbers.get(group) {
                Some(number) => name_of(group, *number),
                None => {
                    self.last_number = self.last_number.wrapping_add(1);
                    self.numbers.insert(group.clone(), self.last_number);
                    let name = name_of(group, self.last_number);
                    write_group(batch, family, &name, group.direction);
                    name
                }
            };
            let none = BTreeSet::new();
            let before = self.wanted.groups.get(group).unwrap_or(&none);
            batch.delete_elements(&name, before.difference(pieces).map(|piece| element(family, piece)));
            batch.add_elements(&name, pieces.difference(before).map(|piece| element(family, piece)));
        }
        self.write_pods(&wanted, batch);
        for (group, number) in gone {
            self.numbers.remove(&group);
            let name = name_of(&group, number);
            batch.flush_chain(&name).delete_chain(&name).delete_set(&name);
        }
        self.wanted = wanted;
        self
    }

    fn write_pods(&self, wanted: &Wanted, batch: &mut Batch) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let verdicts = |pods: &BTreeMap<(Direction, IpAddr), Group>, other: &Wanted| -> Vec<Element> {
                let changed =
                    pods.iter().filter(|(key, group)| key.0 == direction && other.pods.get(*key) != Some(*group));
                let verdict = |(key, group): (&(Direction, IpAddr), &Group)| {
                    let number = self.numbers.get(group)?;
                    Some(Key::new().address(key.1).verdict(Verdict::Jump(name_of(group, *number))))
                };
                changed.filter_map(verdict).collect()
            };
            batch.delete_elements(pods_map(direction), verdicts(&self.wanted.pods, wanted));
            batch.add_elements(pods_map(direction), verdicts(&wanted.pods, &self.wanted));
        }
        let (before, after) = (selves(&self.wanted), selves(wanted));
        let pair = |address: &IpAddr| Key::new().address(*address).address(*address).element();
        batch.delete_elements(SELVES, before.difference(&after).map(pair));
        batch.add_elements(SELVES, after.difference(&before).map(pair));
    }

    /// Whether the kernel would have to change.
    pub(super) fn is(&self, wanted: &Wanted) -> bool {
        self.wanted == *wanted
    }
}

/// A batch for the table of a family.
pub(super) fn batch(family: Family) -> Batch {
    Batch::new(family, TABLE)
}
