//! NodeAffinity: node selectors and required or preferred affinity to labels of nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeSelectorTerm;
use skiff_client::placement::{is_selected, term_matches};

use super::{Reasons, normalize};
use crate::nodes::{NodeInfo, PodInfo};

/// Of a node that only its pods are known of.
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

fn labels(node: &NodeInfo) -> &BTreeMap<String, String> {
    node.node.as_ref().and_then(|n| n.metadata.labels.as_ref()).unwrap_or(&NO_LABELS)
}

/// Whether one of the terms holds.
pub(super) fn any_term_matches(terms: &[NodeSelectorTerm], node: &NodeInfo) -> bool {
    terms.iter().any(|t| term_matches(t, labels(node), node.name()))
}

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    let selected = pod.pod.spec.as_ref().is_none_or(|spec| is_selected(spec, labels(node), node.name()));
    if selected { Ok(()) } else { Err(vec!["node(s) didn't match Pod's node affinity/selector".into()]) }
}

pub(super) fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let affinity = pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred =
        affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default();
    if preferred.is_empty() {
        return vec![0; nodes.len()];
    }
    let weight = |node: &&NodeInfo| {
        let matching = preferred.iter().filter(|p| term_matches(&p.preference, labels(node), node.name()));
        matching.map(|p| i64::from(p.weight)).sum()
    };
    let mut scores: Vec<i64> = nodes.iter().map(weight).collect();
    normalize(&mut scores, false);
    scores
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{node, pod},
        *,
    };

    fn required(expressions: serde_json::Value) -> PodInfo {
        pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}}}))
    }

    #[test]
    fn selectors_and_terms() {
        let n = node(json!({}), json!({"zone": "a", "n": "5"}));
        assert!(filter(&pod(json!({"nodeSelector": {"zone": "a"}})), &n).is_ok());
        assert!(filter(&pod(json!({"nodeSelector": {"zone": "b"}})), &n).is_err());
        assert!(filter(&required(json!([{"key": "n", "operator": "Gt", "values": ["4"]}])), &n).is_ok());
        assert!(filter(&required(json!([{"key": "zone", "operator": "NotIn", "values": ["a"]}])), &n).is_err());
        assert!(filter(&required(json!([])), &n).is_err());
    }
}
