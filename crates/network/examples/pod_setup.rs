//! Measures how long the network of a pod takes, in namespaces of its own:
//! `cargo run --release -p skiff-network --example pod_setup`.
#![allow(clippy::print_stdout)]

use std::{os::fd::AsFd, time::Instant};

use skiff_network::{NetNs, PodNetwork, PodNetworkConfig, Result};

const PODS: usize = 50;

fn main() -> Result<()> {
    let data_dir = std::env::temp_dir().join(format!("skiff-pod-setup-{}", std::process::id()));
    let result = measure(&data_dir);
    let _ = std::fs::remove_dir_all(&data_dir);
    result
}

fn measure(data_dir: &std::path::Path) -> Result<()> {
    let node = NetNs::create()?;
    let config =
        PodNetworkConfig { data_dir: data_dir.to_owned(), ..PodNetworkConfig::new(vec!["10.244.0.0/24".parse()?]) };
    let network = node.run(|| {
        skiff_network::sysctl::set("net/bridge/bridge-nf-call-iptables", "0")?;
        PodNetwork::open(config)
    })??;
    let pods = (0..PODS).map(|_| NetNs::create()).collect::<Result<Vec<_>>>()?;
    let mut times = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let start = Instant::now();
        network.setup(&format!("pod-{n}"), pod.as_fd(), "eth0", &[])?;
        times.push(start.elapsed());
    }
    times.sort();
    let start = Instant::now();
    for n in 0..PODS {
        network.teardown(&format!("pod-{n}"), "eth0")?;
    }
    let teardown = start.elapsed() / 50;
    println!("setup: median {:?}, worst {:?}; teardown: {teardown:?}", times[PODS / 2], times[PODS - 1]);
    Ok(())
}
