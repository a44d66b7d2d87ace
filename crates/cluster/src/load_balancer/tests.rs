use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, PostParams};
use serde_json::Value;
use skiff_client::fake::FakeApi;
use skiff_network::NetNs;

use super::*;
use crate::{
    host_ports::HostNet,
    node_config::{HostConfig, PortMapping, Role},
};

fn service(name: &str, spec: Value) -> Service {
    let mut object = json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{ "port": 80 }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn config() -> NodeConfig {
    NodeConfig {
        cluster_name: "dev".to_owned(),
        node_name: "dev-control-plane".to_owned(),
        role: Role::ControlPlane,
        node_ip: Ipv4Addr::new(172, 18, 0, 2),
        interface: "eth0".to_owned(),
        segment: "172.18.0.0/16".parse().unwrap(),
        pod_subnet: "10.244.0.0/16".parse().unwrap(),
        service_subnet: "10.96.0.0/12".parse().unwrap(),
        ipv6: None,
        cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
        data_dir: "/var/lib/skiff".into(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        disable_default_cni: false,
        isolated: true,
        bootstrap_token: String::new(),
        host: HostConfig { netns_fd: 3, proc_fd: 4 },
        server: None,
        agent: None,
        extra_port_mappings: vec![PortMapping {
            listen_address: Ipv4Addr::LOCALHOST,
            host_port: 8080,
            container_port: 30080,
            protocol: Protocol::Tcp,
        }],
        settings: Default::default(),
    }
}

#[test]
fn only_load_balancers_of_ours_want_ports() {
    let ports =
        json!({ "ports": [{ "port": 80 }, { "port": 53, "protocol": "UDP" }, { "port": 1, "protocol": "SCTP" }] });
    let shown: Vec<String> = wanted(&service("web", ports)).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:80/TCP → 10.96.0.7:80", "127.0.0.1:53/UDP → 10.96.0.7:53"]);
    let both = json!({ "clusterIPs": ["10.96.0.7", "fd00:10:96::7"] });
    let shown: Vec<String> = wanted(&service("web", both)).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:80/TCP → 10.96.0.7:80", "[::1]:80/TCP → [fd00:10:96::7]:80"]);
    for spec in [json!({ "type": "NodePort" }), json!({ "loadBalancerClass": "x/y" }), json!({ "clusterIP": "" })] {
        assert_eq!(wanted(&service("web", spec)), []);
    }
}

struct World {
    host: NetNs,
    manager: PortManager,
    api: Api<Service>,
    client: kube::Client,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let host = NetNs::create().unwrap();
        let net = host.run(HostNet::current).unwrap().unwrap();
        let manager = PortManager::new(HostPorts::new(net), &config());
        let client = FakeApi::new().client();
        let task = tokio::spawn(run(manager.clone(), Informers::new(client.clone())));
        let api = Api::namespaced(client.clone(), "default");
        Self { host, manager, api, client, task }
    }

    async fn create(&self, service: &Service) {
        self.api.create(&PostParams::default(), service).await.unwrap();
    }

    fn is_open(&self, port: u16) -> bool {
        let address = (Ipv4Addr::LOCALHOST, port);
        self.host.run(|| std::net::TcpStream::connect(address).is_ok()).unwrap()
    }

    async fn has_status(&self, name: &str) -> bool {
        has_our_status(&self.api.get(name).await.unwrap())
    }

    async fn events(&self) -> Vec<(String, String)> {
        let events =
            Api::<Event>::namespaced(self.client.clone(), "default").list(&ListParams::default()).await.unwrap();
        events.into_iter().map(|event| (event.reason.unwrap(), event.message.unwrap())).collect()
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), waiting)
        .await
        .unwrap_or_else(|_| panic!("gave up waiting for {what}"));
}

#[tokio::test]
async fn a_load_balancer_comes_and_goes() {
    let world = World::new();
    world.create(&service("web", json!({}))).await;
    until("the status", async || world.has_status("web").await).await;
    assert!(world.is_open(80));
    until("the events", async || world.events().await.iter().any(|(reason, _)| reason == "EnsuredLoadBalancer")).await;
    let listed: Vec<_> =
        world.manager.list().into_iter().map(|port| (port.forward.listen.port(), port.reason)).collect();
    assert_eq!(listed, [(8080, "extraPortMappings".to_owned()), (80, "service default/web".to_owned())]);

    // It becomes an ordinary Service: no port, no status.
    let patch = json!({ "spec": { "type": "ClusterIP" } });
    world.api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    until("the end of the status", async || !world.has_status("web").await).await;
    until("the end of the port", async || !world.is_open(80)).await;
    assert_eq!(world.manager.list().len(), 1);
    world.task.abort();
}

#[tokio::test]
async fn a_taken_port_is_reported_and_taken_over_when_free() {
    let world = World::new();
    let holder = world.host.run(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).unwrap()).unwrap();
    world.create(&service("web", json!({}))).await;
    let failed =
        |events: Vec<(String, String)>| events.into_iter().find(|(reason, _)| reason == "SyncLoadBalancerFailed");
    until("the event", async || failed(world.events().await).is_some()).await;
    let (_, message) = failed(world.events().await).unwrap();
    assert!(
        message.starts_with(
            "Error syncing load balancer: failed to ensure load balancer: port 80 on 127.0.0.1 is already in use by "
        ),
        "{message}"
    );
    assert!(!world.has_status("web").await);
    assert!(world.manager.list()[1].problem.is_some());
    drop(holder);
    until("the status", async || world.has_status("web").await).await;
    assert!(world.is_open(80));
    world.task.abort();
}

#[tokio::test]
async fn of_two_services_with_one_port_the_first_has_it() {
    let world = World::new();
    let (first, second) = (service("zebra", json!({})), service("ant", json!({ "clusterIP": "10.96.0.8" })));
    world.create(&first).await;
    until("the first status", async || world.has_status("zebra").await).await;
    world.create(&second).await;
    until("the second's problem", async || {
        let ports = world.manager.list();
        ports.iter().any(|port| {
            port.problem.as_deref() == Some("port 80 on 127.0.0.1 is already used for service default/zebra")
        })
    })
    .await;
    assert!(!world.has_status("ant").await);
    world.api.delete("zebra", &Default::default()).await.unwrap();
    until("the second status", async || world.has_status("ant").await).await;
    world.task.abort();
}

#[tokio::test]
async fn ports_are_added_and_removed_by_hand() {
    let world = World::new();
    assert!(world.is_open(8080), "the configuration's mapping");
    let target = SocketAddr::from(([172, 18, 0, 2], 30000));
    let forward =
        |port| Forward { protocol: Protocol::Tcp, listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), target };
    let listen = world.manager.open(forward(0)).unwrap();
    assert!(world.is_open(listen.port()));
    assert_eq!(
        world.manager.open(forward(8080)).unwrap_err(),
        "port 8080 on 127.0.0.1 is already used for extraPortMappings"
    );
    assert_eq!(world.manager.list().len(), 2);
    assert!(world.manager.close(Protocol::Tcp, listen));
    assert!(!world.manager.close(Protocol::Tcp, listen));
    until("the end of the port", async || !world.is_open(listen.port())).await;
    world.task.abort();
}
