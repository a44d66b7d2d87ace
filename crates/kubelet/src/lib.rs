//! The kubelet: runs the pods that are bound to this node, through CRI, and says how they are.
//!
//! Flow: the pod informer and the runtime's events wake a pod's [worker]; the worker looks at what is in the runtime
//! ([`observed`]), decides what is next ([`worker::plan`]), does it, computes the [`status`] and has it sent. It
//! remembers nothing that it could not read again, so the kubelet can be ended at any line.
//!
//! See `docs/kubelet.md` for the life of a pod and for what is not there yet.

mod admission;
mod backoff;
mod cgroup;
mod config;
mod container_config;
mod cri;
mod csi;
mod dns;
mod env;
mod eviction;
mod expansion;
mod fields;
mod images;
mod kubelet;
mod local_volumes;
mod logs;
mod names;
mod node;
mod objects;
mod observed;
mod orphans;
mod pod;
mod probes;
mod qos;
mod sandbox_config;
mod server;
mod status;
mod termination;
mod time;
mod volumes;
mod worker;

use std::{future::Future, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, Pod, Service},
    storage::v1::CSIDriver,
};
use kube::Client;
use skiff_client::{EventRecorder, Informers, Selector};
use skiff_cri::{Channel, ImageServiceClient, RuntimeServiceClient};
use tokio::{sync::watch, task::JoinSet};

use crate::kubelet::{Kubelet, Pods};
pub use crate::{
    config::{Config, KUBELET_PORT, ServerConfig, Traffic},
    cri::RuntimeError,
    eviction::{EvictionThresholds, ThresholdError},
};

/// Why a kubelet could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory of the kubelet's own.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The kubelet's server.
    #[error("cannot serve the kubelet's API on {address}")]
    Server {
        /// Where it should listen.
        address: std::net::SocketAddr,
        /// Why it does not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Runs a kubelet until `shutdown` completes. Pods go on running; the next kubelet takes them over.
///
/// `client` must act as `system:node:<node name>` of group `system:nodes`, and `informers` read with it. Must be
/// called on a tokio runtime.
pub async fn run(
    config: Config,
    client: Client,
    informers: Informers,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    for path in [config.root_dir.join("pods"), config.pod_logs_dir.clone()] {
        std::fs::create_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
    }
    let runtime = cri::Runtime::new(runtime, images);
    let pods_of_node = informers.selected::<Pod>(Selector::fields(format!("spec.nodeName={}", config.node_name)));
    let own_volumes = Selector::labels(format!("{}={}", skiff_api::storage::NODE_LABEL, config.node_name));
    let local_volumes = informers.selected::<PersistentVolume>(own_volumes);
    let (network_sender, network) = watch::channel(node::unknown().network);
    let (readiness_sender, readiness) = watch::channel(node::unknown());
    let pods = Arc::new(Pods::default());
    let waker: objects::Waker = {
        let pods = pods.clone();
        Arc::new(move |uid| pods.wake(uid))
    };
    let kubelet = Arc::new(Kubelet {
        recorder: EventRecorder::new(client.clone(), "kubelet", Some(&config.node_name)),
        services: informers.informer::<Service>(),
        node: informers.selected::<Node>(node::selector(&config.node_name)),
        config_maps: objects::Objects::new(client.clone(), waker.clone()),
        secrets: objects::Objects::new(client.clone(), waker.clone()),
        claims: objects::Objects::new(client.clone(), waker),
        csi: csi::Csi::new(&config.root_dir, informers.informer::<CSIDriver>()),
        images: images::Images::default(),
        statuses: status::sender::Sender::start(client.clone()),
        capacity: node::capacity::Capacity::read(&config.root_dir),
        cgroups: cgroup::Cgroups::new(config.cgroup_mount.clone(), &config.cgroup_parent),
        admission: admission::Admission::default(),
        eviction: eviction::Eviction::default(),
        node_changed: tokio::sync::Notify::new(),
        workers: parking_lot::Mutex::default(),
        config,
        client,
        runtime: runtime.clone(),
        pods,
        network,
    });
    kubelet.csi.make_directories().map_err(|(path, source)| Error::Directory { path, source })?;
    // Also if this future is dropped.
    let _workers = EndWorkers(kubelet.clone());
    let mut tasks = JoinSet::new();
    if let Some(server) = &kubelet.config.server {
        let serving = server::bind(kubelet.clone(), server).await;
        tasks.spawn(serving.map_err(|source| Error::Server { address: server.listen, source })?);
    }
    tasks.spawn(node::watch_readiness(runtime, readiness_sender));
    tasks.spawn(pass_network(readiness.clone(), network_sender, kubelet.pods.clone()));
    tasks.spawn(node::run(kubelet.clone(), readiness));
    tasks.spawn(logs::rotate::run(kubelet.clone()));
    tasks.spawn(eviction::run(kubelet.clone()));
    tasks.spawn(images::garbage::run(kubelet.clone()));
    tasks.spawn(local_volumes::run(kubelet.clone(), local_volumes));
    tasks.spawn(csi::registration::run(kubelet.clone()));
    tasks.spawn(csi::unmount::unstage_unused(kubelet.clone()));
    tasks.spawn(kubelet.clone().watch_runtime());
    tasks.spawn(kubelet.clone().watch_pods(pods_of_node));
    shutdown.await;
    // Nothing is to be done for a pod by this kubelet when the next one begins.
    tasks.shutdown().await;
    let mut workers = std::mem::take(&mut *kubelet.workers.lock());
    workers.shutdown().await;
    Ok(())
}

/// Ends all workers when it is dropped; they hold the kubelet, so they do not end by themselves.
struct EndWorkers(Arc<Kubelet>);

impl Drop for EndWorkers {
    fn drop(&mut self) {
        self.0.workers.lock().abort_all();
    }
}

/// Lets waiting pods go on when their network is ready.
async fn pass_network(
    mut readiness: watch::Receiver<node::Readiness>,
    network: watch::Sender<Option<String>>,
    pods: Arc<Pods>,
) {
    loop {
        let now = readiness.borrow_and_update().network.clone();
        if network.send_if_modified(|known| std::mem::replace(known, now.clone()) != now) {
            pods.all().iter().for_each(|h| h.wake.notify_one());
        }
        if readiness.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
