//! The embedded engine: a log ordered by revision in one redb file, and an index in memory.
//!
//! Parts, from the disk up: [`disk`] (files, and what replaces them in tests), [`engine`] (redb, opened,
//! checked and guarded), [`record`] (what is in the log), [`index`] (key → positions), [`batch`] (what
//! one commit does), [`writer`] (the one thread that commits), [`watchers`], [`snapshot`].
//!
//! `docs/store.md` has the file format, the invariants and the tests that hold them.

mod batch;
mod disk;
mod engine;
mod index;
mod leases;
mod record;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
pub mod snapshot;
mod watchers;
mod writer;

use std::{
    ops::{ControlFlow, Range},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use disk::{Disk, Medium};
use engine::{Engine, Fault, damage};
use index::Index;
use leases::Leases;
use record::{MAX_KEY_BYTES, Position};
use watchers::Watchers;
use writer::{Compaction, Request, Writer};

use crate::{
    DEFAULT_WATCH_BUDGET_BYTES, Error, GetResponse, KeyValue, Lease, LeaseId, RangeResponse, Result, Revision, Store,
    Txn, TxnResponse, Watch,
};

/// redb's page cache. Small: the API server keeps what is current in its watch cache, and the kernel
/// keeps the file.
const DEFAULT_CACHE_BYTES: usize = 4 * 1024 * 1024;

/// How to open an [`Embedded`] store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the page cache in bytes.
    pub cache_bytes: usize,
    /// How many bytes a watcher may be behind before it is ended.
    pub watch_budget_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { cache_bytes: DEFAULT_CACHE_BYTES, watch_budget_bytes: DEFAULT_WATCH_BUDGET_BYTES }
    }
}

/// A store in a file of this machine. See the [module](self) and [`Store`].
///
/// Dropping it closes the file, after what is queued has been written.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What readers, watchers and the writer share.
struct Shared {
    engine: Engine,
    index: RwLock<Index>,
    watchers: Watchers,
    compacted: AtomicU64,
    watch_budget_bytes: usize,
}

impl Shared {
    fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }

    fn set_compacted(&self, at: Revision) {
        self.compacted.store(at.0, Ordering::Release);
    }
}

impl Embedded {
    /// Opens the store in the file `path`, creating it if it does not exist. All records are read and
    /// checked. Blocks; a hundred thousand keys take some tenths of a second.
    ///
    /// Beside the file there will be `path.lock` and `path.mark`.
    ///
    /// Errors: `Locked`, `Corrupt`, `NoSpace`, `Unavailable`.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Embedded> {
        let medium = disk::FileMedium::open(path.as_ref())?;
        Embedded::open_on(Box::new(medium), options)
    }

    /// Opens a store on anything that can hold one: for tests of faults.
    pub fn open_on(medium: Box<dyn Medium>, options: &Options) -> Result<Embedded> {
        let started = Instant::now();
        let engine = Engine::open(medium, options.cache_bytes)?;
        let header = engine.header()?;
        let (index, current) = load(&engine, header.compacted)?;
        if let Some(mark) = engine.medium().mark()
            && mark > current
        {
            let what = format!(
                "it ends at revision {current}, but revision {mark} was acknowledged (if you put an older \
                 copy of it here on purpose, delete the .mark file beside it)"
            );
            return Err(engine.refuse(what, None, Some(current)));
        }
        let mut leases = Leases::default();
        for (id, ttl) in &header.leases {
            leases.insert(*id, *ttl, Instant::now());
        }
        for (key, lease) in index.leased() {
            leases.attach(lease, key);
        }
        let mut compaction = Compaction::default();
        if header.compacted > Revision::ZERO {
            // What the last run had not deleted yet.
            compaction.start(header.compacted);
        }
        let shared = Arc::new(Shared {
            engine,
            index: RwLock::new(index),
            watchers: Watchers::new(current),
            compacted: AtomicU64::new(header.compacted.0),
            watch_budget_bytes: options.watch_budget_bytes,
        });
        let (requests, queue) = mpsc::channel();
        let writer = Writer {
            shared: shared.clone(),
            requests: queue,
            leases,
            compaction,
            doubt: None,
            broken: false,
            rest_until: None,
            reopen_failed: None,
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| Error::unavailable(format!("cannot start the writer: {error}")))?;
        let elapsed_ms = started.elapsed().as_millis();
        tracing::debug!(path = %shared.engine.medium().path().display(), %current, elapsed_ms, "store open");
        Ok(Embedded { shared, requests, writer: Mutex::new(Some(writer)) })
    }

    /// Closes the file, after what is queued has been written. All watches end. Blocks for some
    /// milliseconds.
    pub fn close(&self) {
        // A writer that is gone needs no telling.
        let _ = self.requests.send(Request::Close);
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }

    /// Reads all records again and compares their checksums; on demand, as it takes its time on a large
    /// store. Finding damage, the store refuses all further work.
    pub async fn check(&self) -> Result<()> {
        let shared = self.shared.clone();
        blocking(move || load(&shared.engine, shared.compacted()).map(drop)).await
    }

    /// The leases that there are, with their times to live.
    pub fn leases(&self) -> Result<Vec<(LeaseId, Duration)>> {
        self.noting_errors(self.shared.engine.read(|log| Ok(log.leases()?.into_iter().collect())))
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let gone = || self.gone();
        self.requests.send(request(answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    fn gone(&self) -> Error {
        let refused = self.shared.engine.refused().cloned();
        refused.unwrap_or_else(|| Error::unavailable("it is closed"))
    }

    /// The revision to read.
    fn readable(&self, at: Option<Revision>) -> Result<Revision> {
        let current = self.shared.watchers.current();
        match at {
            Some(at) if at > current => Err(Error::FutureRevision { requested: at, current }),
            at => Ok(at.unwrap_or(current)),
        }
    }

    /// After an I/O error the writer has to open the file again, also if only reads met it.
    fn noting_errors<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() && self.shared.engine.has_failed() {
            // If it is gone, so is the file.
            let _ = self.requests.send(Request::Reopen);
        }
        result
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<GetResponse>> {
        // Not on a thread of its own: one record is there in microseconds, or, if the kernel has to
        // fetch its page, after about the time of a thread switch and back.
        async move { self.noting_errors(get(&self.shared, key, at, || self.readable(at))) }.boxed()
    }

    fn range<'a>(
        &'a self,
        keys: Range<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<RangeResponse>> {
        let keys = keys.start.to_owned()..keys.end.to_owned();
        async move {
            loop {
                let revision = self.readable(at)?;
                let (shared, keys) = (self.shared.clone(), keys.clone());
                match blocking(move || range(&shared, &keys, revision, limit)).await {
                    Err(Error::Compacted { .. }) if at.is_none() => {}
                    result => return self.noting_errors(result),
                }
            }
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse>> {
        async move {
            txn.validate()?;
            if let Some(op) = txn.ops.iter().find(|op| op.key().len() > MAX_KEY_BYTES) {
                return Err(Error::TooLarge {
                    what: "size of the key",
                    size: op.key().len(),
                    limit: MAX_KEY_BYTES,
                    key: Some(op.key().to_string()),
                });
            }
            self.request(|answer| Request::Txn(txn, answer)).await
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Option<Revision>) -> Watch {
        Watchers::watch(&self.shared, prefix, from)
    }

    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<()>> {
        self.request(move |answer| Request::Compact(at, answer)).boxed()
    }

    fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> BoxFuture<'_, Result<Lease>> {
        self.request(move |answer| Request::Grant(ttl, id, answer)).boxed()
    }

    fn lease_keepalive(&self, id: LeaseId) -> BoxFuture<'_, Result<Lease>> {
        self.request(move |answer| Request::KeepAlive(id, answer)).boxed()
    }

    fn lease_revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.request(move |answer| Request::Revoke(id, answer)).boxed()
    }

    fn revision(&self) -> Revision {
        self.shared.watchers.current()
    }

    /// Nobody else writes.
    fn latest(&self) -> BoxFuture<'_, Result<Revision>> {
        std::future::ready(Ok(self.revision())).boxed()
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted()
    }
}

/// Builds the index from the log, and tells the last revision.
fn load(engine: &Engine, compacted: Revision) -> Result<(Index, Revision)> {
    engine.read(|log| {
        let mut index = Index::default();
        let mut add = |position: Position, record: record::Record| {
            let put = record.value.is_some().then_some((record.create_revision, record.version, record.lease));
            index.apply(&record.key, position, put);
        };
        // Up to the compaction there are holes; after it there must be none.
        let first = Position::start(compacted.next());
        if compacted > Revision::ZERO {
            log.scan(Position(0), Position(first.0 - 1), |position, record| {
                add(position, record);
                Ok(true)
            })?;
        }
        let last = log.last()?.map_or(Revision::ZERO, Position::revision);
        watchers::walk(log, compacted.next(), last, |position, record| {
            add(position, record);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((index, last.max(compacted).max(Revision::INITIAL)))
    })
}

fn get(
    shared: &Shared,
    key: &str,
    at: Option<Revision>,
    readable: impl Fn() -> Result<Revision>,
) -> Result<GetResponse> {
    loop {
        let revision = readable()?;
        match read(shared, revision, |index| index.at(key, revision).into_iter().collect()) {
            Err(Error::Compacted { .. }) if at.is_none() => {}
            result => return Ok(GetResponse { kv: result?.pop(), revision }),
        }
    }
}

fn range(shared: &Shared, keys: &Range<String>, revision: Revision, limit: usize) -> Result<RangeResponse> {
    let mut count = 0;
    let kvs = read(shared, revision, |index| {
        let (positions, all) = index.range(&(&*keys.start..&*keys.end), revision, limit);
        count = all;
        positions
    })?;
    Ok(RangeResponse { more: kvs.len() < count, kvs, revision, count })
}

/// Reads what is at the positions that `find` finds in the index, as of `revision`, which must have
/// been the current one or an earlier one.
///
/// The order of the steps is what makes it safe without a lock across the reads: the revision was
/// current before the reader begins, so the reader sees all its records. What compaction deletes has
/// left the index before, so what is found in the index after the reader began is still there for it.
/// And compaction is announced before it changes the index, so if it is not announced after the look-up,
/// the look-up saw the index as it must be for this revision.
fn read(shared: &Shared, revision: Revision, find: impl FnOnce(&Index) -> Vec<Position>) -> Result<Vec<KeyValue>> {
    shared.engine.read(|log| {
        let positions = find(&shared.index.read());
        let compacted = shared.compacted();
        if revision < compacted {
            return Err(Fault::Store(Error::Compacted { requested: revision, compacted }));
        }
        let mut kvs = Vec::with_capacity(positions.len());
        for position in positions {
            let record = log.read(position)?;
            let kv = record.into_key_value(position.revision());
            kvs.push(kv.ok_or_else(|| damage(position, "record is an unexpected deletion", None))?);
        }
        Ok(kvs)
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|_| Err(Error::unavailable("it is being shut down")))
}
