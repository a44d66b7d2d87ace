//! What all Services want of the rules, and what changes when one of them wants something else.
//!
//! Several Services may want the same slot: the same element (a pod behind two of them), or different
//! ones (the same external address and port). The oldest claim counts; when it goes, the next does.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use skiff_client::ObjectKey;
use skiff_network::nft::{Batch, Element};

use crate::{
    service::{Slot, View, Wants},
    table::{self, Chain, Map},
};

/// The elements to delete and to add, and the chains to create.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Per slot: what is there now and what is to be there.
    changes: BTreeMap<Slot, (Option<Element>, Option<Element>)>,
    pub(crate) chains: BTreeSet<Chain>,
}

impl Delta {
    fn record(&mut self, slot: &Slot, before: Option<&Element>, after: Option<&Element>) {
        if before == after {
            return;
        }
        match self.changes.get_mut(slot) {
            // Changed twice: what counts is the first state and the last.
            Some(change) => {
                change.1 = after.cloned();
                if change.0 == change.1 {
                    self.changes.remove(slot);
                }
            }
            None => {
                self.changes.insert(slot.clone(), (before.cloned(), after.cloned()));
            }
        }
    }

    /// How many elements it deletes and adds.
    pub(crate) fn size(&self) -> (usize, usize) {
        let deleted = self.changes.values().filter(|(before, _)| before.is_some()).count();
        let added = self.changes.values().filter(|(_, after)| after.is_some()).count();
        (deleted, added)
    }

    /// Writes everything in an order in which the kernel accepts it: chains before what points to
    /// them, deletions before additions of the same key.
    pub(crate) fn write(&self, batch: &mut Batch, node: &View) {
        for chain in &self.chains {
            chain.write(batch, node);
        }
        for map in Map::ALL {
            let range = self.changes.iter().filter(|(slot, _)| slot.0 == map);
            let deleted: Vec<Element> = range.clone().filter_map(|(_, (before, _))| before.clone()).collect();
            let added: Vec<Element> = range.filter_map(|(_, (_, after))| after.clone()).collect();
            batch.delete_elements(map.name(), deleted);
            batch.add_elements(map.name(), added);
        }
    }
}

/// The claims of all Services.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    wants: HashMap<ObjectKey, Wants>,
    claims: HashMap<Slot, Vec<(ObjectKey, Element)>>,
    /// Chains that exist.
    chains: BTreeSet<Chain>,
}

impl Rules {
    pub(crate) fn wants(&self, service: &ObjectKey) -> Option<&Wants> {
        self.wants.get(service)
    }

    /// Replaces what a Service wants and adds to `delta` what changes by it.
    pub(crate) fn set(&mut self, service: &ObjectKey, wants: Option<Wants>, delta: &mut Delta) {
        let wants = wants.filter(|wants| *wants != Wants::default());
        let before = match &wants {
            Some(wants) => {
                for chain in wants.chains.difference(&self.chains) {
                    delta.chains.insert(*chain);
                }
                self.chains.extend(&wants.chains);
                self.wants.insert(service.clone(), wants.clone())
            }
            None => self.wants.remove(service),
        };
        let none = BTreeMap::new();
        let before = before.as_ref().map_or(&none, |wants| &wants.elements);
        let after = wants.as_ref().map_or(&none, |wants| &wants.elements);
        for (slot, element) in before {
            if after.get(slot) != Some(element) && !after.contains_key(slot) {
                self.claim(service, slot, None, delta);
            }
        }
        for (slot, element) in after {
            if before.get(slot) != Some(element) {
                self.claim(service, slot, Some(element), delta);
            }
        }
    }

    fn claim(&mut self, service: &ObjectKey, slot: &Slot, wanted: Option<&Element>, delta: &mut Delta) {
        let claims = self.claims.entry(slot.clone()).or_default();
        let before = claims.first().map(|(_, element)| element.clone());
        let own = claims.iter().position(|(owner, _)| owner == service);
        match (own, wanted) {
            (Some(index), Some(element)) => claims[index].1 = element.clone(),
            (Some(index), None) => drop(claims.remove(index)),
            (None, Some(element)) => claims.push((service.clone(), element.clone())),
            (None, None) => {}
        }
        delta.record(slot, before.as_ref(), claims.first().map(|(_, element)| element));
        if claims.is_empty() {
            self.claims.remove(slot);
        }
    }

    /// Everything from nothing: the table, the chains that are in use, all elements.
    pub(crate) fn write_all(&mut self, batch: &mut Batch, node: &View) {
        table::write_skeleton(batch, node);
        self.chains = self.wants.values().flat_map(|wants| wants.chains.iter().copied()).collect();
        let mut delta = Delta { chains: self.chains.clone(), ..Delta::default() };
        for (slot, claims) in &self.claims {
            delta.record(slot, None, claims.first().map(|(_, element)| element));
        }
        delta.write(batch, node);
    }
}
