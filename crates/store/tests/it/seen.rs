//! What clients of a store have seen, over all its crashes, and the check that it was no lie.
//!
//! Guarantees, by the name that a failure gives:
//! - durable: an acknowledged write is there after any crash;
//! - monotonic: the revision never goes back behind one that was acknowledged or watched;
//! - complete: a watcher that resumes where it was misses nothing;
//! - unique: and sees nothing twice.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use skiff_store::{Event, EventKind, Op, Revision, Store, Txn, TxnOutcome, TxnResponse};

/// The keys that one transaction wrote, with their values; `None` for deletions.
type Writes = Vec<(String, Option<String>)>;

#[derive(Default)]
pub(crate) struct Seen {
    /// By revision.
    pub(crate) acknowledged: BTreeMap<u64, Writes>,
    pub(crate) watched: BTreeMap<u64, Writes>,
}

impl Seen {
    /// The last revision that anybody has seen.
    pub(crate) fn last(&self) -> u64 {
        let last = |map: &BTreeMap<u64, Writes>| map.last_key_value().map_or(1, |(revision, _)| *revision);
        last(&self.acknowledged).max(last(&self.watched))
    }

    /// Where the watcher has to go on.
    pub(crate) fn resume(&self) -> Revision {
        Revision(self.watched.last_key_value().map_or(2, |(revision, _)| revision + 1))
    }

    /// Notes what was answered to a write.
    pub(crate) fn acknowledge(&mut self, answer: &TxnResponse, writes: Writes) {
        let TxnOutcome::Succeeded(results) = &answer.outcome else { return };
        // Deleting a key that is not there, because the write before failed, makes no revision.
        if results.iter().any(|result| result.kv.is_some() || result.prev.is_some()) {
            self.acknowledged.insert(answer.revision.0, writes);
        }
    }

    /// Notes an event. They must come as they are in the log.
    pub(crate) fn watch(&mut self, revision: u64, key: String, value: Option<String>) -> Result<(), String> {
        let last = self.watched.last_entry();
        match last {
            Some(mut last) if *last.key() == revision => {
                if last.get().iter().any(|(known, _)| *known == key) {
                    return Err(format!("unique: {key} at {revision} was seen twice"));
                }
                last.get_mut().push((key, value));
                return Ok(());
            }
            Some(last) if *last.key() + 1 != revision => {
                return Err(format!("complete: after {} came {revision}", last.key()));
            }
            None if revision != 2 => return Err(format!("complete: the first event was {revision}")),
            _ => {}
        }
        self.watched.insert(revision, vec![(key, value)]);
        Ok(())
    }

    /// Checks the store as it is after a crash against all that was ever seen.
    pub(crate) async fn check(&mut self, store: &dyn Store) -> Result<(), String> {
        if store.revision().0 < self.last() {
            return Err(format!("monotonic: {} was seen, the store is at {}", self.last(), store.revision()));
        }
        // What a watcher would see that resumes now.
        let mut watch = store.watch("/", Some(self.resume()));
        while self.resume() <= store.revision() {
            let batch = watch.recv().await.map_err(|error| error.to_string())?.ok_or("the watch ended")?;
            for event in batch.events {
                let (revision, key, value) = parts(&event);
                self.watch(revision, key, value)?;
            }
        }
        for (revision, writes) in &self.acknowledged {
            let found = self.watched.get(revision);
            if found != Some(writes) {
                let found = found.map(brief);
                let acknowledged = brief(writes);
                return Err(format!("durable: at {revision} {acknowledged:?} were acknowledged, {found:?} are there"));
            }
        }
        // The state is what the events make it.
        let mut state = BTreeMap::new();
        for (key, value) in self.watched.values().flatten() {
            state.insert(key.clone(), value.clone());
        }
        let expected: Vec<_> = state.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let range = store.range("/".."0", None, 0).await.map_err(|error| error.to_string())?;
        let actual: Vec<_> =
            range.kvs.iter().map(|kv| (kv.key.to_string(), String::from_utf8_lossy(&kv.value).into_owned())).collect();
        if actual != expected {
            return Err("durable: the state is not what the events make it".into());
        }
        Ok(())
    }
}

/// Without the long tails of the values.
fn brief(writes: &Writes) -> Vec<String> {
    let brief = |value: &Option<String>| value.as_ref().map_or("†".into(), |value| value.replace('x', ""));
    writes.iter().map(|(key, value)| format!("{key}={}", brief(value))).collect()
}

pub(crate) fn parts(event: &Event) -> (u64, String, Option<String>) {
    let value = String::from_utf8_lossy(&event.kv.value).into_owned();
    let value = (event.kind == EventKind::Put).then_some(value);
    (event.revision().0, event.kv.key.to_string(), value)
}

/// The `number`th write of a writer: mostly puts, some of two keys at once, some deletions. Sizes vary
/// from a few bytes to a few pages.
pub(crate) fn write(writer: usize, number: u64) -> (Txn, Writes) {
    let key = |slot: u64| format!("/{writer}/{}", slot % 20);
    let value = format!("{number}-{}", "x".repeat((number * 37 % 9000) as usize));
    let mut writes = vec![(key(number), Some(value.clone()))];
    match number % 7 {
        3 => writes.push((key(number + 1), Some(value))),
        // The key was written by the write before.
        5 => writes = vec![(key(number - 1), None)],
        _ => {}
    }
    let ops = writes.iter().map(|(key, value)| match value {
        Some(value) => Op::Put { key: key.as_str().into(), value: value.clone().into(), lease: None },
        None => Op::Delete { key: key.as_str().into() },
    });
    (Txn { compares: Vec::new(), ops: ops.collect() }, writes)
}

/// Writes until the store fails, noting what is acknowledged.
pub(crate) async fn write_until_failure(store: Arc<dyn Store>, writer: usize, seen: Arc<Mutex<Seen>>) {
    let mut number = seen.lock().last() * 7;
    loop {
        let (txn, writes) = write(writer, number);
        let Ok(answer) = store.txn(txn).await else { return };
        seen.lock().acknowledge(&answer, writes);
        number += 1;
    }
}

/// Watches until the store fails, noting what comes.
pub(crate) async fn watch_until_failure(store: Arc<dyn Store>, seen: Arc<Mutex<Seen>>) -> Result<(), String> {
    let mut watch = store.watch("/", Some(seen.lock().resume()));
    drop(store);
    while let Ok(Some(batch)) = watch.recv().await {
        for event in batch.events {
            let (revision, key, value) = parts(&event);
            seen.lock().watch(revision, key, value)?;
        }
    }
    Ok(())
}
