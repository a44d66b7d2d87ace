//! What all parts of the kubelet share, and the loop that gives each pod its worker.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, Service};
use kube::Client;
use parking_lot::Mutex;
use skiff_client::{Change, EventRecorder, EventType, Informer, object_reference};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    admission::Admission,
    cgroup::Cgroups,
    config::Config,
    cri::Runtime,
    csi::Csi,
    eviction::Eviction,
    images::Images,
    names,
    node::capacity::Capacity,
    objects::Objects,
    observed::Observed,
    orphans,
    pod::{PodExt, PodUid},
    status::{Failure, sender::Sender},
    worker,
};

/// How often everything is looked at whether something happened or not.
const RESYNC: Duration = Duration::from_secs(300);
/// Before the runtime is asked again for its events.
const EVENTS_RETRY: Duration = Duration::from_secs(1);
/// Before a worker that panicked is started again.
const WORKER_RETRY: Duration = Duration::from_secs(5);

/// What all parts of the kubelet share.
pub(crate) struct Kubelet {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
    pub(crate) recorder: EventRecorder,
    pub(crate) services: Informer<Service>,
    pub(crate) node: Informer<Node>,
    pub(crate) config_maps: Objects<ConfigMap>,
    pub(crate) secrets: Objects<Secret>,
    /// Of CSI volumes, which may grow.
    pub(crate) claims: Objects<PersistentVolumeClaim>,
    pub(crate) csi: Csi,
    pub(crate) images: Images,
    pub(crate) statuses: Arc<Sender>,
    pub(crate) capacity: Capacity,
    pub(crate) cgroups: Cgroups,
    pub(crate) admission: Admission,
    pub(crate) eviction: Eviction,
    pub(crate) pods: Arc<Pods>,
    /// What keeps pods from being started: `None` when the pod network is ready.
    pub(crate) network: watch::Receiver<Option<String>>,
    pub(crate) node_changed: Notify,
    /// The pods' workers.
    pub(crate) workers: Mutex<JoinSet<()>>,
}

/// The pods that have a worker.
#[derive(Default)]
pub(crate) struct Pods {
    by_uid: Mutex<HashMap<PodUid, Arc<PodHandle>>>,
}

/// How a pod's worker is told what happens, and shows what it sees.
pub(crate) struct PodHandle {
    pub(crate) uid: PodUid,
    slot: Mutex<Slot>,
    pub(crate) wake: Notify,
    /// Set once the pod is to end, and never reset.
    pub(crate) terminating: watch::Sender<bool>,
    pub(crate) view: watch::Sender<Arc<Observed>>,
}

#[derive(Clone)]
struct Slot {
    pod: Arc<Pod>,
    /// It is gone from the API.
    removed: bool,
    /// Why it has to leave the node.
    eviction: Option<Failure>,
}

impl PodHandle {
    fn new(pod: Arc<Pod>) -> PodHandle {
        PodHandle {
            uid: pod.uid(),
            terminating: watch::Sender::new(pod.is_deleting()),
            slot: Mutex::new(Slot { pod, removed: false, eviction: None }),
            wake: Notify::new(),
            view: watch::Sender::new(Arc::default()),
        }
    }

    /// The pod as it is now, and whether it is gone from the API.
    pub(crate) fn current(&self) -> (Arc<Pod>, bool) {
        let slot = self.slot.lock();
        (slot.pod.clone(), slot.removed)
    }

    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.slot.lock().pod.clone()
    }

    fn update(&self, pod: Arc<Pod>) {
        if pod.is_deleting() {
            self.terminating.send_replace(true);
        }
        self.slot.lock().pod = pod;
        self.wake.notify_one();
    }

    fn remove(&self) {
        self.slot.lock().removed = true;
        self.terminating.send_replace(true);
        self.wake.notify_one();
    }

    /// Has the pod fail and its containers end.
    pub(crate) fn evict(&self, failure: Failure) {
        self.slot.lock().eviction = Some(failure);
        self.terminating.send_replace(true);
        self.wake.notify_one();
    }

    /// Why the pod has to leave the node.
    pub(crate) fn eviction(&self) -> Option<Failure> {
        self.slot.lock().eviction.clone()
    }

    /// Completes once the pod is to end.
    pub(crate) async fn ended(&self) {
        // The sender is in `self`.
        let _ = self.terminating.subscribe().wait_for(|t| *t).await;
    }
}

impl Pods {
    pub(crate) fn get(&self, uid: &PodUid) -> Option<Arc<PodHandle>> {
        self.by_uid.lock().get(uid).cloned()
    }

    /// The newest pod of this name.
    pub(crate) fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<PodHandle>> {
        let handles = self.all();
        let named = handles.into_iter().filter(|h| {
            let pod = h.pod();
            pod.namespace() == namespace && pod.name() == name
        });
        named.max_by_key(|h| h.pod().metadata.creation_timestamp.clone())
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodHandle>> {
        self.by_uid.lock().values().cloned().collect()
    }

    /// Has the pod's worker look again.
    pub(crate) fn wake(&self, uid: &PodUid) {
        if let Some(handle) = self.get(uid) {
            handle.wake.notify_one();
        }
    }
}

impl Kubelet {
    pub(crate) fn wake(&self, uid: &PodUid) {
        self.pods.wake(uid);
    }

    pub(crate) fn is_terminating(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_none_or(|h| *h.terminating.borrow())
    }

    pub(crate) fn images_changed(&self) {
        self.node_changed.notify_one();
    }

    fn event(&self, pod: &Pod, container: Option<&str>, kind: EventType, reason: &str, message: &str) {
        let mut reference = object_reference(pod);
        reference.field_path = container.map(|name| {
            let is = |list: &[k8s_openapi::api::core::v1::Container]| list.iter().any(|c| c.name == name);
            let list = if is(&PodExt::spec(pod).containers) {
                "containers"
            } else if is(pod.init_containers()) {
                "initContainers"
            } else {
                "ephemeralContainers"
            };
            format!("spec.{list}{{{name}}}")
        });
        self.recorder.event(reference, kind, reason, message);
    }

    pub(crate) fn container_event(&self, pod: &Pod, container: &str, reason: &str, message: &str) {
        self.event(pod, Some(container), EventType::Normal, reason, message);
    }

    pub(crate) fn container_warning(&self, pod: &Pod, container: &str, reason: &str, message: &str) {
        self.event(pod, Some(container), EventType::Warning, reason, message);
    }

    pub(crate) fn pod_event(&self, pod: &Pod, reason: &str, message: &str) {
        self.event(pod, None, EventType::Normal, reason, message);
    }

    pub(crate) fn pod_warning(&self, pod: &Pod, reason: &str, message: &str) {
        self.event(pod, None, EventType::Warning, reason, message);
    }

    /// The node's resolver configuration; a node without one has no name servers.
    pub(crate) fn resolv_conf(&self) -> String {
        std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default()
    }

    fn apply(self: &Arc<Self>, pod: Arc<Pod>) {
        let uid = pod.uid();
        let mut pods = self.pods.by_uid.lock();
        if let Some(handle) = pods.get(&uid) {
            handle.update(pod);
            return;
        }
        let handle = Arc::new(PodHandle::new(pod));
        pods.insert(uid, handle.clone());
        drop(pods);
        let mut workers = self.workers.lock();
        // Those that have ended are no longer needed.
        while workers.try_join_next().is_some() {}
        workers.spawn(self.clone().work(handle));
    }

    /// Runs a pod's worker, anew if it panics: all that it knows it can read from the runtime.
    async fn work(self: Arc<Self>, handle: Arc<PodHandle>) {
        loop {
            let worker = std::panic::AssertUnwindSafe(worker::run(self.clone(), handle.clone()));
            if worker.catch_unwind().await.is_ok() {
                break;
            }
            tracing::error!(pod = %handle.uid, "a pod's worker panicked and is started again");
            tokio::time::sleep(WORKER_RETRY).await;
        }
        self.pods.by_uid.lock().remove(&handle.uid);
        self.images.forget(&handle.uid);
        self.statuses.forget(&handle.uid);
        self.config_maps.release(&handle.uid);
        self.secrets.release(&handle.uid);
        self.claims.release(&handle.uid);
        self.admission.release(&handle.uid);
    }

    /// Gives each pod of the node a worker and tells the workers of changes. Ends when the informer does.
    pub(crate) async fn watch_pods(self: Arc<Self>, pods: Informer<Pod>) {
        pods.wait_synced().await;
        // Pods that were removed while nobody looked.
        orphans::clean(&self, &live(&pods)).await;
        let mut changes = pods.subscribe();
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        resync.reset();
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(Change::Applied { old, new }) => {
                        // A namesake in its place: the old one's deletion went unseen.
                        if let Some(old) = old.filter(|old| old.uid() != new.uid()) {
                            self.removed(&old.uid());
                        }
                        self.apply(new);
                    }
                    Some(Change::Deleted { old }) => self.removed(&old.uid()),
                    None => return,
                },
                () = self.csi.registered.notified() => {
                    self.pods.all().iter().for_each(|h| h.wake.notify_one());
                    orphans::clean(&self, &live(&pods)).await;
                }
                _ = resync.tick() => {
                    self.pods.all().iter().for_each(|h| h.wake.notify_one());
                    orphans::clean(&self, &live(&pods)).await;
                }
            }
        }
    }

    fn removed(&self, uid: &PodUid) {
        if let Some(handle) = self.pods.get(uid) {
            handle.remove();
        }
    }

    /// Wakes the workers of pods to which something happened in the runtime.
    pub(crate) async fn watch_runtime(self: Arc<Self>) {
        loop {
            match self.runtime.events().await {
                Ok(mut events) => {
                    // What happened before the stream is seen by looking once at all.
                    self.pods.all().iter().for_each(|h| h.wake.notify_one());
                    while let Some(event) = events.next().await {
                        match event {
                            Ok(event) => self.runtime_event(&event),
                            Err(error) => {
                                tracing::warn!(error = error.message(), "the runtime's events were broken off");
                                break;
                            }
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot get the runtime's events"),
            }
            tokio::time::sleep(EVENTS_RETRY).await;
        }
    }

    fn runtime_event(&self, event: &skiff_cri::v1::ContainerEventResponse) {
        let sandbox = event.pod_sandbox_status.as_ref();
        let uid = sandbox
            .and_then(|s| s.metadata.as_ref())
            .map(|m| m.uid.as_str())
            .or_else(|| event.containers_statuses.first()?.labels.get(names::POD_UID).map(String::as_str));
        match uid {
            Some(uid) => self.wake(&PodUid::new(uid)),
            // Of a sandbox that is gone already: whoever has the container looks.
            None => {
                let concerned = self.pods.all().into_iter().filter(|h| {
                    let view = h.view.borrow();
                    view.containers.iter().any(|c| c.id() == event.container_id)
                        || view.sandboxes.iter().any(|s| s.id == event.container_id)
                });
                concerned.for_each(|h| h.wake.notify_one());
            }
        }
    }

    /// When this process started, as far as pods are concerned.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

fn live(pods: &Informer<Pod>) -> HashSet<PodUid> {
    pods.list().iter().map(|p| p.uid()).collect()
}
