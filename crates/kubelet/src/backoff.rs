//! Back-off per key, with upstream's arithmetic: used for crashing containers and for failing pulls.

use std::{collections::HashMap, hash::Hash, time::Duration};

use jiff::{SignedDuration, Timestamp};

/// The first delay.
pub(crate) const INITIAL: Duration = Duration::from_secs(10);
/// The longest delay. What has not failed for twice this long begins anew.
pub(crate) const MAX: Duration = Duration::from_secs(300);

/// Delays that double with each failure.
#[derive(Debug)]
pub(crate) struct Backoffs<K> {
    entries: HashMap<K, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

impl<K> Default for Backoffs<K> {
    fn default() -> Self {
        Backoffs { entries: HashMap::new() }
    }
}

fn since(earlier: Timestamp, later: Timestamp) -> SignedDuration {
    later.duration_since(earlier)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

impl<K: Eq + Hash + Clone> Backoffs<K> {
    /// How long to wait still and the whole delay, if what happened at `event` is too recent to be tried again.
    pub(crate) fn remaining(&self, key: &K, event: Timestamp, now: Timestamp) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if since(entry.updated, event) > signed(MAX * 2) {
            return None;
        }
        let left = signed(entry.delay) - since(event, now);
        let left = Duration::try_from(left).ok().filter(|left| !left.is_zero())?;
        Some((left, entry.delay))
    }

    /// As [`remaining`](Self::remaining), counted from the last failure.
    pub(crate) fn remaining_since_failure(&self, key: &K, now: Timestamp) -> Option<(Duration, Duration)> {
        let updated = self.entries.get(key)?.updated;
        self.remaining(key, updated, now)
    }

    /// Notes a try: the next one has to wait twice as long, or the initial delay if the last was long ago.
    pub(crate) fn next(&mut self, key: &K, event: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if since(entry.updated, event) <= signed(MAX * 2) => (entry.delay * 2).min(MAX),
            _ => INITIAL,
        };
        self.entries.insert(key.clone(), Entry { delay, updated: now });
    }

    /// Forgets keys, of what no longer exists.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }
}

/// A delay as Go prints it: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_seconds(delay: Duration) -> String {
    let seconds = delay.as_secs();
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes if minutes < 60 => format!("{minutes}m{}s", seconds % 60),
        minutes => format!("{}h{}m{}s", minutes / 60, minutes % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes_and_starts_anew_after_ten() {
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.remaining(&"c", at(0), at(0)), None, "the first restart is immediate");
        let (mut now, mut seen) = (0, Vec::new());
        for _ in 0..7 {
            backoffs.next(&"c", at(now), at(now));
            let (left, delay) = backoffs.remaining(&"c", at(now), at(now)).unwrap();
            assert_eq!(left, delay);
            seen.push(delay.as_secs());
            now += i64::try_from(delay.as_secs()).unwrap();
            assert_eq!(backoffs.remaining(&"c", at(now - i64::try_from(delay.as_secs()).unwrap()), at(now)), None);
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        // It ran for ten minutes before it failed again.
        assert_eq!(backoffs.remaining(&"c", at(now + 601), at(now + 601)), None);
        backoffs.next(&"c", at(now + 901), at(now + 901));
        let (_, delay) = backoffs.remaining(&"c", at(now + 901), at(now + 901)).unwrap();
        assert_eq!(delay.as_secs(), 10);
    }

    #[test]
    fn prints_as_go_does() {
        let printed = |s| go_seconds(Duration::from_secs(s));
        assert_eq!([printed(10), printed(80), printed(300)], ["10s", "1m20s", "5m0s"]);
    }
}
