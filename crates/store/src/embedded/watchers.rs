//! Who watches what, and where history ends and live begins.
//!
//! Lock order: `watchers` is taken alone. Publishing and registering both happen under it, and the
//! current revision only moves under it, so a new watcher knows exactly which revisions it will be
//! sent (all later ones) and which it has to read from the log.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, stream};
use parking_lot::Mutex;

use super::{
    Shared,
    engine::{Fault, Reader, damage},
    record::{Position, Record},
};
use crate::{Batch, Error, Event, EventKind, KeyValue, Result, Revision, Watch, WatchSender};

/// How much of the log is read at once for a watch from the past.
const CHUNK_BYTES: usize = 1024 * 1024;

pub(super) struct Watchers {
    senders: Mutex<Vec<(Revision, WatchSender)>>,
    /// The last acknowledged revision, or one that is about to be.
    current: AtomicU64,
}

impl Watchers {
    pub(super) fn new(current: Revision) -> Watchers {
        Watchers { senders: Mutex::new(Vec::new()), current: AtomicU64::new(current.0) }
    }

    pub(super) fn current(&self) -> Revision {
        Revision(self.current.load(Ordering::Acquire))
    }

    /// Queues events to all who watch their keys, and makes `revision` the current one.
    pub(super) fn publish(&self, events: &[Arc<Event>], revision: Revision) {
        let mut senders = self.senders.lock();
        senders.retain(|(from, sender)| {
            let mine =
                events.iter().filter(|event| event.kv.key.starts_with(sender.prefix()) && event.revision() >= *from);
            let mine: Vec<_> = mine.cloned().collect();
            if mine.is_empty() {
                return !sender.is_closed();
            }
            sender.send(Batch { events: mine, revision })
        });
        self.current.store(revision.0, Ordering::Release);
    }

    /// Lets all watches end: with `error`, or without one because the store is closed.
    pub(super) fn end(&self, error: Option<&Error>) {
        for (_, sender) in self.senders.lock().drain(..) {
            if let Some(error) = error {
                sender.end(error.clone());
            }
        }
    }

    /// Registers a watch. See [`crate::Store::watch`].
    pub(super) fn watch(shared: &Arc<Shared>, prefix: &str, from: Option<Revision>) -> Watch {
        let mut senders = shared.watchers.senders.lock();
        let current = shared.watchers.current();
        let from = from.unwrap_or(current.next());
        let history = (from <= current).then(|| {
            let reading = Some(History { shared: shared.clone(), prefix: prefix.to_owned(), next: from, end: current });
            stream::unfold(reading, |reading| async move { next_chunk(reading?).await }).boxed()
        });
        let (sender, watch) = Watch::new(prefix, current, history, shared.watch_budget_bytes);
        senders.push((from, sender));
        watch
    }
}

/// A watch's way through the log.
struct History {
    shared: Arc<Shared>,
    prefix: String,
    next: Revision,
    end: Revision,
}

async fn next_chunk(mut history: History) -> Option<(Result<Batch>, Option<History>)> {
    let read = tokio::task::spawn_blocking(move || {
        let chunk = history.read();
        (chunk, history)
    });
    match read.await {
        Ok((Ok(batch), history)) => {
            let more = history.next <= history.end;
            Some((Ok(batch), more.then_some(history)))
        }
        Ok((Err(error), _)) => Some((Err(error), None)),
        Err(_) => Some((Err(Error::unavailable("it is being shut down")), None)),
    }
}

impl History {
    fn read(&mut self) -> Result<Batch> {
        let mut events = Vec::new();
        let (start, end) = (self.next, self.end);
        let done = self.shared.engine.read(|log| {
            // Checked after the reader began: what it sees is complete if this holds.
            let compacted = self.shared.compacted();
            if start <= compacted {
                return Err(Fault::Store(Error::Compacted { requested: start, compacted }));
            }
            let mut bytes = 0;
            walk(log, start, end, |position, record| {
                if record.key.starts_with(&self.prefix) {
                    let event = self.event(log, position, record)?;
                    bytes += event.cost();
                    events.push(Arc::new(event));
                }
                Ok(if bytes > CHUNK_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })
        });
        let done = done?;
        self.next = done.next();
        Ok(Batch { events, revision: done })
    }

    fn event(&self, log: &Reader, position: Position, record: Record) -> Result<Event, Fault> {
        let key = record.key.clone();
        let prev = match self.shared.index.read().before(&key, position) {
            Some(before) => log.read(before)?.into_key_value(before.revision()),
            None => None,
        };
        Ok(event(key, position.revision(), record.into_key_value(position.revision()), prev))
    }
}

/// Calls `each` for all records of the revisions from `start` to `end`, and checks that none is missing.
/// After `each` has asked to stop, the rest of that revision is still walked. Returns the last revision
/// walked.
pub(super) fn walk(
    log: &Reader,
    start: Revision,
    end: Revision,
    mut each: impl FnMut(Position, Record) -> Result<ControlFlow<()>, Fault>,
) -> Result<Revision, Fault> {
    // An empty store is at revision 1, and its first write makes 2: there is nothing to be missed before.
    let start = start.max(Revision::INITIAL.next());
    if start > end {
        return Ok(end);
    }
    let mut expected = Position::start(start);
    let mut stop = false;
    log.scan(expected, Position(Position::start(end.next()).0 - 1), |position, record| {
        if position != expected {
            return Err(damage(expected, "record is missing", None));
        }
        let last = record.last;
        stop |= each(position, record)?.is_break();
        expected = if last {
            Position::start(position.revision().next())
        } else {
            Position::new(position.revision(), position.sub() + 1)
        };
        Ok(!(stop && last))
    })?;
    if expected.sub() != 0 || (!stop && expected != Position::start(end.next())) {
        return Err(damage(expected, "record is missing", None));
    }
    Ok(Revision(expected.revision().0 - 1))
}

pub(super) fn event(key: Arc<str>, revision: Revision, kv: Option<KeyValue>, prev: Option<KeyValue>) -> Event {
    let kind = if kv.is_some() { EventKind::Put } else { EventKind::Delete };
    let kv = kv.unwrap_or_else(|| KeyValue {
        key,
        value: bytes::Bytes::new(),
        create_revision: Revision::ZERO,
        mod_revision: revision,
        version: 0,
        lease: None,
    });
    Event { kind, kv, prev }
}
