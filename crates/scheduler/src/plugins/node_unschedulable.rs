//! NodeUnschedulable: a cordoned node takes no new pods but those that tolerate it.

use super::{Reasons, taint_toleration::tolerates};
use crate::nodes::{NodeInfo, PodInfo};

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    let cordoned = node.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.unschedulable).unwrap_or(false);
    if !cordoned || tolerates(pod, "node.kubernetes.io/unschedulable", "", "NoSchedule") {
        Ok(())
    } else {
        Err(vec!["node(s) were unschedulable".into()])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{node, pod},
        *,
    };

    #[test]
    fn cordoned_nodes_need_a_toleration() {
        let n = node(json!({"unschedulable": true}), json!({}));
        assert!(filter(&pod(json!({})), &n).is_err());
        assert!(filter(&pod(json!({"tolerations": [{"operator": "Exists"}]})), &n).is_ok());
    }
}
