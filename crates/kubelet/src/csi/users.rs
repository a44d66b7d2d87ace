//! Which pods of this node use which volumes: a volume is staged for its first pod and unstaged after its last, and the
//! node's status says which may not be detached.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use skiff_api::csi;
use tokio::sync::watch;

use crate::pod::PodUid;

/// Driver and handle, which name a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) driver: String,
    pub(super) handle: String,
}

impl Key {
    pub(super) fn new(driver: &str, handle: &str) -> Key {
        Key { driver: driver.to_owned(), handle: handle.to_owned() }
    }

    pub(super) fn unique_name(&self) -> String {
        csi::unique_name(&self.driver, &self.handle)
    }
}

#[derive(Default)]
struct Entry {
    pods: BTreeSet<PodUid>,
    /// This kubelet has staged it.
    staged: bool,
    lock: Arc<tokio::sync::Mutex<()>>,
}

/// The volumes that are used on this node.
///
/// Whoever stages or unstages a volume holds its lock. A pod is entered before anything is staged for it, and the
/// volume is unstaged only if, under the lock, no pod is entered; so none is unstaged under a pod's feet.
pub(crate) struct Users {
    entries: Mutex<BTreeMap<Key, Entry>>,
    reported: watch::Sender<BTreeSet<String>>,
}

impl Users {
    /// Those that a kubelet before this one has left behind.
    pub(super) fn new(found: impl IntoIterator<Item = (Key, Option<PodUid>)>) -> Users {
        let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
        for (key, pod) in found {
            entries.entry(key).or_default().pods.extend(pod);
        }
        Users { entries: Mutex::new(entries), reported: watch::Sender::default() }
    }

    /// Enters a pod. True if the volume was not known.
    pub(super) fn enter(&self, key: &Key, pod: &PodUid) -> bool {
        let mut entries = self.entries.lock();
        let is_new = !entries.contains_key(key);
        entries.entry(key.clone()).or_default().pods.insert(pod.clone());
        is_new
    }

    /// The pod is done with the volume.
    pub(super) fn leave(&self, key: &Key, pod: &PodUid) {
        if let Some(entry) = self.entries.lock().get_mut(key) {
            entry.pods.remove(pod);
        }
    }

    /// Waits until nobody else stages or unstages the volume.
    pub(super) async fn lock(&self, key: &Key) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = self.entries.lock().entry(key.clone()).or_default().lock.clone();
        lock.lock_owned().await
    }

    pub(super) fn is_staged(&self, key: &Key) -> bool {
        self.entries.lock().get(key).is_some_and(|e| e.staged)
    }

    pub(super) fn set_staged(&self, key: &Key, staged: bool) {
        if let Some(entry) = self.entries.lock().get_mut(key) {
            entry.staged = staged;
        }
    }

    pub(super) fn is_used(&self, key: &Key) -> bool {
        self.entries.lock().get(key).is_some_and(|e| !e.pods.is_empty())
    }

    /// Forgets a volume that is on the node no more; the caller holds its lock. False if it is still known, since a
    /// pod came meanwhile, or somebody waits for the lock: who came after the volume was forgotten would get another.
    pub(super) fn forget(&self, key: &Key) -> bool {
        let mut entries = self.entries.lock();
        let unused = entries.get(key).is_some_and(|e| e.pods.is_empty() && Arc::strong_count(&e.lock) <= 2);
        if unused {
            entries.remove(key);
        }
        unused
    }

    /// Volumes without pods.
    pub(super) fn unused(&self) -> Vec<Key> {
        self.entries.lock().iter().filter(|(_, e)| e.pods.is_empty()).map(|(k, _)| k.clone()).collect()
    }

    pub(super) fn all(&self) -> Vec<Key> {
        self.entries.lock().keys().cloned().collect()
    }

    /// The node's status says this by now.
    pub(super) fn report(&self, in_use: BTreeSet<String>) {
        self.reported.send_if_modified(|known| {
            let changed = *known != in_use;
            *known = in_use;
            changed
        });
    }

    /// Completes once the node's status says that the volume is in use.
    pub(super) async fn reported(&self, key: &Key) {
        let name = key.unique_name();
        // The sender is in `self`.
        let _ = self.reported.subscribe().wait_for(|reported| reported.contains(&name)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pod_frees_a_volume() {
        let (key, a, b) = (Key::new("d", "h"), PodUid::new("a"), PodUid::new("b"));
        let users = Users::new([(key.clone(), Some(a.clone())), (Key::new("d", "left"), None)]);
        assert_eq!(users.unused(), [Key::new("d", "left")]);
        assert!(!users.enter(&key, &b));
        users.leave(&key, &a);
        assert!(users.is_used(&key) && !users.forget(&key));
        users.leave(&key, &b);
        assert!(users.forget(&key));
        assert_eq!(users.all(), [Key::new("d", "left")]);
    }

    #[tokio::test]
    async fn reported() {
        let users = Users::new([]);
        let key = Key::new("d", "h");
        users.report([key.unique_name()].into());
        users.reported(&key).await;
    }
}
