//! NodeName: a pod that names its node runs there or nowhere.

use super::Reasons;
use crate::nodes::{NodeInfo, PodInfo};

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    let wanted = pod.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    if wanted.is_empty() || wanted == node.name() {
        Ok(())
    } else {
        Err(vec!["node(s) didn't match the requested node name".into()])
    }
}
