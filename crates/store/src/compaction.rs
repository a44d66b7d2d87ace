//! Compaction by time, as the upstream API server does it with etcd.

use std::{sync::Arc, time::Duration};

use crate::{Code, Error, Result, Revision, Store, Txn};

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

/// Like [`compact_periodically`], for a store that several servers share: in each period one of them does it, whoever
/// is first to write `key`. The others learn from it how far the store was. Upstream's algorithm.
pub async fn compact_together(store: Arc<dyn Store>, period: Duration, key: &str) {
    let mut turn = Turn::default();
    loop {
        tokio::time::sleep(period).await;
        match turn.take(&*store, key).await {
            Ok(()) => {}
            Err(error) if error.code() == Code::Compacted => {}
            Err(error) => tracing::warn!(%error, "cannot compact the store"),
        }
    }
}

/// What a server knows of the last period.
#[derive(Default)]
struct Turn {
    /// When the key was last written: whoever still finds it so is the first of this period.
    written: Revision,
    /// Where the store was then.
    then: Revision,
}

impl Turn {
    async fn take(&mut self, store: &dyn Store, key: &str) -> Result<(), Error> {
        let answer = store.txn(Txn::put_if(key, self.written, self.then.to_string(), None)).await?;
        let (first, then) = (answer.succeeded(), std::mem::replace(&mut self.then, answer.revision));
        self.written = match answer.single() {
            Ok(written) => written.kv.map_or(Revision::ZERO, |kv| kv.mod_revision),
            Err(found) => found.map_or(Revision::ZERO, |kv| kv.mod_revision),
        };
        if first && then > Revision::ZERO {
            store.compact(then).await?;
            tracing::debug!(revision = %then, "compacted the store");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    #[tokio::test]
    async fn of_several_servers_one_compacts() {
        let store = MemoryStore::new();
        let (mut one, mut two) = (Turn::default(), Turn::default());
        let mut compacted = Vec::new();
        for _ in 0..3 {
            for turn in [&mut one, &mut two] {
                store.txn(Txn::put("a", "1")).await.unwrap();
                turn.take(&store, "compacted").await.unwrap();
                compacted.push(store.compacted().0);
            }
        }
        // Revisions: 2 a, 3 key, 4 a; 5 a, 6 key, 7 a; 8 a, 9 key, 10 a.
        assert_eq!(compacted, [0, 0, 3, 3, 6, 6]);
        // The first one is gone: the other one goes on.
        two.take(&store, "compacted").await.unwrap();
        assert_eq!(store.compacted().0, 10);
    }

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
