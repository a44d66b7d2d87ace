//! Node IPAM: every node gets a range of the pods' addresses.
//!
//! Watches Nodes; writes `spec.podCIDR` and `spec.podCIDRs` of those that have none.

use std::{collections::HashSet, net::Ipv4Addr, sync::Arc};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Action, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, self_mapper};

use crate::{Result, While as _, is_not_found};

/// Bits of the prefix that a node gets, upstream's default.
const NODE_PREFIX: u8 = 24;

pub(crate) async fn run(informers: Informers, pod_cidr: String) {
    let nodes: Informer<Node> = informers.informer();
    let client = informers.client().clone();
    let recorder = EventRecorder::new(client.clone(), "cidrAllocator", None);
    let Some(range) = parse(&pod_cidr) else {
        tracing::error!(pod_cidr, "no IPv4 range for pods; nodes get no addresses");
        return;
    };
    // One worker, so that no range is given twice.
    let given = Arc::new(parking_lot::Mutex::new(std::collections::HashMap::<String, Ipv4Addr>::new()));
    let watched = nodes.clone();
    Controller::new("nodeipam")
        .watch(&watched, self_mapper)
        .run(move |key: ObjectKey| {
            let (nodes, client, recorder, given) = (nodes.clone(), client.clone(), recorder.clone(), given.clone());
            async move { reconcile(&nodes, client, &recorder, &given, range, &key.name).await }
        })
        .await;
}

/// Base and prefix of `10.244.0.0/16`.
fn parse(cidr: &str) -> Option<(Ipv4Addr, u8)> {
    let (base, prefix) = cidr.split_once('/')?;
    let prefix: u8 = prefix.parse().ok().filter(|p| (8..=NODE_PREFIX).contains(p))?;
    Some((base.parse().ok()?, prefix))
}

/// The first range that no node has.
fn free(range: (Ipv4Addr, u8), taken: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (base, prefix) = range;
    let count = 1u32 << (NODE_PREFIX - prefix);
    let size = 1u32 << (32 - NODE_PREFIX);
    let base = u32::from(base) & (u32::MAX << (32 - prefix));
    (0..count).map(|i| Ipv4Addr::from(base + i * size)).find(|a| !taken.contains(a))
}

fn range_of(node: &Node) -> Option<Ipv4Addr> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.split_once('/')?.0.parse().ok()
}

async fn reconcile(
    nodes: &Informer<Node>,
    client: kube::Client,
    recorder: &EventRecorder,
    given: &parking_lot::Mutex<std::collections::HashMap<String, Ipv4Addr>>,
    range: (Ipv4Addr, u8),
    name: &str,
) -> Result<Action> {
    let Some(node) = nodes.get("", name) else {
        given.lock().remove(name);
        return Ok(Action::Done);
    };
    if range_of(&node).is_some() {
        given.lock().remove(name);
        return Ok(Action::Done);
    }
    let chosen = {
        let mut given = given.lock();
        let mut taken: HashSet<Ipv4Addr> = nodes.list().iter().filter_map(|n| range_of(n)).collect();
        taken.extend(given.iter().filter(|(n, _)| *n != name).map(|(_, a)| *a));
        let chosen = free(range, &taken);
        if let Some(chosen) = chosen {
            given.insert(name.to_owned(), chosen);
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
    let cidr = format!("{chosen}/{NODE_PREFIX}");
    let api: Api<Node> = Api::all(client);
    let patch = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
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
        let range = parse("10.244.0.0/23").unwrap();
        let mut taken = HashSet::new();
        for want in ["10.244.0.0", "10.244.1.0"] {
            let a = free(range, &taken).unwrap();
            assert_eq!(a.to_string(), want);
            taken.insert(a);
        }
        assert_eq!(free(range, &taken), None);
        assert!(parse("10.244.0.0/25").is_none());
    }
}
