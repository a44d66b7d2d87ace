//! Real requests over loopback, to backends that are made here.

use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    sync::Mutex,
};

use http::{HeaderMap, Request, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use super::*;
use crate::routes::{self, Objects};

/// The Services of a test, by name: on which loopback ports their endpoints listen.
struct World(Vec<(&'static str, Vec<u16>)>, Option<Arc<CertifiedKey>>);

impl Objects for World {
    fn service(&self, _: &str, _: &str) -> Option<Arc<Service>> {
        let service = json!({"metadata": {}, "spec": {"ports": [{"port": 80}]}});
        Some(Arc::new(serde_json::from_value(service).unwrap()))
    }

    fn slices(&self, _: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let ports = self.0.iter().filter(|(name, _)| *name == service).flat_map(|(_, ports)| ports);
        let slice = |port: &u16| {
            Arc::new(
                serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4",
                "ports": [{"port": port}], "endpoints": [{"addresses": ["127.0.0.1"]}]}))
                .unwrap(),
            )
        };
        ports.map(slice).collect()
    }

    fn certificate(&mut self, _: &str, _: &str) -> Option<Arc<CertifiedKey>> {
        self.1.clone()
    }
}

struct Fixture {
    routes: Arc<ArcSwap<Routes>>,
    http: SocketAddr,
    https: SocketAddr,
}

impl Fixture {
    async fn start() -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let routes = Arc::new(ArcSwap::from_pointee(Routes::default()));
        let proxy = Arc::new(Proxy::new(routes.clone()));
        let tls = TlsAcceptor::from(tls::config(routes.clone()).unwrap());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (http, https) = (listen(any).await.unwrap(), listen(any).await.unwrap());
        let fixture = Self { routes, http: http.local_addr().unwrap(), https: https.local_addr().unwrap() };
        tokio::spawn(async move {
            let graceful = GracefulShutdown::new();
            tokio::join!(serve(&proxy, http, None, &graceful), serve(&proxy, https, Some(tls), &graceful));
        });
        fixture
    }

    fn set(&self, mut world: World, annotations: &[(&str, &str)], spec: Value) {
        let prefix = "nginx.ingress.kubernetes.io";
        let annotations: HeaderPairs<'_> = annotations.iter().map(|(k, v)| (format!("{prefix}/{k}"), *v)).collect();
        let ingress = json!({"metadata": {"namespace": "a", "name": "i", "annotations": annotations}, "spec": spec});
        let ingress = Arc::new(serde_json::from_value(ingress).unwrap());
        self.routes.store(Arc::new(routes::build(&[ingress], &mut world)));
    }

    async fn get(&self, host: &str, path: &str) -> (u16, HeaderMap, String) {
        self.send(Request::get(self.uri(path)).header("host", host).body(Full::default()).unwrap()).await
    }

    fn uri(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.http).parse().unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (u16, HeaderMap, String) {
        let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned())
    }
}

type HeaderPairs<'a> = std::collections::BTreeMap<String, &'a str>;

fn everything_to(service: &str) -> Value {
    json!({"rules": [{"http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 80}}}}]}}]})
}

/// A pod that answers with its name, what it was asked, and the content.
async fn pod(name: &'static str) -> u16 {
    let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = accept(&listener).await;
            let service = service_fn(move |request: Request<Incoming>| async move {
                let header = |name: &str| {
                    let value = request.headers().get(name).and_then(|value| value.to_str().ok());
                    value.unwrap_or_default().to_owned()
                };
                let said = format!(
                    "{name} {} {} host={} for={} proto={} {:?} ",
                    request.method(),
                    request.uri().path_and_query().map_or("", |path| path.as_str()),
                    header("host"),
                    header("x-forwarded-for"),
                    header("x-forwarded-proto"),
                    request.version(),
                );
                let content = request.into_body().collect().await?.to_bytes();
                let text = said + &String::from_utf8_lossy(&content);
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(
                Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).into_owned(),
            );
        }
    });
    port
}

#[tokio::test]
async fn requests_are_sent_on_and_answered() {
    let fixture = Fixture::start().await;
    let (status, _, text) = fixture.get("nobody", "/").await;
    assert_eq!((status, text.trim()), (404, "default backend - 404"));
    let (one, two) = (pod("one").await, pod("two").await);
    fixture.set(World(vec![("web", vec![one, two])], None), &[], everything_to("web"));
    let (status, _, first) = fixture.get("a.com", "/x?q=1").await;
    assert_eq!(status, 200);
    assert!(first.contains("GET /x?q=1 host=a.com for=127.0.0.1 proto=http HTTP/1.1"), "{first}");
    let (_, _, second) = fixture.get("a.com", "/x?q=1").await;
    assert_ne!(first[..3], second[..3], "in turn");
    // No endpoint, and one that refuses beside one that answers.
    fixture.set(World(vec![], None), &[], everything_to("web"));
    assert_eq!(fixture.get("a.com", "/").await.0, 503);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fixture.set(World(vec![("web", vec![closed, one])], None), &[], everything_to("web"));
    for _ in 0..4 {
        let request = Request::post(fixture.uri("/")).body(Full::from("content")).unwrap();
        let (status, _, text) = fixture.send(request).await;
        assert_eq!(status, 200);
        assert!(text.ends_with("content"), "{text}");
    }
    fixture.set(World(vec![("web", vec![closed])], None), &[], everything_to("web"));
    assert_eq!(fixture.get("a.com", "/").await.0, 502);
}

#[tokio::test]
async fn annotations_change_what_is_done() {
    let fixture = Fixture::start().await;
    let one = pod("one").await;
    let world = || World(vec![("web", vec![one])], None);
    fixture.set(world(), &[("rewrite-target", "/")], everything_to("web"));
    assert!(fixture.get("a.com", "/some/where?q=1").await.2.contains("GET /?q=1 "));
    fixture.set(world(), &[("proxy-body-size", "10")], everything_to("web"));
    let post = |size: usize| Request::post(fixture.uri("/")).body(Full::from("x".repeat(size))).unwrap();
    assert_eq!(fixture.send(post(10)).await.0, 200);
    assert_eq!(fixture.send(post(11)).await.0, 413);
    fixture.set(world(), &[("limit-rps", "1"), ("limit-burst-multiplier", "3")], everything_to("web"));
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(fixture.get("a.com", "/").await.0);
    }
    assert_eq!(answers[..3], [200; 3]);
    assert!(answers[3..].contains(&503), "{answers:?}");
    fixture.set(world(), &[("permanent-redirect", "https://b.com/")], everything_to("web"));
    let (status, headers, _) = fixture.get("a.com", "/").await;
    assert_eq!((status, headers["location"].to_str().unwrap()), (301, "https://b.com/"));
    fixture.set(world(), &[("force-ssl-redirect", "true")], everything_to("web"));
    let (status, headers, _) = fixture.get("a.com:80", "/x?y").await;
    assert_eq!((status, headers["location"].to_str().unwrap()), (308, "https://a.com/x?y"));
    // HTTP/2 to the pod, as gRPC needs it.
    fixture.set(world(), &[("backend-protocol", "GRPC")], everything_to("web"));
    assert!(fixture.get("a.com", "/").await.2.contains("HTTP/2.0"));
}

/// Accepts every certificate and keeps the last one.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<u8>>);

impl rustls::client::danger::ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        certificate: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = certificate.to_vec();
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn tls_by_name_with_http2() {
    let fixture = Fixture::start().await;
    let (authority, _) = skiff_pki::Authority::generate("test").unwrap();
    let names = ["a.com".to_owned()];
    let request = skiff_pki::Request {
        common_name: "a.com",
        organization: None,
        usage: skiff_pki::Usage::Server,
        dns_names: &names,
        addresses: &[],
    };
    let pair = authority.issue(&request).unwrap();
    let data = [("tls.crt", &pair.certificate_pem), ("tls.key", &pair.key_pem)]
        .map(|(name, text)| (name.to_owned(), k8s_openapi::ByteString(text.as_bytes().to_vec())));
    let secret = k8s_openapi::api::core::v1::Secret { data: Some(data.into()), ..Default::default() };
    let certificate = Arc::new(tls::of_secret(&secret).unwrap());
    let own = certificate.cert[0].to_vec();
    let one = pod("one").await;
    let mut spec = everything_to("web");
    spec["rules"][0]["host"] = json!("a.com");
    spec["tls"] = json!([{"hosts": ["a.com"], "secretName": "s"}]);
    fixture.set(World(vec![("web", vec![one])], Some(certificate)), &[], spec);
    // Plain requests are led to TLS.
    assert_eq!(fixture.get("a.com", "/").await.0, 308);
    for (name, expected) in [("a.com", true), ("b.com", false)] {
        let seen = Arc::new(Seen::default());
        let mut config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(seen.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(fixture.https).await.unwrap();
        let stream = connector.connect(name.to_owned().try_into().unwrap(), stream).await.unwrap();
        assert_eq!(*seen.0.lock().unwrap() == own, expected, "{name}");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("https://{name}/x")).version(Version::HTTP_2);
        let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), if expected { 200 } else { 404 });
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!expected || text.contains("GET /x host=a.com for=127.0.0.1 proto=https HTTP/1.1"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_upgraded() {
    let fixture = Fixture::start().await;
    let echo = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = echo.accept().unwrap();
        let mut asked = Vec::new();
        let mut byte = [0];
        while !asked.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        let asked = String::from_utf8_lossy(&asked).to_ascii_lowercase();
        assert!(asked.contains("upgrade: websocket") && asked.contains("sec-websocket-key: abc"), "{asked}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .unwrap();
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(&buffer).unwrap();
    });
    fixture.set(World(vec![("web", vec![port])], None), &[], everything_to("web"));
    let address = fixture.http;
    let answered = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        stream.write_all(b"hello").unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), echoed)
    });
    let (answer, echoed) = answered.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert_eq!(&echoed, b"hello");
}
