//! NodeResourcesFit and NodeResourcesBalancedAllocation: what a pod asks for must be free; emptier nodes are better,
//! and so are those where CPU and memory are used alike.

use super::Reasons;
use crate::nodes::{NodeInfo, PodInfo};

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    let mut reasons = Vec::new();
    if node.pods.len() as i64 + 1 > node.max_pods() {
        reasons.push("Too many pods".to_owned());
    }
    for (name, wanted) in pod.requests.iter().filter(|(_, n)| **n > 0) {
        let allocatable = node.allocatable.get(name).copied().unwrap_or(0);
        let used = node.requested.get(name).copied().unwrap_or(0);
        if *wanted > allocatable - used {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Whether the pod would fit if it were alone on the node.
pub(super) fn fits_empty(pod: &PodInfo, node: &NodeInfo) -> bool {
    node.max_pods() > 0
        && pod.requests.iter().all(|(name, wanted)| *wanted <= node.allocatable.get(name).copied().unwrap_or(0))
}

/// Used share of CPU and memory with the pod, each 0 to 1.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [f64; 2] {
    let share = |name: &str, used: i64| {
        let all = node.allocatable.get(name).copied().unwrap_or(0);
        if all <= 0 { 1.0 } else { (used as f64 / all as f64).min(1.0) }
    };
    [share("cpu", node.scored.0 + pod.scored.0), share("memory", node.scored.1 + pod.scored.1)]
}

pub(super) fn least_allocated(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    nodes
        .iter()
        .map(|n| {
            let [cpu, memory] = shares(pod, n);
            (((1.0 - cpu) * 100.0 + (1.0 - memory) * 100.0) / 2.0) as i64
        })
        .collect()
}

pub(super) fn balanced(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    nodes
        .iter()
        .map(|n| {
            let [cpu, memory] = shares(pod, n);
            // The standard deviation of two values is half their difference.
            ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{node, pod},
        *,
    };

    #[test]
    fn too_much_is_refused_by_name() {
        let n = node(json!({}), json!({}));
        let p = |cpu: &str| {
            pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "example.com/gpu": "1"}}}]}))
        };
        assert_eq!(filter(&p("3"), &n).unwrap_err(), ["Insufficient cpu", "Insufficient example.com/gpu"]);
        assert!(
            filter(&pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]})), &n).is_ok()
        );
    }
}
