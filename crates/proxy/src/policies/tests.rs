//! With real packets: pods of a node, and an address outside, in namespaces that lead nowhere else.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
};

use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use skiff_client::fake::FakeApi;
use skiff_network::{NetNs, PodNetwork, PodNetworkConfig, Subnet, sysctl};

use super::*;

/// Long enough for a packet within a machine, short enough to wait for none.
const PATIENCE: Duration = Duration::from_millis(250);

struct Guest {
    namespace: NetNs,
    /// The one that is asked for.
    address: IpAddr,
    object: Arc<Pod>,
}

struct World {
    family: Family,
    node: NetNs,
    network: PodNetwork,
    policies: Policies,
    namespaces: Vec<Arc<Namespace>>,
    guests: Vec<Guest>,
    _data: tempfile::TempDir,
}

fn object<T: k8s_openapi::serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

impl World {
    /// Pods have addresses of both families; it is this one that is looked at.
    fn new(family: Family) -> Self {
        let node = NetNs::create().unwrap();
        let data = tempfile::tempdir().unwrap();
        let pods: Vec<Subnet> = ["10.244.0.0/24", "fd00:10:244::/64"].map(|range| range.parse().unwrap()).into();
        let config = PodNetworkConfig { data_dir: data.path().join("ipam"), ..PodNetworkConfig::new(pods) };
        let (network, policies) = node
            .run(|| {
                for rules in ["iptables", "ip6tables"] {
                    sysctl::set(&format!("net/bridge/bridge-nf-call-{rules}"), "0").unwrap();
                }
                (PodNetwork::open(config).unwrap(), Policies::open("one", &[Family::Ip, Family::Ip6]).unwrap())
            })
            .unwrap();
        let namespace = |name: &str, tenant: &str| {
            object(
                json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "tenant": tenant}}}),
            )
        };
        let namespaces = vec![namespace("a", "alpha"), namespace("b", "beta")];
        Self { family, node, network, policies, namespaces, guests: Vec::new(), _data: data }
    }

    /// A pod that answers on 8080 (named "web") and 9090.
    fn pod(&mut self, namespace: &str, app: &str) -> usize {
        let netns = NetNs::create().unwrap();
        let name = format!("{namespace}-{app}");
        let ips = self.network.setup(&name, netns.as_fd(), "eth0", &[]).unwrap().ips;
        let address = ips.iter().find(|ip| Family::of(ip.address) == self.family).unwrap().address;
        let all: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip.address})).collect();
        for port in [8080, 9090] {
            let listener = netns.run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
            std::thread::spawn(move || while listener.accept().is_ok() {});
        }
        let object = object(json!({
            "metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
            "spec": {"nodeName": "one", "containers": [
                {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ips[0].address, "podIPs": all},
        }));
        self.guests.push(Guest { namespace: netns, address, object });
        self.guests.len() - 1
    }

    /// Policies of namespace a, by their specs.
    fn enforce(&mut self, specs: &[Value]) {
        let policies: Vec<Arc<NetworkPolicy>> = specs
            .iter()
            .enumerate()
            .map(|(n, spec)| object(json!({"metadata": {"namespace": "a", "name": format!("p{n}")}, "spec": spec})))
            .collect();
        let pods: Vec<Arc<Pod>> = self.guests.iter().map(|guest| guest.object.clone()).collect();
        self.policies.apply(&policies, &pods, &self.namespaces).unwrap();
    }

    fn reaches(&self, from: usize, to: usize, port: u16) -> bool {
        connects(&self.guests[from].namespace, self.guests[to].address, port)
    }
}

fn connects(from: &NetNs, address: IpAddr, port: u16) -> bool {
    from.run(|| TcpStream::connect_timeout(&SocketAddr::from((address, port)), PATIENCE)).unwrap().is_ok()
}

#[test]
fn ingress_by_labels_ports_and_names() {
    ingress_by_labels_ports_and_names_in(Family::Ip);
}

#[test]
fn ingress_by_labels_ports_and_names_of_ipv6() {
    ingress_by_labels_ports_and_names_in(Family::Ip6);
}

fn ingress_by_labels_ports_and_names_in(family: Family) {
    let mut world = World::new(family);
    let (front, back, other) = (world.pod("a", "frontend"), world.pod("a", "backend"), world.pod("b", "frontend"));
    let open = |world: &World| [front, other].map(|from| [8080, 9090].map(|port| world.reaches(from, back, port)));
    assert_eq!(open(&world), [[true; 2]; 2]);

    let backend = json!({"matchLabels": {"app": "backend"}});
    let frontend = json!([{"podSelector": {"matchLabels": {"app": "frontend"}}}]);
    world.enforce(&[json!({"podSelector": backend, "ingress": [{"from": frontend, "ports": [{"port": 8080}]}]})]);
    assert_eq!(open(&world), [[true, false], [false, false]], "only from the same namespace, only the port");
    assert!(world.reaches(back, other, 9090), "its own connections are free");
    assert!(connects(&world.node, world.guests[back].address, 9090), "the node reaches its pods");
    assert!(world.reaches(back, back, 9090), "a pod reaches itself");

    world.enforce(&[json!({"podSelector": backend, "ingress": [{"from": frontend, "ports": [{"port": "web"}]}]})]);
    assert_eq!(open(&world), [[true, false], [false, false]], "by name");
    // Several policies allow what any of them does.
    let range = json!({"podSelector": {}, "ingress": [{
        "from": [{"namespaceSelector": {"matchLabels": {"tenant": "beta"}}}],
        "ports": [{"port": 9000, "endPort": 9100, "protocol": "TCP"}]}]});
    let named = json!({"podSelector": backend, "ingress": [{"from": frontend, "ports": [{"port": "web"}]}]});
    world.enforce(&[named, range.clone()]);
    assert_eq!(open(&world), [[true, false], [false, true]]);
    let both = json!({"podSelector": {}, "ingress": [{"from": [{
        "namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "frontend"}}}]}]});
    world.enforce(&[range, both]);
    assert_eq!(open(&world), [[true; 2]; 2]);
    world.enforce(&[json!({"podSelector": {}, "ingress": [{"ports": [{"protocol": "UDP"}]}]})]);
    assert_eq!(open(&world), [[false; 2]; 2], "another protocol");
    world.enforce(&[json!({"podSelector": {}, "ingress": [{}]})]);
    assert_eq!(open(&world), [[true; 2]; 2], "an empty rule allows everything");
    world.enforce(&[]);
    assert!(!world.policies.check().unwrap(), "no policy, no table");
    assert_eq!(open(&world), [[true; 2]; 2]);
}

#[test]
fn egress_blocks_and_default_deny() {
    egress_blocks_and_default_deny_in(Family::Ip);
}

#[test]
fn egress_blocks_and_default_deny_of_ipv6() {
    egress_blocks_and_default_deny_in(Family::Ip6);
}

fn egress_blocks_and_default_deny_in(family: Family) {
    let mut world = World::new(family);
    let (api, db, other) = (world.pod("a", "api"), world.pod("a", "db"), world.pod("b", "db"));
    let reached = |world: &World| [db, other].map(|to| [8080, 9090].map(|port| world.reaches(api, to, port)));
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    world.enforce(std::slice::from_ref(&deny));
    assert_eq!(reached(&world), [[false; 2]; 2]);
    assert!(!world.reaches(other, api, 8080));

    let rule = |to: Value, ports: Value| json!({"podSelector": {"matchLabels": {"app": "api"}}, "policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]});
    let to_db = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    world.enforce(&[rule(to_db.clone(), json!([{"port": 9090}]))]);
    assert_eq!(reached(&world), [[false, true], [false, false]]);
    // What the receiver calls so.
    world.enforce(&[rule(to_db.clone(), json!([{"port": "web"}]))]);
    assert_eq!(reached(&world), [[true, false], [false, false]]);
    // Both ends have to allow it.
    world.enforce(&[deny, rule(to_db, json!([{"port": 9090}]))]);
    assert_eq!(reached(&world), [[false; 2]; 2]);
    // All but one address; overlapping with a rule for that one.
    let except = Subnet::host(world.guests[other].address);
    let all = if family == Family::Ip { "10.244.0.0/16" } else { "fd00:10:244::/56" };
    let foreign = if family == Family::Ip { "::/0" } else { "0.0.0.0/0" };
    let blocks = json!([{"ipBlock": {"cidr": foreign}}, {"ipBlock": {"cidr": all, "except": [except]}}]);
    let block = rule(blocks, json!([]));
    world.enforce(std::slice::from_ref(&block));
    assert_eq!(reached(&world), [[true, true], [false, false]]);
    let one = rule(json!([{"ipBlock": {"cidr": except}}, {"namespaceSelector": {}}]), json!([{"port": 8080}]));
    world.enforce(&[block, one]);
    assert_eq!(reached(&world), [[true, true], [true, false]]);
}

#[test]
fn what_is_established_goes_on() {
    what_is_established_goes_on_in(Family::Ip);
}

#[test]
fn what_is_established_goes_on_of_ipv6() {
    what_is_established_goes_on_in(Family::Ip6);
}

fn what_is_established_goes_on_in(family: Family) {
    let mut world = World::new(family);
    let (client, server) = (world.pod("a", "client"), world.pod("b", "server"));
    let target = SocketAddr::from((world.guests[server].address, 7070));
    let listener = world.guests[server].namespace.run(|| TcpListener::bind("[::]:7070").unwrap()).unwrap();
    let stream = world.guests[client].namespace.run(|| TcpStream::connect(target).unwrap()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    world.enforce(&[json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})]);
    std::io::Write::write_all(&mut &stream, b"still").unwrap();
    let mut buffer = [0; 5];
    accepted.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    accepted.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"still");
    assert!(!connects(&world.guests[client].namespace, world.guests[server].address, 7070));
}

#[test]
fn a_peer_more_is_an_element_more() {
    let pod = |n: u8| {
        object::<Pod>(json!({
            "metadata": {"namespace": "a", "name": format!("p{n}"), "labels": {"app": if n == 0 { "db" } else { "web" }}},
            "spec": {"nodeName": "one", "containers": []}, "status": {"podIP": format!("10.244.0.{}", 2 * n + 2)},
        }))
    };
    let policies = [object(json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 1}]}]}}))];
    let pods: Vec<Arc<Pod>> = (0..100).map(pod).collect();
    let mut batch = table::batch(Family::Ip);
    let written =
        Written::default().write(Family::Ip, wanted(Family::Ip, "one", &policies, &pods[..99], &[]), false, &mut batch);
    let mut change = table::batch(Family::Ip);
    written.write(Family::Ip, wanted(Family::Ip, "one", &policies, &pods, &[]), true, &mut change);
    assert!(change.size() < 400 && batch.size() > 4000, "{} {}", change.size(), batch.size());
}

#[tokio::test]
async fn rules_follow_the_api() {
    let node = NetNs::create().unwrap();
    let policies = node.run(|| Policies::open("one", &[Family::Ip]).unwrap()).unwrap();
    let client = FakeApi::new().client();
    let task = tokio::spawn(follow_policies(policies, Informers::new(client.clone())));
    let mut socket = nft::socket_in(node.as_fd()).unwrap();
    let mut wait_for = async |set: &str, count: usize| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let found = nft::elements(&mut socket, Family::Ip, table::TABLE, set).unwrap().len();
            if found == count {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found} instead of {count} in {set}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let create = PostParams::default();
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.create(&create, &serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap()).await.unwrap();
    let pods = Api::<Pod>::namespaced(client.clone(), "a");
    let pod = json!({
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"nodeName": "one", "containers": []}, "status": {"podIP": "10.244.0.2"},
    });
    pods.create(&create, &serde_json::from_value(pod).unwrap()).await.unwrap();
    let objects = Api::<NetworkPolicy>::namespaced(client, "a");
    let policy = json!({"metadata": {"name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    objects.create(&create, &serde_json::from_value(policy).unwrap()).await.unwrap();
    wait_for("ingress-pods", 1).await;
    pods.delete("web", &Default::default()).await.unwrap();
    wait_for("ingress-pods", 0).await;
    objects.delete("deny", &Default::default()).await.unwrap();
    let mut tables = nft::socket_in(node.as_fd()).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !nft::tables(&mut tables, Family::Ip).unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the table stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task.abort();
}
