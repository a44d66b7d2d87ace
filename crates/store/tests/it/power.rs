//! Power cuts: unsynced sectors of a simulated disk are dropped, kept or scrambled, in the midst of
//! concurrent writes, again and again on the same disk.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skiff_store::{Embedded, Options, Revision, Store, embedded::sim::SimDisk};

use crate::seen::{Seen, watch_until_failure, write_until_failure};

/// Cuts the power so many times. Returns what was found wrong.
async fn cut(disk: &SimDisk, rounds: u32, seed: u64) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let seen = Arc::new(Mutex::new(Seen::default()));
    for round in 0..rounds {
        let opened = Embedded::open_on(Box::new(disk.plug()), &Options::default());
        let store: Arc<dyn Store> = Arc::new(opened.map_err(|error| format!("round {round}: {error}"))?);
        let mut all = std::mem::take(&mut *seen.lock());
        all.check(&*store).await.map_err(|error| format!("round {round}: {error}"))?;
        *seen.lock() = all;
        let watcher = tokio::spawn(watch_until_failure(store.clone(), seen.clone()));
        let writers: Vec<_> = (0..rng.random_range(1..8))
            .map(|writer| tokio::spawn(write_until_failure(store.clone(), writer, seen.clone())))
            .collect();
        let until = disk.syncs() + rng.random_range(1..40);
        while disk.syncs() < until {
            tokio::time::sleep(Duration::from_micros(rng.random_range(1..300))).await;
        }
        if round % 5 == 4 {
            // Far enough behind that nobody's resumption is in danger.
            let at = Revision(seen.lock().resume().0.saturating_sub(1));
            let _ = store.compact(at).await;
        }
        disk.cut_power(&mut rng);
        for writer in writers {
            writer.await.map_err(|error| error.to_string())?;
        }
        drop(store);
        watcher.await.map_err(|error| error.to_string())??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    for seed in 0..10 {
        let result = cut(&SimDisk::new(), 40, seed).await;
        assert_eq!(result, Ok(()), "seed {seed}");
    }
}

/// Shows that the test above can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_sync_is_found_out() {
    let disk = SimDisk::new();
    cut(&disk, 1, 1).await.unwrap();
    disk.lie();
    let result = cut(&disk, 10, 2).await;
    assert!(result.is_err());
}
