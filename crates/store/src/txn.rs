//! Transactions: compares on mod revisions, then puts and deletes, all or nothing.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{Error, KeyValue, LeaseId, Result, Revision};

/// How many operations one transaction may hold; etcd's default.
pub const MAX_TXN_OPS: usize = 128;
/// How large a transaction's keys and values may be together; etcd's default request limit.
pub(crate) const MAX_TXN_BYTES: usize = 1536 * 1024;

/// If all of `compares` hold, all of `ops` are done at one new revision; otherwise nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold. Empty means "always".
    pub compares: Vec<Compare>,
    /// What to do then. A key may occur once.
    pub ops: Vec<Op>,
}

/// Holds when the key was last written at `mod_revision`; [`Revision::ZERO`]: when it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key to look at.
    pub key: Arc<str>,
    /// Its expected mod revision.
    pub mod_revision: Revision,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        /// The key.
        key: Arc<str>,
        /// Its new value.
        value: Bytes,
        /// Attach to this lease; `None` detaches from any.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; does nothing, and makes no revision, if it does not exist.
    Delete {
        /// The key.
        key: Arc<str>,
    },
}

impl Op {
    /// The key written.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

impl Txn {
    /// Writes `key` if its mod revision is still `expected` ([`Revision::ZERO`]: it must not exist).
    pub fn put_if(
        key: impl Into<Arc<str>>,
        expected: Revision,
        value: impl Into<Bytes>,
        lease: Option<LeaseId>,
    ) -> Txn {
        let key = key.into();
        Txn {
            compares: vec![Compare { key: key.clone(), mod_revision: expected }],
            ops: vec![Op::Put { key, value: value.into(), lease }],
        }
    }

    /// Creates `key`; fails its compare if it exists.
    pub fn create(key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Txn {
        Txn::put_if(key, Revision::ZERO, value, None)
    }

    /// Writes `key` whatever it is now.
    pub fn put(key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Txn {
        Txn { compares: Vec::new(), ops: vec![Op::Put { key: key.into(), value: value.into(), lease: None }] }
    }

    /// Deletes `key` if its mod revision is still `expected`.
    pub fn delete_if(key: impl Into<Arc<str>>, expected: Revision) -> Txn {
        let key = key.into();
        Txn { compares: vec![Compare { key: key.clone(), mod_revision: expected }], ops: vec![Op::Delete { key }] }
    }

    /// Deletes `key` whatever it is now.
    pub fn delete(key: impl Into<Arc<str>>) -> Txn {
        Txn { compares: Vec::new(), ops: vec![Op::Delete { key: key.into() }] }
    }

    /// Checks what can be checked without the store's state.
    pub(crate) fn validate(&self) -> Result<()> {
        for (what, size) in [("number of compares", self.compares.len()), ("number of operations", self.ops.len())] {
            if size > MAX_TXN_OPS {
                return Err(Error::TooLarge { what, size, limit: MAX_TXN_OPS, key: None });
            }
        }
        let mut seen = BTreeSet::new();
        let mut size = 0;
        for op in &self.ops {
            let key = op.key();
            if !seen.insert(key) {
                return Err(Error::InvalidArgument {
                    what: format!("duplicate key {key:?} given in txn request"),
                    key: Some(key.to_string()),
                });
            }
            size += key.len();
            if let Op::Put { value, .. } = op {
                size += value.len();
            }
            if size > MAX_TXN_BYTES {
                return Err(Error::TooLarge {
                    what: "size of keys and values",
                    size,
                    limit: MAX_TXN_BYTES,
                    key: Some(key.to_string()),
                });
            }
        }
        let compared = self.compares.iter().map(|compare| &compare.key);
        if let Some(key) = compared.chain(seen).find(|key| key.is_empty()) {
            return Err(Error::InvalidArgument { what: "key is not provided".into(), key: Some(key.to_string()) });
        }
        Ok(())
    }
}

/// The answer to [`Store::txn`](crate::Store::txn).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResponse {
    /// The revision that the transaction made, or the current one if it wrote nothing.
    pub revision: Revision,
    /// Whether the compares held, and what was found.
    pub outcome: TxnOutcome,
}

/// Whether a transaction was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All compares held; one result per operation, in order.
    Succeeded(Vec<OpResult>),
    /// A compare did not hold and nothing was done; the compared keys as they are, in order.
    Failed(Vec<Option<KeyValue>>),
}

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpResult {
    /// The key as it is now; `None` after a deletion.
    pub kv: Option<KeyValue>,
    /// The key as it was; `None` if it did not exist.
    pub prev: Option<KeyValue>,
}

impl TxnResponse {
    /// Whether the compares held.
    pub fn succeeded(&self) -> bool {
        matches!(self.outcome, TxnOutcome::Succeeded(_))
    }

    /// For a transaction with one compare and one operation: its result, or the key as it is.
    pub fn single(self) -> std::result::Result<OpResult, Option<KeyValue>> {
        match self.outcome {
            TxnOutcome::Succeeded(mut results) => Ok(results.pop().unwrap_or(OpResult { kv: None, prev: None })),
            TxnOutcome::Failed(mut current) => Err(current.pop().flatten()),
        }
    }
}
