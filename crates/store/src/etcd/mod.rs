//! A real etcd as the store, by its v3 API: several API servers can share it.
//!
//! Parts: [`connection`] (endpoints, TLS, which requests may be repeated), [`follow`] (one of etcd's watches, resumed
//! wherever it breaks off), [`feed`] (the one watch of everything, from which all watches here are fed), [`latest`]
//! (how far etcd is), [`convert`] (etcd's messages and ours).
//!
//! All watches of this store are fed from one watch of everything under the prefix. That gives the two guarantees that
//! consistent caches need: a write is acknowledged here only when its events have come back by that watch and are
//! queued, and what has come by it up to a revision is complete. How far others have written is asked of etcd
//! ([`Store::latest`]): a linearizable read tells the revision, and the watch is waited for until it is there, with
//! etcd's progress notifications where the last revisions are of keys that are none of ours.

mod connection;
mod convert;
mod feed;
mod follow;
mod latest;
pub mod messages;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::task::JoinHandle;

pub use connection::Endpoints;
use connection::{Connection, Repeat};
use convert::{Keys, number, revision_of};
use feed::Feed;
use latest::Latest;
use messages::{self as m, request_op, response_op};

use crate::{
    Code, Compare, DEFAULT_WATCH_BUDGET_BYTES, Error, GetResponse, Lease, LeaseId, Op, OpResult, RangeResponse, Result,
    Revision, Store, Txn, TxnOutcome, TxnResponse, Watch,
};

/// How many keys are asked for at once; larger ranges are read in pages of one revision.
const PAGE: usize = 5_000;
/// How long the acknowledgement of a write waits for its events. The watch comes from the same etcd that has just
/// answered, so only a break of the connection makes it late.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(10);

/// What an [`EtcdStore`] is told.
pub struct Options {
    /// Where etcd is.
    pub endpoints: Endpoints,
    /// What all keys of the caller begin with, such as `/registry`.
    pub root: String,
    /// What they begin with in etcd, instead of that: kube-apiserver's `--etcd-prefix`. Not empty.
    pub prefix: String,
    /// How many bytes a watcher may be behind before it is ended.
    pub watch_budget_bytes: usize,
}

impl Options {
    /// Keys are the same here and in etcd, and begin with `prefix`.
    pub fn new(endpoints: Endpoints, prefix: &str) -> Options {
        Options {
            endpoints,
            root: prefix.to_owned(),
            prefix: prefix.to_owned(),
            watch_budget_bytes: DEFAULT_WATCH_BUDGET_BYTES,
        }
    }
}

/// A store in a real etcd. See the [module](self) and [`Store`].
pub struct EtcdStore {
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    feed: Arc<Feed>,
    latest: Latest,
    /// The last compaction that we did or were told of.
    compacted: Arc<AtomicU64>,
    tasks: [JoinHandle<()>; 2],
}

impl EtcdStore {
    /// Connects, and begins to follow what happens there.
    ///
    /// Errors: `InvalidArgument` for endpoints or a prefix that make no sense, `Unavailable` if no endpoint answers.
    pub async fn connect(options: Options) -> Result<EtcdStore> {
        if options.prefix.is_empty() {
            return Err(Error::InvalidArgument { what: "the prefix of the keys in etcd is empty".into(), key: None });
        }
        let connection = Arc::new(Connection::new(options.endpoints)?);
        let keys = Arc::new(Keys { root: options.root, prefix: options.prefix });
        let start = feed::current(&connection, &keys).await?;
        let compacted = Arc::new(AtomicU64::new(0));
        let feed = Arc::new(Feed::new(start, options.watch_budget_bytes));
        let following =
            tokio::spawn(feed::run(feed.clone(), connection.clone(), keys.clone(), start, compacted.clone()));
        let (latest, asking) = Latest::start(connection.clone(), keys.clone(), feed.clone());
        Ok(EtcdStore { connection, keys, feed, latest, compacted, tasks: [following, asking] })
    }

    /// Why etcd could not be asked for its revision, if that is so since the last read.
    pub fn last_failure(&self) -> Option<Error> {
        self.latest.last_failure()
    }

    /// The answer to a write, once its events are queued.
    async fn acknowledged(&self, header: Option<m::ResponseHeader>) -> Result<Revision> {
        let revision = revision_of(header.as_ref());
        match tokio::time::timeout(EVENTS_TIMEOUT, self.feed.reach(revision)).await {
            Ok(()) => Ok(revision),
            Err(_) => Err(Error::unavailable(format!(
                "etcd has made the write of revision {revision}, but does not send its events"
            ))),
        }
    }

    /// The error of a read at a revision.
    async fn read_error(&self, status: &tonic::Status, at: Option<Revision>) -> Error {
        let requested = at.unwrap_or_default();
        match convert::code(status) {
            Code::Compacted => Error::Compacted { requested, compacted: self.compacted_to(requested.next()).await },
            Code::FutureRevision => Error::FutureRevision { requested, current: self.revision() },
            _ => self.connection.error(status),
        }
    }

    /// How far etcd is compacted, of which only is known that it is at least to `least`. etcd says it to watches alone:
    /// to those that begin before it.
    async fn compacted_to(&self, least: Revision) -> Revision {
        let known = self.compacted();
        if known >= least {
            return known;
        }
        let range = self.keys.everything();
        let compacted = match follow::Follow::new(self.connection.clone(), range, least, least).next().await {
            Err(Error::Compacted { compacted, .. }) => compacted,
            _ => least,
        };
        self.note_compacted(compacted);
        compacted
    }

    fn note_compacted(&self, at: Revision) {
        self.compacted.fetch_max(at.0, Ordering::AcqRel);
    }

    async fn page(&self, request: m::RangeRequest, at: Option<Revision>) -> Result<m::RangeResponse> {
        let answer = self.connection.call("/etcdserverpb.KV/Range", request, Repeat::Always).await;
        match answer {
            Ok(answer) => Ok(answer),
            Err(status) => Err(self.read_error(&status, at).await),
        }
    }

    async fn do_txn(&self, txn: Txn) -> Result<TxnResponse> {
        txn.validate()?;
        let mut request = m::TxnRequest::default();
        for Compare { key, mod_revision } in &txn.compares {
            request.compare.push(convert::written_at(self.keys.etcd_key(key)?, *mod_revision));
            let read = m::RangeRequest { key: self.keys.etcd_key(key)?, ..Default::default() };
            request.failure.push(m::RequestOp { request: Some(request_op::Request::Range(read)) });
        }
        for op in &txn.ops {
            let key = self.keys.etcd_key(op.key())?;
            let op = match op {
                Op::Put { value, lease, .. } => request_op::Request::Put(m::PutRequest {
                    key,
                    value: value.clone(),
                    lease: lease.map_or(0, |lease| lease.0),
                    prev_kv: true,
                    ..Default::default()
                }),
                Op::Delete { .. } => request_op::Request::DeleteRange(m::DeleteRangeRequest {
                    key,
                    range_end: Bytes::new(),
                    prev_kv: true,
                }),
            };
            request.success.push(m::RequestOp { request: Some(op) });
        }
        let answer: m::TxnResponse = self
            .connection
            .call("/etcdserverpb.KV/Txn", request, Repeat::IfNotSent)
            .await
            .map_err(|status| self.txn_error(&status, &txn))?;
        let revision = self.acknowledged(answer.header).await?;
        if !answer.succeeded {
            let mut found = Vec::new();
            for response in answer.responses {
                let Some(response_op::Response::Range(range)) = response.response else { continue };
                found.push(match range.kvs.into_iter().next() {
                    Some(kv) => Some(self.keys.key_value(kv)?),
                    None => None,
                });
            }
            return Ok(TxnResponse { revision, outcome: TxnOutcome::Failed(found) });
        }
        let mut results = Vec::new();
        for (op, response) in txn.ops.iter().zip(answer.responses) {
            let prev = match response.response {
                Some(response_op::Response::Put(put)) => put.prev_kv,
                Some(response_op::Response::DeleteRange(deleted)) => deleted.prev_kvs.into_iter().next(),
                _ => None,
            };
            let prev = prev.map(|kv| self.keys.key_value(kv)).transpose()?;
            results.push(OpResult { kv: convert::after(op, prev.as_ref(), revision), prev });
        }
        Ok(TxnResponse { revision, outcome: TxnOutcome::Succeeded(results) })
    }

    fn txn_error(&self, status: &tonic::Status, txn: &Txn) -> Error {
        let leased = txn.ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        match (convert::code(status), leased) {
            (Code::LeaseNotFound, Some(lease)) => Error::LeaseNotFound { lease },
            _ => self.connection.error(status),
        }
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.feed.close();
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<GetResponse>> {
        async move {
            let request =
                m::RangeRequest { key: self.keys.etcd_key(key)?, revision: at.map_or(0, number), ..Default::default() };
            let answer = self.page(request, at).await?;
            let kv = answer.kvs.into_iter().next().map(|kv| self.keys.key_value(kv)).transpose()?;
            Ok(GetResponse { kv, revision: at.unwrap_or(revision_of(answer.header.as_ref())) })
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
            let (mut start, end) = self.keys.range(&keys)?;
            let mut all = RangeResponse { kvs: Vec::new(), revision: Revision::ZERO, more: false, count: 0 };
            if start >= end {
                all.revision = match at {
                    Some(at) => at,
                    None => self.latest().await?,
                };
                return Ok(all);
            }
            let mut at = at;
            loop {
                let left = if limit == 0 { PAGE } else { PAGE.min(limit - all.kvs.len()) };
                let request = m::RangeRequest {
                    key: start.clone(),
                    range_end: end.clone(),
                    limit: i64::try_from(left).unwrap_or(i64::MAX),
                    revision: at.map_or(0, number),
                    ..Default::default()
                };
                let page = self.page(request, at).await?;
                if all.revision == Revision::ZERO {
                    all.revision = at.unwrap_or(revision_of(page.header.as_ref()));
                    all.count = usize::try_from(page.count).unwrap_or_default();
                }
                at = Some(all.revision);
                let last = page.kvs.last().map(|kv| kv.key.clone());
                for kv in page.kvs {
                    all.kvs.push(self.keys.key_value(kv)?);
                }
                all.more = page.more;
                let full = limit > 0 && all.kvs.len() >= limit;
                match last {
                    Some(last) if page.more && !full => start = convert::behind(&last),
                    _ => return Ok(all),
                }
            }
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse>> {
        self.do_txn(txn).boxed()
    }

    fn watch(&self, prefix: &str, from: Option<Revision>) -> Watch {
        feed::watch(&self.feed, &self.connection, &self.keys, self.compacted(), prefix, from)
    }

    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<()>> {
        async move {
            let request = m::CompactionRequest { revision: number(at), physical: false };
            let done: Result<m::CompactionResponse, _> =
                self.connection.call("/etcdserverpb.KV/Compact", request, Repeat::IfNotSent).await;
            match done {
                Ok(_) => {
                    self.note_compacted(at);
                    Ok(())
                }
                Err(status) => Err(match convert::code(&status) {
                    Code::Compacted => Error::Compacted { requested: at, compacted: self.compacted_to(at).await },
                    Code::FutureRevision => Error::FutureRevision { requested: at, current: self.revision() },
                    _ => self.connection.error(&status),
                }),
            }
        }
        .boxed()
    }

    fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> BoxFuture<'_, Result<Lease>> {
        async move {
            if ttl < Duration::from_secs(1) {
                return Err(Error::InvalidArgument { what: "lease TTL is under a second".into(), key: None });
            }
            let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
            let request = m::LeaseGrantRequest { ttl: seconds, id: id.map_or(0, |id| id.0) };
            let granted: Result<m::LeaseGrantResponse, _> =
                self.connection.call("/etcdserverpb.Lease/LeaseGrant", request, Repeat::IfNotSent).await;
            match granted {
                Ok(granted) => Ok(lease(granted.id, granted.ttl)),
                Err(status) => Err(match (convert::code(&status), id) {
                    (Code::LeaseExists, Some(lease)) => Error::LeaseExists { lease },
                    _ => self.connection.error(&status),
                }),
            }
        }
        .boxed()
    }

    fn lease_keepalive(&self, id: LeaseId) -> BoxFuture<'_, Result<Lease>> {
        async move {
            let request = m::LeaseKeepAliveRequest { id: id.0 };
            let alive: m::LeaseKeepAliveResponse = self
                .connection
                .call_stream("/etcdserverpb.Lease/LeaseKeepAlive", request)
                .await
                .map_err(|status| self.connection.error(&status))?;
            // etcd's way to say that there is none.
            if alive.ttl <= 0 { Err(Error::LeaseNotFound { lease: id }) } else { Ok(lease(id.0, alive.ttl)) }
        }
        .boxed()
    }

    fn lease_revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<()>> {
        async move {
            let request = m::LeaseRevokeRequest { id: id.0 };
            let revoked: Result<m::LeaseRevokeResponse, _> =
                self.connection.call("/etcdserverpb.Lease/LeaseRevoke", request, Repeat::IfNotSent).await;
            match revoked {
                Ok(revoked) => self.acknowledged(revoked.header).await.map(drop),
                Err(status) => Err(match convert::code(&status) {
                    Code::LeaseNotFound => Error::LeaseNotFound { lease: id },
                    _ => self.connection.error(&status),
                }),
            }
        }
        .boxed()
    }

    fn revision(&self) -> Revision {
        self.feed.revision()
    }

    fn latest(&self) -> BoxFuture<'_, Result<Revision>> {
        self.latest.ask().boxed()
    }

    fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }
}

fn lease(id: i64, ttl: i64) -> Lease {
    Lease { id: LeaseId(id), ttl: Duration::from_secs(u64::try_from(ttl).unwrap_or_default()) }
}
