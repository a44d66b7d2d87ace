//! A store in memory that keeps nothing: for tests of the API server, and as the model that the
//! embedded engine is checked against. It is written to be obviously right rather than fast.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, Range},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    Batch, DEFAULT_WATCH_BUDGET_BYTES, Error, Event, EventKind, GetResponse, KeyValue, Lease, LeaseId, Op, OpResult,
    RangeResponse, Result, Revision, Store, Txn, TxnOutcome, TxnResponse, Watch, WatchSender,
};

/// See the [module](self).
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    watch_budget_bytes: usize,
}

struct State {
    revision: Revision,
    compacted: Revision,
    /// All versions of each key in order; `None` is a deletion.
    versions: BTreeMap<Arc<str>, Vec<(Revision, Option<KeyValue>)>>,
    /// All events after the compaction.
    log: BTreeMap<Revision, Vec<Arc<Event>>>,
    leases: BTreeMap<LeaseId, HeldLease>,
    watchers: Vec<(Revision, WatchSender)>,
}

struct HeldLease {
    ttl: Duration,
    ends: Instant,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        Self::with_watch_budget(DEFAULT_WATCH_BUDGET_BYTES)
    }

    /// An empty store whose watchers may be behind by this many bytes.
    pub fn with_watch_budget(watch_budget_bytes: usize) -> MemoryStore {
        let state = State {
            revision: Revision::INITIAL,
            compacted: Revision::ZERO,
            versions: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: BTreeMap::new(),
            watchers: Vec::new(),
        };
        MemoryStore { state: Arc::new(Mutex::new(state)), watch_budget_bytes }
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<GetResponse>> {
        async move {
            let state = self.state.lock();
            let revision = state.readable(at)?;
            Ok(GetResponse { kv: state.at(key, revision), revision })
        }
        .boxed()
    }

    fn range<'a>(
        &'a self,
        keys: Range<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<RangeResponse>> {
        async move {
            let state = self.state.lock();
            let revision = state.readable(at)?;
            let mut kvs = Vec::new();
            if keys.end.is_empty() || keys.start < keys.end {
                let end = if keys.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(keys.end) };
                let range = (Bound::Included(keys.start), end);
                kvs.extend(state.versions.range::<str, _>(range).filter_map(|(key, _)| state.at(key, revision)));
            }
            let count = kvs.len();
            if limit > 0 {
                kvs.truncate(limit);
            }
            Ok(RangeResponse { more: kvs.len() < count, kvs, revision, count })
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse>> {
        async move {
            txn.validate()?;
            self.state.lock().txn(&txn)
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Option<Revision>) -> Watch {
        let mut state = self.state.lock();
        let current = state.revision;
        let from = from.unwrap_or(current.next());
        if from <= state.compacted {
            return Watch::failed(prefix, Error::Compacted { requested: from, compacted: state.compacted });
        }
        let history = (from <= current).then(|| {
            let events = state.log.range(from..).flat_map(|(_, events)| events);
            let events = events.filter(|event| event.kv.key.starts_with(prefix)).cloned().collect();
            stream::once(async move { Ok(Batch { events, revision: current }) }).boxed()
        });
        let (sender, watch) = Watch::new(prefix, current, history, self.watch_budget_bytes);
        state.watchers.push((from, sender));
        watch
    }

    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<()>> {
        async move { self.state.lock().compact(at) }.boxed()
    }

    fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> BoxFuture<'_, Result<Lease>> {
        async move {
            let lease = self.state.lock().grant(ttl, id)?;
            tokio::spawn(expire(Arc::downgrade(&self.state), lease.id));
            Ok(lease)
        }
        .boxed()
    }

    fn lease_keepalive(&self, id: LeaseId) -> BoxFuture<'_, Result<Lease>> {
        async move {
            let mut state = self.state.lock();
            let held = state.leases.get_mut(&id).ok_or(Error::LeaseNotFound { lease: id })?;
            held.ends = Instant::now() + held.ttl;
            Ok(Lease { id, ttl: held.ttl })
        }
        .boxed()
    }

    fn lease_revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<()>> {
        async move { self.state.lock().revoke(id) }.boxed()
    }

    fn revision(&self) -> Revision {
        self.state.lock().revision
    }

    /// Nobody else writes.
    fn latest(&self) -> BoxFuture<'_, Result<Revision>> {
        std::future::ready(Ok(self.revision())).boxed()
    }

    fn compacted(&self) -> Revision {
        self.state.lock().compacted
    }
}

/// Revokes a lease once it is over.
async fn expire(state: Weak<Mutex<State>>, id: LeaseId) {
    loop {
        let ends = {
            let Some(state) = state.upgrade() else { return };
            let mut state = state.lock();
            let Some(held) = state.leases.get(&id) else {
                return;
            };
            if held.ends <= Instant::now() {
                // Not found means that it was revoked by hand.
                let _ = state.revoke(id);
                return;
            }
            held.ends
        };
        tokio::time::sleep_until(ends).await;
    }
}

impl State {
    fn readable(&self, at: Option<Revision>) -> Result<Revision> {
        match at {
            None => Ok(self.revision),
            Some(at) if at > self.revision => Err(Error::FutureRevision { requested: at, current: self.revision }),
            Some(at) if at < self.compacted => Err(Error::Compacted { requested: at, compacted: self.compacted }),
            Some(at) => Ok(at),
        }
    }

    fn at(&self, key: &str, at: Revision) -> Option<KeyValue> {
        let versions = self.versions.get(key)?;
        versions.iter().rev().find(|(revision, _)| *revision <= at)?.1.clone()
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnResponse> {
        let now = self.revision;
        let current: Vec<_> = txn.compares.iter().map(|compare| self.at(&compare.key, now)).collect();
        let holds = txn
            .compares
            .iter()
            .zip(&current)
            .all(|(compare, kv)| kv.as_ref().map_or(Revision::ZERO, |kv| kv.mod_revision) == compare.mod_revision);
        if !holds {
            return Ok(TxnResponse { revision: now, outcome: TxnOutcome::Failed(current) });
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Err(Error::LeaseNotFound { lease: *lease });
            }
        }
        let next = now.next();
        let mut events = Vec::new();
        let mut results = Vec::new();
        for op in &txn.ops {
            let prev = self.at(op.key(), now);
            let kv = match op {
                Op::Put { key, value, lease } => Some(KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: prev.as_ref().map_or(next, |prev| prev.create_revision),
                    mod_revision: next,
                    version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
                    lease: *lease,
                }),
                Op::Delete { .. } => None,
            };
            if kv.is_some() || prev.is_some() {
                events.push(event(op.key(), next, kv.clone(), prev.clone()));
            }
            results.push(OpResult { kv, prev });
        }
        let revision = if events.is_empty() { now } else { next };
        self.publish(events);
        Ok(TxnResponse { revision, outcome: TxnOutcome::Succeeded(results) })
    }

    /// Makes events of the next revision part of the history and tells the watchers.
    fn publish(&mut self, events: Vec<Arc<Event>>) {
        let Some(first) = events.first() else { return };
        let revision = first.revision();
        for event in &events {
            let kv = (event.kind == EventKind::Put).then(|| event.kv.clone());
            self.versions.entry(event.kv.key.clone()).or_default().push((revision, kv));
        }
        self.watchers.retain(|(from, sender)| {
            let mine = events.iter().filter(|event| event.kv.key.starts_with(sender.prefix()));
            let mine: Vec<_> = mine.cloned().collect();
            if mine.is_empty() || revision < *from {
                return !sender.is_closed();
            }
            sender.send(Batch { events: mine, revision })
        });
        self.log.insert(revision, events);
        self.revision = revision;
    }

    fn compact(&mut self, at: Revision) -> Result<()> {
        if at <= self.compacted {
            return Err(Error::Compacted { requested: at, compacted: self.compacted });
        }
        self.readable(Some(at))?;
        self.compacted = at;
        self.log = self.log.split_off(&at.next());
        for versions in self.versions.values_mut() {
            let kept = versions.iter().rposition(|(revision, _)| *revision <= at).unwrap_or(0);
            versions.drain(..kept);
            if versions.first().is_some_and(|(revision, kv)| *revision <= at && kv.is_none()) {
                versions.remove(0);
            }
        }
        self.versions.retain(|_, versions| !versions.is_empty());
        // The predecessor of a later event may be forgotten now.
        let versions = &self.versions;
        for events in self.log.values_mut() {
            for event in events {
                let known = event.prev.as_ref().is_none_or(|prev| {
                    let of_key = versions.get(&event.kv.key);
                    of_key.is_some_and(|all| all.iter().any(|(revision, _)| *revision == prev.mod_revision))
                });
                if !known {
                    *event = Arc::new(Event { prev: None, ..(**event).clone() });
                }
            }
        }
        Ok(())
    }

    fn grant(&mut self, ttl: Duration, id: Option<LeaseId>) -> Result<Lease> {
        if ttl < Duration::from_secs(1) {
            return Err(Error::InvalidArgument { what: "lease TTL is under a second".into(), key: None });
        }
        let last = self.leases.last_key_value().map_or(0, |(id, _)| id.0);
        let id = id.unwrap_or(LeaseId(last + 1));
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists { lease: id });
        }
        self.leases.insert(id, HeldLease { ttl, ends: Instant::now() + ttl });
        Ok(Lease { id, ttl })
    }

    fn revoke(&mut self, id: LeaseId) -> Result<()> {
        self.leases.remove(&id).ok_or(Error::LeaseNotFound { lease: id })?;
        let now = self.revision;
        let keys: BTreeSet<_> = self.versions.keys().cloned().collect();
        let events = keys.iter().filter_map(|key| {
            let prev = self.at(key, now).filter(|kv| kv.lease == Some(id))?;
            Some(event(key, now.next(), None, Some(prev)))
        });
        let events = events.collect();
        self.publish(events);
        Ok(())
    }
}

fn event(key: &Arc<str>, revision: Revision, kv: Option<KeyValue>, prev: Option<KeyValue>) -> Arc<Event> {
    let kind = if kv.is_some() { EventKind::Put } else { EventKind::Delete };
    let kv = kv.unwrap_or_else(|| KeyValue {
        key: key.clone(),
        value: Bytes::new(),
        create_revision: Revision::ZERO,
        mod_revision: revision,
        version: 0,
        lease: None,
    });
    Arc::new(Event { kind, kv, prev })
}
