//! The kubelet's own API, for the API server: logs, exec, attach, port-forward, statistics.
//!
//! Paths, parameters, codes and texts are upstream's. Errors are plain text.

mod auth;
mod logs;
mod node_cgroup;
mod stats;
mod streaming;

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use k8s_openapi::{List, api::core::v1::Pod};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::ServerConfig,
    kubelet::{Kubelet, PodHandle},
};

/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_RETRY: std::time::Duration = std::time::Duration::from_millis(50);
/// How long a client may take to open its connection.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, io::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A failure as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: StatusCode,
    message: String,
}

impl Failure {
    fn new(code: StatusCode, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, message)
    }

    fn internal(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

/// Answers with a text.
fn text(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn json(value: &impl serde::Serialize) -> Result<Response<Body>, Failure> {
    let body = serde_json::to_vec(value).map_err(|e| Failure::internal(e.to_string()))?;
    Ok(text(StatusCode::OK, "application/json", body))
}

/// Listens. The future that is returned serves until it is dropped.
pub(crate) async fn bind(
    kubelet: Arc<Kubelet>,
    config: &ServerConfig,
) -> Result<impl Future<Output = ()> + use<>, Box<dyn std::error::Error + Send + Sync>> {
    let tls = TlsAcceptor::from(Arc::new(tls_config(config)?));
    let listener = TcpListener::bind(config.listen).await?;
    Ok(async move {
        // Dropped with the future, which ends all connections.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(kubelet.clone(), tls.clone(), stream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    })
}

fn tls_config(config: &ServerConfig) -> Result<rustls::ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    // Others come with tokens, so a certificate is not asked of all.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let chain = CertificateDer::pem_slice_iter(config.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(config.key_pem.as_bytes())?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

async fn serve(kubelet: Arc<Kubelet>, tls: TlsAcceptor, stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    // Who does not complete the handshake is told by TLS.
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec());
    let user = certificate.as_deref().and_then(auth::user_of_certificate);
    let service = hyper::service::service_fn(move |request| {
        let (kubelet, user) = (kubelet.clone(), user.clone());
        async move { Ok::<_, Infallible>(answer(kubelet, user, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "a connection to the kubelet ended");
    }
}

async fn answer(kubelet: Arc<Kubelet>, user: Option<auth::User>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/healthz" {
        return text(StatusCode::OK, "text/plain; charset=utf-8", "ok");
    }
    let result = match auth::check(&kubelet, user, &request).await {
        Ok(()) => route(kubelet, request, &path).await,
        Err(failure) => Err(failure),
    };
    result.unwrap_or_else(|failure| text(failure.code, "text/plain; charset=utf-8", format!("{}\n", failure.message)))
}

async fn route(kubelet: Arc<Kubelet>, request: Request<Incoming>, path: &str) -> Result<Response<Body>, Failure> {
    let parts: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match parts.as_slice() {
        ["containerLogs", namespace, pod, container] => logs::logs(&kubelet, namespace, pod, container, &query),
        // An optional UID may stand before the container.
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            streaming::exec(&kubelet, namespace, pod, container, &query, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            streaming::attach(&kubelet, namespace, pod, container, &query, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            streaming::port_forward(&kubelet, namespace, pod, &query, request).await
        }
        ["pods"] => pods(&kubelet, |_| true),
        ["runningpods"] => pods(&kubelet, |h| h.view.borrow().anything_runs()),
        ["stats", "summary"] => json(&stats::summary(&kubelet).await?),
        ["metrics"] => Ok(metrics(&kubelet)),
        ["metrics", "cadvisor"] => Ok(text(StatusCode::OK, METRICS, stats::cadvisor(&kubelet).await?)),
        ["metrics", "resource"] => Ok(text(StatusCode::OK, METRICS, stats::resource(&kubelet).await?)),
        ["configz"] => json(&serde_json::json!({"kubeletconfig": {"maxPods": kubelet.config.max_pods}})),
        _ => Err(Failure::not_found("404 page not found")),
    }
}

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn pods(kubelet: &Kubelet, which: impl Fn(&PodHandle) -> bool) -> Result<Response<Body>, Failure> {
    let handles = kubelet.pods.all();
    let items: Vec<Pod> = handles.iter().filter(|h| which(h)).map(|h| (*h.pod()).clone()).collect();
    json(&List::<Pod> { items, metadata: Default::default() })
}

fn metrics(kubelet: &Kubelet) -> Response<Body> {
    let handles = kubelet.pods.all();
    let running = handles.iter().filter(|h| h.view.borrow().ready_sandbox().is_some()).count();
    let containers: usize =
        handles.iter().map(|h| h.view.borrow().containers.iter().filter(|c| c.is_running()).count()).sum();
    let body = format!(
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n\
         # TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}\n\
         # TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {containers}\n",
        kubelet.config.node_name
    );
    text(StatusCode::OK, METRICS, body)
}

/// The parameters of a request.
#[derive(Debug, Default)]
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Query {
        let pairs = query.split('&').filter(|p| !p.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
                })
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "t"))
    }
}

/// Without percent-encoding.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The pod of this name, or upstream's answer.
fn find_pod(kubelet: &Kubelet, namespace: &str, name: &str) -> Result<Arc<PodHandle>, Failure> {
    kubelet.pods.by_name(namespace, name).ok_or_else(|| Failure::not_found("pod does not exist"))
}

/// Reads are GETs; streams may be POSTs too.
fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%2Bb+c&input=1&tty=0");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(query.flag("input") && !query.flag("tty") && !query.flag("output"));
    }
}
