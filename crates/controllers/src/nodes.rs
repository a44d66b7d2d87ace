//! What controllers ask of nodes: whether a pod may be there.

use k8s_openapi::api::core::v1::{Node, PodSpec, Toleration};
use kube::ResourceExt as _;
use skiff_client::placement;

/// Whether a pod's selector and required affinity allow the node.
pub(crate) fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    placement::is_selected(spec, node.labels(), &node.name_any())
}

/// Whether the node has a taint of this effect that is not tolerated.
pub(crate) fn repels(node: &Node, tolerations: &[Toleration], effect: &str) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        taint.effect == effect && !placement::tolerates(tolerations, &taint.key, value, effect)
    })
}
