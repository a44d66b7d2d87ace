//! What a controller did and has not seen yet.
//!
//! A controller that creates objects of random names would create them again if it looked at a cache that does not
//! show them yet. It notes their UIDs here and waits until the cache shows them, or for [`GIVE_UP`].

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use skiff_client::ObjectKey;

/// After this time what was not seen is taken for lost, as upstream.
const GIVE_UP: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Awaited {
    created: HashSet<String>,
    deleted: HashSet<String>,
    since: Option<Instant>,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Expectations {
    by_key: Mutex<HashMap<ObjectKey, Awaited>>,
}

impl Expectations {
    /// An object was created for `key`.
    pub(crate) fn created(&self, key: &ObjectKey, uid: String) {
        let mut by_key = self.by_key.lock();
        let awaited = by_key.entry(key.clone()).or_default();
        awaited.created.insert(uid);
        awaited.since = Some(Instant::now());
    }

    /// An object was deleted for `key`.
    pub(crate) fn deleted(&self, key: &ObjectKey, uid: String) {
        let mut by_key = self.by_key.lock();
        let awaited = by_key.entry(key.clone()).or_default();
        awaited.deleted.insert(uid);
        awaited.since = Some(Instant::now());
    }

    /// An object of this UID is gone; nobody will see it any more.
    pub(crate) fn gone(&self, uid: &str) {
        for awaited in self.by_key.lock().values_mut() {
            awaited.created.remove(uid);
            awaited.deleted.remove(uid);
        }
    }

    /// Whether all that was done for `key` can be seen. `present` says whether the cache has an object of this UID
    /// that is not being deleted.
    pub(crate) fn are_met(&self, key: &ObjectKey, present: impl Fn(&str) -> bool) -> bool {
        let mut by_key = self.by_key.lock();
        let Some(awaited) = by_key.get_mut(key) else { return true };
        awaited.created.retain(|uid| !present(uid));
        awaited.deleted.retain(|uid| present(uid));
        let met = awaited.created.is_empty() && awaited.deleted.is_empty();
        let late = awaited.since.is_some_and(|since| since.elapsed() > GIVE_UP);
        if met || late {
            by_key.remove(key);
        }
        met || late
    }

    /// Forgets a key whose object is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.by_key.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_must_be_seen() {
        let e = Expectations::default();
        let key = ObjectKey::new("d", "rs");
        assert!(e.are_met(&key, |_| false));
        e.created(&key, "1".into());
        e.deleted(&key, "2".into());
        assert!(!e.are_met(&key, |uid| uid == "2"));
        assert!(!e.are_met(&key, |uid| uid == "1" || uid == "2"));
        assert!(e.are_met(&key, |uid| uid == "1"));
        e.created(&key, "3".into());
        e.gone("3");
        assert!(e.are_met(&key, |_| false));
    }
}
