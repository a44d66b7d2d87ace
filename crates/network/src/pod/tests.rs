use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use super::*;
use crate::hostport::Protocol;

/// A node in a namespace of its own that leads nowhere.
struct Node {
    namespace: NetNs,
    network: PodNetwork,
    data_dir: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        Self::with_bridge_netfilter(name, false)
    }

    fn with_bridge_netfilter(name: &str, on: bool) -> Self {
        let namespace = NetNs::create().unwrap();
        let value = if on { "1" } else { "0" };
        let set = || {
            sysctl::set("net/bridge/bridge-nf-call-iptables", value)?;
            sysctl::set("net/bridge/bridge-nf-call-ip6tables", value)
        };
        let set = namespace.run(set).unwrap();
        // The setting is absent where the kernel has no br_netfilter.
        assert!(set.is_ok() || !on, "{set:?}");
        let data_dir = std::env::temp_dir().join(format!("skiff-pod-{name}-{}", std::process::id()));
        let network = Self::open(&namespace, &data_dir);
        Self { namespace, network, data_dir }
    }

    fn open(namespace: &NetNs, data_dir: &std::path::Path) -> PodNetwork {
        let config = PodNetworkConfig {
            data_dir: data_dir.to_owned(),
            masquerade_except: Some(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]),
            ..PodNetworkConfig::new(vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()])
        };
        namespace.run(|| PodNetwork::open(config)).unwrap().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.data_dir);
    }
}

/// Serves one connection after the other, answering with the client's address.
fn serve(namespace: &NetNs, port: u16) -> std::thread::JoinHandle<()> {
    let listener = namespace.run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{}", peer.ip().to_canonical());
        }
    })
}

fn ask(namespace: &NetNs, address: SocketAddr) -> std::io::Result<String> {
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(2));
    let mut stream = namespace.run(connect).unwrap()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::from((address.into(), port))
}

#[test]
fn pods_reach_each_other_and_their_host_ports() {
    reach(&Node::new("reach"));
}

#[test]
fn pods_reach_each_other_with_bridge_netfilter() {
    if Path::new("/proc/sys/net/bridge").exists() {
        reach(&Node::with_bridge_netfilter("reach-bridge", true));
    }
}

fn reach(node: &Node) {
    let (a, b) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let one = node.network.setup("pod-a", a.as_fd(), "eth0", &[]).unwrap();
    let port = HostPort { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
    let two = node.network.setup("pod-b", b.as_fd(), "eth0", std::slice::from_ref(&port)).unwrap();
    serve(&b, 80);
    for (one, two) in one.ips.iter().zip(&two.ips) {
        assert_ne!(one.address, two.address);
        // No address translation between pods, nor from the node.
        assert_eq!(ask(&a, at(two.address, 80)).unwrap(), one.address.to_string());
        assert_eq!(ask(&node.namespace, at(two.address, 80)).unwrap(), two.gateway.to_string());
        // The host port: from another pod, from the node, and from the pod itself.
        assert_eq!(ask(&a, at(two.gateway, 8080)).unwrap(), one.address.to_string());
        assert_eq!(ask(&node.namespace, at(two.gateway, 8080)).unwrap(), two.gateway.to_string());
        assert_eq!(ask(&b, at(two.gateway, 8080)).unwrap(), two.gateway.to_string());
    }
    let (two, one) = (two.ips[0], one.ips[0]);
    assert_eq!(ask(&node.namespace, at(Ipv4Addr::LOCALHOST, 8080)).unwrap(), two.gateway.to_string());
    assert!(ask(&node.namespace, at(std::net::Ipv6Addr::LOCALHOST, 8080)).is_err());
    // Nobody else may have it, and a failed setup leaves nothing behind.
    let c = NetNs::create().unwrap();
    let taken = node.network.setup("pod-c", c.as_fd(), "eth0", std::slice::from_ref(&port)).unwrap_err();
    assert_eq!(taken.to_string(), "host port 8080/TCP is already used by container pod-b");
    assert_eq!(node.network.attachments().unwrap().len(), 2);

    // A restarted daemon finds everything working and goes on.
    let again = Node::open(&node.namespace, &node.data_dir);
    assert_eq!(ask(&a, at(two.gateway, 8080)).unwrap(), one.address.to_string());
    again.check("pod-b", b.as_fd(), "eth0").unwrap();
    again.teardown("pod-b", "eth0").unwrap();
    again.teardown("pod-b", "eth0").unwrap();
    assert!(again.check("pod-b", b.as_fd(), "eth0").is_err());
    assert!(ask(&a, at(two.gateway, 8080)).is_err());
    node.network.collect_garbage(&HashSet::new()).unwrap();
    assert_eq!(node.network.attachments().unwrap(), []);
    let mut links = Links::open_in(node.namespace.as_fd()).unwrap();
    assert_eq!(links.list().unwrap().iter().filter(|link| link.kind == "veth").count(), 0);
}

#[test]
fn a_repeated_setup_takes_over_what_is_there() {
    let node = Node::new("repeat");
    let pod = NetNs::create().unwrap();
    let first = node.network.setup("pod", pod.as_fd(), "eth0", &[]).unwrap();
    let second = node.network.setup("pod", pod.as_fd(), "eth0", &[]).unwrap();
    assert_eq!(first, second);
    let gone = Path::new("/proc/self/ns/nothing");
    assert!(node.network.setup_path("other", gone, "eth0", &[]).is_err());
    assert_eq!(node.network.attachments().unwrap().len(), 1);
}

#[test]
fn udp_host_ports_answer_and_move() {
    let node = Node::new("udp");
    let port = HostPort { host_ip: None, host_port: 5353, container_port: 53, protocol: Protocol::Udp };
    let client = NetNs::create().unwrap();
    let from = node.network.setup("client", client.as_fd(), "eth0", &[]).unwrap();
    let socket = client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answers = Vec::new();
    for name in ["pod-a", "pod-b"] {
        let pod = NetNs::create().unwrap();
        node.network.setup(name, pod.as_fd(), "eth0", std::slice::from_ref(&port)).unwrap();
        let server = pod.run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
        // The same client socket: without forgetting its flow it would go on to the first pod.
        socket.send_to(b"?", at(from.ips[0].gateway, 5353)).unwrap();
        let mut buffer = [0; 16];
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (_, peer) = server.recv_from(&mut buffer).unwrap();
        server.send_to(name.as_bytes(), peer).unwrap();
        let (len, source) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(source, at(from.ips[0].gateway, 5353));
        answers.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        node.network.teardown(name, "eth0").unwrap();
    }
    assert_eq!(answers, ["pod-a", "pod-b"]);
}

#[test]
fn pods_started_at_once_get_different_addresses() {
    let node = Node::new("many");
    let pods: Vec<NetNs> = (0..20).map(|_| NetNs::create().unwrap()).collect();
    let addresses: HashSet<IpAddr> = std::thread::scope(|scope| {
        let setups: Vec<_> = (0..20)
            .zip(&pods)
            .map(|(n, pod)| {
                let network = &node.network;
                scope
                    .spawn(move || network.setup(&format!("pod-{n}"), pod.as_fd(), "eth0", &[]).unwrap().ips[1].address)
            })
            .collect();
        setups.into_iter().map(|setup| setup.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 20);
}
