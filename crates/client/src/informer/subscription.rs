//! A subscriber's queue of changes.
//!
//! The queue is bounded by merging instead of by dropping: an update of an object whose previous update
//! is still waiting takes that one's place. So it holds at most one update per object, besides
//! creations and deletions, and a slow subscriber sees fewer but never wrong steps.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use futures::{Stream, task::AtomicWaker};
use kube::Resource;
use parking_lot::Mutex;

use super::ObjectKey;

/// What happened to an object.
#[derive(Debug)]
pub enum Change<K> {
    /// It was created or changed, or it existed when the subscription began.
    Applied {
        /// As the subscriber saw it last; `None` the first time.
        old: Option<Arc<K>>,
        /// As it is now.
        new: Arc<K>,
    },
    /// It is gone.
    Deleted {
        /// As it was last seen.
        old: Arc<K>,
    },
}

impl<K> Change<K> {
    /// The object after the change, or before it if it is gone.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted { old } => old,
        }
    }

    /// The object before the change.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Change::Applied { old, .. } => old.as_ref(),
            Change::Deleted { old } => Some(old),
        }
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Change::Applied { old, new } => Change::Applied { old: old.clone(), new: new.clone() },
            Change::Deleted { old } => Change::Deleted { old: old.clone() },
        }
    }
}

/// A stream of changes that ends when the informer does.
pub struct Subscription<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Subscription<K> {
    /// The next change; `None` when the informer ended.
    pub async fn recv(&mut self) -> Option<Change<K>> {
        futures::StreamExt::next(self).await
    }
}

impl<K> Stream for Subscription<K> {
    type Item = Change<K>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Change<K>>> {
        // Registered before looking, so that a push in between is not slept over.
        self.shared.waker.register(cx.waker());
        let mut queue = self.shared.queue.lock();
        match queue.pop() {
            Some(change) => Poll::Ready(Some(change)),
            None if queue.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

struct Shared<K> {
    queue: Mutex<Queue<K>>,
    waker: AtomicWaker,
}

/// The cache's end. Dropping it ends the subscription after what is queued.
pub(super) struct QueueHandle<K> {
    shared: Weak<Shared<K>>,
}

impl<K: Resource> QueueHandle<K> {
    /// `false` when the subscriber is gone.
    pub(super) fn push(&self, key: &ObjectKey, change: Change<K>) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        shared.queue.lock().push(key, change);
        shared.waker.wake();
        true
    }
}

impl<K> Drop for QueueHandle<K> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.queue.lock().ended = true;
            shared.waker.wake();
        }
    }
}

pub(super) struct Queue<K> {
    /// One entry per waiting change.
    order: VecDeque<ObjectKey>,
    waiting: HashMap<ObjectKey, VecDeque<Change<K>>>,
    ended: bool,
}

impl<K: Resource> Queue<K> {
    pub(super) fn new() -> Queue<K> {
        Queue { order: VecDeque::new(), waiting: HashMap::new(), ended: false }
    }

    pub(super) fn push(&mut self, key: &ObjectKey, change: Change<K>) {
        let of_key = self.waiting.entry(key.clone()).or_default();
        // The cache tells a deletion before a namesake's creation, so two Applied in a row are of one
        // object.
        if let Some(Change::Applied { new: waiting, .. }) = of_key.back_mut()
            && let Change::Applied { new, .. } = &change
        {
            *waiting = new.clone();
            return;
        }
        of_key.push_back(change);
        self.order.push_back(key.clone());
    }

    pub(super) fn split(self) -> (QueueHandle<K>, Subscription<K>) {
        let shared = Arc::new(Shared { queue: Mutex::new(self), waker: AtomicWaker::new() });
        (QueueHandle { shared: Arc::downgrade(&shared) }, Subscription { shared })
    }
}

impl<K> Queue<K> {
    fn pop(&mut self) -> Option<Change<K>> {
        let key = self.order.pop_front()?;
        let of_key = self.waiting.get_mut(&key)?;
        let change = of_key.pop_front();
        if of_key.is_empty() {
            self.waiting.remove(&key);
        }
        change
    }
}
