//! Measures the Service rules of a large cluster, in a network namespace of its own:
//! `cargo run --release -p skiff-proxy --example many_services`.
#![allow(clippy::print_stdout)]

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;
use skiff_client::ObjectKey;
use skiff_network::NetNs;
use skiff_proxy::{Changed, NodeInfo, Proxy};

const SERVICES: u16 = 10_000;

fn service(n: u16, endpoints: u8) -> Result<Changed, serde_json::Error> {
    let [high, low] = n.to_be_bytes();
    let name = format!("service-{n}");
    let service: Service = serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": name },
        "spec": { "clusterIP": format!("10.100.{high}.{low}"), "ports": [{ "port": 80 }] },
    }))?;
    let endpoints: Vec<_> = (0..endpoints)
        .map(|e| json!({ "addresses": [format!("10.{}.{high}.{low}", 128 + e)], "conditions": { "ready": true } }))
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": name }, "addressType": "IPv4",
        "ports": [{ "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
    }))?;
    Ok((ObjectKey::of(&service), Some((Arc::new(service), vec![Arc::new(slice)]))))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let namespace = NetNs::create()?;
    let node = NodeInfo { name: "one".to_owned(), pod_cidr: "10.128.0.0/9".parse()?, service_cidr: None, zone: None };
    let mut proxy = namespace.run(|| Proxy::open(node))??;
    let all = (0..SERVICES).map(|n| service(n, 3)).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    proxy.apply(all)?;
    println!("{SERVICES} services with 3 endpoints each, written at once: {:?}", start.elapsed());
    let mut times = Vec::new();
    for n in 0..100 {
        let changed = service(n, 2)?;
        let start = Instant::now();
        proxy.apply([changed])?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("one endpoint less: median {:?}, worst {:?}", times[50], times[99]);
    Ok(())
}
