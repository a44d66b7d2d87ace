//! NodeAffinity: node selectors and required or preferred affinity to labels of nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::{Reasons, normalize};
use crate::nodes::{NodeInfo, PodInfo};

fn requirement_holds(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|x| x != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(a, b)| a > b),
        "Lt" => numbers().is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// Whether all requirements of a term hold. A term without any selects nothing.
fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| requirement_holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_holds(r, Some(name)))
}

fn labels(node: &NodeInfo) -> BTreeMap<String, String> {
    node.node.as_ref().and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
}

/// Whether one of the terms holds.
pub(super) fn any_term_matches(terms: &[NodeSelectorTerm], node: &NodeInfo) -> bool {
    let labels = labels(node);
    terms.iter().any(|t| term_matches(t, &labels, node.name()))
}

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    let Some(spec) = pod.pod.spec.as_ref() else { return Ok(()) };
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    if spec.node_selector.is_none() && required.is_none() {
        return Ok(());
    }
    let labels = labels(node);
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let wanted = required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, &labels, node.name())));
    if selected && wanted { Ok(()) } else { Err(vec!["node(s) didn't match Pod's node affinity/selector".into()]) }
}

pub(super) fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let affinity = pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred =
        affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default();
    if preferred.is_empty() {
        return vec![0; nodes.len()];
    }
    let weight = |node: &&NodeInfo| {
        let labels = labels(node);
        let matching = preferred.iter().filter(|p| term_matches(&p.preference, &labels, node.name()));
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
