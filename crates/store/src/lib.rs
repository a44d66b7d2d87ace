//! The store: etcd's semantics, on an embedded engine or in a real etcd.
//!
//! One strictly increasing [`Revision`] for the whole store, compare-and-swap on a key's last
//! revision, reads at a past revision, watches from a revision, compaction and leases. The API server
//! is the only user; it sees an `Arc<dyn Store>` and does not know which engine is behind it.
//!
//! `docs/store.md` describes the file format, the guarantees, and the test that shows each.

mod compaction;
pub mod embedded;
mod encrypted;
mod error;
pub mod etcd;
mod kv;
mod store;
mod txn;
mod watch;

#[cfg(any(test, feature = "testing"))]
pub mod contract;
#[cfg(any(test, feature = "testing"))]
pub mod memory;

pub use compaction::{DEFAULT_COMPACTION_PERIOD, compact_periodically, compact_together};
pub use embedded::{Embedded, Options};
pub use encrypted::{Encrypted, KeyError, Provider, Rule};
pub use error::{Code, Error, Result};
pub use etcd::EtcdStore;
pub use kv::{Event, EventKind, GetResponse, KeyValue, Lease, LeaseId, RangeResponse, Revision};
pub use store::{Store, prefix_end};
pub use txn::{Compare, MAX_TXN_OPS, Op, OpResult, Txn, TxnOutcome, TxnResponse};
pub use watch::{Batch, DEFAULT_WATCH_BUDGET_BYTES, Progress, Watch, WatchSender};
