//! The whole server on loopback, with a fake API server and a fake resolver outside.

use hickory_proto::{
    op::{OpCode, Query},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::PostParams};
use serde_json::json;
use skiff_client::fake::FakeApi;

use super::*;

/// A port that is free for UDP and TCP just now.
fn free_port() -> SocketAddr {
    loop {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

fn options(resolv_conf: &std::path::Path) -> Options {
    Options {
        listen: free_port(),
        health: free_port(),
        ready: free_port(),
        metrics: free_port(),
        resolv_conf: resolv_conf.to_owned(),
        ..Options::default()
    }
}

fn query(name: &str) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query
}

async fn ask(server: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query(name).to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 4096];
    let received = timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await.unwrap();
    let reply = Message::from_vec(&buffer[..received.unwrap().0]).unwrap();
    assert_eq!(reply.metadata.id, 4711);
    reply
}

async fn ask_tcp(server: SocketAddr, name: &str) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = query(name).to_vec().unwrap();
    let len = u16::try_from(bytes.len()).unwrap();
    stream.write_all(&[&len.to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
    let len = stream.read_u16().await.unwrap();
    let mut reply = vec![0; usize::from(len)];
    stream.read_exact(&mut reply).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = loop {
        if let Ok(stream) = TcpStream::connect(address).await {
            break stream;
        }
        tokio::task::yield_now().await;
    };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("gave up waiting for {what}"));
}

fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn answers_follow_the_api() {
    let api = FakeApi::new();
    let client = api.client();
    let namespace = json!({ "metadata": { "name": "default" } });
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object(namespace)).await.unwrap();
    let services = Api::<Service>::namespaced(client.clone(), "default");
    let service = |address: &str| json!({ "metadata": { "name": "web" }, "spec": { "clusterIP": address, "ports": [{ "port": 80 }] } });
    services.create(&PostParams::default(), &object(service("10.96.0.7"))).await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let options = options(&directory.path().join("missing"));
    let server = tokio::spawn(run(client.clone(), options.clone()));
    until("readiness", async || get(options.ready, "/ready").await.starts_with("HTTP/1.1 200")).await;
    assert!(get(options.health, "/health").await.ends_with("OK"));
    assert!(get(options.health, "/other").await.starts_with("HTTP/1.1 404"));

    let web = "web.default.svc.cluster.local.";
    let reply = ask(options.listen, web).await;
    assert_eq!(reply.answers[0].data, RData::A(A(Ipv4Addr::new(10, 96, 0, 7))));
    assert_eq!(ask_tcp(options.listen, web).await.answers, reply.answers);

    // A headless Service with endpoints appears, the watch breaks off, an object goes.
    let headless = json!({ "metadata": { "name": "db" }, "spec": { "clusterIP": "None" } });
    services.create(&PostParams::default(), &object(headless)).await.unwrap();
    let slice = json!({
        "metadata": { "name": "db-1", "labels": { "kubernetes.io/service-name": "db" } }, "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.244.0.5"], "hostname": "db-0" }], "ports": [],
    });
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    slices.create(&PostParams::default(), &object(slice)).await.unwrap();
    let db = "db-0.db.default.svc.cluster.local.";
    until("the endpoint", async || ask(options.listen, db).await.answers.len() == 1).await;
    api.cut_watches();
    api.compact();
    services.delete("web", &Default::default()).await.unwrap();
    until("the end of the Service", async || {
        ask(options.listen, web).await.metadata.response_code == ResponseCode::NXDomain
    })
    .await;

    // Nobody outside: said at once.
    assert_eq!(ask(options.listen, "example.com.").await.metadata.response_code, ResponseCode::Refused);
    let metrics = get(options.metrics, "/metrics").await;
    assert!(metrics.contains("coredns_dns_responses_total{rcode=\"REFUSED\"} 1"), "{metrics}");
    server.abort();
}

/// Answers every question with 192.0.2.80.
async fn resolver(socket: UdpSocket) {
    let mut buffer = vec![0; 4096];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        let question = Message::from_vec(&buffer[..len]).unwrap();
        let mut reply = answer::reply_to(&question);
        let name = question.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 80)))));
        // One that somebody made up comes first, and is not believed.
        let mut forged = reply.clone();
        forged.metadata.id = !question.metadata.id;
        socket.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
        socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
    }
}

#[tokio::test]
async fn other_names_come_from_outside() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dead = free_port();
    let upstream = socket.local_addr().unwrap();
    tokio::spawn(resolver(socket));
    let zone = SharedZone::default();
    zone.with(|zone| {
        zone.set_service(&object(json!({
            "metadata": { "name": "out", "namespace": "default" },
            "spec": { "type": "ExternalName", "externalName": "example.com" },
        })));
    });
    let server = Arc::new(Server {
        answerer: Answerer::new("cluster.local").unwrap(),
        zone,
        // The first one refuses; the second is asked.
        forwarder: Forwarder::new(vec![dead, upstream]),
        counters: Arc::default(),
    });
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let task = tokio::spawn(async move { serve_udp(&server, Arc::new(udp)).await });

    let reply = ask(address, "example.com.").await;
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.80");
    let reply = ask(address, "out.default.svc.cluster.local.").await;
    let data: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(data, ["example.com.", "192.0.2.80"]);

    // Noise is answered with an error or not at all, and does no harm.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"x", address).await.unwrap();
    socket.send_to(&[1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 99], address).await.unwrap();
    let mut buffer = [0; 64];
    let (len, _) = timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!((len, &buffer[..4]), (12, &[1, 2, 0x80, 1][..]));
    assert_eq!(ask(address, "example.com.").await.answers.len(), 1);
    task.abort();
}
