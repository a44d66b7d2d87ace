//! An HTTPS server of a test's own, which answers what the API server asks it.

use std::{convert::Infallible, sync::Arc};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use skiff_pki::{Authority, Usage};
use tokio::net::TcpListener;

/// What was asked: path with its query, and the body.
pub(crate) type Asked = (String, Value);
type Answers = Arc<dyn Fn(&str, Value) -> (u16, String) + Send + Sync>;

/// A server that ends with the test.
pub(crate) struct HookServer {
    pub(crate) port: u16,
    /// Of the authority, in PEM form and base64.
    pub(crate) ca_bundle: String,
    asked: Arc<parking_lot::Mutex<Vec<Asked>>>,
    connections: Arc<std::sync::atomic::AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for HookServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HookServer {
    /// A server on the loopback, also as the Services `hook.default.svc`.
    pub(crate) async fn start(answer: impl Fn(&str, Value) -> (u16, String) + Send + Sync + 'static) -> HookServer {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (authority, pair) = Authority::generate("hooks").unwrap();
        let serving = authority
            .issue(&skiff_pki::Request {
                common_name: "hook",
                organization: None,
                usage: Usage::Server,
                dns_names: &["hook.default.svc".to_owned()],
                addresses: &[[127, 0, 0, 1].into()],
            })
            .unwrap();
        let chain = CertificateDer::pem_slice_iter(serving.certificate_pem.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).unwrap();
        let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<parking_lot::Mutex<Vec<Asked>>> = Arc::default();
        let connections: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let (answer, seen, count): (Answers, _, _) = (Arc::new(answer), asked.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let (acceptor, answer, seen) = (acceptor.clone(), answer.clone(), seen.clone());
                running.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (answer, seen) = (answer.clone(), seen.clone());
                        async move {
                            assert!(!request.headers().contains_key("authorization"), "credentials were sent");
                            let path = request.uri().path_and_query().unwrap().to_string();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let review: Value = serde_json::from_slice(&body).unwrap_or_default();
                            seen.lock().push((path.clone(), review.clone()));
                            let (code, text) = answer(&path, review);
                            let response = Response::builder().status(code).header("content-type", "application/json");
                            Ok::<_, Infallible>(response.body(Full::<bytes::Bytes>::from(text)).unwrap())
                        }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        use base64::Engine as _;
        let ca_bundle = base64::engine::general_purpose::STANDARD.encode(&pair.certificate_pem);
        HookServer { port, ca_bundle, asked, connections, task }
    }

    /// All that was asked since the last time.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock())
    }

    /// How often a connection was made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A `clientConfig` for a path of this server.
    pub(crate) fn client_config(&self, path: &str) -> Value {
        serde_json::json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca_bundle})
    }
}
