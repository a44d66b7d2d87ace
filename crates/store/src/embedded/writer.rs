//! The one thread that writes.
//!
//! Flow: take everything that is queued, evaluate it in order against the state that the previous
//! requests of the batch leave, make it durable with one commit, then apply it to the index, queue the
//! events to the watchers, and only then answer. No lock is held across I/O: the index is written under
//! its lock after the commit, in memory.
//!
//! Between batches the thread deletes, in small steps, what compaction has freed, and ends leases.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Shared,
    batch::{Batch, Evaluator},
    engine::Reader,
    leases::Leases,
    record::Position,
};
use crate::{Error, Lease, LeaseId, Result, Revision, Txn, TxnResponse};

/// How many requests one commit takes at most: bounds its memory and its latency.
const MAX_BATCH: usize = 512;
/// Garbage is deleted this many records at a time, this far apart: more at once would be noticed by
/// writers, less would not keep up with a full load of them.
const GARBAGE_STEP: usize = 100;
const GARBAGE_PERIOD: Duration = Duration::from_millis(10);
/// How many keys of the index are compacted under one lock.
const INDEX_STEP: usize = 2000;
/// How long work that nobody waits for rests after an error, and opening the file again after that failed.
const REST: Duration = Duration::from_secs(1);
/// How often requests may lead to the file being opened again, as long as that fails.
const REOPEN_PERIOD: Duration = Duration::from_millis(100);

/// What the thread is asked to do.
pub(super) enum Request {
    Txn(Txn, oneshot::Sender<Result<TxnResponse>>),
    Compact(Revision, oneshot::Sender<Result<()>>),
    Grant(Duration, Option<LeaseId>, oneshot::Sender<Result<Lease>>),
    KeepAlive(LeaseId, oneshot::Sender<Result<Lease>>),
    Revoke(LeaseId, oneshot::Sender<Result<()>>),
    /// A read met an I/O error: the file has to be opened again.
    Reopen,
    Close,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) leases: Leases,
    pub(super) compaction: Compaction,
    /// A batch whose commit failed in a way that leaves open whether it is on disk.
    pub(super) doubt: Option<Batch>,
    /// The file has to be opened again before anything else.
    pub(super) broken: bool,
    /// Until when only what is asked for is done.
    pub(super) rest_until: Option<Instant>,
    pub(super) reopen_failed: Option<Instant>,
}

/// What became of a batch in doubt.
enum Fate {
    Committed,
    /// It is not on disk: its requests are still to be answered.
    Lost(Batch),
    /// The file cannot be opened yet.
    Unknown,
}

/// What compaction still has to do.
#[derive(Default)]
pub(super) struct Compaction {
    /// The index is being compacted at this revision and has come to this key.
    index: Option<(Revision, Option<Arc<str>>)>,
    garbage: VecDeque<Position>,
    next_step: Option<Instant>,
}

impl Compaction {
    pub(super) fn start(&mut self, revision: Revision) {
        self.index = Some((revision, None));
    }

    fn is_pending(&self) -> bool {
        self.index.is_some() || !self.garbage.is_empty()
    }
}

impl Writer {
    pub(super) fn run(mut self) {
        loop {
            let first = match self.next_deadline() {
                None => self.requests.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(at) => self.requests.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let mut batch = Vec::new();
            match first {
                Ok(request) => batch.push(request),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            while batch.len() < MAX_BATCH
                && let Ok(request) = self.requests.try_recv()
            {
                batch.push(request);
            }
            let closing = batch.iter().any(|request| matches!(request, Request::Close));
            self.broken |= self.shared.engine.has_failed();
            if self.broken
                && let Fate::Lost(batch) = self.reopen()
            {
                // Its requests were told that its fate is not known.
                tracing::info!(requests = batch.replies.len(), "the last write before the error is lost");
            }
            self.expire(&mut batch);
            self.write(batch);
            if closing {
                break;
            }
            self.compact();
        }
        let refused = self.shared.engine.refused().cloned();
        if let Err(error) = self.shared.engine.close() {
            tracing::warn!(%error, "cannot close the store");
        }
        self.shared.watchers.end(refused.as_ref());
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.shared.engine.refused().is_some() {
            return None;
        }
        if self.broken {
            return Some(Instant::now() + REST);
        }
        let compaction = self.compaction.is_pending().then_some(self.compaction.next_step);
        let lease = self.leases.next_end().map(|(at, _)| at);
        let next = [compaction.map(|at| at.unwrap_or_else(Instant::now)), lease].into_iter().flatten().min()?;
        Some(self.rest_until.map_or(next, |rest| rest.max(next)))
    }

    fn is_resting(&self) -> bool {
        self.broken || self.rest_until.is_some_and(|until| Instant::now() < until)
    }

    /// Adds the end of leases to the requests. Nobody waits for their answers.
    fn expire(&mut self, batch: &mut Vec<Request>) {
        if self.is_resting() {
            return;
        }
        for id in self.leases.ended(Instant::now()) {
            batch.push(Request::Revoke(id, oneshot::channel().0));
        }
    }

    /// Evaluates, commits, applies and answers.
    fn write(&mut self, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let shared = self.shared.clone();
        let mut batch = Batch::new(shared.watchers.current(), shared.compacted());
        let mut requests = requests.into_iter();
        let result = shared.engine.write(|tables| {
            let mut evaluator = Evaluator { tables, index: &shared.index, leases: &mut self.leases, batch: &mut batch };
            for request in requests.by_ref() {
                evaluator.evaluate(request)?;
            }
            Ok(batch.writes())
        });
        match result {
            Ok(()) => self.commit(batch),
            Err(error) => {
                for request in requests {
                    batch.add_unevaluated(request);
                }
                self.failed(batch, error);
            }
        }
    }

    /// The batch is durable: make it visible and answer.
    fn commit(&mut self, mut batch: Batch) {
        let replies = std::mem::take(&mut batch.replies);
        self.apply(&batch);
        Batch::succeed(replies);
    }

    fn apply(&mut self, batch: &Batch) {
        let now = Instant::now();
        for (id, ttl) in &batch.granted {
            self.leases.insert(*id, *ttl, now);
        }
        if !batch.changes.is_empty() {
            let mut index = self.shared.index.write();
            for change in &batch.changes {
                let key = &change.event.kv.key;
                if let Some(lease) = index.latest(key).and_then(|latest| latest.lease) {
                    self.leases.detach(lease, key);
                }
                let put = change.put();
                if let Some((_, _, Some(lease))) = put {
                    self.leases.attach(lease, key);
                }
                index.apply(key, change.position, put);
            }
        }
        for id in &batch.revoked {
            self.leases.remove(*id);
        }
        if let Some(at) = batch.compacted {
            self.shared.set_compacted(at);
            self.compaction.start(at);
        }
        if !batch.changes.is_empty() {
            self.shared.engine.medium().set_mark(batch.revision);
            let events: Vec<_> = batch.changes.iter().map(|change| change.event.clone()).collect();
            self.shared.watchers.publish(&events, batch.revision);
        }
    }

    /// The commit failed, or something before it.
    fn failed(&mut self, batch: Batch, error: Error) {
        if self.shared.engine.refused().is_some() {
            self.shared.watchers.end(Some(&error));
            return batch.fail(&error);
        }
        tracing::warn!(%error, "a write to the store failed");
        self.broken = true;
        self.rest_until = Some(Instant::now() + REST);
        // While a batch is in doubt the file is not open and nothing gets as far as into the log.
        if self.doubt.is_some() {
            return batch.fail(&error);
        }
        // Even an error can mean that everything was written. The file itself tells, once it is open.
        self.doubt = Some(batch);
        match self.reopen() {
            Fate::Committed => {}
            Fate::Lost(batch) => batch.fail(&error),
            Fate::Unknown => {
                let unknown = Error::unavailable(format!("{error}; it is not known whether this was written"));
                if let Some(batch) = &mut self.doubt {
                    batch.answer(&unknown);
                }
            }
        }
    }

    /// Opens the file again and finds out what became of the batch in doubt.
    fn reopen(&mut self) -> Fate {
        if self.reopen_failed.is_some_and(|at| at.elapsed() < REOPEN_PERIOD) {
            return Fate::Unknown;
        }
        let engine = &self.shared.engine;
        let current = self.shared.watchers.current();
        let last = match engine.reopen().and_then(|()| engine.read(Reader::last)) {
            Ok(last) => last,
            Err(error) => {
                tracing::warn!(%error, "cannot open the store again yet");
                self.reopen_failed = Some(Instant::now());
                return Fate::Unknown;
            }
        };
        let last = last.map_or(Revision::ZERO, Position::revision).max(self.shared.compacted());
        if last < current && current > Revision::INITIAL {
            let what = format!("after an I/O error it ends at revision {last}, but {current} was acknowledged");
            let error = self.shared.engine.refuse(what, None, Some(last));
            self.shared.watchers.end(Some(&error));
            return Fate::Unknown;
        }
        self.broken = false;
        self.reopen_failed = None;
        tracing::info!("the store is open again");
        let Some(batch) = self.doubt.take() else { return Fate::Committed };
        if last > current {
            self.commit(batch);
            Fate::Committed
        } else {
            Fate::Lost(batch)
        }
    }

    /// Does one step of what compaction left to do.
    fn compact(&mut self) {
        let now = Instant::now();
        if self.broken || !self.compaction.is_pending() || self.compaction.next_step.is_some_and(|at| now < at) {
            return;
        }
        self.compaction.next_step = Some(now + GARBAGE_PERIOD);
        if let Some((revision, after)) = self.compaction.index.take() {
            let mut index = self.shared.index.write();
            let (garbage, more) = index.compact(revision, after.as_deref(), INDEX_STEP);
            drop(index);
            self.compaction.garbage.extend(garbage);
            self.compaction.index = more.map(|key| (revision, Some(key)));
        }
        let step = self.compaction.garbage.len().min(GARBAGE_STEP);
        if step == 0 {
            return;
        }
        let garbage = &self.compaction.garbage;
        let deleted = self.shared.engine.write(|tables| {
            for position in garbage.iter().take(step) {
                tables.remove(*position)?;
            }
            Ok(true)
        });
        match deleted {
            Ok(()) => drop(self.compaction.garbage.drain(..step)),
            Err(error) => {
                tracing::warn!(%error, "cannot delete compacted records");
                self.broken = true;
                self.rest_until = Some(Instant::now() + REST);
            }
        }
    }
}
