//! The plugins: each is one file with one rule. Filters say on which nodes a pod cannot run and why; scores say
//! which of the others is better, from 0 to 100.

mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod taint_toleration;

use crate::nodes::{NodeInfo, PodInfo};

/// Why a node cannot take a pod, in upstream's words: they are counted and shown to users.
pub(crate) type Reasons = Vec<String>;

/// A rule that a node must keep.
pub(crate) type Filter = fn(&PodInfo, &NodeInfo) -> Result<(), Reasons>;

/// A preference, with its weight: 0 to 100 for each of the nodes.
pub(crate) type Score = (fn(&PodInfo, &[&NodeInfo]) -> Vec<i64>, i64);

/// In upstream's order; the first that refuses is the reason that is shown.
pub(crate) const FILTERS: &[Filter] = &[
    node_unschedulable::filter,
    node_name::filter,
    taint_toleration::filter,
    node_affinity::filter,
    node_ports::filter,
    node_resources::filter,
];

/// With upstream's weights.
pub(crate) const SCORES: &[Score] = &[
    (taint_toleration::score, 3),
    (node_affinity::score, 2),
    (node_resources::least_allocated, 1),
    (node_resources::balanced, 1),
];

/// Brings scores to 0–100 by the highest one; `reverse` makes the lowest the best.
fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if highest == 0 { 0 } else { *score * 100 / highest };
        if reverse {
            *score = 100 - *score;
        }
    }
}

/// Runs all filters against a node.
pub(crate) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    FILTERS.iter().try_for_each(|f| f(pod, node))
}

/// The weighted sum of all scores for each node.
pub(crate) fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut total = vec![0; nodes.len()];
    for (score, weight) in SCORES {
        for (sum, s) in total.iter_mut().zip(score(pod, nodes)) {
            *sum += s * weight;
        }
    }
    total
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::nodes::Nodes;

    pub(crate) fn pod(spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        PodInfo::new(Arc::new(
            serde_json::from_value(json!({"metadata": {"uid": "u", "name": "p"}, "spec": spec})).unwrap(),
        ))
    }

    pub(crate) fn node(spec: Value, labels: Value) -> NodeInfo {
        let mut nodes = Nodes::default();
        nodes.set_node(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels}, "spec": spec,
                "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}}))
            .unwrap(),
        ));
        nodes.iter().next().unwrap().clone()
    }

    #[test]
    fn scores_are_normalized() {
        let mut s = [0, 5, 10];
        normalize(&mut s, false);
        assert_eq!(s, [0, 50, 100]);
        normalize(&mut s, true);
        assert_eq!(s, [100, 50, 0]);
        let mut s = [0, 0];
        normalize(&mut s, true);
        assert_eq!(s, [100, 100]);
    }
}
