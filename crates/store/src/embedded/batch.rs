//! What one commit does: requests evaluated one after the other, each seeing what those before it did.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use tokio::sync::oneshot;

use super::{
    engine::{Fault, Tables, damage},
    index::Index,
    leases::Leases,
    record::{MAX_SUB, Position, Record},
    watchers::event,
    writer::Request,
};
use crate::{
    Error, Event, EventKind, KeyValue, Lease, LeaseId, Op, OpResult, Result, Revision, Txn, TxnOutcome, TxnResponse,
};

/// The shortest time to live of a lease.
pub(super) const MIN_TTL: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(super) struct Batch {
    /// The revision after the batch so far.
    pub(super) revision: Revision,
    pub(super) changes: Vec<Change>,
    pub(super) granted: Vec<(LeaseId, Duration)>,
    pub(super) revoked: HashSet<LeaseId>,
    /// Set if the batch compacts.
    pub(super) compacted: Option<Revision>,
    pub(super) replies: Vec<Reply>,
    /// The last compaction, of this batch or before it.
    last_compacted: Revision,
    /// The keys changed so far, as they are now.
    latest: HashMap<Arc<str>, Option<KeyValue>>,
}

/// One change of one key.
pub(super) struct Change {
    pub(super) position: Position,
    pub(super) event: Arc<Event>,
}

impl Change {
    /// Create revision, version and lease, unless it is a deletion.
    pub(super) fn put(&self) -> Option<(Revision, u64, Option<LeaseId>)> {
        let kv = &self.event.kv;
        (self.event.kind == EventKind::Put).then_some((kv.create_revision, kv.version, kv.lease))
    }
}

/// An answer that waits for the commit.
pub(super) enum Reply {
    Txn(oneshot::Sender<Result<TxnResponse>>, Result<TxnResponse>),
    Unit(oneshot::Sender<Result<()>>, Result<()>),
    Lease(oneshot::Sender<Result<Lease>>, Result<Lease>),
}

impl Reply {
    // Whoever asked may have gone away; that is not our concern.
    fn send(self) {
        match self {
            Reply::Txn(to, answer) => drop(to.send(answer)),
            Reply::Unit(to, answer) => drop(to.send(answer)),
            Reply::Lease(to, answer) => drop(to.send(answer)),
        }
    }

    fn fail(self, error: Error) {
        match self {
            Reply::Txn(to, _) => drop(to.send(Err(error))),
            Reply::Unit(to, _) => drop(to.send(Err(error))),
            Reply::Lease(to, _) => drop(to.send(Err(error))),
        }
    }
}

impl Batch {
    pub(super) fn new(revision: Revision, compacted: Revision) -> Batch {
        Batch {
            revision,
            changes: Vec::new(),
            granted: Vec::new(),
            revoked: HashSet::new(),
            compacted: None,
            replies: Vec::new(),
            last_compacted: compacted,
            latest: HashMap::new(),
        }
    }

    /// Whether there is anything to make durable.
    pub(super) fn writes(&self) -> bool {
        !self.changes.is_empty() || !self.granted.is_empty() || !self.revoked.is_empty() || self.compacted.is_some()
    }

    /// Takes a request that was not evaluated because the batch failed before it.
    pub(super) fn add_unevaluated(&mut self, request: Request) {
        let none = || Err(Error::unavailable("not evaluated"));
        match request {
            Request::Txn(_, to) => self.replies.push(Reply::Txn(to, none())),
            Request::Compact(_, to) | Request::Revoke(_, to) => {
                self.replies.push(Reply::Unit(to, Err(Error::unavailable("not evaluated"))));
            }
            Request::Grant(_, _, to) | Request::KeepAlive(_, to) => {
                self.replies.push(Reply::Lease(to, Err(Error::unavailable("not evaluated"))));
            }
            Request::Reopen | Request::Close => {}
        }
    }

    /// Gives everybody the answer that fits: the batch is durable and applied.
    pub(super) fn succeed(replies: Vec<Reply>) {
        replies.into_iter().for_each(Reply::send);
    }

    /// Answers everybody with `error`.
    pub(super) fn answer(&mut self, error: &Error) {
        for reply in std::mem::take(&mut self.replies) {
            reply.fail(error.clone());
        }
    }

    /// Answers everybody with `error`, and forgets the batch.
    pub(super) fn fail(mut self, error: &Error) {
        self.answer(error);
    }
}

/// Evaluates requests into a batch.
pub(super) struct Evaluator<'a, 'txn> {
    pub(super) tables: &'a mut Tables<'txn>,
    pub(super) index: &'a RwLock<Index>,
    pub(super) leases: &'a mut Leases,
    pub(super) batch: &'a mut Batch,
}

impl Evaluator<'_, '_> {
    pub(super) fn evaluate(&mut self, request: Request) -> Result<(), Fault> {
        // A fault ends the batch; the request at hand must be answered with the others even so.
        let (reply, fault) = match request {
            Request::Txn(txn, to) => {
                let (answer, fault) = split(self.txn(txn));
                (Reply::Txn(to, answer), fault)
            }
            Request::Compact(at, to) => {
                let (answer, fault) = split(self.compact(at));
                (Reply::Unit(to, answer), fault)
            }
            Request::Grant(ttl, id, to) => {
                let (answer, fault) = split(self.grant(ttl, id));
                (Reply::Lease(to, answer), fault)
            }
            Request::KeepAlive(id, to) => {
                let ttl = self.leases.keep_alive(id, std::time::Instant::now());
                let ttl = ttl.filter(|_| !self.batch.revoked.contains(&id));
                let granted = || self.batch.granted.iter().find(|(granted, _)| *granted == id);
                let ttl = ttl.or_else(|| granted().map(|(_, ttl)| *ttl));
                let answer = ttl.map(|ttl| Lease { id, ttl }).ok_or(Error::LeaseNotFound { lease: id });
                (Reply::Lease(to, answer), None)
            }
            Request::Revoke(id, to) => {
                let (answer, fault) = split(self.revoke(id));
                (Reply::Unit(to, answer), fault)
            }
            Request::Reopen | Request::Close => return Ok(()),
        };
        self.batch.replies.push(reply);
        fault.map_or(Ok(()), Err)
    }

    fn txn(&mut self, txn: Txn) -> Result<TxnResponse, Fault> {
        let mut holds = true;
        for compare in &txn.compares {
            holds &= self.mod_revision(&compare.key) == compare.mod_revision;
        }
        if !holds {
            let current = txn.compares.iter().map(|compare| self.current(&compare.key));
            let current = current.collect::<Result<_, _>>()?;
            return Ok(TxnResponse { revision: self.batch.revision, outcome: TxnOutcome::Failed(current) });
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.has_lease(*lease)
            {
                return Err(Fault::Store(Error::LeaseNotFound { lease: *lease }));
            }
        }
        let next = self.batch.revision.next();
        let mut changes = Vec::with_capacity(txn.ops.len());
        let mut results = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let prev = self.current(op.key())?;
            let (key, kv) = match op {
                Op::Put { key, value, lease } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision: prev.as_ref().map_or(next, |prev| prev.create_revision),
                        mod_revision: next,
                        version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
                        lease,
                    };
                    (key, Some(kv))
                }
                Op::Delete { key } => (key, None),
            };
            results.push(OpResult { kv: kv.clone(), prev: prev.clone() });
            if kv.is_some() || prev.is_some() {
                changes.push((key, kv, prev));
            }
        }
        self.append(changes)?;
        Ok(TxnResponse { revision: self.batch.revision, outcome: TxnOutcome::Succeeded(results) })
    }

    /// Writes the changes of one transaction, if there are any, as the next revision.
    fn append(&mut self, changes: Vec<(Arc<str>, Option<KeyValue>, Option<KeyValue>)>) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let revision = self.batch.revision.next();
        let count = changes.len();
        for (sub, (key, kv, prev)) in changes.into_iter().enumerate() {
            let position = Position::new(revision, sub);
            let record = Record {
                key: key.clone(),
                create_revision: kv.as_ref().map_or(Revision::ZERO, |kv| kv.create_revision),
                version: kv.as_ref().map_or(0, |kv| kv.version),
                lease: kv.as_ref().and_then(|kv| kv.lease),
                value: kv.as_ref().map(|kv| kv.value.clone()),
                last: sub + 1 == count,
            };
            self.tables.append(position, &record)?;
            self.batch.latest.insert(key.clone(), kv.clone());
            let event = Arc::new(event(key, revision, kv, prev));
            self.batch.changes.push(Change { position, event });
        }
        self.batch.revision = revision;
        Ok(())
    }

    fn compact(&mut self, at: Revision) -> Result<(), Fault> {
        let error = if at <= self.batch.last_compacted {
            Error::Compacted { requested: at, compacted: self.batch.last_compacted }
        } else if at > self.batch.revision {
            Error::FutureRevision { requested: at, current: self.batch.revision }
        } else {
            self.tables.set_compacted(at)?;
            self.batch.last_compacted = at;
            self.batch.compacted = Some(at);
            return Ok(());
        };
        Err(Fault::Store(error))
    }

    fn grant(&mut self, ttl: Duration, id: Option<LeaseId>) -> Result<Lease, Fault> {
        let invalid = |what: &str| Fault::Store(Error::InvalidArgument { what: what.into(), key: None });
        if ttl < MIN_TTL {
            return Err(invalid("lease TTL is under a second"));
        }
        let id = id.unwrap_or_else(|| {
            let taken = |id| self.batch.granted.iter().any(|(granted, _)| *granted == id);
            self.leases.unused(self.batch.revision, taken)
        });
        if id.0 == 0 {
            return Err(invalid("lease 0 is no lease"));
        }
        // One that ends in this same batch still counts, which is as if the grant had come first.
        if self.leases.contains(id) || self.has_lease(id) {
            return Err(Fault::Store(Error::LeaseExists { lease: id }));
        }
        self.tables.put_lease(id, ttl)?;
        self.batch.granted.push((id, ttl));
        Ok(Lease { id, ttl })
    }

    fn revoke(&mut self, id: LeaseId) -> Result<(), Fault> {
        if !self.has_lease(id) {
            return Err(Fault::Store(Error::LeaseNotFound { lease: id }));
        }
        let attached = self.leases.keys(id).filter(|key| !self.batch.latest.contains_key(*key));
        let written = self.batch.latest.iter().filter(|(_, kv)| kv.as_ref().is_some_and(|kv| kv.lease == Some(id)));
        let mut keys: Vec<_> = attached.chain(written.map(|(key, _)| key)).cloned().collect();
        keys.sort_unstable();
        for keys in keys.chunks(MAX_SUB) {
            let mut changes = Vec::with_capacity(keys.len());
            for key in keys {
                let prev = self.current(key)?;
                changes.push((key.clone(), None, prev));
            }
            self.append(changes)?;
        }
        self.tables.remove_lease(id)?;
        self.batch.granted.retain(|(granted, _)| *granted != id);
        self.batch.revoked.insert(id);
        Ok(())
    }

    fn has_lease(&self, id: LeaseId) -> bool {
        let granted = self.batch.granted.iter().any(|(granted, _)| *granted == id);
        granted || (self.leases.contains(id) && !self.batch.revoked.contains(&id))
    }

    fn mod_revision(&self, key: &str) -> Revision {
        match self.batch.latest.get(key) {
            Some(kv) => kv.as_ref().map_or(Revision::ZERO, |kv| kv.mod_revision),
            None => {
                let latest = self.index.read().latest(key);
                latest.map_or(Revision::ZERO, |latest| latest.position.revision())
            }
        }
    }

    fn current(&self, key: &Arc<str>) -> Result<Option<KeyValue>, Fault> {
        if let Some(kv) = self.batch.latest.get(key) {
            return Ok(kv.clone());
        }
        let Some(latest) = self.index.read().latest(key) else { return Ok(None) };
        let record = self.tables.read(latest.position)?;
        if *record.key != **key {
            return Err(damage(latest.position, "record is of another key", Some(key)));
        }
        Ok(record.into_key_value(latest.position.revision()))
    }
}

/// Splits what only concerns the one who asked from what ends the batch.
fn split<T>(result: Result<T, Fault>) -> (Result<T>, Option<Fault>) {
    match result {
        Ok(value) => (Ok(value), None),
        Err(Fault::Store(error)) => (Err(error), None),
        Err(fault) => (Err(Error::unavailable("not evaluated")), Some(fault)),
    }
}
