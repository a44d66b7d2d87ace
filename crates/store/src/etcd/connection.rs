//! Connections to etcd's endpoints: one is used at a time, and the next one when it fails.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::convert;
use crate::{Code, Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one endpoint may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon it is noticed that a machine is gone that says nothing any more. etcd refuses pings more often than every
/// five seconds.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where etcd is, and how it is spoken to.
#[derive(Clone)]
pub struct Endpoints {
    /// `https://10.0.0.1:2379`; all of the same cluster.
    pub urls: Vec<String>,
    /// For `https`: the authority to trust and the certificate to show.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Whether a request may be sent to another endpoint when one has failed with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing.
    Always,
    /// Only when it certainly did not reach the one that failed.
    IfNotSent,
}

pub(super) struct Connection {
    endpoints: Vec<(String, Channel)>,
    /// The one in use.
    current: AtomicUsize,
}

impl Connection {
    /// Checks the addresses; connections are made when they are needed.
    pub(super) fn new(endpoints: Endpoints) -> Result<Connection> {
        let refuse = |what: String| Error::InvalidArgument { what, key: None };
        if endpoints.urls.is_empty() {
            return Err(refuse("no endpoint of etcd is named".into()));
        }
        let tls = endpoints.tls.map(|tls| {
            let mut tls = (*tls).clone();
            tls.alpn_protocols = vec![b"h2".to_vec()];
            Arc::new(tls)
        });
        let mut channels = Vec::new();
        for url in endpoints.urls {
            let parsed: Uri = url.parse().map_err(|error| refuse(format!("{url} is no URL: {error}")))?;
            let (scheme, host) = (parsed.scheme_str().unwrap_or_default(), parsed.host().unwrap_or_default());
            let tls = match (scheme, &tls) {
                ("http", _) => None,
                ("https", Some(tls)) => {
                    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
                    let name = name.map_err(|error| refuse(format!("the host of {url}: {error}")))?;
                    Some((TlsConnector::from(tls.clone()), name))
                }
                ("https", None) => return Err(refuse(format!("{url} needs the authority of etcd's certificate"))),
                _ => return Err(refuse(format!("{url} is not of the form https://HOST:2379"))),
            };
            let target = (host.trim_matches(['[', ']']).to_owned(), parsed.port_u16().unwrap_or(2379));
            let connector = tower::service_fn(move |_: Uri| connect(target.clone(), tls.clone()));
            // The scheme is not the library's business: the connector does the TLS.
            let authority = parsed.authority().map(ToString::to_string).unwrap_or_default();
            let endpoint = Endpoint::from_shared(format!("http://{authority}"))
                .map_err(|error| refuse(format!("{url} is no URL: {error}")))?
                .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
            channels.push((url, endpoint.connect_with_connector_lazy(connector)));
        }
        Ok(Connection { endpoints: channels, current: AtomicUsize::new(0) })
    }

    /// The endpoint in use, for [`failed`](Connection::failed), and a client for it.
    pub(super) fn client(&self) -> (usize, Grpc<Channel>) {
        let index = self.current.load(Ordering::Acquire);
        // The answer to a range may be of any size.
        (index, Grpc::new(self.endpoints[index].1.clone()).max_decoding_message_size(usize::MAX))
    }

    /// An endpoint did not do what was asked: the next one is used from now on.
    pub(super) fn failed(&self, index: usize, status: &Status) {
        let next = (index + 1) % self.endpoints.len();
        let changed = self.current.compare_exchange(index, next, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if changed && next != index {
            tracing::warn!(endpoint = self.endpoints[index].0, error = %Cause(status), next = self.endpoints[next].0,
                "an endpoint of etcd failed");
        }
    }

    /// A request with one answer.
    pub(super) async fn call<Q, A>(&self, path: &'static str, request: Q, repeat: Repeat) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut tries = self.endpoints.len();
        loop {
            let (index, mut client) = self.client();
            let asked = async {
                ready(&mut client).await?;
                let codec: ProstCodec<Q, A> = ProstCodec::default();
                client.unary(with_leader(request.clone()), PathAndQuery::from_static(path), codec).await
            };
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, asked).await;
            let status = match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd does not answer"))) {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            if !is_failure(&status) {
                return Err(status);
            }
            self.failed(index, &status);
            tries -= 1;
            if tries == 0 || (repeat == Repeat::IfNotSent && !not_sent(&status)) {
                return Err(status);
            }
        }
    }

    /// A request of which etcd makes a stream of its own, and whose first answer is all that is wanted.
    pub(super) async fn call_stream<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut tries = self.endpoints.len();
        loop {
            let (index, request) = (self.current.load(Ordering::Acquire), request.clone());
            let asked = async {
                let mut answers: Streaming<A> = self.open(index, path, futures::stream::iter([request])).await?;
                answers.message().await?.ok_or_else(|| Status::unavailable("etcd closed the stream"))
            };
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, asked).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd does not answer"))) {
                Ok(answer) => return Ok(answer),
                Err(status) => {
                    self.failed(index, &status);
                    tries -= 1;
                    if tries == 0 {
                        return Err(status);
                    }
                }
            }
        }
    }

    /// Opens a stream in both directions at an endpoint.
    pub(super) async fn open<Q, A>(
        &self,
        index: usize,
        path: &'static str,
        requests: impl futures::Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = Grpc::new(self.endpoints[index].1.clone()).max_decoding_message_size(usize::MAX);
        let asked = async {
            ready(&mut client).await?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            client.streaming(with_leader(requests), PathAndQuery::from_static(path), codec).await
        };
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, asked).await;
        Ok(answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd does not answer")))?.into_inner())
    }

    /// An answer of etcd that is no success, as the store's error.
    pub(super) fn error(&self, status: &Status) -> Error {
        let place = || self.endpoints.iter().map(|(url, _)| url.as_str()).collect::<Vec<_>>().join(",").into();
        match convert::code(status) {
            Code::NoSpace => Error::NoSpace { path: place() },
            Code::TooLarge => Error::TooLarge {
                what: "size of the request",
                size: crate::txn::MAX_TXN_BYTES,
                limit: crate::txn::MAX_TXN_BYTES,
                key: None,
            },
            Code::InvalidArgument => Error::InvalidArgument { what: status.message().to_owned(), key: None },
            _ => Error::unavailable(format!("etcd: {}", Cause(status))),
        }
    }
}

async fn ready(client: &mut Grpc<Channel>) -> Result<(), Status> {
    client.ready().await.map_err(|error| Status::from_error(error.into()))
}

/// A member that is cut off from the others refuses what is marked so, instead of keeping it waiting.
fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

/// Whether it is the endpoint's fault and not the request's.
fn is_failure(status: &Status) -> bool {
    convert::code(status) == Code::Unavailable
}

/// Whether the request was certainly not done.
fn not_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    status.message() == "etcdserver: no leader"
}

/// A status with what is behind it.
pub(super) struct Cause<'a>(pub(super) &'a Status);

impl std::fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.message())?;
        let mut cause = self.0.source();
        let mut last = self.0.message().to_owned();
        while let Some(error) = cause {
            let text = error.to_string();
            if text != last {
                write!(f, ": {text}")?;
                last = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(
    target: (String, u16),
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> std::io::Result<TokioIo<Box<dyn Stream>>> {
    let connected = async {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            Some((connector, name)) => Box::new(connector.connect(name, stream).await?),
            None => Box::new(stream),
        };
        Ok(TokioIo::new(stream))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
        Ok(connected) => connected,
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "nobody answers")),
    }
}
