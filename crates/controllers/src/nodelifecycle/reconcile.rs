//! Conditions and taints of nodes, and how long pods put up with them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Pod, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that keep new pods away while they are true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the kubelet has ever said how it is.
pub(super) fn was_heard_of(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|c| c.reason.as_deref() != Some("NodeStatusNeverUpdated"))
}

pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|c| c.status == "True")
}

/// How much of the cluster is not ready: more than a few nodes at once are rather the network's fault, or this side's,
/// and moving all their pods would make it worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disruption {
    /// Pods leave nodes that are not ready.
    None,
    /// No further node loses its pods.
    Partial,
    /// No node is ready: none loses its pods.
    Full,
}

/// From how many nodes on evictions only slow down in a partial disruption, upstream's.
const LARGE_CLUSTER: usize = 50;

/// Upstream's rule: more than two nodes and at least 55% of them.
pub(super) fn disruption(nodes: &[impl std::ops::Deref<Target = Node>]) -> Disruption {
    let ready = nodes.iter().filter(|n| is_ready(n)).count();
    match nodes.len() - ready {
        0 => Disruption::None,
        _ if ready == 0 => Disruption::Full,
        lost if lost > 2 && lost * 100 >= nodes.len() * 55 && nodes.len() <= LARGE_CLUSTER => Disruption::Partial,
        _ => Disruption::None,
    }
}

/// The conditions of a node that fell silent; nothing if it is marked already.
pub(super) fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let kinds = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    if kinds.iter().all(|k| condition(node, k).is_some_and(|c| c.status == "Unknown")) {
        return None;
    }
    let unknown = |kind: &&str| {
        let before = condition(node, kind);
        let never = before.is_none();
        NodeCondition {
            type_: (*kind).to_owned(),
            status: "Unknown".into(),
            reason: Some(if never { "NodeStatusNeverUpdated" } else { "NodeStatusUnknown" }.into()),
            message: Some(
                if never { "Kubelet never posted node status." } else { "Kubelet stopped posting node status." }.into(),
            ),
            last_heartbeat_time: before
                .and_then(|c| c.last_heartbeat_time.clone())
                .or_else(|| node.metadata.creation_timestamp.clone()),
            last_transition_time: match before {
                Some(c) if c.status == "Unknown" => c.last_transition_time.clone(),
                _ => Some(Time(now)),
            },
        }
    };
    Some(kinds.iter().map(unknown).collect())
}

/// The taints that the node should have, if they differ from those that it has. Taints of others stay.
pub(super) fn taints(node: &Node, disruption: Disruption, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let ready = condition(node, "Ready").map_or("", |c| c.status.as_str());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready {
        "True" => {}
        "Unknown" => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        // A node that never said anything is only kept free of new pods.
        "" => wanted.push((NOT_READY, "NoSchedule")),
        _ => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
    }
    for (kind, key) in PRESSURES {
        if condition(node, kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&t.key.as_str()) || PRESSURES.iter().any(|(_, k)| *k == t.key)
    };
    let is = |t: &Taint, key: &str, effect: &str| t.key == key && t.effect == effect;
    wanted.retain(|(key, effect)| {
        *effect != "NoExecute"
            || match disruption {
                Disruption::None => true,
                Disruption::Partial => current.iter().any(|t| is(t, key, effect)),
                Disruption::Full => false,
            }
    });
    let mut taints: Vec<Taint> =
        current.iter().filter(|t| !ours(t) || wanted.iter().any(|(k, e)| is(t, k, e))).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| is(t, key, effect)) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != current).then_some(taints)
}

/// How long the pod stays on a node with these taints; nothing if for ever.
pub(super) fn patience(pod: &Pod, taints: &[Taint]) -> Option<Duration> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut least: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let tolerating: Vec<_> = tolerations
            .iter()
            .filter(|t| {
                let same = |f: &Option<String>, v: &str| f.as_deref().is_none_or(|f| f.is_empty() || f == v);
                same(&t.effect, &taint.effect)
                    && same(&t.key, &taint.key)
                    && (t.operator.as_deref() == Some("Exists")
                        || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
            })
            .collect();
        let time = if tolerating.is_empty() {
            Some(Duration::ZERO)
        } else {
            // One toleration without a limit is enough to stay.
            let limits: Option<Vec<i64>> = tolerating.iter().map(|t| t.toleration_seconds).collect();
            limits.and_then(|l| l.into_iter().min()).map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
        };
        if let Some(time) = time {
            least = Some(least.map_or(time, |l| l.min(time)));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(ready: &str, taints: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::now();
        let keys = |t: Option<Vec<Taint>>| {
            t.map(|t| t.into_iter().map(|t| format!("{}:{}", t.key, t.effect)).collect::<Vec<_>>())
        };
        let own = json!([{"key": "mine", "effect": "NoSchedule"}]);
        assert_eq!(keys(taints(&node("True", own.clone()), Disruption::None, now)), None);
        assert_eq!(
            keys(taints(&node("Unknown", own.clone()), Disruption::None, now)).unwrap(),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        let new = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        assert_eq!(keys(taints(&node("True", new), Disruption::None, now)).unwrap(), Vec::<String>::new());
        // Nobody is told to leave while there is nowhere to go.
        let silent = keys(taints(&node("Unknown", json!([])), Disruption::Full, now)).unwrap();
        assert_eq!(silent, ["node.kubernetes.io/unreachable:NoSchedule"]);
    }

    #[test]
    fn many_lost_nodes_keep_their_pods() {
        let nodes = |ready: usize, lost: usize| {
            let all = std::iter::repeat_n("True", ready).chain(std::iter::repeat_n("Unknown", lost));
            disruption(&all.map(|r| Box::new(node(r, json!([])))).collect::<Vec<_>>())
        };
        assert_eq!(nodes(1, 0), Disruption::None);
        assert_eq!(nodes(0, 1), Disruption::Full);
        assert_eq!(nodes(1, 2), Disruption::None);
        assert_eq!(nodes(2, 3), Disruption::Partial);
        assert_eq!(nodes(3, 3), Disruption::None);
        assert_eq!(nodes(20, 60), Disruption::None);
    }

    #[test]
    fn silent_nodes_are_marked_once() {
        let now = Timestamp::now();
        let mut n = node("True", json!([]));
        let conditions = unknown_conditions(&n, now).unwrap();
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        n.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(unknown_conditions(&n, now), None);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let taint = [Taint { key: UNREACHABLE.into(), effect: "NoExecute".into(), ..Taint::default() }];
        let pod = |t: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": t}})).unwrap()
        };
        assert_eq!(patience(&pod(json!([])), &taint), Some(Duration::ZERO));
        let t = json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        assert_eq!(patience(&pod(t), &taint), Some(Duration::from_secs(300)));
        assert_eq!(patience(&pod(json!([{"operator": "Exists"}])), &taint), None);
        assert_eq!(patience(&pod(json!([])), &[]), None);
    }
}
