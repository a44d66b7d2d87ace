//! The runtime that all controllers share: watches in, keys through a queue, reconciles out.
//!
//! Guarantees:
//! - No reconcile starts before all watched informers have their first list.
//! - A key is reconciled by one worker at a time, and again after every change that maps to it.
//! - A reconcile that fails or panics is retried with the queue's back-off until it succeeds.

use std::{any::Any, fmt, future::Future, hash::Hash, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kube::{Resource, ResourceExt as _};
use tokio::task::JoinSet;

use crate::{Change, Informer, ObjectKey, WorkQueue};

/// What a successful reconcile wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something changes.
    Done,
    /// To be called again after this time, whatever happens.
    RequeueAfter(Duration),
}

/// A controller in the making: name it, add watches, then [`run`](Controller::run) it.
pub struct Controller<Key = ObjectKey> {
    name: &'static str,
    workers: usize,
    queue: WorkQueue<Key>,
    synced: Vec<BoxFuture<'static, ()>>,
    feeders: Vec<BoxFuture<'static, ()>>,
}

impl<Key> Controller<Key>
where
    Key: Clone + Eq + Hash + fmt::Display + Send + Sync + 'static,
{
    /// A controller with one worker that watches nothing yet. The name goes into logs.
    pub fn new(name: &'static str) -> Self {
        Controller { name, workers: 1, queue: WorkQueue::new(), synced: Vec::new(), feeders: Vec::new() }
    }

    /// How many keys are reconciled at once.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Reconciles the keys to which `mapper` maps each change of the informer's objects.
    #[must_use]
    pub fn watch<K, Keys>(
        mut self,
        informer: &Informer<K>,
        mapper: impl Fn(&Change<K>) -> Keys + Send + 'static,
    ) -> Self
    where
        K: Resource + Send + Sync + 'static,
        Keys: IntoIterator<Item = Key> + 'static,
        Keys::IntoIter: Send,
    {
        let (source, queue) = (informer.clone(), self.queue.clone());
        self.synced.push(async move { source.wait_synced().await }.boxed());
        let informer = informer.clone();
        self.feeders.push(
            async move {
                // The handle keeps the informer alive as long as it is watched.
                let mut changes = informer.subscribe();
                while let Some(change) = changes.recv().await {
                    for key in mapper(&change) {
                        queue.add(key);
                    }
                }
            }
            .boxed(),
        );
        self
    }

    /// Waits for this informer to be filled before the first reconcile, without watching it.
    #[must_use]
    pub fn reads<K: Resource + Send + Sync + 'static>(mut self, informer: &Informer<K>) -> Self {
        let informer = informer.clone();
        self.synced.push(async move { informer.wait_synced().await }.boxed());
        self
    }

    /// The queue, for adding keys from elsewhere or after a delay, and for shutting down.
    pub fn queue(&self) -> WorkQueue<Key> {
        self.queue.clone()
    }

    /// Runs until the queue is shut down. Dropping the future stops all workers where they are.
    pub async fn run<Reconcile, Fut, Error>(self, reconcile: Reconcile)
    where
        Reconcile: Fn(Key) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Action, Error>> + Send + 'static,
        Error: fmt::Display + Send + 'static,
    {
        let name = self.name;
        let mut feeders = JoinSet::new();
        for feeder in self.feeders {
            feeders.spawn(feeder);
        }
        futures::future::join_all(self.synced).await;
        tracing::debug!(controller = name, workers = self.workers, "started");
        let reconcile = Arc::new(reconcile);
        let mut workers = JoinSet::new();
        for _ in 0..self.workers {
            let (queue, reconcile) = (self.queue.clone(), reconcile.clone());
            workers.spawn(async move {
                while let Some(key) = queue.next().await {
                    work(name, &queue, &*reconcile, key).await;
                }
            });
        }
        while let Some(result) = workers.join_next().await {
            if let Err(error) = result {
                // Reconciles' panics are caught, so this is a bug in the runtime itself.
                tracing::error!(controller = name, %error, "worker ended");
            }
        }
    }
}

async fn work<Key, Reconcile, Fut, Error>(name: &'static str, queue: &WorkQueue<Key>, reconcile: &Reconcile, key: Key)
where
    Key: Clone + Eq + Hash + fmt::Display,
    Reconcile: Fn(Key) -> Fut,
    Fut: Future<Output = Result<Action, Error>>,
    Error: fmt::Display,
{
    // The call itself is inside, for functions that panic before their first await.
    let reconciled = AssertUnwindSafe(async { reconcile(key.clone()).await }).catch_unwind().await;
    match reconciled {
        Ok(Ok(Action::Done)) => queue.forget(&key),
        Ok(Ok(Action::RequeueAfter(delay))) => {
            queue.forget(&key);
            queue.add_after(key.clone(), delay);
        }
        Ok(Err(error)) => {
            tracing::warn!(controller = name, %key, %error, "reconcile failed, trying again");
            queue.add_rate_limited(key.clone());
        }
        Err(panic) => {
            tracing::error!(
                controller = name, %key, panic = panic_message(&*panic), "reconcile panicked, trying again"
            );
            queue.add_rate_limited(key.clone());
        }
    }
    queue.done(&key);
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Maps a change to the object's own key.
pub fn self_mapper<K: Resource>(change: &Change<K>) -> Option<ObjectKey> {
    Some(ObjectKey::of(&**change.object()))
}

/// Maps a change to the object's controlling owner, if that is of the given API group and kind. If the
/// controller changed, both the old and the new one.
pub fn owner_mapper<K: Resource>(
    group: &'static str,
    kind: &'static str,
) -> impl Fn(&Change<K>) -> Vec<ObjectKey> + Clone + Send + Sync + 'static {
    move |change| {
        let mut keys: Vec<ObjectKey> = Vec::new();
        for object in change.old().into_iter().chain([change.object()]) {
            let owner = object.owner_references().iter().find(|owner| owner.controller == Some(true));
            if let Some(owner) = owner
                && owner.kind == kind
                && owner.api_version.rsplit_once('/').map_or("", |(group, _)| group) == group
            {
                let namespace = object.meta().namespace.as_deref().unwrap_or("");
                let key = ObjectKey::new(namespace, &owner.name);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests;
