//! The store as etcd serves itself: gRPC over mutual TLS, so that `etcdctl` and other clients of etcd's v3 API read,
//! watch and back up a cluster's state. `docs/store.md` says what is served and what is not.
//!
//! Who has a client certificate of this port's own authority can read and write everything, past the API server's
//! admission, as with a real etcd. Nothing runs here while nobody is connected.

pub mod bolt;
mod kv;
mod lease;
mod maintenance;
pub mod snapshot;
mod txn;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use skiff_store::{
    Code, Embedded, Error, Revision, Store,
    etcd::messages::{self, ResponseHeader},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tower::ServiceExt as _;

/// The version of etcd whose API this is.
pub(crate) const VERSION: &str = "3.6.0";
const CLUSTER_ID: u64 = 0x736b_6966_6600_0001;
const MEMBER_ID: u64 = 0x736b_6966_6600_0002;

mod services {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, dead_code, unused_qualifications)]
    pub(crate) mod kv {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.KV.rs"));
    }
    pub(crate) mod watch {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Watch.rs"));
    }
    pub(crate) mod lease {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Lease.rs"));
    }
    pub(crate) mod cluster {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Cluster.rs"));
    }
    pub(crate) mod maintenance {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Maintenance.rs"));
    }
    pub(crate) mod auth {
        include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Auth.rs"));
    }
}

/// What is served.
pub struct Etcd {
    pub store: Arc<Embedded>,
    /// The member's name, as `member list` shows it.
    pub name: String,
    /// Under which clients reach it: `https://127.0.0.1:2379`.
    pub client_urls: Vec<String>,
    /// The store's file; snapshots are put together in its directory.
    pub file: PathBuf,
}

impl Etcd {
    fn header(&self) -> Option<ResponseHeader> {
        self.header_at(self.store.revision())
    }

    #[expect(clippy::unnecessary_wraps, reason = "every message has it as an option")]
    fn header_at(&self, revision: Revision) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision: number(revision), raft_term: 2 })
    }

    /// Serves a listener until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
        const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
        let acceptor = TlsAcceptor::from(tls);
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (this, acceptor) = (self.clone(), acceptor.clone());
            connections.spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => this.connection(stream).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a client of the etcd API was refused"),
                    Err(_) => {}
                }
            });
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) {
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let this = self.clone();
            async move {
                let path = request.uri().path();
                let service = path.strip_prefix("/etcdserverpb.").and_then(|p| p.split('/').next()).unwrap_or_default();
                match service {
                    "KV" => services::kv::k_v_server::KVServer::from_arc(this).oneshot(request).await,
                    "Watch" => services::watch::watch_server::WatchServer::from_arc(this).oneshot(request).await,
                    "Lease" => services::lease::lease_server::LeaseServer::from_arc(this).oneshot(request).await,
                    "Cluster" => {
                        services::cluster::cluster_server::ClusterServer::from_arc(this).oneshot(request).await
                    }
                    "Maintenance" => {
                        services::maintenance::maintenance_server::MaintenanceServer::from_arc(this)
                            .oneshot(request)
                            .await
                    }
                    "Auth" => services::auth::auth_server::AuthServer::from_arc(this).oneshot(request).await,
                    _ => Ok(Status::unimplemented(format!("unknown method {path}")).into_http()),
                }
            }
        });
        // The end of a connection, however it ends, concerns only its client, which sees it too.
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

/// Revisions as etcd's messages have them.
fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// An error in etcd's words, by which its clients tell errors apart.
fn status(error: &Error) -> Status {
    match error.code() {
        Code::Compacted => Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
        Code::FutureRevision => Status::out_of_range("etcdserver: mvcc: required revision is a future revision"),
        Code::LeaseNotFound => Status::not_found("etcdserver: requested lease not found"),
        Code::LeaseExists => Status::failed_precondition("etcdserver: lease already exists"),
        Code::NoSpace => Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        Code::TooLarge => Status::invalid_argument("etcdserver: request is too large"),
        Code::InvalidArgument => Status::invalid_argument(format!("etcdserver: {error}")),
        Code::Corrupt => Status::data_loss(format!("etcdserver: corrupt cluster: {error}")),
        _ => Status::unavailable(format!("etcdserver: {error}")),
    }
}
