//! Pods that wait for a node.
//!
//! A pod is in one of three places: active (to be tried now, by priority and then age), backing off (tried without
//! success a moment ago) or unschedulable (nothing has changed that could help it). Back-offs keep pods from each other's
//! way: when no pod is active, one that something may have helped does not wait for the end of its own, as upstream's
//! does not since 1.33. After an error it does.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use skiff_client::ObjectKey;
use tokio::time::Instant;

/// The first and the longest wait after an attempt, upstream's.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// After this time an unschedulable pod is tried again though nothing happened.
const UNSCHEDULABLE_RETRY: Duration = Duration::from_secs(300);

/// What may help a pod: a set of kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changes(u8);

impl Changes {
    /// A node is new or has changed.
    pub(crate) const NODE: Changes = Changes(1);
    /// A pod has left a node.
    pub(crate) const POD_GONE: Changes = Changes(2);
    /// A pod has come to a node, or its labels have changed.
    pub(crate) const POD_PLACED: Changes = Changes(4);
    /// A claim, a volume or a class.
    pub(crate) const STORAGE: Changes = Changes(8);

    pub(crate) const fn or(self, other: Changes) -> Changes {
        Changes(self.0 | other.0)
    }

    fn meets(self, other: Changes) -> bool {
        self.0 & other.0 != 0
    }
}

/// Order of the active pods: highest priority first, then oldest.
type Rank = (std::cmp::Reverse<i32>, u64);

#[derive(Debug)]
struct Waiting {
    priority: i32,
    attempts: u32,
    place: Place,
}

#[derive(Debug, PartialEq)]
enum Place {
    Active(Rank),
    /// Being tried, and what has changed meanwhile.
    Trying {
        moved: Changes,
    },
    BackingOff {
        until: Instant,
        after_error: bool,
    },
    Unschedulable {
        since: Instant,
        backoff_until: Instant,
        helped_by: Changes,
    },
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<ObjectKey, Waiting>,
    active: BTreeMap<Rank, ObjectKey>,
    next: u64,
}

impl Queue {
    /// A pod that needs a node. One that is known keeps its place, unless it changed in a way that may help it.
    pub(crate) fn add(&mut self, key: &ObjectKey, priority: i32, changed: bool) {
        match self.pods.get_mut(key) {
            None => {
                let rank = self.rank(priority);
                self.active.insert(rank, key.clone());
                self.pods.insert(key.clone(), Waiting { priority, attempts: 0, place: Place::Active(rank) });
            }
            Some(waiting) if changed => match &mut waiting.place {
                Place::Trying { moved } => *moved = Changes(u8::MAX),
                Place::Unschedulable { .. } => self.activate(key),
                _ => {}
            },
            Some(_) => {}
        }
    }

    fn rank(&mut self, priority: i32) -> Rank {
        self.next += 1;
        (std::cmp::Reverse(priority), self.next)
    }

    fn activate(&mut self, key: &ObjectKey) {
        let Some(priority) = self.pods.get(key).map(|w| w.priority) else { return };
        let rank = self.rank(priority);
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.place = Place::Active(rank);
            self.active.insert(rank, key.clone());
        }
    }

    /// A pod that is gone or has its node.
    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        if let Some(Waiting { place: Place::Active(rank), .. }) = self.pods.remove(key) {
            self.active.remove(&rank);
        }
    }

    /// Whether there is a pod to try.
    pub(crate) fn is_ready(&mut self, now: Instant) -> bool {
        self.wake(now);
        !self.active.is_empty()
    }

    /// The next pod to try.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<ObjectKey> {
        self.wake(now);
        let (_, key) = self.active.pop_first()?;
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.attempts += 1;
            waiting.place = Place::Trying { moved: Changes(0) };
        }
        Some(key)
    }

    /// Moves those to the active ones whose time has come, or the next one if there is nothing else to do.
    fn wake(&mut self, now: Instant) {
        let due: Vec<ObjectKey> = self
            .pods
            .iter()
            .filter(|(_, w)| match w.place {
                Place::BackingOff { until, .. } => until <= now,
                Place::Unschedulable { since, .. } => since + UNSCHEDULABLE_RETRY <= now,
                _ => false,
            })
            .map(|(k, _)| k.clone())
            .collect();
        for key in due {
            self.activate(&key);
        }
        if self.active.is_empty() {
            let early = self.pods.iter().filter_map(|(key, w)| match w.place {
                Place::BackingOff { until, after_error: false } => Some((until, key)),
                _ => None,
            });
            if let Some((_, key)) = early.min_by_key(|(until, _)| *until) {
                self.activate(&key.clone());
            }
        }
    }

    /// When [`pop`](Queue::pop) may give something though nothing is added.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.pods
            .values()
            .filter_map(|w| match w.place {
                Place::BackingOff { until, .. } => Some(until),
                Place::Unschedulable { since, .. } => Some(since + UNSCHEDULABLE_RETRY),
                _ => None,
            })
            .min()
    }

    /// The attempt failed. The pod is tried again after its back-off: at once if the failure was none of the pod's
    /// (`None`), else when something happens that may help, or if it has happened meanwhile.
    pub(crate) fn failed(&mut self, key: &ObjectKey, now: Instant, helped_by: Option<Changes>) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let doubled = BACKOFF.0.saturating_mul(1 << waiting.attempts.saturating_sub(1).min(16));
        let until = now + doubled.min(BACKOFF.1);
        let moved = match waiting.place {
            Place::Trying { moved } => moved,
            _ => Changes(0),
        };
        waiting.place = match helped_by {
            Some(helped_by) if !helped_by.meets(moved) => {
                Place::Unschedulable { since: now, backoff_until: until, helped_by }
            }
            _ => Place::BackingOff { until, after_error: helped_by.is_none() },
        };
    }

    /// Something changed: the unschedulable pods that it may help are tried again, after their back-off.
    pub(crate) fn changed(&mut self, what: Changes, now: Instant) {
        let mut ready = Vec::new();
        for (key, waiting) in &mut self.pods {
            match &mut waiting.place {
                Place::Unschedulable { helped_by, .. } if !helped_by.meets(what) => {}
                Place::Unschedulable { backoff_until, .. } if *backoff_until <= now => ready.push(key.clone()),
                Place::Unschedulable { backoff_until, .. } => {
                    waiting.place = Place::BackingOff { until: *backoff_until, after_error: false };
                }
                Place::Trying { moved } => *moved = moved.or(what),
                _ => {}
            }
        }
        for key in ready {
            self.activate(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    #[test]
    fn priority_then_age() {
        let mut q = Queue::default();
        let now = Instant::now();
        q.add(&key("a"), 0, false);
        q.add(&key("b"), 10, false);
        q.add(&key("c"), 0, false);
        q.add(&key("a"), 0, false);
        let order: Vec<_> = std::iter::from_fn(|| q.pop(now)).collect();
        assert_eq!(order, [key("b"), key("a"), key("c")]);
    }

    #[test]
    fn a_failed_pod_waits_for_a_change_and_its_back_off() {
        let mut q = Queue::default();
        let start = Instant::now();
        q.add(&key("a"), 0, false);
        q.pop(start).unwrap();
        q.failed(&key("a"), start, Some(Changes::NODE));
        let later = start + Duration::from_secs(5);
        assert_eq!(q.pop(later), None);
        q.changed(Changes::STORAGE, later);
        assert_eq!(q.pop(later), None, "that does not help it");
        q.changed(Changes::NODE, later);
        assert_eq!(q.pop(later), Some(key("a")));
        q.failed(&key("a"), later, Some(Changes::NODE));
        // The second back-off is two seconds, and others come first meanwhile.
        q.add(&key("b"), 0, false);
        q.changed(Changes::NODE, later);
        assert_eq!(q.pop(later), Some(key("b")));
        q.failed(&key("b"), later, Some(Changes::NODE));
        assert_eq!(q.pop(later), Some(key("a")), "nothing else is to be done");
        q.failed(&key("a"), later, None);
        assert_eq!(q.pop(later + Duration::from_secs(3)), None, "it was an error");
        assert_eq!(q.pop(later + Duration::from_secs(4)), Some(key("a")));
    }

    #[test]
    fn a_change_during_the_attempt_is_not_lost() {
        let mut q = Queue::default();
        let now = Instant::now();
        q.add(&key("a"), 0, false);
        q.pop(now).unwrap();
        q.changed(Changes::NODE, now);
        q.failed(&key("a"), now, Some(Changes::NODE));
        assert_eq!(q.pop(now), Some(key("a")));
        q.remove(&key("a"));
        assert_eq!(q.pop(now + Duration::from_secs(1000)), None);
        assert_eq!(q.next_wake(), None);
    }
}
