//! A full disk: writes fail, nothing acknowledged is lost, reads go on, and writes succeed again, without
//! a restart, as soon as there is space.

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use skiff_store::{Code, Embedded, Error, Options, Store, Txn, embedded::sim::SimDisk};

use crate::seen::{Seen, parts};

/// Fills the store until it cannot take more, makes space with `relieve`, and goes on.
async fn fill(open: impl Fn() -> Result<Embedded, Error>, relieve: impl FnOnce()) {
    let mut seen = Seen::default();
    let store: Arc<dyn Store> = Arc::new(open().unwrap());
    let mut watch = store.watch("/", None);
    let mut number = 0_usize;
    let mut put = async |seen: &mut Seen| {
        number += 1;
        let (key, value) = (format!("/{number}"), format!("{number}").repeat(3000));
        let answer = store.txn(Txn::put(key.as_str(), value.clone())).await?;
        seen.acknowledged.insert(answer.revision.0, vec![(key, Some(value))]);
        Ok::<_, Error>(())
    };
    let error = loop {
        if let Err(error) = put(&mut seen).await {
            break error;
        }
    };
    assert_eq!(error.code(), Code::NoSpace, "{error}");
    let first_key = "/1";
    for _ in 0..5 {
        assert!(store.get(first_key, None).await.unwrap().kv.is_some(), "reads go on");
        // A write may yet fit in somewhere; if not, it says why.
        if let Err(error) = put(&mut seen).await {
            assert_eq!(error.code(), Code::NoSpace, "{error}");
        }
    }
    relieve();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut successes = 0;
    while successes < 20 {
        match put(&mut seen).await {
            Ok(()) => successes += 1,
            Err(error) => {
                assert!(Instant::now() < deadline, "still failing: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    while seen.resume() <= store.revision() {
        for event in watch.recv().await.unwrap().unwrap().events {
            let (revision, key, value) = parts(&event);
            seen.watch(revision, key, value).unwrap();
        }
    }
    seen.check(&*store).await.unwrap();
    drop(store);
    let store = open().unwrap();
    seen.check(&store).await.unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_simulated_disk_runs_full() {
    for capacity in [2_000_000, 3_000_000, 6_000_000] {
        let disk = SimDisk::new();
        disk.set_capacity(Some(capacity));
        let open = || Embedded::open_on(Box::new(disk.clone()), &Options::default());
        fill(open, || disk.set_capacity(None)).await;
    }
}

/// Set in the process that has the small file system.
const CHILD: &str = "SKIFF_TEST_SMALL_DISK";

/// On a tmpfs of 8 MB, in a mount namespace of its own that ends with the process.
#[test]
fn a_file_system_runs_full() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=8m,mode=700 none \"$1\" && exec \"$2\" --exact full::on_the_small_disk";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .expect("unshare is part of every Linux system");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
async fn on_the_small_disk() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 5_000_000]).unwrap();
    let open = || Embedded::open(dir.join("store"), &Options::default());
    fill(open, || std::fs::remove_file(&ballast).unwrap()).await;
}
