//! On which nodes a pod comes or goes, and the status.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus},
    core::v1::{
        Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
    },
};
use kube::ResourceExt as _;

use crate::{history::HASH, nodes, pods};

/// Taints that a set's pods tolerate as upstream adds them: a node in trouble keeps its daemons.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Also tolerated by pods of the node's own network.
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Those of `delete` that are over: failed or (`true`) succeeded.
    pub(super) over: Vec<(Arc<Pod>, bool)>,
}

/// Whether the node shall have a pod, and whether one that is there may stay.
fn wants(spec: &PodSpec, tolerations: &[Toleration], node: &Node) -> (bool, bool) {
    let named = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| n != node.name_any()) || !nodes::is_selected(spec, node) {
        return (false, false);
    }
    let evicted = nodes::repels(node, tolerations, "NoExecute");
    let refused = evicted || nodes::repels(node, tolerations, "NoSchedule");
    (!refused, !evicted)
}

/// The tolerations of a set's pods.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = (spec.host_network == Some(true)).then_some(NETWORK_UNAVAILABLE);
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let added = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        match all.iter_mut().find(|t| t.key == added.key && t.effect == added.effect) {
            Some(there) => *there = added,
            None => all.push(added),
        }
    }
    all
}

/// The pod of a node.
pub(super) fn pod(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(&template, set);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.to_owned());
    if let Some(generation) = set.annotations().get("deprecated.daemonset.template.generation") {
        labels.insert("pod-template-generation".into(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let this_node = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    // Which nodes are eligible was decided here; the scheduler has only to find room on this one.
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let on_nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    on_nodes.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![this_node] });
    pod
}

/// The node on which a pod is or, by its affinity, will be.
fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_ref().filter(|n| !n.is_empty()) {
        return Some(name.clone());
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = required.required_during_scheduling_ignored_during_execution.as_ref()?;
    let terms = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    terms.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first().cloned())
}

fn by_node(owned: &[Arc<Pod>]) -> BTreeMap<String, Vec<Arc<Pod>>> {
    let mut map: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in owned {
        if let Some(node) = node_of(pod) {
            map.entry(node).or_default().push(pod.clone());
        }
    }
    // The oldest pod of a node is the one that counts; one that has its node before one that has not.
    for list in map.values_mut() {
        list.sort_by_key(|p| {
            let assigned = p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty());
            (!assigned, p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name_any())
        });
    }
    map
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_updated(pod: &Pod, hash: &str) -> bool {
    pod.labels().get(HASH).is_some_and(|h| h == hash)
}

fn min_ready(set: &DaemonSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
}

fn is_available(set: &DaemonSet, pod: &Pod, now: Timestamp) -> bool {
    pods::is_available(pod, min_ready(set), now) == Ok(true)
}

fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// How many pods more, and how many fewer, there may be while `desired` nodes are updated.
fn limits(set: &DaemonSet, desired: i32) -> (i32, i32) {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let surge = pods::resolve(rolling.and_then(|r| r.max_surge.as_ref()), desired, true);
    let unavailable = pods::resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), desired, true);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// What to create and delete. `hash` is that of the present template; `all` are the cluster's nodes.
pub(super) fn decide(set: &DaemonSet, hash: &str, owned: &[Arc<Pod>], all: &[Arc<Node>], now: Timestamp) -> Decision {
    let spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    let tolerations = tolerations(&spec);
    let on_nodes = by_node(owned);
    let empty = Vec::new();
    let desired = all.iter().filter(|n| wants(&spec, &tolerations, n).0).count();
    let (surge, unavailable) = limits(set, i32::try_from(desired).unwrap_or(i32::MAX));
    let surges = rolls(set) && surge > 0;
    let mut decision = Decision::default();
    for node in all {
        let (run, stay) = wants(&spec, &tolerations, node);
        let there = on_nodes.get(&node.name_any()).unwrap_or(&empty);
        if run && there.is_empty() {
            decision.create.push(node.name_any());
        } else if stay {
            let mut running: Vec<&Arc<Pod>> = Vec::new();
            for pod in there.iter().filter(|p| !is_going(p)) {
                match pods::phase(pod) {
                    "Failed" => decision.over.push((pod.clone(), false)),
                    "Succeeded" => decision.over.push((pod.clone(), true)),
                    _ => running.push(pod),
                }
            }
            // One pod for each node; during a surge one of the old template and one of the new.
            let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| surges && is_updated(p, hash));
            decision.delete.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1)).cloned());
        } else {
            decision.delete.extend(there.iter().filter(|p| !is_going(p)).cloned());
        }
    }
    decision.delete.extend(decision.over.iter().map(|(pod, _)| pod.clone()));
    if rolls(set) {
        let runs = |node: &str| all.iter().any(|n| n.name_any() == node && wants(&spec, &tolerations, n).1);
        let on_nodes: BTreeMap<_, _> = on_nodes.into_iter().filter(|(node, _)| runs(node)).collect();
        let missing = i32::try_from(decision.create.len()).unwrap_or(i32::MAX);
        if surges {
            roll_with_surge(set, hash, &on_nodes, surge, now, &mut decision);
        } else {
            roll(set, hash, &on_nodes, unavailable - missing, now, &mut decision);
        }
    }
    let mut seen = BTreeSet::new();
    decision.delete.retain(|p| seen.insert(p.metadata.uid.clone().unwrap_or_else(|| p.name_any())));
    decision
}

/// The old and the new pod of a node that are not going, the oldest of each.
fn old_and_new<'a>(there: &'a [Arc<Pod>], hash: &str) -> (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>) {
    let mut staying = there.iter().filter(|p| !is_going(p));
    let old = staying.clone().find(|p| !is_updated(p, hash));
    (old, staying.find(|p| is_updated(p, hash)))
}

/// Deletes old pods as long as not too many nodes are without an available one.
fn roll(
    set: &DaemonSet,
    hash: &str,
    on_nodes: &BTreeMap<String, Vec<Arc<Pod>>>,
    mut room: i32,
    now: Timestamp,
    decision: &mut Decision,
) {
    let mut candidates = Vec::new();
    for there in on_nodes.values() {
        match old_and_new(there, hash) {
            // The only pod is going; the next one comes when it is gone.
            (None, None) => room -= 1,
            (_, Some(new)) => room -= i32::from(!is_available(set, new, now)),
            (Some(old), None) if is_available(set, old, now) => candidates.push(old),
            (Some(old), None) => {
                // It is of no use to anybody.
                decision.delete.push(old.clone());
                room -= 1;
            }
        }
    }
    decision.delete.extend(candidates.into_iter().take(usize::try_from(room).unwrap_or(0)).cloned());
}

/// Creates new pods beside the old ones, which go when the new ones are available.
fn roll_with_surge(
    set: &DaemonSet,
    hash: &str,
    on_nodes: &BTreeMap<String, Vec<Arc<Pod>>>,
    mut room: i32,
    now: Timestamp,
    decision: &mut Decision,
) {
    let mut candidates = Vec::new();
    for (node, there) in on_nodes {
        match old_and_new(there, hash) {
            (Some(old), Some(new)) if is_available(set, new, now) => decision.delete.push(old.clone()),
            (Some(_), Some(_)) => room -= 1,
            (Some(old), None) if is_available(set, old, now) => candidates.push(node.clone()),
            (Some(_), None) => decision.create.push(node.clone()),
            (None, _) => {}
        }
    }
    decision.create.extend(candidates.into_iter().take(usize::try_from(room).unwrap_or(0)));
}

/// The status, and when it will change by itself because a pod has been ready for long enough.
pub(super) fn status(
    set: &DaemonSet,
    hash: &str,
    owned: &[Arc<Pod>],
    all: &[Arc<Node>],
    collisions: i32,
    now: Timestamp,
) -> (DaemonSetStatus, Option<Timestamp>) {
    let spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    let tolerations = tolerations(&spec);
    let on_nodes = by_node(owned);
    let (mut desired, mut current, mut wrong, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
    let mut next: Option<Timestamp> = None;
    for node in all {
        let pod = on_nodes.get(&node.name_any()).and_then(|list| list.first());
        if !wants(&spec, &tolerations, node).0 {
            wrong += i32::from(pod.is_some());
            continue;
        }
        desired += 1;
        let Some(there) = on_nodes.get(&node.name_any()) else { continue };
        current += 1;
        // During a surge the new pod may be ready while the old one is still the first.
        let pod = there.iter().find(|p| pods::is_ready(p)).unwrap_or(&there[0]);
        if pods::is_ready(pod) {
            ready += 1;
            match pods::is_available(pod, min_ready(set), now) {
                Ok(yes) => available += i32::from(yes),
                Err(then) => next = Some(next.map_or(then, |n| n.min(then))),
            }
        }
        updated += i32::from(there.iter().any(|p| is_updated(p, hash)));
    }
    let some = |n: i32| (n != 0).then_some(n);
    let status = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: wrong,
        number_ready: ready,
        updated_number_scheduled: some(updated),
        number_available: some(available),
        number_unavailable: some(desired - available),
        observed_generation: set.metadata.generation,
        collision_count: (collisions > 0).then_some(collisions),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    };
    (status, next)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(strategy: Value, pod: Value) -> DaemonSet {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        for (key, value) in pod.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "ds", "uid": "u", "generation": 3}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}}))
        .unwrap()
    }

    fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn nodes() -> Vec<Arc<Node>> {
        ["n1", "n2", "n3"].iter().map(|n| node(n, json!({}), json!([]))).collect()
    }

    fn on(node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let set = set(json!({}), json!({}));
        let mut pod = pod(&set, hash, node);
        pod.metadata.name = Some(format!("{node}-{hash}"));
        pod.status = serde_json::from_value(json!({"phase": "Running", "conditions": [{"type": "Ready",
            "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
        .unwrap();
        Arc::new(pod)
    }

    fn decision(set: &DaemonSet, pods: &[Arc<Pod>], all: &[Arc<Node>]) -> (String, String) {
        let d = decide(set, "new", pods, all, Timestamp::now());
        let names: Vec<String> = d.delete.iter().map(|p| p.name_any()).collect();
        (d.create.join(" "), names.join(" "))
    }

    fn text(create: &str, delete: &str) -> (String, String) {
        (create.into(), delete.into())
    }

    #[test]
    fn every_eligible_node_gets_one() {
        let any = set(json!({}), json!({}));
        assert_eq!(decision(&any, &[on("n1", "new", true)], &nodes()), text("n2 n3", ""));
        let all = [
            node("ssd", json!({"disk": "ssd"}), json!([])),
            node("hdd", json!({"disk": "hdd"}), json!([])),
            node("tainted", json!({"disk": "ssd"}), json!([{"key": "k", "effect": "NoSchedule"}])),
            node(
                "cordoned",
                json!({"disk": "ssd"}),
                json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
            ),
        ];
        let ssd = set(json!({}), json!({"nodeSelector": {"disk": "ssd"}}));
        assert_eq!(decision(&ssd, &[], &all), text("ssd cordoned", ""));
        // A pod stays where it could not be scheduled any more, but not where it is not wanted or evicted.
        let there = [on("hdd", "new", true), on("tainted", "new", true)];
        assert_eq!(decision(&ssd, &there, &all), text("ssd cordoned", "hdd-new"));
        let evicting = [node("n1", json!({}), json!([{"key": "k", "effect": "NoExecute"}]))];
        assert_eq!(decision(&any, &[on("n1", "new", true)], &evicting), text("", "n1-new"));
        let (status, _) = status(&ssd, "new", &there, &all, 0, Timestamp::now());
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 0));
        assert_eq!(status.number_misscheduled, 2);
    }

    #[test]
    fn a_pod_is_bound_to_its_node_and_tolerates_troubles() {
        let pod = on("n1", "h", true);
        assert_eq!(node_of(&pod).as_deref(), Some("n1"));
        let tolerations = pod.spec.as_ref().unwrap().tolerations.as_ref().unwrap();
        assert_eq!(tolerations.len(), 6);
        let host = set(json!({}), json!({"hostNetwork": true}));
        assert_eq!(self::pod(&host, "h", "n").spec.unwrap().tolerations.unwrap().len(), 7);
    }

    #[test]
    fn a_roll_goes_node_by_node() {
        let rolling = set(json!({"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}), json!({}));
        let old = [on("n1", "old", true), on("n2", "old", true), on("n3", "old", true)];
        assert_eq!(decision(&rolling, &old, &nodes()), text("", "n1-old"));
        let started = [on("n1", "new", false), old[1].clone(), old[2].clone()];
        assert_eq!(decision(&rolling, &started, &nodes()), text("", ""));
        let one = [on("n1", "new", true), old[1].clone(), old[2].clone()];
        assert_eq!(decision(&rolling, &one, &nodes()), text("", "n2-old"));
        assert_eq!(decision(&rolling, &one[1..], &nodes()), text("n1", ""));
        // Two of three, rounded up.
        let more = set(json!({"rollingUpdate": {"maxUnavailable": "50%"}}), json!({}));
        assert_eq!(decision(&more, &old, &nodes()), text("", "n1-old n2-old"));
        // An old pod that does not work is replaced at once.
        let broken = [on("n1", "old", false), old[1].clone(), old[2].clone()];
        assert_eq!(decision(&rolling, &broken, &nodes()), text("", "n1-old"));
        let on_delete = set(json!({"type": "OnDelete"}), json!({}));
        assert_eq!(decision(&on_delete, &old, &nodes()), text("", ""));
    }

    #[test]
    fn a_surge_keeps_the_old_pod_until_the_new_one_is_there() {
        let surge = set(json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}), json!({}));
        let old = [on("n1", "old", true), on("n2", "old", true), on("n3", "old", true)];
        assert_eq!(decision(&surge, &old, &nodes()), text("n1", ""));
        let mut both = old.to_vec();
        both.push(on("n1", "new", false));
        assert_eq!(decision(&surge, &both, &nodes()), text("", ""));
        both[3] = on("n1", "new", true);
        assert_eq!(decision(&surge, &both, &nodes()), text("n2", "n1-old"));
    }

    #[test]
    fn failed_pods_are_replaced() {
        let mut failed = (*on("n1", "new", false)).clone();
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let d = decide(&set(json!({}), json!({})), "new", &[Arc::new(failed)], &nodes()[..1], Timestamp::now());
        assert_eq!((d.delete.len(), d.over.len(), d.create.len()), (1, 1, 0));
    }
}
