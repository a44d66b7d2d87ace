//! CRI over a unix socket and inside one process.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

use crate::{
    ImageService, ImageServiceClient, ImageServiceServer, RuntimeService, RuntimeServiceClient, RuntimeServiceServer,
};

/// Largest message either side accepts, as upstream's kubelet sets it: a list of all containers of a
/// full node is larger than gRPC's default of 4 MiB.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Bytes in flight each way between the two ends inside one process.
const DUPLEX_BYTES: usize = 64 * 1024;

/// Why a runtime's socket could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or it is not a socket.
    #[error("cannot connect to the container runtime at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the connection attempt ended with.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A runtime socket that could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the runtime socket {}", path.display())]
pub struct ServeError {
    /// The socket.
    path: PathBuf,
    /// What the system said.
    #[source]
    source: io::Error,
}

/// The clients of both services on one connection.
fn clients(channel: Channel) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
    (
        RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
        ImageServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
}

/// Both services, for the connections of one server.
struct Services<R, I> {
    runtime: RuntimeServiceServer<R>,
    image: ImageServiceServer<I>,
}

// By hand, because deriving would ask `R` and `I` to be `Clone`, which is not needed.
impl<R, I> Clone for Services<R, I> {
    fn clone(&self) -> Self {
        Self { runtime: self.runtime.clone(), image: self.image.clone() }
    }
}

impl<R: RuntimeService, I: ImageService> Services<R, I> {
    fn new(runtime: Arc<R>, image: Arc<I>) -> Self {
        Self {
            runtime: RuntimeServiceServer::from_arc(runtime)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            image: ImageServiceServer::from_arc(image)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        }
    }

    /// Serves one connection to its end. tonic's own router would bring a web framework with it.
    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let Services { runtime, image } = self.clone();
            async move {
                let path = request.uri().path();
                if path.starts_with("/runtime.v1.ImageService/") {
                    image.oneshot(request).await
                } else if path.starts_with("/runtime.v1.RuntimeService/") {
                    runtime.oneshot(request).await
                } else {
                    Ok(tonic::Status::unimplemented(format!("unknown method {path}")).into_http())
                }
            }
        });
        // The end of a connection, however it ends, concerns only its client, which sees it too.
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(io), service)
            .await;
    }
}

/// Connects to the runtime behind a unix socket.
///
/// The path is that of `--container-runtime-endpoint` without its `unix://`. A connection that breaks
/// later is made again with the next call.
pub async fn connect_unix(
    path: &Path,
) -> Result<(RuntimeServiceClient<Channel>, ImageServiceClient<Channel>), ConnectError> {
    let owned = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = owned.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Connect { path: path.to_owned(), source })?;
    Ok(clients(channel))
}

/// Serves both services on a unix socket until `stop` completes.
///
/// A socket file that a dead process left is replaced. Only the owner may connect (mode 0600): the
/// socket is as good as root on the node.
pub async fn serve_unix<R: RuntimeService, I: ImageService>(
    path: &Path,
    runtime: Arc<R>,
    image: Arc<I>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let bind = || -> io::Result<tokio::net::UnixListener> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Bound under another name and renamed when its mode is right, so that it is never open to all.
        let staged = path.with_extension("new");
        match std::fs::remove_file(&staged) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = tokio::net::UnixListener::bind(&staged)?;
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&staged, path)?;
        Ok(listener)
    };
    let listener = bind().map_err(|source| ServeError { path: path.to_owned(), source })?;
    let services = Services::new(runtime, image);
    let mut stop = std::pin::pin!(stop);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((io, _)) => {
                    connections.spawn(services.clone().serve(io));
                }
                // Out of descriptors or a client that left already: neither is a reason to stop.
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
        }
    }
}

/// Clients of a runtime in the same process, over memory instead of a socket.
///
/// The clients must be used within a tokio runtime: the server's task starts with the first call and
/// ends when the last client is dropped. The calls pass through the same encoding as over a socket, so nothing works in process
/// that does not work across processes.
pub fn connect_in_process<R: RuntimeService, I: ImageService>(
    runtime: Arc<R>,
    image: Arc<I>,
) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
    let services = Services::new(runtime, image);
    let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
        tokio::spawn(services.clone().serve(theirs));
        std::future::ready(Ok::<_, io::Error>(TokioIo::new(ours)))
    }));
    clients(channel)
}
