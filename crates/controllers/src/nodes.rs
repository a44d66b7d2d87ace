//! What controllers ask of nodes: whether a pod may be there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use kube::ResourceExt as _;

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

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| requirement_holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_holds(r, Some(name)))
}

/// Whether a pod's selector and required affinity allow the node.
pub(crate) fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    let (labels, name) = (node.labels(), node.name_any());
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
        && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, labels, &name)))
}

fn tolerates(t: &Toleration, taint: &Taint) -> bool {
    let same = |field: &Option<String>, wanted: &str| field.as_deref().is_none_or(|f| f.is_empty() || f == wanted);
    let value = taint.value.as_deref().unwrap_or_default();
    same(&t.effect, &taint.effect)
        && same(&t.key, &taint.key)
        && match t.operator.as_deref().unwrap_or_default() {
            "Exists" => true,
            "" | "Equal" => t.value.as_deref().unwrap_or_default() == value,
            _ => false,
        }
}

/// Whether the node has a taint of this effect that is not tolerated.
pub(crate) fn repels(node: &Node, tolerations: &[Toleration], effect: &str) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.effect == effect && !tolerations.iter().any(|t| tolerates(t, taint)))
}
