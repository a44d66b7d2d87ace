//! Connections to servers that this one calls, kept for the next call.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use super::tls;
use crate::{
    endpoints::Address,
    http::{Body, BoxError},
};

/// How long a connection is kept that nobody uses.
const KEPT_IDLE: Duration = Duration::from_secs(90);
/// How many unused connections are kept for one server.
const MOST_IDLE: usize = 8;

type Sender = http1::SendRequest<Body>;

struct Idle {
    sender: Sender,
    to: Address,
    since: Instant,
}

/// Unused connections to one server.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Idle>>);

impl Pool {
    /// An unused connection to one of these addresses. What leads elsewhere is closed: nobody is there any more.
    fn take(&self, addresses: &[Address]) -> Option<(Sender, Address)> {
        let mut idle = self.0.lock();
        idle.retain(|i| !i.sender.is_closed() && i.since.elapsed() < KEPT_IDLE && addresses.contains(&i.to));
        idle.pop().map(|i| (i.sender, i.to))
    }

    /// Keeps a connection whose answer has been read.
    fn keep(&self, sender: Sender, to: Address) {
        let mut idle = self.0.lock();
        if idle.len() < MOST_IDLE && !sender.is_closed() {
            idle.push(Idle { sender, to, since: Instant::now() });
        }
    }

    /// Sends a request over a kept connection or a new one, which is kept once the answer has been read.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<Body>,
        addresses: &[Address],
        config: &Arc<rustls::ClientConfig>,
        name: &str,
    ) -> Result<Response<Body>, String> {
        while let Some((mut sender, to)) = self.take(addresses) {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.kept(response, sender, to)),
                // The server had closed it meanwhile; what was not sent may be sent again.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(explain_http(error.error())),
                },
            }
        }
        let to = addresses.get(rand::random_range(0..addresses.len().max(1))).cloned();
        let to = to.ok_or_else(|| "no address to connect to".to_owned())?;
        let mut sender = connect(&to, config, name).await?;
        let response = sender.send_request(request).await.map_err(|e| explain_http(&e))?;
        Ok(self.kept(response, sender, to))
    }

    /// The answer, at whose end the connection is kept.
    fn kept(self: &Arc<Self>, response: Response<Incoming>, sender: Sender, to: Address) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response.map(|body| body.map_err(BoxError::from).boxed_unsync());
        }
        let pool = self.clone();
        response.map(|body| {
            let end = futures::stream::once(async move {
                pool.keep(sender, to);
                None
            });
            let frames = BodyStream::new(body).map(|frame| Some(frame.map_err(BoxError::from))).chain(end);
            StreamBody::new(frames.filter_map(std::future::ready)).boxed_unsync()
        })
    }
}

/// A connection to an address where a server of this name must answer.
async fn dial(
    to: &Address,
    config: &Arc<rustls::ClientConfig>,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let (host, port) = to;
    let failed = |e: &io::Error| match host.parse::<std::net::IpAddr>() {
        Ok(_) => format!("dial tcp {host}:{port}: connect: {}", explain(e)),
        // The name may have led nowhere, or somebody at its address refused.
        Err(_) if e.raw_os_error().is_none() => format!("dial tcp: lookup {host}: no such host"),
        Err(_) => format!("dial tcp {host}:{port}: connect: {}", explain(e)),
    };
    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| failed(&e))?;
    stream.set_nodelay(true).map_err(|e| failed(&e))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|e| format!("tls: {e}: {name:?}"))?;
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    connector.connect(name, stream).await.map_err(|e| tls::explain(&e))
}

async fn connect(to: &Address, config: &Arc<rustls::ClientConfig>, name: &str) -> Result<Sender, String> {
    let stream = dial(to, config, name).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| explain_http(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a server of the cluster's users ended");
        }
    });
    Ok(sender)
}

/// The system's word for what went wrong, as Go prints it.
pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

fn explain_http(error: &hyper::Error) -> String {
    let io = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    match io {
        Some(io) => explain(io),
        None if error.is_incomplete_message() || error.is_closed() => "EOF".to_owned(),
        None => error.to_string(),
    }
}
