//! Snapshots: saving while others write, restoring, and refusing what is not whole.

use std::{path::Path, sync::Arc, time::Duration};

use skiff_store::{
    Code, Embedded, Op, Options, Revision, Store, Txn,
    embedded::snapshot::{inspect, restore},
};

fn open(path: &Path) -> Arc<Embedded> {
    Arc::new(Embedded::open(path, &Options::default()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_one_revision_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let store = open(&file("store"));
    let lease = store.lease_grant(Duration::from_secs(3600), None).await.unwrap().id;
    let op = Op::Put { key: "/leased".into(), value: "x".into(), lease: Some(lease) };
    store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap();
    // The two keys of each pair are always equal, so a snapshot that mixes revisions would be noticed.
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0..2000_u32 {
                let pair = ["a", "b"].map(|side| Op::Put {
                    key: format!("/pair/{}/{side}", number % 50).into(),
                    value: number.to_string().into(),
                    lease: None,
                });
                store.txn(Txn { compares: Vec::new(), ops: pair.into() }).await.unwrap();
                if number == 1000 {
                    store.compact(store.revision()).await.unwrap();
                }
            }
        }
    });
    while store.revision() < Revision(500) {
        tokio::task::yield_now().await;
    }
    let mut infos = Vec::new();
    for number in 0..3 {
        infos.push(store.save_snapshot(file(&format!("snapshot-{number}"))).await.unwrap());
    }
    writer.await.unwrap();
    let error = store.save_snapshot(file("snapshot-0")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "an existing file is not overwritten");
    for (number, info) in infos.iter().enumerate() {
        assert_eq!(*info, inspect(file(&format!("snapshot-{number}"))).unwrap());
        let path = file(&format!("restored-{number}"));
        restore(file(&format!("snapshot-{number}")), &path, 1_000_000).unwrap();
        let restored = open(&path);
        let now = Revision(info.revision.0 + 1_000_000);
        assert_eq!((restored.revision(), restored.compacted()), (now, now));
        let all = restored.range("".."", None, 0).await.unwrap();
        assert_eq!(all.count as u64, info.keys);
        let pairs = restored.range("/pair/".."/pair0", None, 0).await.unwrap().kvs;
        for pair in pairs.chunks(2) {
            assert_eq!((&pair[0].value, pair[0].mod_revision), (&pair[1].value, pair[1].mod_revision));
            assert!(pair[0].mod_revision <= info.revision);
        }
        // Whoever saw the lost future must list again.
        let error = restored.watch("/", Some(info.revision.next())).recv().await.unwrap_err();
        assert_eq!(error.code(), Code::Compacted);
        assert_eq!(restored.txn(Txn::put("/new", "x")).await.unwrap().revision, now.next());
        restored.lease_revoke(lease).await.unwrap();
        assert_eq!(restored.get("/leased", None).await.unwrap().kv, None);
        drop(restored);
        assert_eq!(open(&path).revision(), Revision(now.0 + 2));
    }
    let error = restore(file("snapshot-0"), file("restored-0"), 0).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "an existing store is not overwritten");
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let store = open(&file("store"));
    for number in 0..20 {
        store.txn(Txn::put(format!("/{number}"), "value")).await.unwrap();
    }
    store.save_snapshot(file("good")).await.unwrap();
    let good = std::fs::read(file("good")).unwrap();
    let refuse = |bytes: &[u8], what: &str| {
        std::fs::write(file("bad"), bytes).unwrap();
        let error = restore(file("bad"), file("new"), 0).expect_err(what);
        assert_eq!(error.code(), Code::Corrupt, "{what}: {error}");
        assert!(!file("new").exists() && !file("new.part").exists());
    };
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refuse(&bad, &format!("flipped at {at}"));
    }
    for len in (0..good.len()).step_by(13) {
        refuse(&good[..len], &format!("cut at {len}"));
    }
}
