//! The interface that every engine implements.

use std::{ops::Range, time::Duration};

use futures::future::BoxFuture;

use crate::{GetResponse, Lease, LeaseId, RangeResponse, Result, Revision, Txn, TxnResponse, Watch};

/// A key-value store with etcd's semantics, used as `Arc<dyn Store>`.
///
/// Guarantees:
/// - A write is durable before it is acknowledged. One that failed with an error other than
///   [`Error::Unavailable`](crate::Error::Unavailable) did not happen; after that one it may have.
/// - Transactions are atomic and strictly serialised; their order is that of their revisions.
/// - Reads without a revision see every write acknowledged before the read began.
/// - By the time a write is acknowledged its event has been queued to every matching watcher.
/// - Watchers get every event once, in revision order, or an error: never a silent gap.
pub trait Store: Send + Sync + 'static {
    /// Reads one key, now or at a revision.
    ///
    /// Errors: `Compacted`, `FutureRevision`.
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<GetResponse>>;

    /// Reads the keys from `keys.start` up to but without `keys.end`, all at one revision; at most
    /// `limit` of them, 0 meaning all. [`prefix_end`] gives the end for a prefix.
    ///
    /// Errors: `Compacted`, `FutureRevision`.
    fn range<'a>(
        &'a self,
        keys: Range<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<RangeResponse>>;

    /// Does a transaction. A failed compare is an `Ok` with
    /// [`TxnOutcome::Failed`](crate::TxnOutcome::Failed).
    ///
    /// Dropping the future does not undo a transaction that was already handed to the engine.
    ///
    /// Errors: `InvalidArgument`, `TooLarge`, `LeaseNotFound`, `NoSpace`, `Unavailable`, `Corrupt`.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse>>;

    /// Watches all keys that start with `prefix`, from the revision `from` on (inclusive; to continue
    /// after a list: its revision's [`next`](Revision::next)), or from now on. A revision that is not
    /// reached yet is waited for. A compacted one is reported by [`Watch::recv`].
    fn watch(&self, prefix: &str, from: Option<Revision>) -> Watch;

    /// Forgets the history before `at`: reads at earlier revisions and watches from `at` or earlier
    /// fail from now on. Returns when this is recorded; space is given back in the background.
    ///
    /// Errors: `Compacted` if `at` was compacted before, `FutureRevision`.
    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<()>>;

    /// Grants a lease, of the given name or a new one.
    ///
    /// Errors: `LeaseExists`, `InvalidArgument` for a TTL under a second.
    fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> BoxFuture<'_, Result<Lease>>;

    /// Starts a lease's time anew.
    ///
    /// Errors: `LeaseNotFound`.
    fn lease_keepalive(&self, id: LeaseId) -> BoxFuture<'_, Result<Lease>>;

    /// Ends a lease and deletes its keys, at one revision.
    ///
    /// Errors: `LeaseNotFound`.
    fn lease_revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<()>>;

    /// How far this store is known here: the events of everything up to this revision have been queued to every
    /// matching watcher. Not less than the revision of any write that was acknowledged here; when others write to the
    /// same store too it may be behind their last one, see [`latest`](Store::latest). Cheap.
    fn revision(&self) -> Revision;

    /// Waits until everything that was acknowledged to anybody before this call is known here, which is then at least
    /// at the revision returned: what [`revision`](Store::revision) says of a store that nobody else writes to.
    ///
    /// Errors: `Unavailable`.
    fn latest(&self) -> BoxFuture<'_, Result<Revision>>;

    /// The revision of the last compaction that is known here; [`Revision::ZERO`] if there was none. Cheap.
    fn compacted(&self) -> Revision;
}

/// The end of the range of all keys that start with `prefix`: the smallest string greater than all of
/// them. Empty for an empty prefix, which [`Store::range`] takes as "no end".
pub fn prefix_end(prefix: &str) -> String {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // UTF-8 sorts as its code points do, so the next code point (stepping over the gap of the
        // surrogates) gives the next string.
        let next = match last {
            char::MAX => continue,
            '\u{d7ff}' => '\u{e000}',
            other => char::from_u32(other as u32 + 1).unwrap_or(char::MAX),
        };
        chars.push(next);
        break;
    }
    chars.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn prefix_end_is_the_next_string_that_is_no_match() {
        assert_eq!(prefix_end("/registry/pods/"), "/registry/pods0");
        assert_eq!(prefix_end("a\u{10ffff}"), "b");
        assert_eq!(prefix_end("\u{d7ff}"), "\u{e000}");
        assert_eq!(prefix_end(""), "");
    }
}
