//! Leases in memory: when they end and what is attached to them.
//!
//! Only the time to live is kept in the file. After a restart each lease has its whole time again: the
//! holder had no way to keep it alive meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{LeaseId, Revision};

#[derive(Default)]
pub(super) struct Leases {
    held: HashMap<LeaseId, Held>,
    /// In the order in which they end.
    ends: BTreeSet<(Instant, LeaseId)>,
}

struct Held {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<Arc<str>>,
}

impl Leases {
    pub(super) fn insert(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let ends = now + ttl;
        self.held.insert(id, Held { ttl, ends, keys: BTreeSet::new() });
        self.ends.insert((ends, id));
    }

    pub(super) fn remove(&mut self, id: LeaseId) {
        if let Some(held) = self.held.remove(&id) {
            self.ends.remove(&(held.ends, id));
        }
    }

    pub(super) fn contains(&self, id: LeaseId) -> bool {
        self.held.contains_key(&id)
    }

    /// Starts the lease's time anew and returns its time to live.
    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let held = self.held.get_mut(&id)?;
        self.ends.remove(&(held.ends, id));
        held.ends = now + held.ttl;
        self.ends.insert((held.ends, id));
        Some(held.ttl)
    }

    pub(super) fn attach(&mut self, id: LeaseId, key: &Arc<str>) {
        if let Some(held) = self.held.get_mut(&id) {
            held.keys.insert(key.clone());
        }
    }

    pub(super) fn detach(&mut self, id: LeaseId, key: &str) {
        if let Some(held) = self.held.get_mut(&id) {
            held.keys.remove(key);
        }
    }

    pub(super) fn keys(&self, id: LeaseId) -> impl Iterator<Item = &Arc<str>> {
        self.held.get(&id).into_iter().flat_map(|held| &held.keys)
    }

    /// When the next lease ends, and which.
    pub(super) fn next_end(&self) -> Option<(Instant, LeaseId)> {
        self.ends.first().copied()
    }

    /// The leases that have ended.
    pub(super) fn ended(&self, now: Instant) -> Vec<LeaseId> {
        self.ends.iter().take_while(|(end, _)| *end <= now).map(|(_, id)| *id).collect()
    }

    /// A name that is not taken.
    pub(super) fn unused(&self, revision: Revision, taken: impl Fn(LeaseId) -> bool) -> LeaseId {
        // Revisions do not come back, so neither do names, however often the store is restarted.
        let start = i64::try_from(revision.0 << 8).unwrap_or(1).max(1);
        let mut id = LeaseId(start);
        while self.contains(id) || taken(id) {
            id = LeaseId(id.0 + 1);
        }
        id
    }
}
