//! With real packets: a node with pods, and a client outside, in namespaces that lead nowhere else.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use serde_json::{Value, json};
use skiff_network::{
    NetNs, PodNetwork, PodNetworkConfig, Subnet,
    links::{Hop, Links, Route, VethEnd},
    nft::Family,
    sysctl,
};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The addresses of a family in the world of the tests.
#[derive(Debug, Clone, Copy)]
struct Plan {
    family: Family,
    service: IpAddr,
    /// An address of no Service.
    nobody: IpAddr,
    node: IpAddr,
    client: IpAddr,
    gateway: IpAddr,
    services: Subnet,
}

fn plan(family: Family) -> Plan {
    let [service, nobody, node, client, gateway, services] = match family {
        Family::Ip => ["10.96.0.10", "10.96.0.99", "172.18.0.2", "172.18.0.9", "10.244.0.1", "10.96.0.0/12"],
        _ => ["fd00:10:96::a", "fd00:10:96::63", "fc00::2", "fc00::9", "fd00:10:244::1", "fd00:10:96::/112"],
    };
    let services = services.parse().unwrap();
    let [service, nobody, node, client, gateway] = [service, nobody, node, client, gateway].map(ip);
    Plan { family, service, nobody, node, client, gateway, services }
}

struct World {
    plan: Plan,
    node: NetNs,
    client: NetNs,
    network: PodNetwork,
    proxy: Proxy,
    _data: tempfile::TempDir,
}

impl World {
    fn new(family: Family) -> Self {
        let plan = plan(family);
        let node = NetNs::create().unwrap();
        let client = NetNs::create().unwrap();
        let data = tempfile::tempdir().unwrap();
        // The client outside of the cluster, on the node's segment, with routes to Services by the node.
        let mut links = Links::open_in(node.as_fd()).unwrap();
        let far = VethEnd { namespace: Some(client.as_fd()), ..VethEnd::new("eth0") };
        links.add_veth(VethEnd::new("eth0"), far, None).unwrap();
        let mut outside = Links::open_in(client.as_fd()).unwrap();
        outside.set_up("eth0").unwrap();
        for all in [self::plan(Family::Ip), self::plan(Family::Ip6)] {
            let prefix = if all.family == Family::Ip { 16 } else { 64 };
            for (links, address) in [(&mut links, all.node), (&mut outside, all.client)] {
                let eth0 = links.index("eth0").unwrap();
                links.ensure_address(eth0, address, prefix).unwrap();
            }
            let everything = if all.family == Family::Ip { Subnet::ALL_IPV4 } else { Subnet::ALL_IPV6 };
            let link = outside.index("eth0").unwrap();
            let by_node = Hop::Gateway { gateway: all.node, link, onlink: false };
            outside.ensure_routes(&[everything, all.services].map(|d| Route { destination: d, hop: by_node })).unwrap();
            let link = links.index("eth0").unwrap();
            let by_client = Hop::Gateway { gateway: all.client, link, onlink: false };
            links.ensure_routes(&[Route { destination: all.services, hop: by_client }]).unwrap();
        }

        let pods: Vec<Subnet> = ["10.244.0.0/24", "fd00:10:244::/64"].map(|range| range.parse().unwrap()).into();
        let config = PodNetworkConfig { data_dir: data.path().join("ipam"), ..PodNetworkConfig::new(pods) };
        let info = NodeInfo {
            name: "one".to_owned(),
            pod_cidrs: ["10.244.0.0/16", "fd00:10:244::/56"].map(|range| range.parse().unwrap()).into(),
            service_cidrs: vec![self::plan(Family::Ip).services, self::plan(Family::Ip6).services],
            zone: None,
        };
        let (network, proxy) = node
            .run(|| {
                for rules in ["iptables", "ip6tables"] {
                    sysctl::set(&format!("net/bridge/bridge-nf-call-{rules}"), "0").unwrap();
                }
                // Services are routed back out of the interface that the client is on.
                sysctl::set("net/ipv4/conf/eth0/send_redirects", "0").unwrap();
                (PodNetwork::open(config).unwrap(), Proxy::open(info).unwrap())
            })
            .unwrap();
        Self { plan, node, client, network, proxy, _data: data }
    }

    fn pod(&self, name: &str) -> Pod {
        let namespace = NetNs::create().unwrap();
        let ips = self.network.setup(name, namespace.as_fd(), "eth0", &[]).unwrap().ips;
        let address = ips.iter().find(|ip| Family::of(ip.address) == self.plan.family).unwrap().address;
        Pod { namespace, address }
    }

    fn address_type(&self) -> &'static str {
        if self.plan.family == Family::Ip { "IPv4" } else { "IPv6" }
    }

    fn service(&self, spec: Value) -> Value {
        let mut service = json!({
            "metadata": { "namespace": "default", "name": "web" },
            "spec": { "clusterIP": self.plan.service, "ports": [{ "port": 80, "nodePort": 30080 }] },
        });
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        service
    }

    fn apply(&mut self, service: Value, endpoints: &[Value]) {
        let service: Service = serde_json::from_value(service).unwrap();
        let key = ObjectKey::of(&service);
        let ports = service.spec.as_ref().unwrap().ports.as_ref().unwrap();
        let protocol = ports[0].protocol.clone().unwrap_or("TCP".to_owned());
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "namespace": "default", "name": "web-1" }, "addressType": self.address_type(),
            "ports": [{ "name": "", "port": 8080, "protocol": protocol }], "endpoints": endpoints,
        }))
        .unwrap();
        self.proxy.apply([(key, Some((Arc::new(service), vec![Arc::new(slice)])))]).unwrap();
    }
}

struct Pod {
    namespace: NetNs,
    address: IpAddr,
}

impl Pod {
    fn endpoint(&self, node: &str) -> Value {
        json!({ "addresses": [self.address], "nodeName": node, "conditions": { "ready": true } })
    }

    /// Answers every connection with its own address and the client's.
    fn serve(&self) {
        let listener = self.namespace.run(|| TcpListener::bind(("::", 8080)).unwrap()).unwrap();
        let own = self.address;
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{own} {}", peer.ip().to_canonical());
            }
        });
    }
}

/// Who answered, and whom they saw.
fn ask(from: &NetNs, address: IpAddr, port: u16) -> Result<(String, String), std::io::ErrorKind> {
    let address = SocketAddr::from((address, port));
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(1500));
    let mut stream = from.run(connect).unwrap().map_err(|error| error.kind())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.kind())?;
    let (pod, client) = answer.split_once(' ').unwrap();
    Ok((pod.to_owned(), client.to_owned()))
}

#[test]
fn tcp_services_from_everywhere() {
    tcp_services_from_everywhere_in(Family::Ip);
}

#[test]
fn tcp_services_from_everywhere_of_ipv6() {
    tcp_services_from_everywhere_in(Family::Ip6);
}

fn tcp_services_from_everywhere_in(family: Family) {
    use std::io::ErrorKind::{ConnectionRefused, TimedOut};
    let mut world = World::new(family);
    let plan = world.plan;
    let (a, b, other) = (world.pod("a"), world.pod("b"), world.pod("other"));
    a.serve();
    b.serve();
    world.apply(world.service(json!({})), &[a.endpoint("one"), b.endpoint("one")]);

    // From a pod: both are reached, and see the pod's own address.
    let answers: HashSet<_> = (0..40).map(|_| ask(&other.namespace, plan.service, 80).unwrap()).collect();
    let expected = [&a, &b].map(|pod| (pod.address.to_string(), other.address.to_string()));
    assert_eq!(answers, HashSet::from(expected));
    // From the node: masqueraded.
    assert_eq!(ask(&world.node, plan.service, 80).unwrap().1, plan.gateway.to_string());
    // A pod that is its own endpoint.
    world.apply(world.service(json!({})), &[a.endpoint("one")]);
    assert_eq!(ask(&a.namespace, plan.service, 80).unwrap(), (a.address.to_string(), plan.gateway.to_string()));
    // Node port and cluster address from outside: masqueraded.
    assert_eq!(ask(&world.client, plan.node, 30080).unwrap().1, plan.gateway.to_string());
    assert_eq!(ask(&world.client, plan.service, 80).unwrap().1, plan.gateway.to_string());
    assert_eq!(ask(&world.node, plan.node, 30080).unwrap().0, a.address.to_string());
    assert_eq!(ask(&other.namespace, plan.node, 30080).unwrap().0, a.address.to_string());
    // A port that the Service does not have, and an address that no Service has.
    assert_eq!(ask(&other.namespace, plan.service, 81), Err(ConnectionRefused));
    assert_eq!(ask(&other.namespace, plan.nobody, 80), Err(TimedOut));

    // Policy Local keeps the client's address; pods may still go anywhere.
    let local = json!({ "externalTrafficPolicy": "Local", "type": "NodePort" });
    world.apply(world.service(local.clone()), &[a.endpoint("one"), b.endpoint("two")]);
    for _ in 0..10 {
        assert_eq!(ask(&world.client, plan.node, 30080).unwrap(), (a.address.to_string(), plan.client.to_string()));
    }
    world.apply(world.service(local), &[b.endpoint("two")]);
    assert_eq!(ask(&world.client, plan.node, 30080), Err(TimedOut), "dropped: another node may have an endpoint");
    assert_eq!(ask(&other.namespace, plan.node, 30080).unwrap().0, b.address.to_string());

    // Nobody there: said at once, to everybody.
    world.apply(world.service(json!({})), &[]);
    let (pod, node, client) = (&other.namespace, &world.node, &world.client);
    for (what, namespace, address, port) in [
        ("pod", pod, plan.service, 80),
        ("node", node, plan.service, 80),
        ("client", client, plan.service, 80),
        ("client to the node port", client, plan.node, 30080),
    ] {
        assert_eq!(ask(namespace, address, port), Err(ConnectionRefused), "{what}");
    }
    // The Service goes: its address is nobody's.
    world.proxy.apply([(ObjectKey::new("default", "web"), None)]).unwrap();
    assert_eq!(ask(&other.namespace, plan.service, 80), Err(TimedOut));
}

#[test]
fn external_addresses_and_source_ranges() {
    external_addresses_and_source_ranges_in(Family::Ip);
}

#[test]
fn external_addresses_and_source_ranges_of_ipv6() {
    external_addresses_and_source_ranges_in(Family::Ip6);
}

fn external_addresses_and_source_ranges_in(family: Family) {
    let mut world = World::new(family);
    let (a, other) = (world.pod("a"), world.pod("other"));
    a.serve();
    let [address, external, allowed, others, pods] = match family {
        Family::Ip => ["10.111.0.1", "10.111.0.2", "172.18.0.0/28", "192.0.2.0/24", "10.244.0.0/16"],
        _ => ["fd00:10:111::1", "fd00:10:111::2", "fc00::/124", "2001:db8::/32", "fd00:10:244::/56"],
    };
    let address = ip(address);
    let mut balancer = world.service(json!({
        "type": "LoadBalancer", "externalIPs": [external], "loadBalancerSourceRanges": [allowed],
    }));
    balancer["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
    world.apply(balancer.clone(), &[a.endpoint("one")]);
    assert!(ask(&world.client, address, 80).is_ok());
    assert!(ask(&world.client, ip(external), 80).is_ok());
    assert_eq!(ask(&other.namespace, address, 80), Err(std::io::ErrorKind::TimedOut), "pods are not in the range");
    balancer["spec"]["loadBalancerSourceRanges"] = json!([others, pods]);
    world.apply(balancer, &[a.endpoint("one")]);
    assert_eq!(ask(&world.client, address, 80), Err(std::io::ErrorKind::TimedOut));
    assert!(ask(&other.namespace, address, 80).is_ok());
}

#[test]
fn clients_with_affinity_stay_until_their_endpoint_goes() {
    clients_with_affinity_stay_until_their_endpoint_goes_in(Family::Ip);
}

#[test]
fn clients_with_affinity_stay_until_their_endpoint_goes_of_ipv6() {
    clients_with_affinity_stay_until_their_endpoint_goes_in(Family::Ip6);
}

fn clients_with_affinity_stay_until_their_endpoint_goes_in(family: Family) {
    let mut world = World::new(family);
    let plan = world.plan;
    let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
    a.serve();
    b.serve();
    let sticky = world.service(json!({ "sessionAffinity": "ClientIP" }));
    world.apply(sticky.clone(), &[a.endpoint("one"), b.endpoint("one")]);
    let first = ask(&client.namespace, plan.service, 80).unwrap().0;
    for _ in 0..10 {
        assert_eq!(ask(&client.namespace, plan.service, 80).unwrap().0, first);
    }
    let rest = if first == a.address.to_string() { &b } else { &a };
    world.apply(sticky.clone(), &[rest.endpoint("one")]);
    assert_eq!(ask(&client.namespace, plan.service, 80).unwrap().0, rest.address.to_string());
    // The choice is remembered anew, also when the other endpoint comes back.
    world.apply(sticky, &[a.endpoint("one"), b.endpoint("one")]);
    for _ in 0..10 {
        assert_eq!(ask(&client.namespace, plan.service, 80).unwrap().0, rest.address.to_string());
    }
}

#[test]
fn udp_clients_move_to_living_endpoints() {
    udp_clients_move_to_living_endpoints_in(Family::Ip);
}

#[test]
fn udp_clients_move_to_living_endpoints_of_ipv6() {
    udp_clients_move_to_living_endpoints_in(Family::Ip6);
}

fn udp_clients_move_to_living_endpoints_in(family: Family) {
    let mut world = World::new(family);
    let plan = world.plan;
    let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
    let dns = world.service(json!({ "ports": [{ "port": 53, "protocol": "UDP" }] }));
    let servers = [&a, &b].map(|pod| {
        let socket = pod.namespace.run(|| UdpSocket::bind((pod.address, 8080)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    });
    let socket = client.namespace.run(|| UdpSocket::bind((client.address, 0)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let service = SocketAddr::from((plan.service, 53));
    // Before there is any endpoint the packet is refused, and the flow must not be remembered.
    world.apply(dns.clone(), &[]);
    let _ = socket.send_to(b"early", service);
    for (pod, server) in [&a, &b].into_iter().zip(&servers) {
        world.apply(dns.clone(), &[pod.endpoint("one")]);
        let mut buffer = [0; 16];
        // The same client port all along; a pending ICMP error is reported by the first send.
        if socket.send_to(b"?", service).is_err() {
            socket.send_to(b"?", service).unwrap();
        }
        let (_, peer) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"!", peer).unwrap();
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"!"[..], service));
    }
}

#[test]
fn a_change_is_small_and_a_lost_table_comes_back() {
    let mut world = World::new(Family::Ip);
    let pods: Vec<Value> = (1..=50)
        .map(|n| json!({ "addresses": [format!("10.244.1.{n}")], "nodeName": "two", "conditions": { "ready": true } }))
        .collect();
    world.apply(world.service(json!({})), &pods);
    let elements =
        |world: &mut World, map: &str| nft::elements(&mut world.proxy.socket, Family::Ip, table::TABLE, map).unwrap();
    assert_eq!(elements(&mut world, "endpoints").len(), 50);
    // One of fifty goes: the last takes its number.
    let mut delta = Delta::default();
    let key = ObjectKey::new("default", "web");
    let before = world.proxy.planes[0].rules.wants(&key).cloned().unwrap();
    let object: Service = serde_json::from_value(world.service(json!({}))).unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": "web-1" }, "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }], "endpoints": &pods[1..],
    }))
    .unwrap();
    let plane = &mut world.proxy.planes[0];
    let wants = service::wants(&object, &[Arc::new(slice)], &plane.node, Some(&before), &mut plane.numbers);
    plane.rules.set(&key, Some(wants), &mut delta);
    // Two endpoints and two verdicts (address and node port).
    assert_eq!(delta.size(), (4, 3));

    let mut batch = table::batch(Family::Ip);
    batch.delete_table();
    batch.commit(&mut world.proxy.socket).unwrap();
    assert!(!world.proxy.check().unwrap());
    world.proxy.apply([]).unwrap();
    assert!(world.proxy.check().unwrap());
    assert_eq!(elements(&mut world, "endpoints").len(), 49);
    world.proxy.remove().unwrap();
    assert!(!world.proxy.check().unwrap());
}

#[test]
fn two_services_with_one_address_take_turns() {
    two_services_with_one_address_take_turns_in(Family::Ip);
}

#[test]
fn two_services_with_one_address_take_turns_of_ipv6() {
    two_services_with_one_address_take_turns_in(Family::Ip6);
}

fn two_services_with_one_address_take_turns_in(family: Family) {
    let mut world = World::new(family);
    let plan = world.plan;
    let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
    a.serve();
    b.serve();
    let any = world.service(json!({}));
    let named = |name: &str| {
        let mut service = any.clone();
        service["metadata"]["name"] = json!(name);
        service
    };
    world.apply(named("first"), &[a.endpoint("one")]);
    world.apply(named("second"), &[b.endpoint("one")]);
    assert_eq!(ask(&client.namespace, plan.service, 80).unwrap().0, a.address.to_string());
    world.proxy.apply([(ObjectKey::new("default", "first"), None)]).unwrap();
    assert_eq!(ask(&client.namespace, plan.service, 80).unwrap().0, b.address.to_string());
}
