//! What kubelets said of their nodes' use, and what follows from two such readings.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// The longest window over which the use of CPU is told.
const LONGEST_WINDOW: SignedDuration = SignedDuration::from_secs(15);
/// The window that is preferred: long enough to be steady, short enough to show a load soon.
const WINDOW: SignedDuration = SignedDuration::from_secs(5);
/// The shortest window that says anything.
const SHORTEST_WINDOW: SignedDuration = SignedDuration::from_millis(500);

/// Counters at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Counters {
    at: Timestamp,
    cpu_ns: u64,
    memory_bytes: u64,
}

/// A container: namespace, pod, UID of the pod, name.
pub(super) type ContainerKey = (String, String, String, String);

/// All that one kubelet said at one time.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    node: Counters,
    /// With the time of their start.
    containers: BTreeMap<ContainerKey, (Counters, Option<Timestamp>)>,
}

/// What something uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Use {
    /// The end of the window.
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    pub(super) cpu_nano_cores: u64,
    pub(super) memory_bytes: u64,
}

/// What a node and its containers use.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeUse {
    pub(super) node: Option<Use>,
    pub(super) containers: BTreeMap<ContainerKey, Use>,
}

fn counters(value: &Value) -> Option<Counters> {
    Some(Counters {
        at: value["cpu"]["time"].as_str()?.parse().ok()?,
        cpu_ns: value["cpu"]["usageCoreNanoSeconds"].as_u64()?,
        memory_bytes: value["memory"]["workingSetBytes"].as_u64()?,
    })
}

impl Reading {
    /// Reads a kubelet's summary; what it leaves out is left out.
    pub(super) fn parse(summary: &Value) -> Option<Reading> {
        let mut containers = BTreeMap::new();
        for pod in summary["pods"].as_array().into_iter().flatten() {
            let text = |field: &str| pod["podRef"][field].as_str().unwrap_or_default().to_owned();
            for container in pod["containers"].as_array().into_iter().flatten() {
                let name = container["name"].as_str().unwrap_or_default().to_owned();
                let started = container["startTime"].as_str().and_then(|t| t.parse().ok());
                if let Some(counters) = counters(container) {
                    containers.insert((text("namespace"), text("name"), text("uid"), name), (counters, started));
                }
            }
        }
        Some(Reading { node: counters(&summary["node"])?, containers })
    }
}

/// The use between two readings; nothing if there is too little time between them, or the counter began anew.
fn between(old: &Counters, new: &Counters) -> Option<Use> {
    let window = new.at.duration_since(old.at);
    let nanoseconds = u128::try_from(window.as_nanos()).ok()?;
    if window < SHORTEST_WINDOW {
        return None;
    }
    let used = u128::from(new.cpu_ns.checked_sub(old.cpu_ns)?);
    Some(Use {
        at: new.at,
        window,
        cpu_nano_cores: u64::try_from(used * 1_000_000_000 / nanoseconds).ok()?,
        memory_bytes: new.memory_bytes,
    })
}

/// The latest readings of one node.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<Reading>);

impl Samples {
    /// Adds a reading, and forgets those that are too old to be of use.
    pub(super) fn add(&mut self, reading: Reading) {
        let now = reading.node.at;
        self.0.retain(|r| now.duration_since(r.node.at) <= LONGEST_WINDOW);
        self.0.push_back(reading);
    }

    /// How old the newest reading is.
    pub(super) fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        self.0.back().map(|r| now.duration_since(r.node.at))
    }

    /// Whether there are two readings far enough from each other.
    pub(super) fn suffice(&self) -> bool {
        self.newest_pair().is_some()
    }

    /// The newest reading, and the one that it is compared with.
    fn newest_pair(&self) -> Option<(&Reading, &Reading)> {
        let newest = self.0.back()?;
        let apart = |r: &&Reading| newest.node.at.duration_since(r.node.at);
        let mut older = self.0.iter().rev().skip(1).filter(|r| apart(r) >= SHORTEST_WINDOW);
        let preferred = older.clone().find(|r| apart(r) >= WINDOW);
        // Without one of the right age the oldest is the best.
        Some((preferred.or_else(|| older.next_back())?, newest))
    }

    /// What follows from the readings.
    pub(super) fn uses(&self) -> NodeUse {
        let Some((old, new)) = self.newest_pair() else { return NodeUse::default() };
        let mut uses = NodeUse { node: between(&old.node, &new.node), containers: BTreeMap::new() };
        for (key, (now, started)) in &new.containers {
            let before = old.containers.get(key).filter(|(_, s)| s == started).map(|(c, _)| *c);
            // What started meanwhile had used nothing when it did.
            let before = before.or_else(|| {
                let at = (*started)?;
                (now.at.duration_since(at) <= LONGEST_WINDOW).then_some(Counters { at, cpu_ns: 0, memory_bytes: 0 })
            });
            if let Some(used) = before.and_then(|before| between(&before, now)) {
                uses.containers.insert(key.clone(), used);
            }
        }
        uses
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reading(second: i64, cpu_s: u64, containers: &[(&str, u64, i64)]) -> Reading {
        let time = |s: i64| Timestamp::from_second(1000 + s).unwrap().to_string();
        let of = |cpu_s: u64| json!({"time": time(second), "usageCoreNanoSeconds": cpu_s * 1_000_000_000});
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, cpu, started)| {
                json!({"name": name, "startTime": time(*started), "cpu": of(*cpu), "memory": {"workingSetBytes": 7}})
            })
            .collect();
        let pod = json!({"podRef": {"name": "p", "namespace": "n", "uid": "u"}, "containers": containers});
        let node = json!({"cpu": of(cpu_s), "memory": {"workingSetBytes": 9}});
        Reading::parse(&json!({"node": node, "pods": [pod]})).unwrap()
    }

    fn of(uses: &NodeUse, name: &str) -> Option<(i64, u64)> {
        let key = ("n".to_owned(), "p".to_owned(), "u".to_owned(), name.to_owned());
        uses.containers.get(&key).map(|u| (u.window.as_secs(), u.cpu_nano_cores))
    }

    #[test]
    fn rates_need_two_readings() {
        let mut samples = Samples::default();
        samples.add(reading(0, 10, &[("a", 1, -100), ("b", 5, -100)]));
        assert!(!samples.suffice() && samples.uses().node.is_none());
        // b was restarted at 5, c is new.
        samples.add(reading(10, 20, &[("a", 6, -100), ("b", 1, 5), ("c", 4, 2), ("d", 4, -100)]));
        let uses = samples.uses();
        assert_eq!(uses.node.map(|n| (n.cpu_nano_cores, n.memory_bytes)), Some((1_000_000_000, 9)));
        assert_eq!(of(&uses, "a"), Some((10, 500_000_000)));
        assert_eq!(of(&uses, "b"), Some((5, 200_000_000)));
        assert_eq!(of(&uses, "c"), Some((8, 500_000_000)));
        assert_eq!(of(&uses, "d"), None);
    }

    #[test]
    fn windows_are_short_and_old_readings_forgotten() {
        let mut samples = Samples::default();
        for second in [0, 5, 10, 12] {
            samples.add(reading(second, second.unsigned_abs(), &[]));
        }
        assert_eq!(samples.uses().node.unwrap().window.as_secs(), 7);
        samples.add(reading(30, 30, &[]));
        assert!(!samples.suffice());
    }
}
