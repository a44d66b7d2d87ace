//! CSI over unix sockets.

use std::{collections::BTreeMap, convert::Infallible, future::Future, io, path::Path, time::Duration};

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tonic::{
    Code, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service, ServiceExt as _, util::BoxCloneSyncService};

/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A channel to whoever listens on a socket. It connects with the first call, and again after it broke.
pub fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// An error of a call as Go's gRPC writes it, which is how users know it from events.
pub fn status_text(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

type Served = BoxCloneSyncService<http::Request<Incoming>, http::Response<Body>, Infallible>;

/// Services by their full names.
#[derive(Clone, Default)]
pub struct Routes {
    services: BTreeMap<&'static str, Served>,
}

impl Routes {
    /// These and one more.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Routes
    where
        S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        self.services.insert(S::NAME, BoxCloneSyncService::new(service));
        self
    }

    async fn call(self, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        let name = request.uri().path().split('/').nth(1).unwrap_or_default();
        match self.services.get(name).cloned() {
            Some(service) => service.oneshot(request).await,
            None => Ok(Status::unimplemented(format!("unknown service {name}")).into_http()),
        }
    }
}

/// Listens on a socket, in place of one that somebody left behind.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Serves until `stop` completes.
pub async fn serve(listener: UnixListener, routes: Routes, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = &mut stop => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let routes = routes.clone();
                    let service = hyper::service::service_fn(move |request| routes.clone().call(request));
                    connections.spawn(async move {
                        // The end of a connection concerns only its client, which sees it too.
                        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
        }
    }
}
