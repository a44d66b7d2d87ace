//! Requests that are passed on: to kubelets for logs, exec, attach and port-forward, and to whatever nodes, pods
//! and Services serve.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use skiff_api::Status;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    endpoints,
    http::{Body, read_body, text},
    registry::{
        Registry,
        engine::{Engine, cache_status},
    },
    request::{Query, RequestInfo},
};

/// How long a connection to a backend may take.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Connections to kubelets and other backends.
pub struct Backends {
    /// With the API server's own client certificate, for kubelets.
    kubelet: tokio_rustls::TlsConnector,
}

/// A stream to a backend.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Who has to answer over TLS.
enum Peer {
    /// The kubelet whose certificate has this node's name, which unlike an address nobody else can get one for.
    Kubelet(String),
    /// Whoever a pod or Service is; certificates that the cluster does not know cannot be checked.
    Anyone,
}

/// Where a request goes.
struct Target {
    host: String,
    port: u16,
    tls: Option<Peer>,
    path_and_query: String,
}

impl Backends {
    pub fn new(kubelet_client: Arc<rustls::ClientConfig>) -> Backends {
        Backends { kubelet: tokio_rustls::TlsConnector::from(kubelet_client) }
    }

    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, Status> {
        let address = (target.host.as_str(), target.port);
        let failed = |e: &dyn std::fmt::Display| {
            Status::internal(format!("error dialing backend: dial tcp {}:{}: connect: {e}", target.host, target.port))
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| failed(&"i/o timeout"))?
            .map_err(|e| failed(&e))?;
        // Interactive streams must not wait for more.
        stream.set_nodelay(true).map_err(|e| failed(&e))?;
        let (connector, name) = match &target.tls {
            None => return Ok(Box::new(stream)),
            Some(Peer::Kubelet(name)) => (self.kubelet.clone(), name),
            Some(Peer::Anyone) => (skiff_pki::unverified_tls().map_err(|e| failed(&e))?.into(), &target.host),
        };
        let name = ServerName::try_from(name.clone()).map_err(|e| failed(&e))?;
        Ok(Box::new(connector.connect(name, stream).await.map_err(|e| failed(&e))?))
    }

    /// Sends the request on and returns the answer, joined for good if both sides agree to an upgrade.
    async fn forward(&self, mut request: Request<Body>, target: Target) -> Result<Response<Body>, Status> {
        let stream = self.connect(&target).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Status::internal(format!("error dialing backend: {e}")))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a backend ended");
            }
        });
        *request.uri_mut() = target.path_and_query.parse::<Uri>().map_err(|e| Status::bad_request(e.to_string()))?;
        let host = format!("{}:{}", target.host, target.port);
        let host = HeaderValue::from_str(&host).map_err(Status::internal)?;
        pass_on(request, |mut onward| async {
            onward.headers_mut().insert(header::HOST, host);
            let response = sender.send_request(onward).await.map_err(|e| e.to_string())?;
            Ok(response.map(|b| b.map_err(Into::into).boxed_unsync()))
        })
        .await
        .map_err(|e| Status::unavailable(format!("error trying to reach service: {e}")))
    }
}

/// Sends a request on without what concerns only the client's own connection and credentials, and returns the answer.
/// The two connections are joined for good if both sides agree to an upgrade.
pub(crate) async fn pass_on<F>(
    mut request: Request<Body>,
    send: impl FnOnce(Request<Body>) -> F,
) -> Result<Response<Body>, String>
where
    F: Future<Output = Result<Response<Body>, String>>,
{
    let upgrade = request
        .headers()
        .contains_key(header::UPGRADE)
        .then(|| request.extensions_mut().remove::<OnUpgrade>())
        .flatten();
    let (parts, body) = request.into_parts();
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    // The path alone: a request over HTTP/2 names the server here as well.
    *onward.uri_mut() = parts.uri.path_and_query().map_or_else(Uri::default, |path| Uri::from(path.clone()));
    *onward.headers_mut() = onward_headers(&parts.headers, upgrade.is_some());
    let mut response = send(onward).await?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = upgrade else {
            return Err("the backend switched protocols without being asked".to_owned());
        };
        let backend = response.extensions_mut().remove::<OnUpgrade>();
        tokio::spawn(join(client, backend));
    }
    Ok(response)
}

/// Carries bytes between the two upgraded connections until one ends.
async fn join(client: OnUpgrade, backend: Option<OnUpgrade>) {
    let Some(backend) = backend else { return };
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            return;
        }
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
        tracing::debug!(%error, "upgraded connection ended");
    }
}

/// The client's headers without those that concern only its own connection or its credentials.
fn onward_headers(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut onward = headers.clone();
    for name in [
        "authorization",
        "host",
        "proxy-connection",
        "keep-alive",
        "te",
        "trailer",
        "impersonate-user",
        "impersonate-group",
        "impersonate-uid",
    ] {
        onward.remove(name);
    }
    let extra: Vec<_> = onward.keys().filter(|k| k.as_str().starts_with("impersonate-extra-")).cloned().collect();
    for name in extra {
        onward.remove(name);
    }
    if !upgrade {
        for name in [header::CONNECTION, header::UPGRADE] {
            onward.remove(name);
        }
    }
    onward
}

/// The kubelet of a node: address and port from the node's status.
fn kubelet_of(registry: &Registry, node: &str) -> Result<(String, u16), Status> {
    let nodes = registry.builtin("", "nodes");
    let node_object =
        nodes.cache.peek(&nodes.key("", node)).ok_or_else(|| Status::not_found("", "nodes", node))?.value();
    let status = &node_object["status"];
    let address = ["Hostname", "InternalDNS", "InternalIP"]
        .iter()
        .rev()
        .find_map(|kind| status["addresses"].as_array().into_iter().flatten().find(|a| a["type"] == *kind))
        .and_then(|a| a["address"].as_str())
        .ok_or_else(|| {
            Status::internal(format!("no preferred addresses found; known addresses: {}", status["addresses"]))
        })?;
    let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|p| u16::try_from(p).ok());
    Ok((address.to_owned(), port.unwrap_or(10250)))
}

/// The container that is meant, checked; upstream's words for the rest.
fn container_of(pod: &Value, query: &Query, name: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (containers, inits) = (names("containers"), names("initContainers"));
    match query.get("container").filter(|c| !c.is_empty()) {
        Some(container) => {
            let ephemeral = names("ephemeralContainers");
            if [&containers, &inits, &ephemeral].iter().any(|l| l.iter().any(|c| c == container)) {
                return Ok(container.to_owned());
            }
            Err(Status::bad_request(format!("container {container} is not valid for pod {name}")))
        }
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None if containers.is_empty() => {
            Err(Status::bad_request(format!("a container name must be specified for pod {name}")))
        }
        None => {
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", containers.join(" "));
            if !inits.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            Err(Status::bad_request(message))
        }
    }
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// `pods/log`, `exec`, `attach` and `portforward`: to the kubelet of the pod's node.
pub async fn to_kubelet(
    engine: &Engine,
    backends: &Backends,
    info: &RequestInfo,
    query: &Query,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let pods = engine.registry.builtin("", "pods");
    let (namespace, name) = (info.namespace.as_str(), info.name.as_str());
    let pod = pods
        .cache
        .get(&pods.key(namespace, name))
        .await
        .map_err(|e| cache_status(&e))?
        .ok_or_else(|| Status::not_found("", "pods", name))?
        .value();
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let sub = info.subresource.as_str();
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut pass = |from: &str, to: &str| {
        for v in query.get_all(from) {
            parameters.push((to.to_owned(), v.to_owned()));
        }
    };
    let path = match sub {
        "log" => {
            check_log_options(query, name)?;
            let container = container_of(&pod, query, name)?;
            if node.is_empty() {
                // Nothing has run, so nothing was written.
                return Ok(text(200, ""));
            }
            for p in
                ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"]
            {
                pass(p, p);
            }
            format!("/containerLogs/{namespace}/{name}/{container}")
        }
        "portforward" => {
            pass("ports", "port");
            format!("/portForward/{namespace}/{name}")
        }
        _ => {
            let container = container_of(&pod, query, name)?;
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if ["Succeeded", "Failed"].contains(&phase) {
                let what = if sub == "exec" { "exec into" } else { "attach to" };
                return Err(Status::bad_request(format!(
                    "cannot {what} a container in a completed pod; current phase is {phase}"
                )));
            }
            if sub == "exec" && query.get("command").is_none() {
                return Err(Status::bad_request("you must specify at least 1 command for the container"));
            }
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(flag) {
                    let to = match flag {
                        "stdin" => "input",
                        "stdout" => "output",
                        "stderr" => "error",
                        _ => "tty",
                    };
                    parameters.push((to.to_owned(), "1".to_owned()));
                }
            }
            for v in query.get_all("command") {
                parameters.push(("command".to_owned(), v.to_owned()));
            }
            format!("/{sub}/{namespace}/{name}/{container}")
        }
    };
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let (host, port) = kubelet_of(&engine.registry, node)?;
    let query: Vec<String> = parameters.iter().map(|(k, v)| format!("{k}={}", encode(v))).collect();
    let path_and_query = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    let response = backends
        .forward(request, Target { host, port, tls: Some(Peer::Kubelet(node.to_owned())), path_and_query })
        .await?;
    let code = response.status().as_u16();
    if (400..600).contains(&code) {
        return Err(kubelet_failure(code, response).await);
    }
    Ok(response)
}

/// What a node's kubelet says of the use of the node and its containers.
pub async fn usage_summary(registry: &Registry, backends: &Backends, node: &str) -> Result<Value, Status> {
    let (host, port) = kubelet_of(registry, node)?;
    let path_and_query = "/stats/summary?only_cpu_and_memory=true".to_owned();
    let request = Request::new(crate::http::full(""));
    let target = Target { host, port, tls: Some(Peer::Kubelet(node.to_owned())), path_and_query };
    let response = backends.forward(request, target).await?;
    let code = response.status().as_u16();
    if code != 200 {
        return Err(kubelet_failure(code, response).await);
    }
    // A full node's summary may be larger than any request.
    let body = response.into_body().collect().await.map_err(Status::internal)?.to_bytes();
    serde_json::from_slice(&body).map_err(Status::internal)
}

/// A kubelet's refusal as a `Status`: its text is the message.
async fn kubelet_failure(code: u16, response: Response<Body>) -> Status {
    let body = read_body(response.into_body()).await.unwrap_or_default();
    let message = String::from_utf8_lossy(&body).trim().to_owned();
    match code {
        400 => Status::bad_request(message),
        404 => Status::new(
            404,
            "NotFound",
            if message.is_empty() { "the server could not find the requested resource".to_owned() } else { message },
        ),
        _ => Status::new(code, "InternalError", format!("Internal error occurred: {message}")),
    }
}

fn check_log_options(query: &Query, name: &str) -> Result<(), Status> {
    use skiff_api::validation::FieldError;
    let mut faults = Vec::new();
    for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(n) = query.int(field)?
            && n < least
        {
            let what = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            faults.push(FieldError::invalid(field, n, what));
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        faults.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if faults.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", name, &faults)) }
}

/// `nodes/proxy`, `pods/proxy`, `services/proxy`: `name`, `name:port` or `https:name:port`, then a path.
pub async fn to_backend(
    engine: &Engine,
    backends: &Backends,
    info: &RequestInfo,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = info.name.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return Err(Status::bad_request(format!("invalid {} request {:?}", info.resource, info.name))),
    };
    if !["", "http", "https"].contains(&scheme) {
        return Err(Status::bad_request(format!("invalid scheme {scheme:?}")));
    }
    let (host, port, tls) = match info.resource.as_str() {
        "nodes" => {
            let (host, kubelet_port) = kubelet_of(&engine.registry, name)?;
            match port.parse().ok().filter(|p| *p != kubelet_port) {
                Some(port) => (host, port, scheme == "https"),
                None => (host, kubelet_port, true),
            }
        }
        "pods" => pod_target(engine, info, name, port, scheme).await?,
        _ => service_target(engine, info, name, port, scheme).await?,
    };
    let mut path = String::from("/");
    path.push_str(&info.rest.iter().map(|s| encode(s)).collect::<Vec<_>>().join("/"));
    if request.uri().path().ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    if let Some(query) = request.uri().query() {
        path.push('?');
        path.push_str(query);
    }
    let tls = tls.then(|| match info.resource.as_str() {
        "nodes" => Peer::Kubelet(name.to_owned()),
        _ => Peer::Anyone,
    });
    backends.forward(request, Target { host, port, tls, path_and_query: path }).await
}

async fn pod_target(
    engine: &Engine,
    info: &RequestInfo,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(String, u16, bool), Status> {
    let pod = engine.get(engine.registry.builtin("", "pods"), &info.namespace, name).await?.value();
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let number = if port.is_empty() {
        ports.next().and_then(|p| p["containerPort"].as_u64()).unwrap_or(80)
    } else {
        match port.parse() {
            Ok(n) => n,
            Err(_) => ports
                .find(|p| p["name"] == port)
                .and_then(|p| p["containerPort"].as_u64())
                .ok_or_else(|| Status::unavailable(format!("no port {port:?} in pod {name:?}")))?,
        }
    };
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    if !is_global_unicast(ip) {
        return Err(Status::bad_request("address not allowed"));
    }
    let number = u16::try_from(number).map_err(|_| Status::bad_request(format!("invalid port {number}")))?;
    Ok((ip.to_owned(), number, scheme == "https"))
}

async fn service_target(
    engine: &Engine,
    info: &RequestInfo,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(String, u16, bool), Status> {
    let service = engine.get(engine.registry.builtin("", "services"), &info.namespace, name).await?.value();
    let port_name = match port.parse::<i64>() {
        Ok(number) => {
            let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
            let found = ports
                .find(|p| p["port"] == number)
                .ok_or_else(|| Status::unavailable(format!("no service port {number} found for service {name:?}")))?;
            found["name"].as_str().unwrap_or_default()
        }
        Err(_) => port,
    };
    let mut endpoints = endpoints::ready(&engine.registry, &info.namespace, name, port_name).await?;
    while !endpoints.is_empty() {
        let chosen = endpoints.swap_remove(rand::random_range(0..endpoints.len()));
        let (ip, number) = chosen.address;
        let Some(pod) = chosen.pod else { continue };
        if is_address_of(engine, &info.namespace, &pod, &ip).await {
            return Ok((ip, number, scheme == "https"));
        }
    }
    Err(Status::unavailable(format!("no endpoints available for service {:?}", info.name)))
}

/// Endpoints are written by many; only those that are pods' in truth may have the API server send them something.
async fn is_address_of(engine: &Engine, namespace: &str, pod: &str, ip: &str) -> bool {
    let found = engine.get(engine.registry.builtin("", "pods"), namespace, pod).await;
    let Ok(pod) = found.map(|pod| pod.value()) else { return false };
    is_global_unicast(ip) && pod["status"]["podIPs"].as_array().into_iter().flatten().any(|known| known["ip"] == ip)
}

/// Whether an address may be a pod's: the API server's own machine and link are not reached through it.
fn is_global_unicast(ip: &str) -> bool {
    match ip.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast())
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast())
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_no_pods() {
        assert!(is_global_unicast("10.244.0.7") && is_global_unicast("fd00::7"));
        for ip in ["", "127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "x"]
        {
            assert!(!is_global_unicast(ip), "{ip}");
        }
    }
}
