//! Transactions. The store compares mod revisions only, so everything else is compared here, on what was read, and the
//! write is then made to depend on nothing of that having changed; if it has, all is done again.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use skiff_store::{Compare, KeyValue, LeaseId, MAX_TXN_OPS, Op, Revision, Store as _, Txn, TxnOutcome};
use tonic::Status;

use crate::{
    Etcd,
    kv::{Keys, to_message},
    messages::{self as m, compare::Target, request_op, response_op},
    status,
};

/// How often a transaction is tried that others overtake.
const TRIES: usize = 20;

/// What was read: every key that the outcome depends on.
type Seen = BTreeMap<String, Option<KeyValue>>;

fn holds(compare: &m::Compare, kv: Option<&KeyValue>) -> bool {
    let revision = |r: Option<Revision>| r.map_or(0, crate::number);
    let order = match &compare.target_union {
        Some(Target::Version(wanted)) => kv.map_or(0, |k| i64::try_from(k.version).unwrap_or(i64::MAX)).cmp(wanted),
        Some(Target::CreateRevision(wanted)) => revision(kv.map(|k| k.create_revision)).cmp(wanted),
        Some(Target::ModRevision(wanted)) => revision(kv.map(|k| k.mod_revision)).cmp(wanted),
        Some(Target::Lease(wanted)) => kv.and_then(|k| k.lease).map_or(0, |l| l.0).cmp(wanted),
        Some(Target::Value(wanted)) => match kv {
            // As in etcd: the value of what does not exist is like nothing.
            None => return false,
            Some(kv) => kv.value.cmp(wanted),
        },
        None => revision(kv.map(|k| k.mod_revision)).cmp(&0),
    };
    match compare.result {
        0 => order.is_eq(),
        1 => order.is_gt(),
        2 => order.is_lt(),
        _ => order.is_ne(),
    }
}

impl Etcd {
    pub(crate) async fn transaction(&self, request: &m::TxnRequest) -> Result<m::TxnResponse, Status> {
        for _ in 0..TRIES {
            if let Some(done) = self.try_transaction(request).await? {
                return Ok(done);
            }
        }
        Err(Status::unavailable("etcdserver: too many concurrent writes of the same keys"))
    }

    async fn see<'a>(&self, seen: &'a mut Seen, key: &str) -> Result<Option<&'a KeyValue>, Status> {
        if !seen.contains_key(key) {
            let got = self.store.get(key, None).await.map_err(|e| status(&e))?;
            seen.insert(key.to_owned(), got.kv);
        }
        Ok(seen.get(key).and_then(Option::as_ref))
    }

    /// `None`: somebody was faster.
    async fn try_transaction(&self, request: &m::TxnRequest) -> Result<Option<m::TxnResponse>, Status> {
        let mut seen = Seen::new();
        let mut succeeded = true;
        for compare in &request.compare {
            if !compare.range_end.is_empty() {
                return Err(Status::unimplemented("etcdserver: compares of ranges are not served"));
            }
            let keys = Keys::parse(&compare.key, &Bytes::new())?;
            succeeded &= holds(compare, self.see(&mut seen, &keys.start).await?);
        }
        let operations = if succeeded { &request.success } else { &request.failure };
        let mut ops: Vec<Op> = Vec::new();
        let mut responses = Vec::new();
        for operation in operations {
            let answer = match &operation.request {
                Some(request_op::Request::Range(range)) => response_op::Response::Range(self.range_of(range).await?),
                Some(request_op::Request::Put(put)) => self.plan_put(&mut seen, &mut ops, put).await?,
                Some(request_op::Request::DeleteRange(delete)) => self.plan_delete(&mut seen, &mut ops, delete).await?,
                Some(request_op::Request::Txn(_)) => {
                    return Err(Status::unimplemented("etcdserver: transactions within transactions are not served"));
                }
                None => return Err(Status::invalid_argument("etcdserver: an operation without a request")),
            };
            responses.push(m::ResponseOp { response: Some(answer) });
        }
        if ops.len() > MAX_TXN_OPS || seen.len() > MAX_TXN_OPS {
            return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
        }
        let mut revision = self.store.revision();
        if !ops.is_empty() {
            let compares = seen.iter().map(|(key, kv)| Compare {
                key: Arc::from(key.as_str()),
                mod_revision: kv.as_ref().map_or(Revision::ZERO, |kv| kv.mod_revision),
            });
            let txn = Txn { compares: compares.collect(), ops };
            let done = self.store.txn(txn).await.map_err(|e| status(&e))?;
            if matches!(done.outcome, TxnOutcome::Failed(_)) {
                return Ok(None);
            }
            revision = done.revision;
        }
        let header = self.header_at(revision);
        for response in &mut responses {
            match &mut response.response {
                Some(response_op::Response::Put(put)) => put.header = header,
                Some(response_op::Response::DeleteRange(delete)) => delete.header = header,
                _ => {}
            }
        }
        Ok(Some(m::TxnResponse { header, succeeded, responses }))
    }

    async fn plan_put(
        &self,
        seen: &mut Seen,
        ops: &mut Vec<Op>,
        put: &m::PutRequest,
    ) -> Result<response_op::Response, Status> {
        let keys = Keys::parse(&put.key, &Bytes::new())?;
        let mut prev_kv = None;
        let (mut value, mut lease) = (put.value.clone(), (put.lease != 0).then_some(LeaseId(put.lease)));
        if put.prev_kv || put.ignore_value || put.ignore_lease {
            let before = self.see(seen, &keys.start).await?;
            if (put.ignore_value || put.ignore_lease) && before.is_none() {
                return Err(Status::invalid_argument("etcdserver: key not found"));
            }
            if put.ignore_value {
                value = before.map(|kv| kv.value.clone()).unwrap_or_default();
            }
            if put.ignore_lease {
                lease = before.and_then(|kv| kv.lease);
            }
            prev_kv = before.filter(|_| put.prev_kv).map(to_message);
        }
        ops.push(Op::Put { key: keys.start.into(), value, lease });
        Ok(response_op::Response::Put(m::PutResponse { header: None, prev_kv }))
    }

    async fn plan_delete(
        &self,
        seen: &mut Seen,
        ops: &mut Vec<Op>,
        delete: &m::DeleteRangeRequest,
    ) -> Result<response_op::Response, Status> {
        let keys = Keys::parse(&delete.key, &delete.range_end)?;
        let found = match &keys.end {
            None => self.see(seen, &keys.start).await?.cloned().into_iter().collect(),
            Some(end) => {
                let limit = MAX_TXN_OPS + 1;
                let range = self.store.range(keys.start.as_str()..end.as_str(), None, limit).await;
                range.map_err(|e| status(&e))?.kvs
            }
        };
        for kv in &found {
            seen.insert(kv.key.to_string(), Some(kv.clone()));
            ops.push(Op::Delete { key: kv.key.clone() });
        }
        Ok(response_op::Response::DeleteRange(m::DeleteRangeResponse {
            header: None,
            deleted: i64::try_from(found.len()).unwrap_or(i64::MAX),
            prev_kvs: if delete.prev_kv { found.iter().map(to_message).collect() } else { Vec::new() },
        }))
    }
}
