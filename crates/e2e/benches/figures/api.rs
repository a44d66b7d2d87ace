//! A plain HTTP client of the API: a connection for each client, nothing between it and the wire.

use std::sync::Arc;

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use skiff_e2e::Kubectl;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where the API is, and as whom.
#[derive(Clone)]
pub(crate) struct Api {
    address: String,
    tls: TlsConnector,
}

/// One connection.
pub(crate) struct Connection(SendRequest<Full<Bytes>>);

impl Api {
    /// From the kubeconfig that kubectl would use.
    pub(crate) fn new(kubectl: &Kubectl) -> Self {
        let view = |path: &str| {
            kubectl.run(&["config", "view", "--raw", "--minify", "-o", &format!("jsonpath={{{path}}}")]).ok()
        };
        let pem = |path: &str| base64::engine::general_purpose::STANDARD.decode(view(path)).expect("base64");
        let mut roots = RootCertStore::empty();
        let authority = pem(".clusters[0].cluster.certificate-authority-data");
        roots.add(CertificateDer::from_pem_slice(&authority).expect("a certificate")).expect("a certificate");
        let certificates = CertificateDer::pem_slice_iter(&pem(".users[0].user.client-certificate-data"))
            .collect::<Result<Vec<_>, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_slice(&pem(".users[0].user.client-key-data")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("of this provider")
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates, key)
            .expect("they belong together");
        let server = view(".clusters[0].cluster.server");
        let address = server.strip_prefix("https://").expect("HTTPS").to_owned();
        Self { address, tls: TlsConnector::from(Arc::new(config)) }
    }

    pub(crate) async fn connect(&self) -> Connection {
        let tcp = TcpStream::connect(&self.address).await.expect("the API is served");
        tcp.set_nodelay(true).expect("a TCP socket");
        let host = self.address.split(':').next().unwrap_or_default().to_owned();
        let name = ServerName::try_from(host).expect("an address");
        let stream = self.tls.connect(name, tcp).await.expect("both trust each other");
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Connection(sender)
    }
}

impl Connection {
    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> hyper::Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "skiff")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .expect("a request");
        self.0.ready().await.expect("the server keeps connections");
        self.0.send_request(request).await.expect("the server answers")
    }

    /// Creates an object, and panics if it was not.
    pub(crate) async fn create(&mut self, path: &str, object: &Value) {
        let answer = self.send(Method::POST, path, object.to_string().into()).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("the whole answer").to_bytes();
        assert_eq!(status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&body));
    }

    /// Watches, and calls `seen` with each event until it says that it is enough, or the server ends it.
    pub(crate) async fn watch(mut self, path: &str, mut seen: impl FnMut(&Value) -> bool) {
        let mut body = self.send(Method::GET, path, Bytes::new()).await.into_body();
        let mut rest = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = rest.drain(..=end).collect();
                if seen(&serde_json::from_slice(&line).expect("an event")) {
                    return;
                }
            }
        }
    }
}
