//! What the embedded engine promises beyond the contract.

use std::{path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use skiff_store::{Code, Embedded, LeaseId, Op, Options, Store, Txn, embedded::sim::SimDisk};

use crate::seen::{Seen, parts, watch_until_failure, write};

fn open(path: &Path) -> Result<Embedded, skiff_store::Error> {
    Embedded::open(path, &Options::default())
}

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path).unwrap();
    let error = open(&path).err().unwrap();
    assert_eq!(error.code(), Code::Locked);
    let expected =
        format!("the store at {} is in use by another process (process {})", path.display(), std::process::id());
    assert_eq!(error.to_string(), expected);
    store.txn(Txn::put("/a", "1")).await.unwrap();
    store.close();
    assert_eq!(store.txn(Txn::put("/a", "2")).await.unwrap_err().code(), Code::Unavailable);
    drop(store);
    assert!(open(&path).unwrap().get("/a", None).await.unwrap().kv.is_some());
}

#[tokio::test]
async fn only_the_owner_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(open(&path).unwrap());
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn closing_ends_watches_after_what_is_queued() {
    let store = Embedded::open_on(Box::new(SimDisk::new()), &Options::default()).unwrap();
    let mut watch = store.watch("/", None);
    store.txn(Txn::put("/a", "1")).await.unwrap();
    drop(store);
    assert_eq!(watch.recv().await.unwrap().unwrap().events.len(), 1);
    assert_eq!(watch.recv().await.unwrap(), None);
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_does_not_hold_up_writers() {
    let options = Options { watch_budget_bytes: 100_000, ..Options::default() };
    let store = Embedded::open_on(Box::new(SimDisk::new()), &options).unwrap();
    let mut slow = store.watch("/", None);
    let mut elsewhere = store.watch("/elsewhere/", None);
    for number in 0..100 {
        store.txn(Txn::put(format!("/{number}"), vec![0; 10_000])).await.unwrap();
    }
    let mut last = store.revision();
    let error = loop {
        match slow.recv().await {
            Ok(batch) => last = batch.unwrap().revision,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::SlowWatcher);
    assert_eq!(error.revision(), Some(last), "it says from where to go on");
    let mut resumed = store.watch("/", Some(last.next()));
    let next = resumed.recv().await.unwrap().unwrap();
    assert_eq!(next.events[0].revision(), last.next());
    store.txn(Txn::put("/elsewhere/a", "1")).await.unwrap();
    assert_eq!(elsewhere.recv().await.unwrap().unwrap().events.len(), 1);
}

#[tokio::test]
async fn compaction_gives_space_back() {
    let disk = SimDisk::new();
    let store = Embedded::open_on(Box::new(disk.clone()), &Options::default()).unwrap();
    let mut sizes = Vec::new();
    for round in 0..8 {
        for number in 0..300 {
            let value = vec![round; 4000];
            store.txn(Txn::put(format!("/{}", number % 10), value)).await.unwrap();
        }
        store.compact(store.revision()).await.unwrap();
        // Deleting goes on in the background; what it has to do is over when a reader finds nothing more.
        tokio::time::sleep(Duration::from_millis(100)).await;
        sizes.push(disk.size());
    }
    assert!(sizes[7] <= sizes[2], "{sizes:?}");
}

#[tokio::test]
async fn leases_survive_a_restart_and_end_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path).unwrap();
    let ids = [2, 3600].map(|seconds| (LeaseId(seconds), Duration::from_secs(seconds as u64)));
    for (id, ttl) in ids {
        store.lease_grant(ttl, Some(id)).await.unwrap();
        let op = Op::Put { key: format!("/{id}").into(), value: "x".into(), lease: Some(id) };
        store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap();
    }
    drop(store);
    let store = open(&path).unwrap();
    let mut watch = store.watch("/", None);
    let batch = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.expect("it ends in time");
    assert_eq!(&*batch.unwrap().unwrap().events[0].kv.key, "/2");
    store.lease_revoke(LeaseId(3600)).await.unwrap();
    assert_eq!(store.range("".."", None, 0).await.unwrap().count, 0);
}

/// Accesses fail by chance, also those of opening the file again. What is acknowledged stays, and one
/// watch goes through all of it without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flaky_disk() {
    for seed in 0..5 {
        let disk = SimDisk::new();
        let store: Arc<dyn Store> = Arc::new(Embedded::open_on(Box::new(disk.clone()), &Options::default()).unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watcher = tokio::spawn(watch_until_failure(store.clone(), seen.clone()));
        disk.set_flaky(Some((5, StdRng::seed_from_u64(seed))));
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (store, seen) = (store.clone(), seen.clone());
                tokio::spawn(async move {
                    let mut failures = 0;
                    for number in 0..400 {
                        let (txn, writes) = write(writer, number);
                        match store.txn(txn).await {
                            Ok(answer) => seen.lock().acknowledge(&answer, writes),
                            Err(error) => {
                                assert_eq!(error.code(), Code::Unavailable, "{error}");
                                failures += 1;
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                        }
                        // Whether this can be read just now does not matter.
                        let _ = store.get("/0/0", None).await;
                    }
                    failures
                })
            })
            .collect();
        let mut failures = 0;
        for writer in writers {
            failures += writer.await.unwrap();
        }
        assert!(failures > 0, "nothing failed");
        disk.set_flaky(None);
        // What was in doubt is known when the next write is done.
        while store.txn(Txn::put("/last", "x")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let last = store.revision();
        while seen.lock().resume() <= last {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut all = std::mem::take(&mut *seen.lock());
        // From the log, the same as was watched live.
        let mut again = Seen::default();
        again.check(&*store).await.unwrap();
        assert_eq!(again.watched, all.watched);
        all.check(&*store).await.unwrap();
        drop(store);
        watcher.await.unwrap().unwrap();
        let store = Embedded::open_on(Box::new(disk), &Options::default()).unwrap();
        all.check(&store).await.unwrap();
    }
}

#[tokio::test]
async fn events_of_one_transaction_come_together() {
    let store = Embedded::open_on(Box::new(SimDisk::new()), &Options::default()).unwrap();
    let first = store.revision().next();
    let mut live = store.watch("/", None);
    for round in 0..40 {
        let ops = (0..10).map(|number| Op::Put {
            key: format!("/{round}/{number}").into(),
            value: vec![0; 5000].into(),
            lease: None,
        });
        store.txn(Txn { compares: Vec::new(), ops: ops.collect() }).await.unwrap();
    }
    let mut past = store.watch("/", Some(first));
    for watch in [&mut live, &mut past] {
        let mut count = 0;
        while count < 400 {
            let batch = watch.recv().await.unwrap().unwrap();
            count += batch.events.len();
            assert!(batch.events.len().is_multiple_of(10), "a revision was split");
            assert_eq!(parts(batch.events.last().unwrap()).0, batch.revision.0);
        }
    }
}
