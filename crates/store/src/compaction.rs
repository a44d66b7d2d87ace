//! Compaction by time, as the upstream API server does it with etcd.

use std::{sync::Arc, time::Duration};

use crate::{Code, Revision, Store};

/// How long history is kept by default, at least: upstream's `--etcd-compaction-interval`.
pub const DEFAULT_COMPACTION_PERIOD: Duration = Duration::from_secs(5 * 60);

/// Every `period` forgets the history up to where the store was one `period` before, so that each
/// revision can be watched from for at least that long. Runs until it is dropped.
pub async fn compact_periodically(store: Arc<dyn Store>, period: Duration) {
    let mut then = Revision::ZERO;
    loop {
        tokio::time::sleep(period).await;
        let now = store.revision();
        if then > store.compacted() {
            match store.compact(then).await {
                // Somebody else did it.
                Err(error) if error.code() == Code::Compacted => {}
                Err(error) => tracing::warn!(%error, "cannot compact the store"),
                Ok(()) => tracing::debug!(revision = %then, "compacted the store"),
            }
        }
        then = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Txn, memory::MemoryStore};

    #[tokio::test(start_paused = true)]
    async fn history_lives_for_one_to_two_periods() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let period = Duration::from_secs(300);
        let compacting = tokio::spawn(compact_periodically(store.clone(), period));
        let second = Duration::from_secs(1);
        tokio::time::sleep(second).await;
        let first = store.txn(Txn::put("a", "1")).await.unwrap().revision;
        tokio::time::sleep(period).await;
        assert_eq!(store.compacted(), Revision::ZERO);
        store.txn(Txn::put("a", "2")).await.unwrap();
        tokio::time::sleep(period).await;
        assert_eq!(store.compacted(), first);
        tokio::time::sleep(period * 3).await;
        assert_eq!(store.compacted(), store.revision());
        compacting.abort();
    }
}
