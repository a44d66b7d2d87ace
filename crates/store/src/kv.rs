//! Keys, values, revisions and events: the values that travel through the store.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

/// A point in the store's history. Every transaction that writes makes exactly one new revision,
/// however many keys it touches. An empty store is at revision 1, as in etcd; 0 means "never".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// "Never": as an expected mod revision it means that the key must not exist.
    pub const ZERO: Revision = Revision(0);
    /// The revision of a store that was never written to.
    pub const INITIAL: Revision = Revision(1);

    /// The revision after this one: where a watch has to start to continue after a list.
    #[must_use]
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // etcd's tools print leases in hexadecimal.
        write!(f, "{:x}", self.0)
    }
}

/// A lease as granted: keys attached to it are deleted when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lease's name.
    pub id: LeaseId,
    /// Time to live after the grant or the last keep-alive.
    pub ttl: Duration,
}

/// One key at one revision. Cloning shares the key and the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, for example `/registry/pods/default/nginx`.
    pub key: Arc<str>,
    /// The bytes as they were written; shared by all readers and watchers.
    pub value: Bytes,
    /// The revision at which the key was last created (after a deletion, if there was one).
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
    /// How many times the key was written since it was created; 1 at creation.
    pub version: u64,
    /// The lease that the key is attached to.
    pub lease: Option<LeaseId>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key was created or updated.
    Put,
    /// The key was deleted, by a transaction or because its lease ended.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key as it is after the change. For a deletion: the key, an empty value, the deletion's
    /// revision as `mod_revision`, and zeros.
    pub kv: KeyValue,
    /// The key as it was before the change; `None` for a creation. It is also `None` when a watch
    /// from the past meets a change whose predecessor has been compacted.
    pub prev: Option<KeyValue>,
}

impl Event {
    /// The revision that made this change.
    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    /// Whether the change created the key.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }

    /// What the event is charged against a watcher's memory budget, in bytes.
    pub(crate) fn cost(&self) -> usize {
        const OVERHEAD: usize = 256;
        let prev = self.prev.as_ref().map_or(0, |kv| kv.value.len());
        OVERHEAD + self.kv.key.len() + self.kv.value.len() + prev
    }
}

/// The answer to [`Store::get`](crate::Store::get).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetResponse {
    /// The key, if it existed.
    pub kv: Option<KeyValue>,
    /// The revision that was read.
    pub revision: Revision,
}

/// The answer to [`Store::range`](crate::Store::range).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResponse {
    /// The keys in lexical order.
    pub kvs: Vec<KeyValue>,
    /// The revision that was read: all keys are as they were at this one revision.
    pub revision: Revision,
    /// Whether the limit cut the answer short.
    pub more: bool,
    /// How many keys the range holds at this revision, whatever the limit.
    pub count: usize,
}
