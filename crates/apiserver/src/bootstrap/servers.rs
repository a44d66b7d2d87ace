//! Where the `kubernetes` Service leads: to all API servers that are alive. Each says that it is by a key in the store
//! that ends with its lease; the Service's endpoints are what these keys name. Upstream's reconciler of the same keys.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use serde_json::json;
use skiff_api::Status;
use skiff_store::{Code, LeaseId, Op, Store, Txn, prefix_end};

use super::ensure_fields;
use crate::{
    registry::engine::{Engine, store_status},
    server::ApiServer,
};

const ALIVE: &str = "/registry/masterleases/";
/// Upstream's: how long a server is believed to live after it was last heard of.
const TIME_TO_LIVE: Duration = Duration::from_secs(15);
/// How often it is heard of, and the endpoints are looked at even if nothing is known to have changed.
const INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the endpoints up to date as long as the server lives. It may be alone.
pub(crate) async fn run(server: Weak<ApiServer>, store: Arc<dyn Store>, advertise: SocketAddr) {
    let mut presence = Presence { address: advertise, lease: None };
    let mut changes = store.watch(ALIVE, None);
    loop {
        // Neither the wait nor the watch keeps the server.
        if let Some(server) = server.upgrade() {
            if let Err(error) = presence.renew(&*store).await {
                tracing::warn!(%error, "cannot tell the other API servers that this one is alive");
            }
            if let Err(error) = update(server.engine(), advertise).await {
                tracing::warn!(%error, "cannot tell who serves the API");
            }
        } else {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            change = changes.recv() => if !matches!(change, Ok(Some(_))) {
                tokio::time::sleep(INTERVAL).await;
                changes = store.watch(ALIVE, None);
            }
        }
    }
}

/// Takes a server that ends out of the endpoints, without waiting for its lease.
pub(crate) async fn leave(engine: &Engine, advertise: SocketAddr) -> Result<(), Status> {
    engine.store.txn(Txn::delete(key(advertise))).await.map_err(|error| store_status(&error))?;
    update(engine, advertise).await
}

fn key(address: SocketAddr) -> String {
    format!("{ALIVE}{}", address.ip())
}

/// The sign of life of this server.
struct Presence {
    address: SocketAddr,
    lease: Option<LeaseId>,
}

impl Presence {
    async fn renew(&mut self, store: &dyn Store) -> Result<(), skiff_store::Error> {
        if let Some(lease) = self.lease {
            match store.lease_keepalive(lease).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Code::LeaseNotFound => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        let lease = store.lease_grant(TIME_TO_LIVE, None).await?.id;
        let op = Op::Put { key: key(self.address).into(), value: self.address.to_string().into(), lease: Some(lease) };
        store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await?;
        self.lease = Some(lease);
        Ok(())
    }
}

/// Makes the endpoints be the servers that are alive.
async fn update(engine: &Engine, advertise: SocketAddr) -> Result<(), Status> {
    let range = engine.store.range(ALIVE..&prefix_end(ALIVE), None, 0).await.map_err(|error| store_status(&error))?;
    let named = range.kvs.iter().filter_map(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok());
    write(engine, &named.collect(), advertise.port()).await
}

/// Writes the endpoints of the `kubernetes` Service.
pub(super) async fn write(engine: &Engine, servers: &BTreeSet<SocketAddr>, port: u16) -> Result<(), Status> {
    // Served to its machine alone: no pod could follow it there.
    let ips: Vec<_> = servers.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
    let Some(first) = ips.first() else { return Ok(()) };
    let addresses: Vec<_> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    ensure_fields(engine, "", "endpoints", "default", endpoints, &["subsets"]).await?;
    let each: Vec<_> =
        ips.iter().map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}})).collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if first.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": each,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    ensure_fields(engine, "discovery.k8s.io", "endpointslices", "default", slice, &["endpoints", "ports"]).await
}
