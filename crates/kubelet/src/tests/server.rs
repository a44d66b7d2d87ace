//! The kubelet's API over HTTPS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::json;
use skiff_pki::{Authority, Pair, Usage};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Node1, container};
use crate::ServerConfig;

struct Clients {
    authority: Authority,
    address: SocketAddr,
}

impl Clients {
    /// A node with a server, and who can make clients for it.
    async fn with_node() -> (Node1, Clients) {
        let (authority, _) = Authority::generate("test").unwrap();
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let serving = issue(&authority, "system:node:node", None, Usage::Server);
        let server = ServerConfig {
            listen: address,
            certificate_pem: serving.certificate_pem,
            key_pem: serving.key_pem,
            client_ca_pem: authority.certificate_pem().to_owned(),
        };
        let node = Node1::with_server(Some(server)).await;
        (node, Clients { authority, address })
    }

    async fn send(
        &self,
        user: Option<(&str, Option<&str>)>,
        request: Request<Empty<Bytes>>,
    ) -> http::Response<hyper::body::Incoming> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.certificate_pem().as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match user {
            None => builder.with_no_client_auth(),
            Some((name, group)) => {
                let pair = issue(&self.authority, name, group, Usage::Client);
                let chain = vec![CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let stream = loop {
            match TcpStream::connect(self.address).await {
                Ok(stream) => break stream,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.unwrap()
    }

    async fn get(&self, user: Option<(&str, Option<&str>)>, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).header(header::HOST, "node").body(Empty::new()).unwrap();
        let response = self.send(user, request).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

fn issue(authority: &Authority, common_name: &str, organization: Option<&str>, usage: Usage) -> Pair {
    let addresses = ["127.0.0.1".parse().unwrap()];
    authority
        .issue(&skiff_pki::Request { common_name, organization, usage, dns_names: &[], addresses: &addresses })
        .unwrap()
}

const API_SERVER: Option<(&str, Option<&str>)> = Some(("kube-apiserver-kubelet-client", None));

#[tokio::test(flavor = "multi_thread")]
async fn who_may_what_and_logs() {
    let (node, clients) = Clients::with_node().await;
    node.create("web", json!({"containers": [container("a", "run")]})).await;
    node.create("pulling", json!({"containers": [container("p", "missing")]})).await;
    node.until_ready("web").await;
    assert_eq!(clients.get(None, "/healthz").await, (StatusCode::OK, "ok".into()));
    assert_eq!(clients.get(None, "/pods").await.0, StatusCode::UNAUTHORIZED);
    // The fake API server lets nobody else in.
    assert_ne!(clients.get(Some(("somebody", None)), "/pods").await.0, StatusCode::OK);
    let (status, pods) = clients.get(Some(("admin", Some("system:masters"))), "/pods").await;
    assert!(status == StatusCode::OK && pods.contains("\"web\""), "{status} {pods}");

    let logs = |pod: &str, rest: &str| format!("/containerLogs/default/{pod}/{rest}");
    assert_eq!(clients.get(API_SERVER, &logs("web", "a")).await, (StatusCode::OK, "hello\n".into()));
    let (_, stamped) = clients.get(API_SERVER, &logs("web", "a?timestamps=true&tailLines=1")).await;
    assert_eq!(stamped, "2026-01-01T00:00:00Z hello\n");
    assert_eq!(clients.get(API_SERVER, &logs("web", "nope")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(clients.get(API_SERVER, &logs("none", "a")).await.0, StatusCode::NOT_FOUND);
    let (status, message) = clients.get(API_SERVER, &logs("web", "a?previous=true")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(message, "previous terminated container \"a\" in pod \"web\" not found\n");
    let reason = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.until("pulling", "backed off", |pod| reason(pod) == "ImagePullBackOff").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let wanted = "container \"p\" in pod \"pulling\" is waiting to start: trying and failing to pull image\n";
    loop {
        // The kubelet's own view of the pod follows the API's.
        let (status, message) = clients.get(API_SERVER, &logs("pulling", "p")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        if message == wanted {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_ends_with_its_container() {
    let (node, clients) = Clients::with_node().await;
    node.create("web", json!({"restartPolicy": "Never", "containers": [container("a", "run")]})).await;
    node.until_ready("web").await;
    let path = "/containerLogs/default/web/a?follow=true";
    let request = Request::get(path).header(header::HOST, "node").body(Empty::new()).unwrap();
    let mut body = clients.send(API_SERVER, request).await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "hello\n");
    node.runtime.exit(&node.runtime.id_of("a").unwrap(), 0);
    let rest = tokio::time::timeout(Duration::from_secs(10), body.collect()).await.expect("the log ends").unwrap();
    assert!(rest.to_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_connections_are_carried() {
    let (node, clients) = Clients::with_node().await;
    node.create("web", json!({"containers": [container("a", "run")]})).await;
    node.until_ready("web").await;
    // A streaming server that repeats what it hears.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/exec/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(String::from_utf8(head).unwrap().starts_with("POST /exec/token HTTP/1.1\r\n"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(&heard).await.unwrap();
    });
    let request = Request::post(format!("/exec/default/web/a?output=1&command={url}"))
        .header(header::HOST, "node")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .body(Empty::new())
        .unwrap();
    let response = clients.send(API_SERVER, request).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut heard = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut heard)).await;
    // TLS may complain that it was not told of the end.
    let _ = read.expect("the connection ends");
    assert_eq!(heard, b"ping");
    let nothing =
        Request::post("/exec/default/web/a?command=x").header(header::HOST, "node").body(Empty::new()).unwrap();
    assert_eq!(clients.send(API_SERVER, nothing).await.status(), StatusCode::BAD_REQUEST);
}
