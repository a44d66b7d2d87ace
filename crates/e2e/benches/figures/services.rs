//! The Service rules of a large cluster: what they cost a packet, and what a change of them costs.
//!
//! Two network namespaces have the rules of few and of many Services; both are measured in turns, so that what else
//! the machine does meets both.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::Instant,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;
use skiff_client::ObjectKey;
use skiff_network::{
    NetNs,
    links::{Hop, Links, Route},
};
use skiff_proxy::{Changed, NodeInfo, Proxy};

use crate::{Figure, median};

const FEW: u16 = 10;
const MANY: u16 = 10_000;
const ENDPOINTS: u8 = 3;
const ROUNDS: usize = 60;
const CONNECTIONS: usize = 50;
const PACKETS: usize = 2_000;
const CHANGES: u16 = 100;
/// The only endpoint that there is in truth; it serves the Service number 0.
const SERVED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 127, 0, 1), 8080);
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 100, 0, 0), 80);

fn addresses(n: u16, endpoints: u8) -> Vec<String> {
    let [high, low] = n.to_be_bytes();
    match n {
        0 => vec![SERVED.ip().to_string()],
        _ => (0..endpoints).map(|endpoint| format!("10.{}.{high}.{low}", 128 + endpoint)).collect(),
    }
}

fn service(n: u16, endpoints: u8) -> Changed {
    let [high, low] = n.to_be_bytes();
    let name = format!("service-{n}");
    let service: Service = serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": name },
        "spec": { "clusterIP": format!("10.100.{high}.{low}"), "ports": [{ "port": 80 }] },
    }))
    .expect("a Service");
    let ready = |address| json!({ "addresses": [address], "conditions": { "ready": true } });
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": name }, "addressType": "IPv4",
        "ports": [{ "port": 8080, "protocol": "TCP" }],
        "endpoints": addresses(n, endpoints).into_iter().map(ready).collect::<Vec<_>>(),
    }))
    .expect("an EndpointSlice");
    (ObjectKey::of(&service), Some((Arc::new(service), vec![Arc::new(slice)])))
}

/// A node that has so many Services.
struct World {
    namespace: NetNs,
    proxy: Proxy,
    server: TcpListener,
    /// Client and server of a connection through the Service.
    established: (TcpStream, TcpStream),
}

impl World {
    fn new(services: u16) -> Self {
        let namespace = NetNs::create().expect("root may make namespaces");
        let mut links = Links::open_in(namespace.as_fd()).expect("netlink");
        let loopback = links.index("lo").expect("every namespace has it");
        links.ensure_address(loopback, *SERVED.ip(), 32).expect("an address");
        // Leads nowhere but to the rules: the namespace has no way out.
        let route =
            Route { destination: "10.100.0.0/16".parse().expect("a network"), hop: Hop::Link { link: loopback } };
        links.ensure_routes(&[route]).expect("a route");
        let pod_cidr = "10.128.0.0/9".parse().expect("a network");
        let node =
            NodeInfo { name: "one".to_owned(), pod_cidrs: vec![pod_cidr], service_cidrs: Vec::new(), zone: None };
        let enter = || {
            let mut proxy = Proxy::open(node).expect("nftables");
            proxy.apply((0..services).map(|n| service(n, ENDPOINTS))).expect("the rules are written");
            let server = TcpListener::bind(SERVED).expect("the address is there");
            let established = connect(&server);
            (proxy, server, established)
        };
        let (proxy, server, established) = namespace.run(enter).expect("it can be entered");
        Self { namespace, proxy, server, established }
    }

    /// Microseconds for a new connection.
    fn connections(&self) -> f64 {
        let work = || {
            let started = Instant::now();
            (0..CONNECTIONS).for_each(|_| drop(connect(&self.server)));
            started.elapsed().as_secs_f64() * 1e6 / CONNECTIONS as f64
        };
        self.namespace.run(work).expect("it can be entered")
    }

    /// Microseconds for a packet of a connection that is established.
    fn packets(&mut self) -> f64 {
        let (client, server) = &mut self.established;
        let started = Instant::now();
        for _ in 0..PACKETS / 2 {
            for (from, to) in [(&*client, &*server), (&*server, &*client)] {
                let (mut from, mut to) = (from, to);
                from.write_all(b"x").expect("it is open");
                to.read_exact(&mut [0]).expect("it is open");
            }
        }
        started.elapsed().as_secs_f64() * 1e6 / PACKETS as f64
    }
}

fn connect(server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(SERVICE).expect("the Service answers");
    let (accepted, _) = server.accept().expect("there is a connection");
    client.set_nodelay(true).expect("it is open");
    accepted.set_nodelay(true).expect("it is open");
    (client, accepted)
}

pub(crate) fn measure() -> Vec<Figure> {
    let (mut few, mut many) = (World::new(FEW), World::new(MANY));
    let mut connections = [Vec::new(), Vec::new()];
    let mut packets = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (world, (connections, packets)) in
            [&mut few, &mut many].into_iter().zip(connections.iter_mut().zip(&mut packets))
        {
            connections.push(world.connections());
            packets.push(world.packets());
        }
    }
    let changes = (1..=CHANGES).map(|n| {
        let changed = service(n, ENDPOINTS - 1);
        let started = Instant::now();
        many.proxy.apply([changed]).expect("the rules are written");
        started.elapsed().as_secs_f64() * 1e3
    });
    let changes: Vec<f64> = changes.collect();
    let worst = changes.iter().copied().fold(0.0, f64::max);
    let compared = |what: &str, [few, many]: [Vec<f64>; 2]| {
        let (few, many) = (median(few), median(many));
        Figure::new(
            format!("{what}, {FEW} and {MANY} Services"),
            format!("{few:.2} and {many:.2} µs ({:.2}×)", many / few),
            "within 10 %",
        )
    };
    vec![
        compared("packet through a Service", packets),
        compared("new connection to a Service", connections),
        Figure::new(
            format!("one endpoint less, {MANY} Services"),
            format!("{:.2} ms (worst of {CHANGES}: {worst:.2})", median(changes)),
            "≤ 10 ms",
        ),
    ]
}
