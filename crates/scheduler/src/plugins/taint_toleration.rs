//! TaintToleration: a node's taints keep pods away that do not tolerate them.

use k8s_openapi::api::core::v1::Taint;
use skiff_client::placement;

use super::{Reasons, normalize};
use crate::nodes::{NodeInfo, PodInfo};

fn taints(node: &NodeInfo) -> &[Taint] {
    node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether the pod tolerates a taint.
pub(super) fn tolerates(pod: &PodInfo, key: &str, value: &str, effect: &str) -> bool {
    let tolerations = pod.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    placement::tolerates(tolerations, key, value, effect)
}

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    for t in taints(node).iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute") {
        let value = t.value.as_deref().unwrap_or_default();
        // A cordoned node has a taint as well; its own rule speaks of it.
        if t.key == "node.kubernetes.io/unschedulable"
            && node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.unschedulable) == Some(true)
        {
            continue;
        }
        if !tolerates(pod, &t.key, value, &t.effect) {
            return Err(vec![format!("node(s) had untolerated taint(s): {{{}: {value}}}", t.key)]);
        }
    }
    Ok(())
}

pub(super) fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let disliked = |node: &&NodeInfo| {
        let count = taints(node)
            .iter()
            .filter(|t| {
                t.effect == "PreferNoSchedule"
                    && !tolerates(pod, &t.key, t.value.as_deref().unwrap_or_default(), &t.effect)
            })
            .count();
        i64::try_from(count).unwrap_or(i64::MAX)
    };
    let mut scores: Vec<i64> = nodes.iter().map(disliked).collect();
    normalize(&mut scores, true);
    scores
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{node, pod},
        *,
    };

    #[test]
    fn taints_need_their_toleration() {
        let n = node(json!({"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}), json!({}));
        assert_eq!(filter(&pod(json!({})), &n).unwrap_err(), ["node(s) had untolerated taint(s): {a: b}"]);
        for good in [
            json!([{"key": "a", "operator": "Exists"}]),
            json!([{"key": "a", "value": "b", "effect": "NoSchedule"}]),
            json!([{"operator": "Exists"}]),
        ] {
            assert!(filter(&pod(json!({"tolerations": good})), &n).is_ok());
        }
        for bad in
            [json!([{"key": "a", "value": "c"}]), json!([{"key": "a", "operator": "Exists", "effect": "NoExecute"}])]
        {
            assert!(filter(&pod(json!({"tolerations": bad})), &n).is_err());
        }
    }
}
