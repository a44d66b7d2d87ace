//! NodePorts: a port of the host can be taken once.

use super::Reasons;
use crate::nodes::{NodeInfo, PodInfo};

pub(super) fn filter(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reasons> {
    let taken = pod.ports.iter().any(|wanted| node.pods.values().flat_map(|p| &p.ports).any(|p| p.conflicts(wanted)));
    if taken { Err(vec!["node(s) didn't have free ports for the requested pod ports".into()]) } else { Ok(()) }
}
