//! Measures the rules of network policies with many pods, in a network namespace of its own:
//! `cargo run --release -p skiff-proxy --example many_peers`.
#![allow(clippy::print_stdout)]

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use serde_json::json;
use skiff_network::{NetNs, nft::Family};
use skiff_proxy::Policies;

const PODS: u16 = 5_000;

fn pod(n: u16) -> Result<Arc<Pod>, serde_json::Error> {
    let [high, low] = n.to_be_bytes();
    let node = if n < 100 { "one" } else { "two" };
    Ok(Arc::new(serde_json::from_value(json!({
        "metadata": { "namespace": "a", "name": format!("pod-{n}"), "labels": { "app": format!("app-{}", n % 10) } },
        "spec": { "nodeName": node, "containers": [] }, "status": { "podIP": format!("10.128.{high}.{low}") },
    }))?))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let namespace = NetNs::create()?;
    let mut policies = namespace.run(|| Policies::open("one", &[Family::Ip]))??;
    // Every application may be reached by everybody of the namespace, on a port.
    let objects = (0..10)
        .map(|n| {
            Ok(Arc::new(serde_json::from_value(json!({
                "metadata": { "namespace": "a", "name": format!("policy-{n}") },
                "spec": { "podSelector": { "matchLabels": { "app": format!("app-{n}") } },
                    "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": 80 }] }] },
            }))?))
        })
        .collect::<Result<Vec<Arc<NetworkPolicy>>, serde_json::Error>>()?;
    let namespaces = [Arc::new(serde_json::from_value::<Namespace>(json!({ "metadata": { "name": "a" } }))?)];
    // Addresses with gaps: neighbours would be one range.
    let mut pods = (0..PODS).map(|n| pod(2 * n)).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    policies.apply(&objects, &pods, &namespaces)?;
    println!("10 policies with {PODS} peers each, written at once: {:?}", start.elapsed());
    let mut times = Vec::new();
    for _ in 0..20 {
        pods.pop();
        let start = Instant::now();
        policies.apply(&objects, &pods, &namespaces)?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("one peer less of each: median {:?}, worst {:?}", times[10], times[19]);
    Ok(())
}
