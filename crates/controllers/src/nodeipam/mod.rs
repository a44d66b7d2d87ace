//! Node IPAM: every node gets a range of the pods' addresses, of each family that pods have.
//!
//! Watches Nodes; writes `spec.podCIDR` and `spec.podCIDRs` of those that have none.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Action, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, self_mapper};

use crate::{Result, While as _, is_not_found};

/// Bits of the prefixes that a node gets, upstream's defaults.
const NODE_PREFIX: u8 = 24;
const NODE_PREFIX_IPV6: u8 = 64;
/// A range is divided into no more parts than upstream divides it.
const MOST_BITS: u8 = 16;

/// A range of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    base: IpAddr,
    prefix: u8,
}

/// What has been given to nodes whose objects do not show it yet.
type Given = parking_lot::Mutex<HashMap<String, Vec<IpAddr>>>;

pub(crate) async fn run(informers: Informers, pod_cidr: String) {
    let nodes: Informer<Node> = informers.informer();
    let client = informers.client().clone();
    let recorder = EventRecorder::new(client.clone(), "cidrAllocator", None);
    let Some(ranges) = pod_cidr.split(',').map(|one| Range::parse(one.trim())).collect::<Option<Vec<_>>>() else {
        tracing::error!(pod_cidr, "no ranges for pods; nodes get no addresses");
        return;
    };
    let ranges: Arc<[Range]> = ranges.into();
    // One worker, so that no range is given twice.
    let given = Arc::new(Given::default());
    let watched = nodes.clone();
    Controller::new("nodeipam")
        .watch(&watched, self_mapper)
        .run(move |key: ObjectKey| {
            let (nodes, client, recorder) = (nodes.clone(), client.clone(), recorder.clone());
            let (given, ranges) = (given.clone(), ranges.clone());
            async move { reconcile(&nodes, client, &recorder, &given, &ranges, &key.name).await }
        })
        .await;
}

impl Range {
    /// `10.244.0.0/16` or `fd00:10:244::/56`.
    fn parse(cidr: &str) -> Option<Range> {
        let (base, prefix) = cidr.split_once('/')?;
        let (base, prefix): (IpAddr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        let smallest = node_prefix(base);
        let largest = if base.is_ipv4() { 8 } else { NODE_PREFIX_IPV6 - MOST_BITS };
        (largest..=smallest).contains(&prefix).then_some(Range { base, prefix })
    }

    /// The first part that no node has.
    fn free(self, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
        let count = 1u32 << (node_prefix(self.base) - self.prefix);
        (0..count).map(|i| self.part(i)).find(|a| !taken.contains(a))
    }

    fn part(self, index: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let base = base.to_bits() & (u32::MAX << (32 - self.prefix));
                Ipv4Addr::from_bits(base + (index << (32 - NODE_PREFIX))).into()
            }
            IpAddr::V6(base) => {
                let base = base.to_bits() & (u128::MAX << (128 - self.prefix));
                Ipv6Addr::from_bits(base + (u128::from(index) << (128 - NODE_PREFIX_IPV6))).into()
            }
        }
    }
}

fn node_prefix(base: IpAddr) -> u8 {
    if base.is_ipv4() { NODE_PREFIX } else { NODE_PREFIX_IPV6 }
}

fn ranges_of(node: &Node) -> Vec<IpAddr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|cidr| cidr.split_once('/')?.0.parse().ok()).collect()
}

async fn reconcile(
    nodes: &Informer<Node>,
    client: kube::Client,
    recorder: &EventRecorder,
    given: &Given,
    ranges: &[Range],
    name: &str,
) -> Result<Action> {
    let Some(node) = nodes.get("", name) else {
        given.lock().remove(name);
        return Ok(Action::Done);
    };
    if !ranges_of(&node).is_empty() {
        given.lock().remove(name);
        return Ok(Action::Done);
    }
    let chosen = {
        let mut given = given.lock();
        let mut taken: HashSet<IpAddr> = nodes.list().iter().flat_map(|n| ranges_of(n)).collect();
        taken.extend(given.iter().filter(|(n, _)| *n != name).flat_map(|(_, given)| given));
        let chosen: Option<Vec<IpAddr>> = ranges.iter().map(|range| range.free(&taken)).collect();
        if let Some(chosen) = &chosen {
            given.insert(name.to_owned(), chosen.clone());
        }
        chosen
    };
    let Some(chosen) = chosen else {
        recorder.for_object(
            &*node,
            EventType::Normal,
            "CIDRNotAvailable",
            format!("Node {name} status is now: CIDRNotAvailable"),
        );
        return Ok(Action::RequeueAfter(std::time::Duration::from_secs(30)));
    };
    let cidrs: Vec<String> = chosen.iter().map(|base| format!("{base}/{}", node_prefix(*base))).collect();
    let api: Api<Node> = Api::all(client);
    let patch = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
    match api.patch(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Err(e) if is_not_found(&e) => Ok(Action::Done),
        patched => patched.during("giving the node its range").map(|_| Action::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_in_order_until_there_are_none() {
        for (range, wanted) in [
            ("10.244.0.0/23", ["10.244.0.0", "10.244.1.0"]),
            ("fd00:10:244::/63", ["fd00:10:244::", "fd00:10:244:1::"]),
        ] {
            let range = Range::parse(range).unwrap();
            let mut taken = HashSet::new();
            for wanted in wanted {
                let part = range.free(&taken).unwrap();
                assert_eq!(part.to_string(), wanted);
                taken.insert(part);
            }
            assert_eq!(range.free(&taken), None);
        }
        for bad in ["10.244.0.0/25", "fd00:10:244::/65", "fd00::/47", "10.244.0.0"] {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
    }
}
