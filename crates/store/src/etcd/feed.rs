//! The one watch of everything, and the watches that are fed from it.
//!
//! Lock order: `senders` is taken alone. Publishing and registering both happen under it, and the current revision
//! only moves under it, as in the embedded engine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    connection::{Connection, Repeat},
    convert::{Keys, revision_of},
    follow::{Follow, Goal},
    messages as m,
};
use crate::{Batch, Error, Event, Result, Revision, Watch, WatchSender};

/// How long after a compaction that has overtaken us we try again to begin anew.
const RETRY: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(super) struct Feed {
    senders: Mutex<Vec<(Revision, WatchSender)>>,
    current: watch::Sender<Revision>,
    goal: Arc<Goal>,
    budget_bytes: usize,
}

impl Feed {
    pub(super) fn new(current: Revision, budget_bytes: usize) -> Feed {
        Feed {
            senders: Mutex::default(),
            current: watch::Sender::new(current),
            goal: Arc::new(Goal::new(current)),
            budget_bytes,
        }
    }

    /// The events of everything up to here have been queued.
    pub(super) fn revision(&self) -> Revision {
        *self.current.borrow()
    }

    /// Waits until the events of everything up to a revision are queued.
    pub(super) async fn reach(&self, revision: Revision) {
        if self.revision() >= revision {
            return;
        }
        self.goal.raise(revision);
        // The sender lives as long as this.
        let _ = self.current.subscribe().wait_for(|current| *current >= revision).await;
    }

    fn publish(&self, events: &[Arc<Event>], revision: Revision) {
        let mut senders = self.senders.lock();
        if !events.is_empty() {
            senders.retain(|(from, sender)| {
                let mine = events
                    .iter()
                    .filter(|event| event.kv.key.starts_with(sender.prefix()) && event.revision() >= *from);
                let mine: Vec<_> = mine.cloned().collect();
                if mine.is_empty() {
                    return !sender.is_closed();
                }
                sender.send(Batch { events: mine, revision })
            });
        }
        self.current.send_if_modified(|current| std::mem::replace(current, revision.max(*current)) < revision);
    }

    /// What happened before `revision` is lost: all watches end, and others may begin from there.
    fn start_over(&self, error: &Error, revision: Revision) {
        let mut senders = self.senders.lock();
        for (_, sender) in senders.drain(..) {
            sender.end(error.clone());
        }
        self.current.send_if_modified(|current| std::mem::replace(current, revision.max(*current)) < revision);
    }

    /// The store is closed.
    pub(super) fn close(&self) {
        self.senders.lock().clear();
    }
}

/// Registers a watch. See [`crate::Store::watch`].
pub(super) fn watch(
    feed: &Arc<Feed>,
    connection: &Arc<Connection>,
    keys: &Arc<Keys>,
    compacted: Revision,
    prefix: &str,
    from: Option<Revision>,
) -> Watch {
    let mut senders = feed.senders.lock();
    let current = feed.revision();
    let from = from.unwrap_or(current.next());
    if from <= compacted {
        return Watch::failed(prefix, Error::Compacted { requested: from, compacted });
    }
    let history = if from <= current {
        let range = match keys.prefix_range(prefix) {
            Ok(range) => range,
            Err(error) => return Watch::failed(prefix, error),
        };
        let follow = Follow::new(connection.clone(), range, from, current);
        let history = History { follow, keys: keys.clone(), end: current };
        Some(stream::unfold(Some(history), |history| async move { history?.next().await }).boxed())
    } else {
        None
    };
    let (sender, watch) = Watch::new(prefix, current, history, feed.budget_bytes);
    senders.push((from, sender));
    watch
}

/// What a watch missed, from a watch of its own: up to where the feed was when it was registered.
struct History {
    follow: Follow,
    keys: Arc<Keys>,
    end: Revision,
}

impl History {
    async fn next(mut self) -> Option<(Result<Batch>, Option<History>)> {
        let step = match self.follow.next().await {
            Ok(step) => step,
            Err(error) => return Some((Err(error), None)),
        };
        let mut events = Vec::new();
        for event in step.events {
            match self.keys.event(event) {
                // What is later comes from the feed.
                Ok(event) if event.revision() > self.end => {}
                Ok(event) => events.push(Arc::new(event)),
                Err(error) => return Some((Err(error), None)),
            }
        }
        let revision = step.revision.min(self.end);
        let more = revision < self.end;
        Some((Ok(Batch { events, revision }), more.then_some(self)))
    }
}

/// The revision that etcd is at.
pub(super) async fn current(connection: &Connection, keys: &Keys) -> Result<Revision> {
    let request = m::RangeRequest { key: keys.everything().start, count_only: true, ..Default::default() };
    let answer: Result<m::RangeResponse, _> = connection.call("/etcdserverpb.KV/Range", request, Repeat::Always).await;
    answer.map(|answer| revision_of(answer.header.as_ref())).map_err(|status| connection.error(&status))
}

/// Follows everything after `start` and tells the watches, until it is dropped.
pub(super) async fn run(
    feed: Arc<Feed>,
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    start: Revision,
    compacted: Arc<AtomicU64>,
) {
    let follow = |from| Follow::with_goal(connection.clone(), keys.everything(), from, feed.goal.clone());
    let mut following = follow(start.next());
    loop {
        let failure = match following.next().await {
            Ok(step) => {
                let events: Result<Vec<_>> =
                    step.events.into_iter().map(|event| keys.event(event).map(Arc::new)).collect();
                match events {
                    Ok(events) => {
                        feed.publish(&events, step.revision);
                        continue;
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::error!(error = %failure, from = %following.next_revision(), "events of etcd are lost, beginning anew");
        if let Error::Compacted { compacted: at, .. } = &failure {
            compacted.fetch_max(at.0, Ordering::AcqRel);
        }
        let now = loop {
            match current(&connection, &keys).await {
                Ok(now) => break now,
                Err(error) => tracing::warn!(%error, "cannot ask etcd how far it is"),
            }
            tokio::time::sleep(RETRY).await;
        };
        feed.start_over(&failure, now);
        following = follow(now.next());
    }
}
