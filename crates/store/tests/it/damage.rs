//! Damaged files: whatever is flipped or zeroed, no wrong data is ever served.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skiff_store::{
    Code, Embedded, Options, Revision, Store, Txn,
    embedded::{Medium, sim::SimDisk},
};

const PAGE: usize = 4096;
const ROUNDS: usize = 150;

/// What is in the store: the current values, and all events.
#[derive(PartialEq, Debug)]
struct Content {
    state: BTreeMap<String, Bytes>,
    events: Vec<(u64, String, Bytes)>,
}

async fn content(store: &dyn Store) -> Result<Content, skiff_store::Error> {
    let state = store.range("".."", None, 0).await?.kvs;
    let mut watch = store.watch("", Some(store.compacted().next()));
    let mut events = Vec::new();
    let mut reached = Revision::ZERO;
    while reached < store.revision() {
        let Some(batch) = watch.recv().await? else { break };
        reached = batch.revision;
        events.extend(
            batch.events.iter().map(|event| (event.revision().0, event.kv.key.to_string(), event.kv.value.clone())),
        );
    }
    for kv in &state {
        // The other way to the same record.
        assert_eq!(store.get(&kv.key, None).await?.kv.as_ref(), Some(kv));
    }
    Ok(Content { state: state.into_iter().map(|kv| (kv.key.to_string(), kv.value)).collect(), events })
}

/// A closed store with some history.
async fn sample() -> (Vec<u8>, Revision, Content) {
    let disk = SimDisk::new();
    let store = Embedded::open_on(Box::new(disk.clone()), &Options::default()).unwrap();
    for number in 0..400_u32 {
        let value = vec![number as u8; (number * 29 % 3000) as usize];
        store.txn(Txn::put(format!("/registry/{}", number % 150), value)).await.unwrap();
        if number % 9 == 0 {
            store.txn(Txn::delete(format!("/registry/{}", number % 150))).await.unwrap();
        }
        if number == 200 {
            store.compact(store.revision()).await.unwrap();
        }
    }
    let content = content(&store).await.unwrap();
    let revision = store.revision();
    drop(store);
    (disk.content(), revision, content)
}

/// A random change of a random place: a flipped bit, or a page of zeros.
fn damage(rng: &mut StdRng, bytes: &mut [u8]) -> String {
    if rng.random() {
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
        format!("flip at {at}")
    } else {
        let page = rng.random_range(0..bytes.len() / PAGE);
        bytes[page * PAGE..(page + 1) * PAGE].fill(0);
        format!("zeros at {}", page * PAGE)
    }
}

#[tokio::test]
async fn a_file_damaged_while_closed() {
    let (good, revision, expected) = sample().await;
    let mut rng = StdRng::seed_from_u64(1);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let mut bytes = good.clone();
        let what = damage(&mut rng, &mut bytes);
        let disk = SimDisk::with_content(bytes);
        disk.set_mark(revision);
        let opened = match Embedded::open_on(Box::new(disk), &Options::default()) {
            Ok(store) => content(&store).await,
            Err(error) => Err(error),
        };
        match opened {
            // What was hit is in no use.
            Ok(found) => assert!(found == expected, "{what} was served"),
            Err(error) => {
                assert_eq!(error.code(), Code::Corrupt, "{what}: {error}");
                assert!(error.to_string().contains("skiff snapshot restore"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > ROUNDS / 10, "{refused} of {ROUNDS} refused: is anything damaged at all?");
}

#[tokio::test]
async fn a_file_damaged_while_open() {
    let (good, revision, expected) = sample().await;
    let mut rng = StdRng::seed_from_u64(2);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let disk = SimDisk::with_content(good.clone());
        disk.set_mark(revision);
        let options = Options { cache_bytes: 0, ..Options::default() };
        let store = Embedded::open_on(Box::new(disk.clone()), &options).unwrap();
        let mut what = String::new();
        disk.damage(|bytes| {
            for _ in 0..3 {
                what += &damage(&mut rng, bytes);
                what += ", ";
            }
        });
        match content(&store).await {
            Ok(found) => assert!(found == expected, "{what} was served"),
            Err(error) => {
                assert_eq!(error.code(), Code::Corrupt, "{what}: {error}");
                // From then on nothing is served, and nothing written.
                assert_eq!(store.get("/registry/1", None).await.unwrap_err().code(), Code::Corrupt);
                assert_eq!(store.txn(Txn::put("/registry/1", "x")).await.unwrap_err().code(), Code::Corrupt);
                refused += 1;
            }
        }
    }
    assert!(refused > ROUNDS / 10, "{refused} of {ROUNDS} refused: is anything damaged at all?");
}

#[tokio::test]
async fn an_older_copy_of_the_file_is_refused() {
    let disk = SimDisk::new();
    let open = |disk: &SimDisk| Embedded::open_on(Box::new(disk.clone()), &Options::default());
    let store = open(&disk).unwrap();
    store.txn(Txn::put("/a", "1")).await.unwrap();
    drop(store);
    let older = disk.content();
    let store = open(&disk).unwrap();
    let last = store.txn(Txn::put("/a", "2")).await.unwrap().revision;
    drop(store);
    let disk = SimDisk::with_content(older);
    disk.set_mark(last);
    let error = open(&disk).err().unwrap();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.to_string().contains("revision 3 was acknowledged"), "{error}");
}

#[tokio::test]
async fn what_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::fs::write(&path, "kind: Config\n".repeat(1000)).unwrap();
    let error = Embedded::open(&path, &Options::default()).err().unwrap();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), "kind: Config\n".repeat(1000).as_bytes(), "it is left alone");
}
