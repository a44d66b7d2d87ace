//! Which nodes are lost for good, and how a pod looks that went down with one.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Whether the node is not ready and somebody has said by the taint that it will not come back as it was.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    let ready = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True");
    !ready && node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

/// The status of a pod that nobody will end; nothing if it has ended.
pub(super) fn failed(pod: &Pod, disruption: Option<&str>, now: Timestamp) -> Option<Value> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let mut status = json!({"phase": "Failed"});
    if let Some(message) = disruption {
        status["conditions"] = json!([{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message,
            "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }]);
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lost_nodes_can_be_out_of_service() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        assert!(is_out_of_service(&node("Unknown", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("True", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("Unknown", "node.kubernetes.io/unreachable")));
    }

    #[test]
    fn who_has_ended_stays_as_he_was() {
        let pod = |phase: &str| -> Pod { serde_json::from_value(json!({"status": {"phase": phase}})).unwrap() };
        assert_eq!(failed(&pod("Succeeded"), Some("gone"), Timestamp::now()), None);
        assert_eq!(failed(&pod("Running"), None, Timestamp::now()), Some(json!({"phase": "Failed"})));
        let lost = failed(&pod("Running"), Some("gone"), Timestamp::now()).unwrap();
        assert_eq!(lost["conditions"][0]["reason"], "DeletionByPodGC");
    }
}
