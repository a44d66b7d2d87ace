//! Random operations on the embedded engine and on the model (the in-memory store) give the same answers,
//! across restarts, and watches from any revision tell what the model's watches tell.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use skiff_store::{
    Code, Compare, Embedded, Error, Event, LeaseId, Op, Options, Revision, Store, Txn, embedded::sim::SimDisk,
    memory::MemoryStore,
};

/// What to put, so many bytes of it, and with which lease.
type Value = (u8, Option<u8>);

/// One step. Revisions are given as distances back from the current one; negative ones are the future.
#[derive(Clone, Debug)]
enum Step {
    Txn { compares: Vec<(u8, Option<i8>)>, ops: Vec<(u8, Option<Value>)> },
    Get { key: u8, back: Option<i8> },
    Range { start: u8, end: u8, back: Option<i8>, limit: u8 },
    Watch { prefix: u8, back: i8 },
    Compact { back: i8 },
    Grant { lease: u8 },
    Revoke { lease: u8 },
    KeepAlive { lease: u8 },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..8_u8;
    let back = -1..20_i8;
    let step = prop_oneof![
        12 => (
            prop::collection::vec((key.clone(), prop::option::of(0..4_i8)), 0..2),
            prop::collection::btree_map(key.clone(), prop::option::of((any::<u8>(), prop::option::weighted(0.2, 1..3_u8))), 0..4),
        )
            .prop_map(|(compares, ops)| Step::Txn { compares, ops: ops.into_iter().collect() }),
        4 => (key.clone(), prop::option::of(back.clone())).prop_map(|(key, back)| Step::Get { key, back }),
        4 => (key.clone(), key.clone(), prop::option::of(back.clone()), 0..4_u8)
            .prop_map(|(start, end, back, limit)| Step::Range { start, end, back, limit }),
        3 => (key, back.clone()).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => back.prop_map(|back| Step::Compact { back }),
        1 => (1..3_u8).prop_map(|lease| Step::Grant { lease }),
        1 => (1..3_u8).prop_map(|lease| Step::Revoke { lease }),
        1 => (1..3_u8).prop_map(|lease| Step::KeepAlive { lease }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..80)
}

/// Keys of which some are prefixes of others.
fn key(number: u8) -> String {
    ["/a", "/a/1", "/a/2", "/a/2/x", "/b", "/b/1", "/c", "/ä"][usize::from(number)].to_owned()
}

fn back(current: Revision, distance: i8) -> Revision {
    Revision(current.0.saturating_add_signed(-i64::from(distance)))
}

/// Errors are the same if their kind and revision are.
fn comparable<T>(result: Result<T, Error>) -> Result<T, (Code, Option<Revision>)> {
    result.map_err(|error| (error.code(), error.revision()))
}

/// What a watch from the past tells of it, up to `current`.
async fn history(store: &dyn Store, prefix: &str, from: Revision) -> Result<Vec<Arc<Event>>, Error> {
    let current = store.revision();
    let mut watch = store.watch(prefix, Some(from));
    let mut events = Vec::new();
    let mut reached = Revision(from.0.saturating_sub(1));
    while reached < current {
        let Some(batch) = watch.recv().await? else { break };
        events.extend(batch.events);
        reached = batch.revision;
    }
    Ok(events)
}

async fn run(steps: Vec<Step>) {
    let disk = SimDisk::new();
    let open = || Embedded::open_on(Box::new(disk.clone()), &Options::default()).unwrap();
    let model = MemoryStore::new();
    let mut store = open();
    let mut live = store.watch("/", None);
    let mut model_live = model.watch("/", None);
    for step in steps {
        let current = model.revision();
        let at = |distance: Option<i8>| distance.map(|distance| back(current, distance));
        match step {
            Step::Txn { compares, ops } => {
                let mut txn = Txn::default();
                for (number, guess) in compares {
                    // Either what the key really is, or something near the current revision.
                    let actual = model.get(&key(number), None).await.unwrap().kv;
                    let actual = actual.map_or(Revision::ZERO, |kv| kv.mod_revision);
                    let mod_revision = guess.map_or(actual, |distance| back(current, distance));
                    txn.compares.push(Compare { key: key(number).into(), mod_revision });
                }
                for (number, value) in ops {
                    let key = key(number).into();
                    txn.ops.push(match value {
                        Some((value, lease)) => {
                            let lease = lease.map(|lease| LeaseId(lease.into()));
                            Op::Put { key, value: vec![value; usize::from(value)].into(), lease }
                        }
                        None => Op::Delete { key },
                    });
                }
                let expected = comparable(model.txn(txn.clone()).await);
                assert_eq!(comparable(store.txn(txn).await), expected);
            }
            Step::Get { key: number, back } => {
                let expected = comparable(model.get(&key(number), at(back)).await);
                assert_eq!(comparable(store.get(&key(number), at(back)).await), expected);
            }
            Step::Range { start, end, back, limit } => {
                let (start, end) = (key(start), key(end));
                let expected = comparable(model.range(&start..&end, at(back), limit.into()).await);
                assert_eq!(comparable(store.range(&start..&end, at(back), limit.into()).await), expected);
            }
            Step::Watch { prefix, back: distance } => {
                let (prefix, from) = (key(prefix), back(current, distance.max(0)));
                let expected = comparable(history(&model, &prefix, from).await);
                let actual = comparable(history(&store, &prefix, from).await);
                same_events(actual, expected);
            }
            Step::Compact { back: distance } => {
                let at = back(current, distance);
                assert_eq!(comparable(store.compact(at).await), comparable(model.compact(at).await));
            }
            Step::Grant { lease } => {
                let (ttl, id) = (Duration::from_secs(3600), Some(LeaseId(lease.into())));
                let expected = comparable(model.lease_grant(ttl, id).await);
                assert_eq!(comparable(store.lease_grant(ttl, id).await), expected);
            }
            Step::Revoke { lease } => {
                let id = LeaseId(lease.into());
                assert_eq!(comparable(store.lease_revoke(id).await), comparable(model.lease_revoke(id).await));
            }
            Step::KeepAlive { lease } => {
                let id = LeaseId(lease.into());
                assert_eq!(comparable(store.lease_keepalive(id).await), comparable(model.lease_keepalive(id).await));
            }
            Step::Reopen => {
                drop(store);
                store = open();
                live = store.watch("/", None);
                model_live = model.watch("/", None);
            }
        }
        assert_eq!((store.revision(), store.compacted()), (model.revision(), model.compacted()));
        assert_eq!(live.enqueued(), model_live.enqueued());
        while live.enqueued() > current {
            let actual = live.recv().await.unwrap().unwrap();
            assert_eq!(actual, model_live.recv().await.unwrap().unwrap());
            if actual.revision == live.enqueued() {
                break;
            }
        }
    }
    store.check().await.unwrap();
}

/// The engine may still know a predecessor that the model has forgotten.
fn same_events(
    actual: Result<Vec<Arc<Event>>, (Code, Option<Revision>)>,
    expected: Result<Vec<Arc<Event>>, (Code, Option<Revision>)>,
) {
    let (Ok(actual), Ok(expected)) = (&actual, &expected) else {
        assert_eq!(actual, expected);
        return;
    };
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert_eq!((actual.kind, &actual.kv), (expected.kind, &expected.kv));
        if expected.prev.is_some() {
            assert_eq!(actual.prev, expected.prev);
        }
    }
}

/// A few seconds' worth; `PROPTEST_CASES` sets another number.
fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 150 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_engine_answers_as_the_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
