//! Debian's etcd-server, and as much of its gRPC API as raw puts need.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// `etcdserverpb.PutRequest`, the fields that are used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; what is in it does not matter.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// A server of one member; it ends when it is dropped.
pub(crate) struct Etcd {
    child: Child,
    endpoint: Endpoint,
}

impl Etcd {
    pub(crate) fn start(data: &Path) -> Self {
        let program =
            PathBuf::from(std::env::var_os("SKIFF_BENCH_ETCD").expect("cargo xtask bench says where etcd is"));
        let port =
            || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let (client, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")])
            .args(["--log-level", "error", "--quota-backend-bytes", "8000000000"])
            .stdin(Stdio::null())
            .spawn()
            .expect("etcd runs");
        Self { child, endpoint: Endpoint::from_shared(client).expect("an address") }
    }

    pub(crate) async fn connect(&self) -> Client {
        for _ in 0..200 {
            if let Ok(channel) = self.endpoint.connect().await {
                let mut client = Client(Grpc::new(channel));
                // It may listen before it has elected itself.
                if client.try_put("ready", &[]).await.is_ok() {
                    return client;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection.
pub(crate) struct Client(Grpc<Channel>);

impl Client {
    async fn try_put(&mut self, key: &str, value: &[u8]) -> Result<(), tonic::Status> {
        self.0.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let request = tonic::Request::new(PutRequest { key: key.into(), value: value.to_owned() });
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let codec: ProstCodec<PutRequest, PutResponse> = ProstCodec::default();
        self.0.unary(request, path, codec).await.map(drop)
    }

    pub(crate) async fn put(&mut self, key: &str, value: &[u8]) {
        self.try_put(key, value).await.expect("etcd writes it");
    }
}
