//! Watches: a queue of event batches per watcher, bounded by memory.
//!
//! The engine side is [`WatchSender`], the caller's side is [`Watch`]. A watch has two sources, read
//! one after the other: the history, pulled from the log at the watcher's own pace, and the live
//! queue, filled by the writer. The live queue starts where the history ends, so there is neither a
//! gap nor a repetition between them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use futures::{StreamExt, future::poll_fn, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Error, Event, Result, Revision};

/// How much may wait in one watcher's queue. Values are shared between watchers, so this bounds what a
/// watcher can keep alive rather than what it costs by itself.
pub const DEFAULT_WATCH_BUDGET_BYTES: usize = 64 * 1024 * 1024;

/// Events in revision order. A revision is never split over two batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The events; can be empty when the batch only tells how far the watch has come.
    pub events: Vec<Arc<Event>>,
    /// With this batch everything that happened up to this revision has been delivered.
    pub revision: Revision,
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    prefix: String,
    history: Option<BoxStream<'static, Result<Batch>>>,
    live: mpsc::UnboundedReceiver<Batch>,
    shared: Arc<Shared>,
    last: Revision,
    /// What is done with a batch before it is given out.
    map: Option<Box<dyn Fn(Batch) -> Result<Batch> + Send + Sync>>,
}

/// What both sides of a watch know.
struct Shared {
    /// Revision of the last batch queued.
    enqueued: AtomicU64,
    /// Cost of what waits in the queue.
    queued_bytes: AtomicUsize,
    budget_bytes: usize,
    /// Why the sender went away, if not because the store was closed.
    ended: Mutex<Option<Error>>,
}

impl Watch {
    /// A watch of `prefix` that is fed by the returned sender and, before that, by `history`, whose
    /// last batch must have the revision `start`. Events queued must be later than `start`.
    pub fn new(
        prefix: &str,
        start: Revision,
        history: Option<BoxStream<'static, Result<Batch>>>,
        budget_bytes: usize,
    ) -> (WatchSender, Watch) {
        let (queue, live) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            enqueued: AtomicU64::new(start.0),
            queued_bytes: AtomicUsize::new(0),
            budget_bytes,
            ended: Mutex::new(None),
        });
        let sender = WatchSender { prefix: prefix.to_owned(), queue, shared: shared.clone() };
        let last = if history.is_some() { Revision::ZERO } else { start };
        (sender, Watch { prefix: prefix.to_owned(), history, live, shared, last, map: None })
    }

    /// This watch with its batches changed by `map`, whose error ends it.
    pub(crate) fn map(mut self, map: impl Fn(Batch) -> Result<Batch> + Send + Sync + 'static) -> Watch {
        self.map = Some(Box::new(map));
        self
    }

    /// A watch that only reports `error`.
    pub fn failed(prefix: &str, error: Error) -> Watch {
        let history = futures::stream::once(async move { Err(error) }).boxed();
        Watch::new(prefix, Revision::ZERO, Some(history), 0).1
    }

    /// The next batch; `None` once the store is closed. After an error or `None` the watch is over.
    ///
    /// Cancel safe: a batch is not lost when the future is dropped.
    ///
    /// Errors: `Compacted`, `SlowWatcher`, `Undecryptable`, and those of reading the log.
    pub async fn recv(&mut self) -> Result<Option<Batch>> {
        let batch = self.next().await?;
        match (batch, &self.map) {
            (Some(batch), Some(map)) => match map(batch) {
                Ok(batch) => Ok(Some(batch)),
                Err(error) => Err(self.fail(error)),
            },
            (batch, _) => Ok(batch),
        }
    }

    async fn next(&mut self) -> Result<Option<Batch>> {
        if let Some(history) = &mut self.history {
            match history.next().await {
                Some(Ok(batch)) => {
                    self.last = self.last.max(batch.revision);
                    return Ok(Some(batch));
                }
                Some(Err(error)) => return Err(self.fail(error)),
                None => self.history = None,
            }
        }
        match poll_fn(|cx| self.live.poll_recv(cx)).await {
            Some(batch) => {
                let cost = batch.events.iter().map(|event| event.cost()).sum();
                self.shared.queued_bytes.fetch_sub(cost, Ordering::AcqRel);
                self.last = self.last.max(batch.revision);
                Ok(Some(batch))
            }
            None => match self.shared.ended.lock().clone() {
                Some(Error::SlowWatcher { prefix, queued_bytes, budget_bytes, .. }) => {
                    Err(Error::SlowWatcher { prefix, last: self.last, queued_bytes, budget_bytes })
                }
                Some(error) => Err(error),
                None => Ok(None),
            },
        }
    }

    /// Ends the watch: nothing that waits is given out any more.
    fn fail(&mut self, error: Error) -> Error {
        self.live.close();
        while self.live.try_recv().is_ok() {}
        *self.shared.ended.lock() = Some(error.clone());
        self.history = None;
        error
    }

    /// The revision of the last batch queued to this watcher. Cheap.
    ///
    /// A consistent cache reads its own writes with it: any write acknowledged before this call was
    /// made, and that matches, has a revision of at most this; having applied batches up to this
    /// revision, the cache has seen it.
    pub fn enqueued(&self) -> Revision {
        Revision(self.shared.enqueued.load(Ordering::Acquire))
    }

    /// A handle for [`enqueued`](Watch::enqueued) that can be used while another task receives.
    pub fn progress(&self) -> Progress {
        Progress { shared: self.shared.clone() }
    }

    /// What is watched.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("prefix", &self.prefix)
            .field("in_history", &self.history.is_some())
            .field("enqueued", &self.enqueued())
            .finish()
    }
}

/// Tells how far a [`Watch`] has been filled.
#[derive(Clone)]
pub struct Progress {
    shared: Arc<Shared>,
}

impl Progress {
    /// See [`Watch::enqueued`].
    pub fn enqueued(&self) -> Revision {
        Revision(self.shared.enqueued.load(Ordering::Acquire))
    }
}

/// The engine's end of a watch.
pub struct WatchSender {
    prefix: String,
    queue: mpsc::UnboundedSender<Batch>,
    shared: Arc<Shared>,
}

impl WatchSender {
    /// What is watched.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Queues a batch without waiting. `false` means that the watch is over (dropped by its owner, or
    /// just ended for being too slow) and the sender should be forgotten.
    pub fn send(&self, batch: Batch) -> bool {
        let cost: usize = batch.events.iter().map(|event| event.cost()).sum();
        let waiting = self.shared.queued_bytes.load(Ordering::Acquire);
        // A single batch of any size is taken when nothing waits: it could never be delivered otherwise.
        if waiting > 0 && waiting + cost > self.shared.budget_bytes {
            self.shared.ended.lock().get_or_insert(Error::SlowWatcher {
                prefix: self.prefix.clone(),
                last: Revision::ZERO,
                queued_bytes: waiting + cost,
                budget_bytes: self.shared.budget_bytes,
            });
            return false;
        }
        self.shared.queued_bytes.fetch_add(cost, Ordering::AcqRel);
        let revision = batch.revision.0;
        let sent = self.queue.send(batch).is_ok();
        // After the send: whoever sees the new value will find the batch in the queue.
        self.shared.enqueued.fetch_max(revision, Ordering::AcqRel);
        sent
    }

    /// Lets the watch end with `error` after what is queued.
    pub fn end(self, error: Error) {
        self.shared.ended.lock().get_or_insert(error);
    }

    /// Whether the watch's owner dropped it.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}
