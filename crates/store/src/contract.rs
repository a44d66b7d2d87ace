//! What every [`Store`] must do, as a suite that any implementation can be run against.
//!
//! Each case gets a store of its own, or one whose earlier content it cannot see: cases assume that no
//! key starts with `/contract/`, and nothing about the revision at which they begin.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use crate::{
    Code, Compare, Error, Event, EventKind, KeyValue, LeaseId, MAX_TXN_OPS, Op, Revision, Store, Txn, TxnOutcome,
    Watch, prefix_end,
};

type Shared = Arc<dyn Store>;

/// Longer than anything here takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A case of the suite: its name, and what it does with a store.
pub type Case = (&'static str, fn(Arc<dyn Store>) -> BoxFuture<'static, ()>);

/// All cases.
pub const CASES: &[Case] = &[
    ("a key's life", |store| a_keys_life(store).boxed()),
    ("compares", |store| compares(store).boxed()),
    ("several keys", |store| several_keys(store).boxed()),
    ("reads of the past", |store| reads_of_the_past(store).boxed()),
    ("ranges", |store| ranges(store).boxed()),
    ("compaction", |store| compaction(store).boxed()),
    ("watch", |store| watch(store).boxed()),
    ("watch from the past", |store| watch_from_the_past(store).boxed()),
    ("watch from the future", |store| watch_from_the_future(store).boxed()),
    ("watch among writers", |store| watch_among_writers(store).boxed()),
    ("own writes are queued", |store| own_writes_are_queued(store).boxed()),
    ("leases", |store| leases(store).boxed()),
    ("leases end", |store| leases_end(store).boxed()),
    ("counting together", |store| counting_together(store).boxed()),
    ("bad requests", |store| bad_requests(store).boxed()),
];

/// Runs all cases, each with a new store from `make`. Panics at the first that fails, naming it.
pub async fn run<F>(make: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Store>>,
{
    for (name, case) in CASES {
        let result = AssertUnwindSafe(case(make().await)).catch_unwind().await;
        assert!(result.is_ok(), "contract case {name:?} failed, see above");
    }
}

async fn put(store: &Shared, key: &str, value: &str) -> Revision {
    store.txn(Txn::put(key, value.to_owned())).await.expect("put").revision
}

async fn get(store: &Shared, key: &str) -> Option<KeyValue> {
    store.get(key, None).await.expect("get").kv
}

async fn value(store: &Shared, key: &str) -> Option<String> {
    get(store, key).await.map(|kv| text(&kv))
}

fn text(kv: &KeyValue) -> String {
    String::from_utf8(kv.value.to_vec()).expect("UTF-8")
}

/// The next `count` events.
async fn events(watch: &mut Watch, count: usize) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    while events.len() < count {
        let batch = tokio::time::timeout(DEADLINE, watch.recv()).await.expect("events in time");
        let batch = batch.expect("a running watch").expect("an open store");
        assert!(batch.events.iter().all(|event| event.revision() <= batch.revision));
        events.extend(batch.events);
    }
    assert_eq!(events.len(), count, "{events:?}");
    events
}

/// `+key=value`, `key:old→new`, `-key=old`.
fn show(event: &Event) -> String {
    let key = event.kv.key.rsplit('/').next().unwrap_or_default();
    let prev = event.prev.as_ref().map(text);
    match (event.kind, prev) {
        (EventKind::Put, None) => format!("+{key}={}", text(&event.kv)),
        (EventKind::Put, Some(prev)) => format!("{key}:{prev}→{}", text(&event.kv)),
        (EventKind::Delete, prev) => format!("-{key}={}", prev.unwrap_or_default()),
    }
}

fn shown(events: &[Arc<Event>]) -> Vec<String> {
    events.iter().map(|event| show(event)).collect()
}

async fn a_keys_life(store: Shared) {
    let start = store.revision();
    assert!(start >= Revision::INITIAL);
    let key = "/contract/life";
    assert_eq!(get(&store, key).await, None);
    let created = store.txn(Txn::create(key, "one")).await.expect("create");
    assert_eq!(created.revision, start.next());
    let result = created.single().expect("created");
    assert_eq!(result.prev, None);
    let kv = get(&store, key).await.expect("it is there");
    assert_eq!(result.kv.as_ref(), Some(&kv));
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (start.next(), start.next(), 1));
    let updated = store.txn(Txn::put_if(key, kv.mod_revision, "two", None)).await.expect("update");
    let second = updated.single().expect("updated");
    assert_eq!(second.prev, Some(kv.clone()));
    let now = second.kv.expect("it is there");
    assert_eq!((now.create_revision, now.version, text(&now)), (kv.create_revision, 2, "two".into()));
    let deleted = store.txn(Txn::delete_if(key, now.mod_revision)).await.expect("delete");
    assert_eq!(deleted.revision, Revision(start.0 + 3));
    assert_eq!(deleted.single().expect("deleted").prev, Some(now));
    assert_eq!(get(&store, key).await, None);
    put(&store, key, "again").await;
    let kv = get(&store, key).await.expect("it is there again");
    assert_eq!((kv.create_revision, kv.version), (Revision(start.0 + 4), 1));
    assert_eq!(store.revision(), Revision(start.0 + 4));
}

async fn compares(store: Shared) {
    let key = "/contract/compare";
    let missing = store.txn(Txn::put_if(key, Revision(1), "x", None)).await.expect("an answer");
    assert_eq!(missing.single().expect_err("it does not exist"), None);
    let first = put(&store, key, "one").await;
    let current = get(&store, key).await;
    for txn in [Txn::create(key, "x"), Txn::put_if(key, first.next(), "x", None), Txn::delete_if(key, Revision(1))] {
        let answer = store.txn(txn).await.expect("an answer");
        assert_eq!(answer.revision, first);
        assert_eq!(answer.outcome, TxnOutcome::Failed(vec![current.clone()]));
    }
    assert_eq!(store.revision(), first);
    assert_eq!(value(&store, key).await.as_deref(), Some("one"));
}

async fn several_keys(store: Shared) {
    let (a, b, c) = ("/contract/several/a", "/contract/several/b", "/contract/several/c");
    let before = put(&store, a, "1").await;
    let compare = |key: &str, mod_revision| Compare { key: key.into(), mod_revision };
    let put_op = |key: &str, value: &'static str| Op::Put { key: key.into(), value: value.into(), lease: None };
    let txn = Txn {
        compares: vec![compare(a, before), compare(b, Revision::ZERO)],
        ops: vec![
            put_op(b, "1"),
            Op::Delete { key: a.into() },
            put_op(c, "1"),
            Op::Delete { key: "/contract/no".into() },
        ],
    };
    let mut watch = store.watch("/contract/several/", None);
    let answer = store.txn(txn.clone()).await.expect("done");
    assert_eq!(answer.revision, before.next());
    let TxnOutcome::Succeeded(results) = answer.outcome else { panic!("the compares hold") };
    assert_eq!(results.len(), 4);
    assert_eq!(results[1].prev.as_ref().map(text).as_deref(), Some("1"));
    assert_eq!(results[3].prev, None);
    let all = events(&mut watch, 3).await;
    assert_eq!(shown(&all), ["+b=1", "-a=1", "+c=1"]);
    assert!(all.iter().all(|event| event.revision() == before.next()), "one revision");
    // Again: neither compare holds, nothing happens.
    let answer = store.txn(txn).await.expect("an answer");
    let TxnOutcome::Failed(current) = answer.outcome else { panic!("the compares do not hold") };
    assert_eq!(current.iter().map(|kv| kv.as_ref().map(text)).collect::<Vec<_>>(), [None, Some("1".into())]);
    assert_eq!(store.revision(), before.next());
    // Deleting nothing is no change.
    let nothing = store.txn(Txn::delete(a)).await.expect("done");
    assert!(nothing.succeeded());
    assert_eq!((nothing.revision, store.revision()), (before.next(), before.next()));
}

async fn reads_of_the_past(store: Shared) {
    let key = "/contract/past";
    let first = put(&store, key, "one").await;
    let second = put(&store, key, "two").await;
    let gone = store.txn(Txn::delete(key)).await.expect("delete").revision;
    let at = async |revision| {
        let answer = store.get(key, Some(revision)).await.expect("readable");
        assert_eq!(answer.revision, revision);
        answer.kv.map(|kv| text(&kv))
    };
    assert_eq!(at(first).await.as_deref(), Some("one"));
    assert_eq!(at(second).await.as_deref(), Some("two"));
    assert_eq!(at(gone).await, None);
    let error = store.get(key, Some(gone.next())).await.expect_err("the future");
    assert_eq!((error.code(), error.revision()), (Code::FutureRevision, Some(gone)));
    let range = store.range("/contract/"..&prefix_end("/contract/"), Some(second), 0).await.expect("readable");
    assert_eq!((range.kvs.len(), range.revision), (1, second));
}

async fn ranges(store: Shared) {
    for key in ["a", "b", "c", "d", "e"] {
        put(&store, &format!("/contract/range/{key}"), key).await;
    }
    put(&store, "/contract/rangf", "outside").await;
    let end = prefix_end("/contract/range/");
    let all = store.range("/contract/range/"..&end, None, 0).await.expect("range");
    assert_eq!(all.kvs.iter().map(text).collect::<String>(), "abcde");
    assert_eq!((all.more, all.count, all.revision), (false, 5, store.revision()));
    let two = store.range("/contract/range/b"..&end, None, 2).await.expect("range");
    assert_eq!(two.kvs.iter().map(text).collect::<String>(), "bc");
    assert_eq!((two.more, two.count), (true, 4));
    let exact = store.range("/contract/range/d"..&end, None, 2).await.expect("range");
    assert_eq!((exact.more, exact.count), (false, 2));
    let open = store.range("/contract/range/e".."", None, 0).await.expect("range");
    assert!(open.kvs.len() >= 2, "no end is no end");
    let none = store.range("/contract/range/e".."/contract/range/a", None, 0).await.expect("range");
    assert_eq!((none.kvs.len(), none.count), (0, 0));
}

async fn compaction(store: Shared) {
    let (key, other) = ("/contract/compact/k", "/contract/compact/other");
    let kept = put(&store, other, "kept").await;
    let first = put(&store, key, "one").await;
    let second = put(&store, key, "two").await;
    let third = put(&store, key, "three").await;
    store.compact(second).await.expect("compact");
    assert_eq!(store.compacted(), second);
    let error = store.get(key, Some(first)).await.expect_err("compacted");
    assert_eq!((error.code(), error.revision()), (Code::Compacted, Some(second)));
    let error = store.range("/contract/"..&prefix_end("/contract/"), Some(first), 0).await.expect_err("compacted");
    assert_eq!(error.code(), Code::Compacted);
    let kv = store.get(key, Some(second)).await.expect("the compacted revision itself is readable").kv;
    assert_eq!(kv.map(|kv| text(&kv)).as_deref(), Some("two"));
    let kv = store.get(other, Some(second)).await.expect("readable").kv;
    assert_eq!(kv.map(|kv| kv.mod_revision), Some(kept));
    assert_eq!(value(&store, key).await.as_deref(), Some("three"));
    for at in [first, second] {
        assert_eq!(store.compact(at).await.expect_err("compacted before").code(), Code::Compacted);
    }
    assert_eq!(store.compact(third.next()).await.expect_err("the future").code(), Code::FutureRevision);
    for from in [kept, second] {
        let error = store.watch("/contract/", Some(from)).recv().await.expect_err("compacted");
        assert_eq!((error.code(), error.revision()), (Code::Compacted, Some(second)));
    }
    let mut watch = store.watch("/contract/compact/", Some(third));
    assert_eq!(events(&mut watch, 1).await[0].kv.mod_revision, third);
    // A deleted key is forgotten, and can be created again.
    store.txn(Txn::delete(key)).await.expect("delete");
    let last = put(&store, other, "last").await;
    store.compact(last).await.expect("compact");
    assert_eq!(get(&store, key).await, None);
    assert!(store.txn(Txn::create(key, "again")).await.expect("create").succeeded());
    assert_eq!(get(&store, key).await.map(|kv| kv.version), Some(1));
}

async fn watch(store: Shared) {
    put(&store, "/contract/watch/before", "x").await;
    let mut one = store.watch("/contract/watch/one", None);
    let mut all = store.watch("/contract/watch/", None);
    put(&store, "/contract/watch/one", "1").await;
    put(&store, "/contract/watch/two", "1").await;
    put(&store, "/contract/watch/one", "2").await;
    put(&store, "/contract/other", "1").await;
    store.txn(Txn::delete("/contract/watch/one")).await.expect("delete");
    let seen = events(&mut all, 4).await;
    assert_eq!(shown(&seen), ["+one=1", "+two=1", "one:1→2", "-one=2"]);
    assert!(seen.windows(2).all(|pair| pair[0].revision() < pair[1].revision()));
    assert!(seen[0].is_create() && !seen[2].is_create());
    let gone = &seen[3].kv;
    assert_eq!((gone.value.len(), gone.version, gone.mod_revision), (0, 0, store.revision()));
    assert_eq!(shown(&events(&mut one, 3).await), ["+one=1", "one:1→2", "-one=2"]);
}

async fn watch_from_the_past(store: Shared) {
    let first = put(&store, "/contract/history/a", "1").await;
    put(&store, "/contract/other", "1").await;
    put(&store, "/contract/history/a", "2").await;
    store.txn(Txn::delete("/contract/history/a")).await.expect("delete");
    let mut watch = store.watch("/contract/history/", Some(first));
    let mut later = store.watch("/contract/history/", Some(first.next()));
    put(&store, "/contract/history/a", "3").await;
    assert_eq!(shown(&events(&mut watch, 4).await), ["+a=1", "a:1→2", "-a=2", "+a=3"]);
    assert_eq!(shown(&events(&mut later, 3).await), ["a:1→2", "-a=2", "+a=3"]);
    // Nothing of interest happened since, but how far the watch has come is told.
    let now = put(&store, "/contract/other", "2").await;
    let mut quiet = store.watch("/contract/history/", Some(now));
    let batch = quiet.recv().await.expect("a running watch").expect("an open store");
    assert_eq!((batch.events.len(), batch.revision), (0, now));
}

async fn watch_from_the_future(store: Shared) {
    let now = put(&store, "/contract/future/a", "1").await;
    let mut watch = store.watch("/contract/future/", Some(Revision(now.0 + 2)));
    put(&store, "/contract/future/a", "2").await;
    put(&store, "/contract/future/a", "3").await;
    assert_eq!(shown(&events(&mut watch, 1).await), ["a:2→3"]);
}

/// Watches that start at all moments while others write see every event once and in order.
async fn watch_among_writers(store: Shared) {
    const WRITERS: usize = 4;
    const WRITES: usize = 100;
    let start = store.revision();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0..WRITES {
                    put(&store, &format!("/contract/among/{writer}"), &number.to_string()).await;
                }
            })
        })
        .collect();
    let mut watchers = Vec::new();
    while store.revision().0 < start.0 + (WRITERS * WRITES) as u64 {
        let mut watch = store.watch("/contract/among/", Some(start.next()));
        watchers.push(tokio::spawn(async move { events(&mut watch, WRITERS * WRITES).await }));
        put(&store, "/contract/elsewhere", "x").await;
    }
    for writer in writers {
        writer.await.expect("writer");
    }
    let mut watch = store.watch("/contract/among/", Some(start.next()));
    let expected = events(&mut watch, WRITERS * WRITES).await;
    assert!(expected.windows(2).all(|pair| pair[0].revision() < pair[1].revision()));
    for watcher in watchers {
        assert_eq!(watcher.await.expect("watcher"), expected);
    }
}

async fn own_writes_are_queued(store: Shared) {
    let watch = store.watch("/contract/own/", None);
    let progress = watch.progress();
    for number in 0..50 {
        let revision = put(&store, "/contract/own/a", &number.to_string()).await;
        assert!(store.revision() >= revision);
        assert!(progress.enqueued() >= revision);
        assert!(store.latest().await.expect("the last revision") >= revision);
    }
    let queued = watch.enqueued();
    put(&store, "/contract/other", "x").await;
    assert_eq!(watch.enqueued(), queued, "what does not match is not queued");
}

async fn leases(store: Shared) {
    let ttl = Duration::from_secs(60);
    let lease = store.lease_grant(ttl, None).await.expect("grant").id;
    let second = store.lease_grant(ttl, Some(LeaseId(lease.0 + 1000))).await.expect("grant").id;
    let error = store.lease_grant(ttl, Some(lease)).await.expect_err("it exists");
    assert_eq!(error.code(), Code::LeaseExists);
    assert_eq!(store.lease_keepalive(lease).await.expect("alive").ttl, ttl);
    let attach = |key: &str, lease| Txn {
        compares: Vec::new(),
        ops: vec![Op::Put { key: key.into(), value: "x".into(), lease: Some(lease) }],
    };
    for key in ["a", "b", "kept", "moved"] {
        store.txn(attach(&format!("/contract/lease/{key}"), lease)).await.expect("put");
    }
    assert_eq!(get(&store, "/contract/lease/a").await.and_then(|kv| kv.lease), Some(lease));
    put(&store, "/contract/lease/kept", "without").await;
    store.txn(attach("/contract/lease/moved", second)).await.expect("put");
    let before = store.revision();
    let mut watch = store.watch("/contract/lease/", None);
    store.lease_revoke(lease).await.expect("revoke");
    assert_eq!(shown(&events(&mut watch, 2).await), ["-a=x", "-b=x"]);
    assert_eq!(store.revision(), before.next(), "at one revision");
    assert!(get(&store, "/contract/lease/kept").await.is_some());
    assert!(get(&store, "/contract/lease/moved").await.is_some());
    for error in [
        store.lease_revoke(lease).await.expect_err("gone"),
        store.lease_keepalive(lease).await.expect_err("gone"),
        store.txn(attach("/contract/lease/a", lease)).await.expect_err("gone"),
    ] {
        assert_eq!(error.code(), Code::LeaseNotFound);
    }
    assert_eq!(get(&store, "/contract/lease/a").await, None);
    store.lease_revoke(second).await.expect("revoke");
    assert_eq!(get(&store, "/contract/lease/moved").await, None);
}

async fn leases_end(store: Shared) {
    let short = store.lease_grant(Duration::from_secs(1), None).await.expect("grant").id;
    let mut watch = store.watch("/contract/end/", None);
    let op = Op::Put { key: "/contract/end/a".into(), value: "x".into(), lease: Some(short) };
    store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.expect("put");
    assert_eq!(shown(&events(&mut watch, 2).await), ["+a=x", "-a=x"]);
    assert_eq!(store.lease_keepalive(short).await.expect_err("ended").code(), Code::LeaseNotFound);
}

/// Compare-and-swap loops of several tasks lose no step.
async fn counting_together(store: Shared) {
    const TASKS: usize = 8;
    const STEPS: usize = 20;
    let key = "/contract/count";
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut current = get(&store, key).await;
                let mut last = Revision::ZERO;
                for _ in 0..STEPS {
                    loop {
                        let count: usize = current.as_ref().map_or(0, |kv| text(kv).parse().expect("a number"));
                        let expected = current.as_ref().map_or(Revision::ZERO, |kv| kv.mod_revision);
                        let txn = Txn::put_if(key, expected, (count + 1).to_string(), None);
                        let answer = store.txn(txn).await.expect("an answer");
                        assert!(answer.revision >= last, "revisions never go back");
                        last = answer.revision;
                        match answer.single() {
                            Ok(result) => {
                                current = result.kv;
                                break;
                            }
                            Err(now) => current = now,
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(value(&store, key).await, Some((TASKS * STEPS).to_string()));
    assert_eq!(get(&store, key).await.map(|kv| kv.version), Some((TASKS * STEPS) as u64));
}

async fn bad_requests(store: Shared) {
    let before = store.revision();
    let put_op = |key: String| Op::Put { key: key.into(), value: "x".into(), lease: None };
    let ops = |ops| Txn { compares: Vec::new(), ops };
    let fails = async |txn: Txn| -> Error { store.txn(txn).await.expect_err("a bad request") };
    let error = fails(ops(vec![put_op("/contract/a".into()), Op::Delete { key: "/contract/a".into() }])).await;
    assert_eq!((error.code(), error.key()), (Code::InvalidArgument, Some("/contract/a")));
    assert_eq!(fails(Txn::put("", "x")).await.code(), Code::InvalidArgument);
    let many = (0..=MAX_TXN_OPS).map(|number| put_op(format!("/contract/{number}"))).collect();
    assert_eq!(fails(ops(many)).await.code(), Code::TooLarge);
    assert_eq!(fails(Txn::put("/contract/a", vec![0; 2 * 1024 * 1024])).await.code(), Code::TooLarge);
    let error = store.lease_grant(Duration::ZERO, None).await.expect_err("too short");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(store.revision(), before);
}
