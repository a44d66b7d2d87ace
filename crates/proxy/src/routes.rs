//! Routes to the pods of other nodes, kept in line with the Node objects.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use skiff_client::{Backoff, Informers};
use skiff_network::nodes::{NodeRoutes, Peer};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Applies the routes to all nodes that have an address and a pod range, until the informer ends.
pub async fn follow_nodes(mut routes: NodeRoutes, informers: Informers) {
    let nodes = informers.informer::<Node>();
    nodes.wait_synced().await;
    let mut changes = nodes.subscribe();
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut retry_in: Option<Duration> = None;
    let mut applied: Option<Vec<Peer>> = None;
    loop {
        tokio::select! {
            change = changes.recv() => if change.is_none() {
                return;
            },
            () = tokio::time::sleep(retry_in.unwrap_or_default()), if retry_in.is_some() => {}
        }
        let peers = peers(&nodes.list());
        // Nodes report something every few seconds, and hardly ever a new address.
        if applied.as_ref() == Some(&peers) {
            continue;
        }
        match routes.apply(&peers) {
            Ok(()) => {
                tracing::info!(nodes = peers.len(), "routes to other nodes are up to date");
                applied = Some(peers);
                retry_in = None;
                backoff.reset();
            }
            Err(error) => {
                let delay = backoff.next_delay();
                tracing::error!(error = error.chain(), ?delay, "routes to other nodes are out of date; trying again");
                retry_in = Some(delay);
            }
        }
    }
}

fn peers(nodes: &[Arc<Node>]) -> Vec<Peer> {
    let peer = |node: &Arc<Node>| {
        let addresses = node.status.as_ref()?.addresses.iter().flatten();
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let addresses: Vec<_> = internal.filter_map(|address| address.address.parse().ok()).collect();
        let spec = node.spec.as_ref()?;
        let ranges = match spec.pod_cidrs.as_deref() {
            None | Some([]) => spec.pod_cidr.as_slice(),
            Some(ranges) => ranges,
        };
        let pod_cidrs: Vec<_> = ranges.iter().filter_map(|range| range.parse().ok()).collect();
        (!addresses.is_empty() && !pod_cidrs.is_empty()).then_some(Peer { addresses, pod_cidrs })
    };
    nodes.iter().filter_map(peer).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use kube::{Api, api::PostParams};
    use serde_json::json;
    use skiff_client::fake::FakeApi;
    use skiff_network::{
        NetNs,
        links::{Links, VethEnd},
        nodes::Local,
    };

    use super::*;

    #[tokio::test]
    async fn routes_follow_the_nodes() {
        let node = NetNs::create().unwrap();
        let mut links = Links::open_in(node.as_fd()).unwrap();
        links.add_veth(VethEnd::new("eth0"), VethEnd::new("peer"), None).unwrap();
        links.set_up("peer").unwrap();
        let eth0 = links.index("eth0").unwrap();
        links.ensure_address(eth0, [172, 18, 0, 2], 16).unwrap();
        let local = Local {
            addresses: vec![([172, 18, 0, 2].into(), "172.18.0.0/16".parse().unwrap())],
            interface: "eth0".to_owned(),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        };
        let routes = node.run(|| NodeRoutes::open(local)).unwrap().unwrap();
        let client = FakeApi::new().client();
        let task = tokio::spawn(follow_nodes(routes, Informers::new(client.clone())));
        let nodes = Api::<Node>::all(client);
        let object = |n: u8| {
            let node = json!({
                "metadata": { "name": format!("node-{n}") },
                "spec": { "podCIDR": format!("10.244.{n}.0/24") },
                "status": { "addresses": [
                    { "type": "Hostname", "address": "x" }, { "type": "InternalIP", "address": format!("172.18.0.{}", n + 2) },
                ]},
            });
            serde_json::from_value::<Node>(node).unwrap()
        };
        for n in 0..3 {
            nodes.create(&PostParams::default(), &object(n)).await.unwrap();
        }
        let mut wait_for = async |count: usize| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            while links.own_routes(skiff_network::Subnet::ALL_IPV4).unwrap().len() != count {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "{:?}",
                    links.own_routes(skiff_network::Subnet::ALL_IPV4)
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        wait_for(2).await;
        nodes.delete("node-1", &Default::default()).await.unwrap();
        wait_for(1).await;
        task.abort();
    }
}
