//! The sockets, and the controller's life.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use skiff_client::Informers;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    SERVICE,
    proxy::{Origin, Proxy},
    routes::Routes,
    tls, watch,
};

/// A client that has not said its headers within this is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After SIGTERM connections are still taken for a moment, until nobody sends any here.
const LAME_DUCK: Duration = Duration::from_secs(2);
/// What is under way then may take this long.
const DRAIN: Duration = Duration::from_secs(20);

/// How the controller is run; [`Options::default`] is what the pod in a cluster needs.
#[derive(Debug, Clone)]
pub struct Options {
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// `/healthz`: whether the routes are known.
    pub health: SocketAddr,
    /// Namespace and name of the Service in front.
    pub service: (String, String),
}

impl Default for Options {
    fn default() -> Self {
        let any = |port| SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port));
        Self {
            http: any(80),
            https: any(443),
            health: any(10254),
            service: ("kube-system".to_owned(), SERVICE.to_owned()),
        }
    }
}

/// Why the controller could not be run.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to the API server")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot make a certificate")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot start")]
    Start(#[source] io::Error),
}

/// Runs the controller on a runtime of its own until SIGTERM. `connect` makes the client within that runtime.
pub fn main<E>(connect: impl FnOnce() -> Result<kube::Client, E>, options: Options) -> Result<(), IngressError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().map_err(IngressError::Start)?;
    runtime.block_on(async {
        let client = connect().map_err(|error| IngressError::Connect(error.into()))?;
        run(client, options).await
    })
}

/// Serves until SIGTERM, then ends what is under way.
async fn run(client: kube::Client, options: Options) -> Result<(), IngressError> {
    let routes = Arc::new(ArcSwap::from_pointee(Routes::default()));
    let synced = Arc::new(AtomicBool::new(false));
    let tls = TlsAcceptor::from(tls::config(routes.clone())?);
    let proxy = Arc::new(Proxy::new(routes.clone()));
    let mut stop =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(IngressError::Start)?;
    let (http, https) = (listen(options.http).await?, listen(options.https).await?);
    let health = listen(options.health).await?;
    let watching = watch::run(Informers::new(client), routes, synced.clone(), options.service);
    let graceful = GracefulShutdown::new();
    let serving = async {
        tokio::join!(
            serve(&proxy, http, None, &graceful),
            serve(&proxy, https, Some(tls), &graceful),
            serve_health(health, synced),
            watching,
        );
    };
    tracing::info!("serving HTTP on {} and HTTPS on {}", options.http, options.https);
    tokio::select! {
        () = serving => {}
        _ = async {
            stop.recv().await;
            tokio::time::sleep(LAME_DUCK).await;
        } => {}
    }
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, IngressError> {
    TcpListener::bind(address).await.map_err(|source| IngressError::Listen { address, source })
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // It only costs speed.
                let _ = stream.set_nodelay(true);
                return (stream, address);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(proxy: &Arc<Proxy>, listener: TcpListener, tls: Option<TlsAcceptor>, graceful: &GracefulShutdown) {
    loop {
        let (stream, address) = accept(&listener).await;
        let (proxy, watcher) = (proxy.clone(), graceful.watcher());
        let from = Origin { address, tls: tls.is_some() };
        let Some(tls) = tls.clone() else {
            tokio::spawn(talk(proxy, stream, from, watcher));
            continue;
        };
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => talk(proxy, stream, from, watcher).await,
                Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS"),
                Err(_) => tracing::debug!(%address, "TLS takes too long"),
            }
        });
    }
}

/// One connection: HTTP/1.1 or HTTP/2, and what an upgrade makes of it.
async fn talk<S>(proxy: Arc<Proxy>, stream: S, from: Origin, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(proxy.handle(request, from).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).preserve_header_case(true);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(address = %from.address, %error, "a connection ended");
    }
}

async fn serve_health(listener: TcpListener, synced: Arc<AtomicBool>) {
    loop {
        let (stream, _) = accept(&listener).await;
        let synced = synced.clone();
        let service = service_fn(move |_| {
            let mut response = Response::new(Full::new(Bytes::from_static(b"ok")));
            if !synced.load(Ordering::Acquire) {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A prober that goes away is no concern of ours.
            let _ = tokio::time::timeout(HANDSHAKE_TIMEOUT, connection).await;
        });
    }
}

#[cfg(test)]
mod tests;
