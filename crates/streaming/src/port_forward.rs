//! Port-forward: pairs of SPDY streams, on a SPDY connection or on one tunnelled through WebSocket; and the channels of
//! [`port_channels`].

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::port_channels;
use crate::request::{self, Body, Transport};
use crate::spdy::{IncomingStream, Session};
use crate::websocket;

const SPDY_PROTOCOL: &str = "portforward.k8s.io";
pub(crate) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET_PROTOCOLS: [&str; 4] =
    [TUNNEL_PROTOCOL, port_channels::PROTOCOLS[0], port_channels::PROTOCOLS[1], port_channels::PROTOCOLS[2]];
/// How long the second stream of a pair may take, as upstream.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests whose second stream has not come yet.
const MAX_UNPAIRED: usize = 256;

/// Connects to the ports of a pod.
pub trait PortForwardHandler: Send + Sync + 'static {
    /// A connection to a port.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens a connection; the error's text is for the user.
    fn connect(&self, port: u16) -> impl Future<Output = Result<Self::Connection, String>> + Send;
}

/// Answers an upgrade request for port-forward and goes on in a task of its own. Must be called within a
/// tokio runtime.
///
/// `ports` are those that the request names: clients that speak WebSocket channels get a connection to each. All others
/// name the port of each connection when they open it.
pub fn serve_port_forward<B>(request: Request<B>, ports: Vec<u16>, handler: impl PortForwardHandler) -> Response<Body> {
    let Some(transport) = request::transport(request.headers()) else {
        return request::refuse(StatusCode::BAD_REQUEST, "Upgrade request required");
    };
    let known: &[&str] = match transport {
        Transport::WebSocket => &WEBSOCKET_PROTOCOLS,
        // Clients that name none mean the only one there is.
        Transport::Spdy => &[SPDY_PROTOCOL, ""],
    };
    let Some(protocol) = request::negotiate(request.headers(), transport, known) else {
        return request::refuse_protocols(transport, known);
    };
    let tunnelled = transport == Transport::Spdy || protocol == TUNNEL_PROTOCOL;
    if !tunnelled && !(1..=port_channels::MAX_PORTS).contains(&ports.len()) {
        return request::refuse(StatusCode::BAD_REQUEST, "query parameter \"port\" is required");
    }
    let Some(response) = request::accept(request.headers(), transport, protocol) else {
        return request::refuse(StatusCode::BAD_REQUEST, "invalid upgrade request");
    };
    let protocol = protocol.to_owned();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(e) => {
                tracing::debug!(error = %e, "a client left before the upgrade");
                return;
            }
        };
        let handler = Arc::new(handler);
        match transport {
            Transport::Spdy => forward(Session::server(io), handler).await,
            Transport::WebSocket if !tunnelled => port_channels::forward(io, &protocol, &ports, &*handler).await,
            Transport::WebSocket => {
                let tunnel = websocket::tunnel(websocket::open(io, Role::Server).await);
                forward(Session::server(tunnel), handler).await;
            }
        }
    });
    response
}

async fn forward<H: PortForwardHandler>(mut session: Session, handler: Arc<H>) {
    // The first stream of each request and when it came.
    let mut unpaired: HashMap<String, (IncomingStream, tokio::time::Instant)> = HashMap::new();
    let mut running = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = session.accept() => stream,
            Some(_) = running.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        unpaired.retain(|_, (_, since)| since.elapsed() < PAIR_TIMEOUT);
        // Clients of old have no ids: their data stream comes right after the error stream.
        let id = match stream.header("requestid") {
            "" => match stream.header("streamtype") {
                "error" => stream.id.to_string(),
                _ => stream.id.saturating_sub(2).to_string(),
            },
            id => id.to_owned(),
        };
        let Some((first, _)) = unpaired.remove(&id) else {
            if unpaired.len() < MAX_UNPAIRED {
                unpaired.insert(id, (stream, tokio::time::Instant::now()));
            }
            continue;
        };
        let pair = match (first.header("streamtype"), stream.header("streamtype")) {
            ("error", "data") => (stream, first),
            ("data", "error") => (first, stream),
            // Dropped, which resets both.
            _ => continue,
        };
        let handler = handler.clone();
        running.spawn(async move { serve_pair(pair.0, pair.1, &*handler).await });
    }
    running.shutdown().await;
    session.close().await;
}

/// Forwards one connection.
async fn serve_pair(mut data: IncomingStream, mut error: IncomingStream, handler: &impl PortForwardHandler) {
    let connected = match data.header("port").parse::<u16>() {
        Ok(port) if port > 0 => {
            handler.connect(port).await.map_err(|text| format!("error forwarding port {port}: {text}"))
        }
        _ => Err(format!("unable to parse {:?} as a port", data.header("port"))),
    };
    match connected {
        Ok(connection) => {
            let (mut from, mut to) = tokio::io::split(connection);
            let upstream = async {
                // The end of either side's sending is passed on; errors end both.
                let _ = tokio::io::copy(&mut data.reader, &mut to).await;
                let _ = to.shutdown().await;
            };
            let downstream = async {
                let _ = data.writer.copy_from(&mut from).await;
                let _ = data.writer.finish().await;
            };
            // When the pod has said everything the connection is over, whatever the client still sends.
            tokio::pin!(upstream, downstream);
            tokio::select! {
                () = &mut downstream => {}
                () = &mut upstream => downstream.await,
            }
        }
        Err(text) => {
            // A client that has gone does not hear it.
            let _ = error.writer.write(text.into()).await;
        }
    }
    let _ = error.writer.finish().await;
    let _ = data.writer.finish().await;
}
