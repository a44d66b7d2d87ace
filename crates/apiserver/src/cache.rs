//! The watch cache: every object of one kind in memory, complete and consistent, with recent changes.
//!
//! Guarantees:
//! - A read sees every write that was acknowledged before the read began, by whichever API server: it asks the store
//!   how far it is, and waits until the changes that were queued to this cache by then are applied. What the store
//!   knows of is always queued already (that is its guarantee), so there is no round trip but that of a store which
//!   others write to as well.
//! - A watch gets every change after its start once and in order, or ends. It never skips.
//!
//! Lock order: only `state`; nothing is awaited and nothing encoded under it but the change at hand.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::RwLock;
use skiff_store::{Batch, EventKind, Progress, Revision, Store, prefix_end};
use tokio::sync::{mpsc, watch};

use crate::object::{Filter, Indexing, Object, UndecodableError};

/// How many recent changes are kept for watches that start in the past. Older ones come from the store.
const RECENT_CHANGES: usize = 1024;

/// How many changes a watcher may be behind before it is ended; the client then resumes where it was.
const WATCHER_QUEUE: usize = 8192;

/// How long a read may wait for a revision that is not reached yet, as upstream.
const FUTURE_REVISION_WAIT: Duration = Duration::from_secs(3);

/// How often an idle watch is told how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    pub revision: Revision,
    /// The object after the change; for a deletion its last state at the deletion's revision.
    pub object: Arc<Object>,
    /// The object before the change.
    pub prev: Option<Arc<Object>>,
    pub deleted: bool,
    lines: [OnceLock<Bytes>; 3],
}

/// How a watcher sees a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Added,
    Modified,
    Deleted,
}

impl Seen {
    pub fn as_str(self) -> &'static str {
        match self {
            Seen::Added => "ADDED",
            Seen::Modified => "MODIFIED",
            Seen::Deleted => "DELETED",
        }
    }
}

impl Change {
    fn new(revision: Revision, object: Arc<Object>, prev: Option<Arc<Object>>, deleted: bool) -> Self {
        Change { revision, object, prev, deleted, lines: Default::default() }
    }

    /// What a watcher with this filter sees, if anything: an object that leaves the selection is deleted for it.
    pub fn seen_by(&self, filter: &Filter, selectable: &[&str]) -> Option<Seen> {
        let now = !self.deleted && filter.matches(&self.object, selectable);
        let before = self.prev.as_ref().is_some_and(|p| filter.matches(p, selectable));
        match (before, now) {
            (false, true) => Some(Seen::Added),
            (true, true) => Some(Seen::Modified),
            (true, false) => Some(Seen::Deleted),
            (false, false) => None,
        }
    }

    /// The object to show: one that only left the selection is shown as it is now.
    pub fn shown(&self) -> &Arc<Object> {
        &self.object
    }

    /// The event as a line of a watch, encoded once for all watchers.
    pub fn line(&self, seen: Seen) -> Bytes {
        self.lines[seen as usize].get_or_init(|| event_line(seen.as_str(), &self.object.bytes)).clone()
    }
}

/// `{"type":…,"object":…}` and a line feed.
pub fn event_line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 40);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}

/// What a watcher receives.
#[derive(Clone, Debug)]
pub enum Signal {
    Change(Arc<Change>, Seen),
    /// Everything up to this revision has been delivered.
    Bookmark(Revision),
}

/// A running watch of the cache. Dropping it ends it.
pub struct CacheWatch {
    backlog: VecDeque<Signal>,
    live: mpsc::Receiver<Signal>,
}

impl CacheWatch {
    /// The next signal; `None` when the watch was ended and the client has to resume it.
    pub async fn recv(&mut self) -> Option<Signal> {
        match self.backlog.pop_front() {
            Some(signal) => Some(signal),
            None => self.live.recv().await,
        }
    }
}

/// Why a read or watch is refused.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The start of the watch is no longer known.
    #[error("too old resource version: {requested} ({oldest})")]
    TooOld { requested: Revision, oldest: Revision },
    /// The revision has not been reached in time.
    #[error("Too large resource version: {requested}, current: {current}")]
    TooNew { requested: Revision, current: Revision },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] skiff_store::Error),
    /// The cache has not been filled yet.
    #[error("storage is (re)initializing")]
    NotReady,
}

struct Watcher {
    filter: Filter,
    queue: mpsc::Sender<Signal>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    /// Revision of the last batch applied.
    revision: Revision,
    /// Revision of the last change, or of the list that filled the cache.
    last_change: Revision,
    recent: VecDeque<Arc<Change>>,
    /// Every change after this revision is in `recent`.
    recent_after: Revision,
    watchers: Vec<Watcher>,
}

/// See the [module](self).
pub struct Cache {
    prefix: String,
    indexing: Indexing,
    store: Arc<dyn Store>,
    state: RwLock<State>,
    /// Revision of the last batch applied, for those who wait for it.
    applied: watch::Sender<Revision>,
    progress: RwLock<Option<Progress>>,
}

/// A consistent view of a list.
pub struct Listed {
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
    /// Key after which the next page begins, and how many objects are left.
    pub more: Option<(Arc<str>, u64)>,
}

impl Cache {
    /// An empty cache of the keys under `prefix`; [`run`](Cache::run) fills it.
    pub fn new(prefix: String, indexing: Indexing, store: Arc<dyn Store>) -> Arc<Cache> {
        Arc::new(Cache {
            prefix,
            indexing,
            store,
            state: RwLock::default(),
            applied: watch::Sender::new(Revision::ZERO),
            progress: RwLock::new(None),
        })
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The fields that selectors may name.
    pub fn selectable(&self) -> &'static [&'static str] {
        self.indexing.selectable
    }

    pub fn indexing(&self) -> Indexing {
        self.indexing
    }

    /// Fills the cache and keeps it up to date until the store closes. Errors of the store empty nothing:
    /// the cache lists again and reports the difference as changes.
    pub async fn run(self: Arc<Self>) {
        let mut backoff = Duration::from_millis(50);
        loop {
            match self.follow().await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(prefix = self.prefix, %error, "watch cache: following the store failed, listing again");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    async fn follow(&self) -> Result<(), skiff_store::Error> {
        let end = prefix_end(&self.prefix);
        let listed = self.store.range(&self.prefix..&end, None, 0).await?;
        let mut objects = BTreeMap::new();
        for kv in &listed.kvs {
            match Object::from_kv(kv, self.indexing) {
                Ok(object) => {
                    objects.insert(object.key.clone(), Arc::new(object));
                }
                Err(error) => tracing::error!(%error, "watch cache: object left out"),
            }
        }
        let mut feed = self.store.watch(&self.prefix, Some(listed.revision.next()));
        {
            let mut state = self.state.write();
            // Changes that were missed cannot be told in order, so watches start over.
            state.watchers.clear();
            state.recent.clear();
            state.recent_after = listed.revision;
            state.objects = objects;
            state.revision = listed.revision;
            state.last_change = listed.revision;
        }
        *self.progress.write() = Some(feed.progress());
        self.applied.send_replace(listed.revision);
        let mut bookmarks = tokio::time::interval(BOOKMARK_INTERVAL);
        bookmarks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                batch = feed.recv() => match batch? {
                    Some(batch) => self.apply(&batch),
                    None => return Ok(()),
                },
                _ = bookmarks.tick() => self.bookmark(),
            }
        }
    }

    fn apply(&self, batch: &Batch) {
        let mut changes = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            let (revision, deleted) = (event.revision(), event.kind == EventKind::Delete);
            // Only this task writes, so the state cannot change between this read and the write below.
            let prev = self.state.read().objects.get(&event.kv.key).cloned();
            let object = if deleted {
                match &prev {
                    Some(p) => p.at(revision).ok_or_else(|| UndecodableError { key: p.key.clone(), source: None }),
                    None => continue,
                }
            } else {
                Object::from_kv(&event.kv, self.indexing)
            };
            match object {
                Ok(object) => {
                    let change = Arc::new(Change::new(revision, Arc::new(object), prev, deleted));
                    self.commit(&change);
                    changes.push(change);
                }
                Err(error) => tracing::error!(%error, "watch cache: change left out"),
            }
        }
        {
            let mut state = self.state.write();
            state.revision = state.revision.max(batch.revision);
        }
        self.applied.send_replace(batch.revision);
    }

    fn commit(&self, change: &Arc<Change>) {
        let mut state = self.state.write();
        if change.deleted {
            state.objects.remove(&change.object.key);
        } else {
            state.objects.insert(change.object.key.clone(), change.object.clone());
        }
        state.recent.push_back(change.clone());
        if state.recent.len() > RECENT_CHANGES
            && let Some(oldest) = state.recent.pop_front()
        {
            state.recent_after = oldest.revision;
        }
        state.revision = change.revision;
        state.last_change = change.revision;
        let selectable = self.indexing.selectable;
        state.watchers.retain(|w| match change.seen_by(&w.filter, selectable) {
            Some(seen) => w.queue.try_send(Signal::Change(change.clone(), seen)).is_ok(),
            None => !w.queue.is_closed(),
        });
    }

    fn bookmark(&self) {
        // Taken before the check: all that was acknowledged up to here has been queued to this cache.
        let current = self.store.revision();
        let enqueued = self.progress.read().as_ref().map(Progress::enqueued);
        let mut state = self.state.write();
        let revision =
            if enqueued.is_some_and(|e| state.revision >= e) { current.max(state.revision) } else { state.revision };
        state.watchers.retain(|w| w.queue.try_send(Signal::Bookmark(revision)).is_ok());
    }

    /// Waits until everything acknowledged before this call can be read; the revision it is then at.
    pub async fn fresh(&self) -> Result<Revision, CacheError> {
        let current = self.store.latest().await?;
        self.follow_up(current).await
    }

    /// Waits until everything that this server knows of can be read: what others have written to the same store may be
    /// missing yet. For what is eventually consistent upstream too, and asked with every request.
    pub async fn settled(&self) -> Result<Revision, CacheError> {
        self.follow_up(self.store.revision()).await
    }

    async fn follow_up(&self, current: Revision) -> Result<Revision, CacheError> {
        let Some(target) = self.progress.read().as_ref().map(Progress::enqueued) else {
            self.wait_for(Revision(1), Duration::from_secs(10)).await.map_err(|_| CacheError::NotReady)?;
            return Ok(self.state.read().revision.max(current));
        };
        if *self.applied.borrow() < target {
            self.wait_for(target, Duration::from_secs(30)).await.map_err(|_| CacheError::NotReady)?;
        }
        Ok(current)
    }

    async fn wait_for(&self, target: Revision, limit: Duration) -> Result<(), tokio::time::error::Elapsed> {
        let mut applied = self.applied.subscribe();
        tokio::time::timeout(limit, async {
            // The sender lives as long as the cache.
            let _ = applied.wait_for(|r| *r >= target).await;
        })
        .await
    }

    /// Waits until the store has reached a revision that a client names.
    pub async fn at_least(&self, requested: Revision) -> Result<Revision, CacheError> {
        let deadline = tokio::time::Instant::now() + FUTURE_REVISION_WAIT;
        loop {
            let current = self.fresh().await?;
            if current >= requested {
                return Ok(current);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(CacheError::TooNew { requested, current });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// An object as it is now.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<Object>>, CacheError> {
        self.fresh().await?;
        Ok(self.peek(key))
    }

    /// An object as this cache has it, without waiting for writes under way.
    pub fn peek(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects as this cache has them, without waiting.
    pub fn peek_all(&self) -> Vec<Arc<Object>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// Selected objects as they are now, at most `limit` of them (0: all), after the key `after`.
    pub async fn list(&self, filter: &Filter, limit: usize, after: Option<&str>) -> Result<Listed, CacheError> {
        let fresh = self.fresh().await?;
        let state = self.state.read();
        let revision = fresh.max(state.revision);
        Ok(self.page(&state.objects, filter, limit, after, revision))
    }

    fn page(
        &self,
        objects: &BTreeMap<Arc<str>, Arc<Object>>,
        filter: &Filter,
        limit: usize,
        after: Option<&str>,
        revision: Revision,
    ) -> Listed {
        let start = if filter.namespace.is_empty() {
            self.prefix.clone()
        } else {
            format!("{}{}/", self.prefix, filter.namespace)
        };
        let end = prefix_end(&start);
        let lower = match after {
            Some(key) if key >= start.as_str() => Bound::Excluded(key),
            _ => Bound::Included(start.as_str()),
        };
        let mut listed = Listed { objects: Vec::new(), revision, more: None };
        let mut remaining = 0;
        for object in objects
            .range::<str, _>((lower, Bound::Excluded(end.as_str())))
            .map(|(_, o)| o)
            .filter(|o| filter.matches(o, self.indexing.selectable))
        {
            if limit > 0 && listed.objects.len() == limit {
                remaining += 1;
            } else {
                listed.objects.push(object.clone());
            }
        }
        if let (1.., Some(last)) = (remaining, listed.objects.last()) {
            listed.more = Some((last.key.clone(), remaining));
        }
        listed
    }

    /// A page of a list at a past revision: from the cache if nothing changed since, else from the store.
    pub async fn list_at(
        &self,
        filter: &Filter,
        limit: usize,
        after: Option<&str>,
        at: Revision,
    ) -> Result<Listed, CacheError> {
        self.fresh().await?;
        {
            let state = self.state.read();
            let changed = state.recent.back().is_some_and(|c| c.revision > at) || state.recent_after > at;
            if !changed {
                return Ok(self.page(&state.objects, filter, limit, after, at));
            }
        }
        let end = prefix_end(&self.prefix);
        let response = self.store.range(&self.prefix..&end, Some(at), 0).await?;
        let objects = response
            .kvs
            .iter()
            .filter_map(|kv| Object::from_kv(kv, self.indexing).ok())
            .map(|o| (o.key.clone(), Arc::new(o)))
            .collect();
        Ok(self.page(&objects, filter, limit, after, at))
    }

    /// Watches from now on: first all selected objects as added (the revision they are at is returned), then changes.
    pub async fn watch_with_initial(&self, filter: Filter) -> Result<(Listed, CacheWatch), CacheError> {
        let fresh = self.fresh().await?;
        let mut state = self.state.write();
        let revision = fresh.max(state.revision);
        let listed = self.page(&state.objects, &filter, 0, None, revision);
        let (queue, live) = mpsc::channel(WATCHER_QUEUE);
        state.watchers.push(Watcher { filter, queue });
        Ok((listed, CacheWatch { backlog: VecDeque::new(), live }))
    }

    /// Watches the changes after a revision.
    pub async fn watch_after(self: &Arc<Self>, filter: Filter, after: Revision) -> Result<CacheWatch, CacheError> {
        self.at_least(after).await?;
        {
            let mut state = self.state.write();
            if after >= state.recent_after {
                let selectable = self.indexing.selectable;
                let start = state.recent.partition_point(|c| c.revision <= after);
                let backlog = state
                    .recent
                    .range(start..)
                    .filter_map(|c| c.seen_by(&filter, selectable).map(|seen| Signal::Change(c.clone(), seen)))
                    .collect();
                let (queue, live) = mpsc::channel(WATCHER_QUEUE);
                state.watchers.push(Watcher { filter, queue });
                return Ok(CacheWatch { backlog, live });
            }
        }
        self.watch_history(filter, after).await
    }

    /// A watch that begins before what this cache remembers is fed by the store itself.
    async fn watch_history(self: &Arc<Self>, filter: Filter, after: Revision) -> Result<CacheWatch, CacheError> {
        let oldest = self.store.compacted();
        if after < oldest {
            return Err(CacheError::TooOld { requested: after, oldest });
        }
        let mut feed = self.store.watch(&self.prefix, Some(after.next()));
        // The store may have been compacted by another server: its first answer tells.
        let mut next = match feed.recv().await {
            Err(skiff_store::Error::Compacted { compacted, .. }) => {
                return Err(CacheError::TooOld { requested: after, oldest: compacted });
            }
            first => first?,
        };
        let (queue, live) = mpsc::channel(64);
        let cache = self.clone();
        tokio::spawn(async move {
            while let Some(batch) = next {
                for event in &batch.events {
                    let Some(change) = cache.historical_change(event) else { return };
                    if let Some(seen) = change.seen_by(&filter, cache.indexing.selectable)
                        && queue.send(Signal::Change(Arc::new(change), seen)).await.is_err()
                    {
                        return;
                    }
                }
                if queue.is_closed() {
                    return;
                }
                next = match feed.recv().await {
                    Ok(next) => next,
                    Err(error) => {
                        tracing::debug!(%error, prefix = cache.prefix, "watch from the past ended");
                        return;
                    }
                };
            }
        });
        Ok(CacheWatch { backlog: VecDeque::new(), live })
    }

    fn historical_change(&self, event: &skiff_store::Event) -> Option<Change> {
        let decode = |kv| {
            Object::from_kv(kv, self.indexing).inspect_err(|error| tracing::error!(%error, "watch from the past")).ok()
        };
        let prev = match &event.prev {
            Some(kv) => Some(Arc::new(decode(kv)?)),
            None => None,
        };
        let deleted = event.kind == EventKind::Delete;
        let object = if deleted { prev.as_ref()?.at(event.revision())? } else { decode(&event.kv)? };
        Some(Change::new(event.revision(), Arc::new(object), prev, deleted))
    }

    /// Revision of the last change of one of these objects that this cache has applied.
    pub fn last_change(&self) -> Revision {
        self.state.read().last_change
    }

    /// What tells one state of this cache from another: last change and number of objects.
    pub fn version(&self) -> (u64, usize) {
        let state = self.state.read();
        (state.last_change.0, state.objects.len())
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_store::{Txn, memory::MemoryStore};

    use super::*;
    use crate::object::{encode, plain_field};

    const INDEXING: Indexing = Indexing { selectable: &["spec.nodeName"], field: plain_field };

    fn setup() -> (Arc<dyn Store>, Arc<Cache>) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let cache = Cache::new("/registry/pods/".into(), INDEXING, store.clone());
        tokio::spawn(cache.clone().run());
        (store, cache)
    }

    async fn put(store: &Arc<dyn Store>, ns: &str, name: &str, app: &str) -> Revision {
        let v = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": ns, "labels": {"app": app}}});
        store.txn(Txn::put(format!("/registry/pods/{ns}/{name}"), encode(&v))).await.unwrap().revision
    }

    fn seen(signal: Option<Signal>) -> (Seen, String) {
        match signal {
            Some(Signal::Change(c, seen)) => (seen, c.object.name.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn reads_see_acknowledged_writes() {
        let (store, cache) = setup();
        for i in 0..50 {
            let name = format!("p{i}");
            put(&store, "default", &name, "a").await;
            assert!(cache.get(&format!("/registry/pods/default/{name}")).await.unwrap().is_some(), "{name}");
        }
        let page = cache.list(&Filter::default(), 20, None).await.unwrap();
        let (last, remaining) = page.more.unwrap();
        assert_eq!((page.objects.len(), remaining), (20, 30));
        let rest = cache.list_at(&Filter::default(), 0, Some(&last), page.revision).await.unwrap();
        assert_eq!(rest.objects.len(), 30);
    }

    #[tokio::test]
    async fn pages_stay_at_their_revision() {
        let (store, cache) = setup();
        put(&store, "a", "x", "1").await;
        let at = put(&store, "b", "y", "1").await;
        store.txn(Txn::delete("/registry/pods/b/y")).await.unwrap();
        put(&store, "c", "z", "1").await;
        let listed = cache.list_at(&Filter::default(), 0, Some("/registry/pods/a/x"), at).await.unwrap();
        assert_eq!(listed.objects.iter().map(|o| &*o.name).collect::<Vec<_>>(), ["y"]);
    }

    #[tokio::test]
    async fn a_watch_turns_leaving_the_selection_into_deletion() {
        let (store, cache) = setup();
        let start = put(&store, "default", "p", "a").await;
        let filter = Filter { labels: "app=a".parse_selector(), ..Filter::default() };
        let mut watch = cache.watch_after(filter, start).await.unwrap();
        put(&store, "default", "p", "b").await;
        put(&store, "default", "p", "a").await;
        put(&store, "default", "p", "a").await;
        store.txn(Txn::delete("/registry/pods/default/p")).await.unwrap();
        for want in [Seen::Deleted, Seen::Added, Seen::Modified, Seen::Deleted] {
            assert_eq!(seen(watch.recv().await), (want, "p".into()));
        }
    }

    #[tokio::test]
    async fn a_watch_older_than_what_is_remembered_comes_from_the_store() {
        let (store, cache) = setup();
        let start = put(&store, "default", "first", "a").await;
        for i in 0..RECENT_CHANGES + 10 {
            put(&store, "default", &format!("p{i}"), "a").await;
        }
        cache.fresh().await.unwrap();
        let mut watch = cache.watch_after(Filter::default(), start).await.unwrap();
        for i in 0..RECENT_CHANGES + 10 {
            assert_eq!(seen(watch.recv().await), (Seen::Added, format!("p{i}")));
        }
        put(&store, "default", "last", "a").await;
        assert_eq!(seen(watch.recv().await), (Seen::Added, "last".into()));
    }

    #[tokio::test]
    async fn compacted_and_future_revisions_are_refused() {
        let (store, cache) = setup();
        for i in 0..RECENT_CHANGES + 10 {
            put(&store, "default", &format!("p{i}"), "a").await;
        }
        let now = cache.fresh().await.unwrap();
        store.compact(now).await.unwrap();
        assert!(matches!(cache.watch_after(Filter::default(), Revision(2)).await, Err(CacheError::TooOld { .. })));
        assert!(matches!(
            cache.watch_after(Filter::default(), Revision(1_000_000)).await,
            Err(CacheError::TooNew { .. })
        ));
    }

    trait ParseSelector {
        fn parse_selector(&self) -> skiff_api::selector::LabelSelector;
    }
    impl ParseSelector for &str {
        fn parse_selector(&self) -> skiff_api::selector::LabelSelector {
            skiff_api::selector::LabelSelector::parse(self).unwrap()
        }
    }
}
