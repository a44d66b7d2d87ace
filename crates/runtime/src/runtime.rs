//! The runtime: what sandboxes and containers there are, and who tells of their changes.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use skiff_cri::v1;
use skiff_images::{ImageStore, LayerLease};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::cgroup::{self, Cgroups};
use crate::client::Client;
use crate::config::RuntimeConfig;
use crate::error::{Error, Result};
use crate::network::PodNetwork;
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::spec::{Call, ContainerState, Event};
use crate::streaming::StreamingServer;
use crate::supervisor::log::now_nanoseconds;

/// Events kept for a client that is slow to read them.
const EVENT_BACKLOG: usize = 4096;
/// How long a supervisor that is there may take to say how things are.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Exit code of containers whose end nobody saw.
const KILLED: i32 = 137;

/// The built-in runtime: implements both CRI services. Cloning gives another handle on the same one.
///
/// Dropping it leaves the containers running; the next one opened in the same directories adopts them.
#[derive(Clone)]
pub struct Runtime(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: RuntimeConfig,
    pub(crate) images: ImageStore,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) cgroups: Cgroups,
    pub(crate) sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    pub(crate) containers: Mutex<BTreeMap<String, Arc<Container>>>,
    pub(crate) events: broadcast::Sender<v1::ContainerEventResponse>,
    pub(crate) execs: AtomicU64,
    pub(crate) streaming: OnceLock<StreamingServer>,
    /// Set when nothing is to be noticed any more.
    pub(crate) closed: AtomicBool,
}

/// A pod's sandbox.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) record: Mutex<SandboxRecord>,
    /// `None` when the supervisor is gone.
    pub(crate) client: Mutex<Option<Client>>,
    /// Held by whoever makes, stops or removes it.
    pub(crate) busy: tokio::sync::Mutex<()>,
    /// Who waits for the end of a process of an exec.
    pub(crate) execs: Mutex<HashMap<u64, oneshot::Sender<i32>>>,
}

/// A container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) record: Mutex<ContainerRecord>,
    pub(crate) state: watch::Sender<ContainerState>,
    /// Held by whoever starts, stops or removes it.
    pub(crate) busy: tokio::sync::Mutex<()>,
    pub(crate) _layers: LayerLease,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    pub(crate) fn client(&self) -> Result<Client> {
        lock(&self.client).clone().ok_or_else(|| Error::Precondition(format!("sandbox {:?} is not running", self.id)))
    }

    /// Changes the record and writes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<()> {
        let mut record = lock(&self.record);
        change(&mut record);
        record::write(&self.dir, &*record).map_err(Error::io("write the sandbox's record"))
    }
}

impl Container {
    /// Changes the record and writes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<()> {
        let mut record = lock(&self.record);
        change(&mut record);
        record::write(&self.dir, &*record).map_err(Error::io("write the container's record"))
    }

    pub(crate) fn is_running(&self) -> bool {
        let state = self.state.borrow();
        state.started_at != 0 && state.finished_at == 0
    }

    /// Waits until it has ended; false if it has not after that time.
    pub(crate) async fn wait_ended(&self, patience: Duration) -> bool {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| state.finished_at != 0);
        matches!(tokio::time::timeout(patience, ended).await, Ok(Ok(_)))
    }
}

impl Runtime {
    /// Opens the runtime in its directories and adopts what runs there. Must be called within a tokio
    /// runtime.
    pub async fn open(
        config: RuntimeConfig,
        images: ImageStore,
        network: Arc<dyn PodNetwork>,
    ) -> std::result::Result<Runtime, OpenError> {
        let cgroups = Cgroups::detect(&config.cgroup_root)
            .map_err(|source| OpenError { what: "find the cgroup hierarchies".into(), source })?;
        use std::os::unix::fs::PermissionsExt;
        for dir in [&config.root, &config.run] {
            let make = || -> std::io::Result<()> {
                std::fs::create_dir_all(dir.join("sandboxes"))?;
                std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            };
            make().map_err(|source| OpenError { what: format!("make {}", dir.display()), source })?;
        }
        let runtime = Runtime(Arc::new(Inner {
            config,
            images,
            network,
            cgroups,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            execs: AtomicU64::new(1),
            streaming: OnceLock::new(),
            closed: AtomicBool::new(false),
        }));
        let streaming = StreamingServer::start(&runtime)
            .await
            .map_err(|source| OpenError { what: "start the streaming server".into(), source })?;
        let _ = runtime.0.streaming.set(streaming);
        runtime.adopt().await.map_err(|source| OpenError { what: "read the records".into(), source })?;
        Ok(runtime)
    }

    /// Lets go of all supervisors: pods go on, and what happens to them is for the next runtime opened in
    /// these directories to notice. For a daemon that is about to end.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        for sandbox in lock(&self.0.sandboxes).values() {
            lock(&sandbox.client).take();
        }
    }

    /// The images that containers are made of.
    pub fn images(&self) -> &ImageStore {
        &self.0.images
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        find(&lock(&self.0.sandboxes), id).ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&lock(&self.0.containers), id).ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })
    }

    pub(crate) fn sandbox_of(&self, container: &Container) -> Result<Arc<Sandbox>> {
        let id = lock(&container.record).sandbox.clone();
        self.sandbox(&id)
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let containers = lock(&self.0.containers);
        containers.values().filter(|c| lock(&c.record).sandbox == sandbox).cloned().collect()
    }

    pub(crate) fn next_exec(&self) -> u64 {
        self.0.execs.fetch_add(1, Ordering::Relaxed)
    }

    /// Connects to a sandbox's supervisor and follows what it says.
    pub(crate) fn connect(&self, sandbox: &Arc<Sandbox>) -> std::io::Result<Client> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let client = Client::connect(&sandbox.run_dir, sender)?;
        *lock(&sandbox.client) = Some(client.clone());
        // Weak: a runtime that is dropped lets go of its connections.
        let (inner, sandbox) = (Arc::downgrade(&self.0), Arc::downgrade(sandbox));
        tokio::spawn(follow(inner, sandbox, receiver));
        Ok(client)
    }

    /// Finds sandboxes and containers that a predecessor left.
    async fn adopt(&self) -> std::io::Result<()> {
        let config = &self.0.config;
        for dir in subdirectories(&config.root.join("sandboxes"))? {
            let record: SandboxRecord = match record::read(&dir) {
                Ok(record) => record,
                Err(e) => {
                    // It was killed before it had written the record: nobody knows of the sandbox.
                    tracing::warn!(dir = %dir.display(), error = %e, "dropping a sandbox without record");
                    let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    self.clean_sandbox_files(&id);
                    continue;
                }
            };
            let sandbox = Arc::new(Sandbox {
                id: record.id.clone(),
                run_dir: config.sandbox_run_dir(&record.id),
                dir,
                record: Mutex::new(record),
                client: Mutex::new(None),
                busy: tokio::sync::Mutex::new(()),
                execs: Mutex::default(),
            });
            lock(&self.0.sandboxes).insert(sandbox.id.clone(), sandbox);
        }
        for dir in subdirectories(&config.root.join("containers"))? {
            let (record, state) = match (record::read::<ContainerRecord>(&dir), record::read_state(&dir)) {
                (Ok(record), Ok(state)) => (record, state),
                (Err(e), _) | (_, Err(e)) => {
                    tracing::warn!(dir = %dir.display(), error = %e, "dropping a container without record");
                    std::fs::remove_dir_all(&dir)?;
                    continue;
                }
            };
            let layers = record.layers.iter().filter_map(|layer| layer.parse().ok()).collect();
            let container = Container {
                id: record.id.clone(),
                dir,
                record: Mutex::new(record),
                state: watch::Sender::new(state),
                busy: tokio::sync::Mutex::new(()),
                _layers: self.0.images.lease_layers(layers),
            };
            lock(&self.0.containers).insert(container.id.clone(), Arc::new(container));
        }
        let sandboxes: Vec<_> = lock(&self.0.sandboxes).values().cloned().collect();
        futures::future::join_all(sandboxes.iter().map(|sandbox| self.adopt_sandbox(sandbox))).await;
        Ok(())
    }

    async fn adopt_sandbox(&self, sandbox: &Arc<Sandbox>) {
        let hello = async {
            let client = self.connect(sandbox).ok()?;
            let call = client.call(Call::Hello, Vec::new());
            tokio::time::timeout(HELLO_PATIENCE, call).await.ok()?.ok()
        };
        let ready = lock(&sandbox.record).ready;
        match hello.await {
            Some((answer, _)) if ready => {
                for container in self.containers_of(&sandbox.id) {
                    if let Some(state) = answer.containers.get(&container.id) {
                        container.state.send_replace(state.clone());
                    } else if lock(&container.record).started && container.is_running() {
                        self.container_lost(&container);
                    }
                }
            }
            answer => {
                if answer.is_some()
                    && let Ok(client) = sandbox.client()
                {
                    // Half made when the daemon was killed.
                    let _ = client.call(Call::Shutdown, Vec::new()).await;
                }
                self.sandbox_lost(sandbox);
            }
        }
    }

    /// A sandbox's supervisor is gone, and its containers with it.
    pub(crate) fn sandbox_lost(&self, sandbox: &Arc<Sandbox>) {
        *lock(&sandbox.client) = None;
        lock(&sandbox.execs).clear();
        let was_ready = std::mem::replace(&mut lock(&sandbox.record).ready, false);
        if let Err(e) = sandbox.update(|_| {}) {
            tracing::error!(sandbox = %sandbox.id, error = %e, "cannot note that a sandbox is gone");
        }
        for container in self.containers_of(&sandbox.id) {
            self.container_lost(&container);
        }
        if was_ready {
            tracing::warn!(sandbox = %sandbox.id, "the supervisor of a pod is gone");
            self.emit(sandbox, &sandbox.id, v1::ContainerEventType::Stopped);
        }
    }

    /// A container whose supervisor is gone: nobody saw how it ended, if it was running.
    fn container_lost(&self, container: &Arc<Container>) {
        let before = container.state.borrow().clone();
        let mut state = record::read_state(&container.dir).unwrap_or(before);
        let (started, cgroup) = {
            let record = lock(&container.record);
            (record.started && record.start_error.is_empty(), record.cgroup.clone())
        };
        if !started || container.state.borrow().finished_at != 0 {
            return;
        }
        // The kernel kills them with their supervisor, except those that ran set-user-id programs.
        for dir in self.0.cgroups.dirs(&cgroup) {
            if let Err(e) = cgroup::kill_all(&dir) {
                tracing::warn!(container = %container.id, error = %e, "cannot end its processes");
            }
        }
        if state.finished_at == 0 {
            state.finished_at = now_nanoseconds();
            state.exit_code = KILLED;
            if let Err(e) = record::write_state(&container.dir, &state) {
                tracing::error!(container = %container.id, error = %e, "cannot note its end");
            }
        }
        self.container_ended(container, state);
    }

    /// Makes the end of a container known.
    fn container_ended(&self, container: &Arc<Container>, state: ContainerState) {
        container.state.send_replace(state);
        if let Ok(sandbox) = self.sandbox_of(container) {
            self.emit(&sandbox, &container.id, v1::ContainerEventType::Stopped);
        }
    }

    /// Tells those who listen what happened, with the state of the whole pod after it.
    pub(crate) fn emit(&self, sandbox: &Arc<Sandbox>, id: &str, kind: v1::ContainerEventType) {
        if self.0.events.receiver_count() == 0 {
            return;
        }
        let containers = self.containers_of(&sandbox.id);
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now_nanoseconds(),
            pod_sandbox_status: Some(self.sandbox_status(sandbox)),
            containers_statuses: containers.iter().map(|c| self.container_status(c)).collect(),
        };
        // Nobody may listen any more.
        let _ = self.0.events.send(event);
    }
}

/// Why the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct OpenError {
    what: String,
    #[source]
    source: std::io::Error,
}

/// By id, which may be cut short as long as it is unambiguous.
fn find<T>(map: &BTreeMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if id.is_empty() {
        return None;
    }
    let mut matching = map.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let (key, first) = matching.next()?;
    (key == id || matching.next().is_none()).then(|| first.clone())
}

fn subdirectories(dir: &std::path::Path) -> std::io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

/// Acts on what a supervisor says until it is gone.
async fn follow(
    inner: std::sync::Weak<Inner>,
    sandbox: std::sync::Weak<Sandbox>,
    mut events: mpsc::UnboundedReceiver<Event>,
) {
    while let Some(event) = events.recv().await {
        let (Some(inner), Some(sandbox)) = (inner.upgrade(), sandbox.upgrade()) else { return };
        match event {
            Event::Exited { id, state } => {
                let runtime = Runtime(inner);
                if let Ok(container) = runtime.container(&id) {
                    runtime.container_ended(&container, state);
                }
            }
            Event::ExecExited { exec, code } => {
                if let Some(waiting) = lock(&sandbox.execs).remove(&exec) {
                    let _ = waiting.send(code);
                }
            }
        }
    }
    if let (Some(inner), Some(sandbox)) = (inner.upgrade(), sandbox.upgrade())
        && !inner.closed.load(Ordering::SeqCst)
    {
        Runtime(inner).sandbox_lost(&sandbox);
    }
}
