//! Reading and writing keys.

use std::cmp::Ordering;

use bytes::Bytes;
use skiff_store::{KeyValue, Revision, Store as _};
use tonic::{Request, Response, Status};

use crate::{Etcd, messages as m, number, services::kv::k_v_server::KV as Kv, status};

/// The keys that a request means; the store's keys are text.
pub(crate) struct Keys {
    pub(crate) start: String,
    /// `None`: only `start`. Empty: no end.
    pub(crate) end: Option<String>,
}

impl Keys {
    pub(crate) fn parse(key: &Bytes, range_end: &Bytes) -> Result<Keys, Status> {
        let text = |bytes: &Bytes| {
            let text = std::str::from_utf8(bytes);
            text.map(str::to_owned).map_err(|_| Status::invalid_argument("etcdserver: keys of this store are UTF-8"))
        };
        // A zero byte stands for the first key and for no end.
        let all = |bytes: &Bytes| bytes.as_ref() == [0];
        if key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        let start = if all(key) { String::new() } else { text(key)? };
        let end = match range_end {
            none if none.is_empty() => None,
            open if all(open) => Some(String::new()),
            end => Some(text(end)?),
        };
        Ok(Keys { start, end })
    }

    pub(crate) fn contain(&self, key: &str) -> bool {
        match &self.end {
            None => key == self.start,
            Some(end) => key >= self.start.as_str() && (end.is_empty() || key < end.as_str()),
        }
    }

    /// What all of them begin with.
    pub(crate) fn prefix(&self) -> &str {
        let Some(end) = &self.end else { return &self.start };
        if *end == skiff_store::prefix_end(&self.start) {
            return &self.start;
        }
        let common = self.start.char_indices().zip(end.chars()).find(|((_, a), b)| a != b).map(|((i, _), _)| i);
        &self.start[..common.unwrap_or(self.start.len().min(end.len()))]
    }
}

pub(crate) fn to_message(kv: &KeyValue) -> m::KeyValue {
    m::KeyValue {
        key: Bytes::copy_from_slice(kv.key.as_bytes()),
        create_revision: number(kv.create_revision),
        mod_revision: number(kv.mod_revision),
        version: i64::try_from(kv.version).unwrap_or(i64::MAX),
        value: kv.value.clone(),
        lease: kv.lease.map_or(0, |l| l.0),
    }
}

fn at(revision: i64) -> Option<Revision> {
    u64::try_from(revision).ok().filter(|r| *r > 0).map(Revision)
}

impl Etcd {
    pub(crate) async fn range_of(&self, request: &m::RangeRequest) -> Result<m::RangeResponse, Status> {
        let keys = Keys::parse(&request.key, &request.range_end)?;
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let ordered = request.sort_order != 0 && !(request.sort_order == 1 && request.sort_target == 0);
        let bounds = [
            (request.min_mod_revision, request.max_mod_revision),
            (request.min_create_revision, request.max_create_revision),
        ];
        let filtered = bounds != [(0, 0); 2];
        // What is cut off must be cut off last.
        let store_limit = if ordered || filtered {
            0
        } else if request.count_only {
            1
        } else {
            limit
        };
        let (mut kvs, revision, mut more, count) = match &keys.end {
            None => {
                let got = self.store.get(&keys.start, at(request.revision)).await.map_err(|e| status(&e))?;
                let count = usize::from(got.kv.is_some());
                (got.kv.into_iter().collect::<Vec<_>>(), got.revision, false, count)
            }
            Some(end) => {
                let range = keys.start.as_str()..end.as_str();
                let got = self.store.range(range, at(request.revision), store_limit).await.map_err(|e| status(&e))?;
                (got.kvs, got.revision, got.more, got.count)
            }
        };
        if filtered {
            let within = |value: Revision, (min, max): (i64, i64)| {
                let value = number(value);
                (min == 0 || value >= min) && (max == 0 || value <= max)
            };
            kvs.retain(|kv| within(kv.mod_revision, bounds[0]) && within(kv.create_revision, bounds[1]));
        }
        if ordered {
            kvs.sort_by(|a, b| {
                let order = match request.sort_target {
                    1 => a.version.cmp(&b.version),
                    2 => a.create_revision.cmp(&b.create_revision),
                    3 => a.mod_revision.cmp(&b.mod_revision),
                    4 => a.value.cmp(&b.value),
                    _ => Ordering::Equal,
                };
                order.then_with(|| a.key.cmp(&b.key))
            });
            if request.sort_order == 2 {
                kvs.reverse();
            }
        }
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            more = true;
        }
        let mut kvs: Vec<m::KeyValue> =
            if request.count_only { Vec::new() } else { kvs.iter().map(to_message).collect() };
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(m::RangeResponse {
            header: self.header_at(revision.max(self.store.revision())),
            kvs,
            more: more && !request.count_only,
            count: i64::try_from(count).unwrap_or(i64::MAX),
        })
    }

    /// A transaction of one write.
    async fn single(&self, write: m::request_op::Request) -> Result<m::response_op::Response, Status> {
        let success = vec![m::RequestOp { request: Some(write) }];
        let done = self.transaction(&m::TxnRequest { success, ..Default::default() }).await?;
        let answer = done.responses.into_iter().next().and_then(|r| r.response);
        answer.ok_or_else(|| Status::internal("etcdserver: a write without an answer"))
    }
}

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(&self, request: Request<m::RangeRequest>) -> Result<Response<m::RangeResponse>, Status> {
        self.range_of(request.get_ref()).await.map(Response::new)
    }

    async fn put(&self, request: Request<m::PutRequest>) -> Result<Response<m::PutResponse>, Status> {
        match self.single(m::request_op::Request::Put(request.into_inner())).await? {
            m::response_op::Response::Put(put) => Ok(Response::new(put)),
            _ => Err(Status::internal("etcdserver: an answer to something else")),
        }
    }

    async fn delete_range(
        &self,
        request: Request<m::DeleteRangeRequest>,
    ) -> Result<Response<m::DeleteRangeResponse>, Status> {
        match self.single(m::request_op::Request::DeleteRange(request.into_inner())).await? {
            m::response_op::Response::DeleteRange(deleted) => Ok(Response::new(deleted)),
            _ => Err(Status::internal("etcdserver: an answer to something else")),
        }
    }

    async fn txn(&self, request: Request<m::TxnRequest>) -> Result<Response<m::TxnResponse>, Status> {
        self.transaction(request.get_ref()).await.map(Response::new)
    }

    async fn compact(&self, request: Request<m::CompactionRequest>) -> Result<Response<m::CompactionResponse>, Status> {
        let revision = at(request.get_ref().revision).unwrap_or(Revision::ZERO);
        self.store.compact(revision).await.map_err(|e| status(&e))?;
        Ok(Response::new(m::CompactionResponse { header: self.header() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_keys() {
        let keys = |a: &'static [u8], b: &'static [u8]| Keys::parse(&Bytes::from_static(a), &Bytes::from_static(b));
        let one = keys(b"/a", b"").unwrap();
        assert!(one.contain("/a") && !one.contain("/a/b"));
        let under = keys(b"/registry/", b"/registry0").unwrap();
        assert!(under.contain("/registry/x") && !under.contain("/x"));
        assert_eq!(under.prefix(), "/registry/");
        let all = keys(&[0], &[0]).unwrap();
        assert!(all.contain("") && all.contain("zzz"));
        assert_eq!(all.prefix(), "");
        assert_eq!(keys(b"/ab", b"/ad").unwrap().prefix(), "/a");
        assert!(keys(b"", b"").is_err());
    }
}
