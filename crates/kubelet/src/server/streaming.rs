//! exec, attach and port-forward: the runtime says where it streams, and the connection is joined to that.

use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use skiff_cri::v1;
use tokio::net::TcpStream;

use super::{Body, Failure, Query, find_pod, full};
use crate::{
    cri::RuntimeError,
    kubelet::{Kubelet, PodHandle},
    pod::PodExt as _,
};

fn runtime_failure(error: &RuntimeError) -> Failure {
    Failure::internal(format!("rpc error: {error}"))
}

/// The id of a container that runs.
fn running_container(handle: &PodHandle, container: &str) -> Result<String, Failure> {
    let view = handle.view.borrow().clone();
    match view.containers.iter().find(|c| c.name == container && c.is_running()) {
        Some(found) => Ok(found.id().to_owned()),
        None => Err(Failure::internal(format!("container not found ({container:?})"))),
    }
}

pub(super) async fn exec(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let (stdin, stdout, stderr, tty) = streams(query)?;
    let handle = find_pod(kubelet, namespace, pod)?;
    let container_id = running_container(&handle, container)?;
    let cmd = query.all("command");
    let url = kubelet.runtime.exec(v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).await;
    join(request, &url.map_err(|e| runtime_failure(&e))?).await
}

pub(super) async fn attach(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let (stdin, stdout, stderr, _) = streams(query)?;
    let handle = find_pod(kubelet, namespace, pod)?;
    let container_id = running_container(&handle, container).map_err(|failure| Failure {
        message: format!("container {container} not found in pod {pod}_{namespace}"),
        ..failure
    })?;
    // A terminal is the container's affair, not the client's.
    let containers = handle.pod().all_containers();
    let tty = containers.iter().any(|(_, c)| c.name == container && c.tty == Some(true));
    let stderr = stderr && !tty;
    let url = kubelet.runtime.attach(v1::AttachRequest { container_id, stdin, tty, stdout, stderr }).await;
    join(request, &url.map_err(|e| runtime_failure(&e))?).await
}

pub(super) async fn port_forward(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let handle = find_pod(kubelet, namespace, pod)?;
    let sandbox = handle.view.borrow().ready_sandbox().map(|s| s.id.clone());
    let sandbox =
        sandbox.ok_or_else(|| Failure::internal(format!("pod not found ({:?})", handle.pod().full_name())))?;
    let ports = ports(query)?;
    let url = kubelet.runtime.port_forward(&sandbox, ports).await;
    join(request, &url.map_err(|e| runtime_failure(&e))?).await
}

/// The ports that WebSocket channels are for. They are given one by one, or several with commas between them.
fn ports(query: &Query) -> Result<Vec<i32>, Failure> {
    let mut ports = Vec::new();
    for given in query.all("port") {
        for port in given.split(',') {
            let port: u16 =
                port.parse().map_err(|e| Failure::bad_request(format!("unable to parse {given:?} as a port: {e}")))?;
            if port < 1 {
                return Err(Failure::bad_request(format!("port {given:?} must be > 0")));
            }
            ports.push(i32::from(port));
        }
    }
    Ok(ports)
}

/// Which streams are wanted: input, output, error, terminal.
fn streams(query: &Query) -> Result<(bool, bool, bool, bool), Failure> {
    let tty = query.flag("tty");
    let (stdin, stdout) = (query.flag("input"), query.flag("output"));
    // With a terminal there is one output.
    let stderr = query.flag("error") && !tty;
    if !stdin && !stdout && !stderr {
        return Err(Failure::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok((stdin, stdout, stderr, tty))
}

/// Sends the request on to where the runtime streams, and joins the two connections for good once they are upgraded.
async fn join(mut request: Request<Incoming>, url: &str) -> Result<Response<Body>, Failure> {
    let unreachable =
        |e: &dyn std::fmt::Display| Failure::internal(format!("error dialing the runtime's streaming server: {e}"));
    let uri: Uri = url.parse().map_err(|e| unreachable(&e))?;
    let host = uri.host().unwrap_or("127.0.0.1").trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| unreachable(&e))?;
    // Interactive streams must not wait for more.
    stream.set_nodelay(true).map_err(|e| unreachable(&e))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| unreachable(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to the runtime's streaming server ended");
        }
    });
    let mut onward = Request::new(Empty::<bytes::Bytes>::new());
    *onward.method_mut() = request.method().clone();
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    *onward.uri_mut() = path.parse().map_err(|e| unreachable(&e))?;
    *onward.headers_mut() = request.headers().clone();
    onward.headers_mut().remove(header::AUTHORIZATION);
    let authority = HeaderValue::from_str(&format!("{host}:{port}")).map_err(|e| unreachable(&e))?;
    onward.headers_mut().insert(header::HOST, authority);
    let mut response = sender.send_request(onward).await.map_err(|e| unreachable(&e))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        return Ok(Response::from_parts(parts, body.map_err(std::io::Error::other).boxed_unsync()));
    }
    let backend = response.extensions_mut().remove::<OnUpgrade>();
    let (Some(client), Some(backend)) = (client, backend) else {
        return Err(Failure::bad_request("unable to upgrade: the connection cannot be upgraded"));
    };
    tokio::spawn(carry(client, backend));
    let (parts, _) = response.into_parts();
    Ok(Response::from_parts(parts, full("")))
}

/// Carries bytes between two upgraded connections until both directions have ended.
async fn carry(client: OnUpgrade, backend: OnUpgrade) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            return;
        }
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
        tracing::debug!(%error, "a streaming connection ended");
    }
}
