//! One worker per pod: looks at what is, decides what is next ([`plan`]), does it, says how it is, and sleeps until
//! something happens. It never waits for a pull, so that it always hears of the pod's end.

mod hooks;
pub(crate) mod plan;
mod start;
mod stop;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::time::Instant;

use self::{plan::Verdict, stop::Stopping};
use crate::{
    backoff::Backoffs,
    kubelet::{Kubelet, PodHandle},
    logs,
    observed::{Observed, ObservedContainer, observe},
    pod::{PodExt, timestamp},
    probes::Probing,
    qos,
    sandbox_config::sandbox_config,
    status::{self, Failure, Waiting},
    volumes::{PodVolumes, VolumeError},
};

/// Before the runtime or the API server is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Before what the user has to put right is tried again, unless it changes sooner.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
/// Between tries to set up a volume: doubled from the first to the last.
const VOLUME_RETRY: Duration = Duration::from_millis(500);
const VOLUME_RETRY_MAX: Duration = Duration::from_secs(122);
/// How long volumes may take before somebody is told.
const VOLUME_PATIENCE: Duration = Duration::from_secs(123);

/// The worker of one pod.
struct Worker {
    kubelet: Arc<Kubelet>,
    handle: Arc<PodHandle>,
    pod: Arc<Pod>,
    observed: Observed,
    /// Why containers are not started, by name.
    waiting: HashMap<String, Waiting>,
    volumes: PodVolumes,
    volume_failures: u32,
    /// When it was last told that volumes take their time.
    told_to_wait: Option<Instant>,
    sandbox_failures: u32,
    /// Of running containers, by id.
    probing: HashMap<String, Probing>,
    backoffs: Backoffs<String>,
    /// Set when the pod is to fail whatever its containers do.
    failure: Option<Failure>,
    stopping: Stopping,
    admitted: bool,
    /// Nothing runs and nothing will.
    ended: bool,
    start_time: Timestamp,
    /// As computed last.
    status: PodStatus,
    /// The number under which the sender knows it.
    sent: u64,
    /// When to look again though nothing happens.
    next: Option<Instant>,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Look at once: something was done.
    Again,
    Wait,
    /// Nothing is left of the pod.
    Gone,
}

/// Works for a pod until nothing is left of it.
pub(crate) async fn run(kubelet: Arc<Kubelet>, handle: Arc<PodHandle>) {
    let pod = handle.pod();
    let status = pod.status.clone().unwrap_or_default();
    let start_time = status.start_time.as_ref().map_or_else(|| kubelet.now(), |t| t.0);
    let mut worker = Worker {
        kubelet,
        handle: handle.clone(),
        pod,
        observed: Observed::default(),
        waiting: HashMap::new(),
        volumes: PodVolumes::default(),
        volume_failures: 0,
        told_to_wait: None,
        sandbox_failures: 0,
        probing: HashMap::new(),
        backoffs: Backoffs::default(),
        failure: None,
        stopping: Stopping::default(),
        admitted: false,
        ended: false,
        start_time,
        status,
        sent: 0,
        next: None,
    };
    loop {
        worker.next = None;
        // Boxed, because a worker that sleeps should be small.
        match Box::pin(worker.step()).await {
            Step::Again => continue,
            Step::Gone => return,
            Step::Wait => {}
        }
        match worker.next {
            None => handle.wake.notified().await,
            // Either way everything is looked at.
            Some(at) => drop(tokio::time::timeout_at(at, handle.wake.notified()).await),
        }
    }
}

impl Worker {
    /// Asks to be called again after a delay; the shortest counts.
    fn look_again(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    async fn step(&mut self) -> Step {
        let (pod, removed) = self.handle.current();
        self.pod = pod;
        match observe(&self.kubelet.runtime, &self.handle.uid, &self.observed).await {
            Ok(observed) => self.observed = observed,
            Err(error) => {
                tracing::warn!(pod = %self.handle.uid, %error, "cannot see a pod's containers");
                self.look_again(RETRY);
                return Step::Wait;
            }
        }
        self.handle.view.send_replace(Arc::new(self.observed.clone()));
        self.follow_containers();
        if !self.pod.is_terminal() && self.failure.is_none() {
            self.failure = self.handle.eviction();
        }
        if removed || self.pod.is_deleting() || self.failure.is_some() {
            return self.terminate(removed).await;
        }
        if self.ended || self.pod.is_terminal() {
            self.ended = true;
            return self.rest().await;
        }
        self.sync().await
    }

    /// Probes what runs, and nothing else.
    fn follow_containers(&mut self) {
        let running: Vec<&ObservedContainer> = self.observed.containers.iter().filter(|c| c.is_running()).collect();
        self.probing.retain(|id, _| running.iter().any(|c| c.id() == id));
        let pod_ip = self.pod_ip();
        let containers = self.pod.all_containers();
        for observed in running {
            if self.probing.contains_key(observed.id()) {
                continue;
            }
            let Some((_, container)) = containers.iter().find(|(_, c)| c.name == observed.name) else { continue };
            let before = self.said_before(observed);
            let id = observed.id();
            let started_at = observed.status.started_at;
            let probing = Probing::start(&self.kubelet, &self.pod, container, id, started_at, &pod_ip, before);
            self.probing.insert(id.to_owned(), probing);
        }
    }

    /// What the status said of a container that was started by an earlier kubelet: (started, ready).
    fn said_before(&self, observed: &ObservedContainer) -> Option<(bool, bool)> {
        let status = &self.status;
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let mut all = lists.into_iter().flatten().flatten();
        let of_container = all.find(|s| s.container_id.as_ref().is_some_and(|id| id.ends_with(observed.id())))?;
        let running = of_container.state.as_ref().is_some_and(|s| s.running.is_some());
        running.then_some((of_container.started == Some(true), of_container.ready))
    }

    fn pod_ip(&self) -> String {
        self.pod_ips().into_iter().next().unwrap_or_default()
    }

    /// Those of the node in its network, else the pod's own, the primary one first.
    fn pod_ips(&self) -> Vec<String> {
        match self.pod.host_network() {
            true => self.kubelet.config.host_ips(),
            false => self.observed.pod_ips(),
        }
    }

    fn verdict(&self, container: &ObservedContainer) -> Verdict {
        self.probing.get(container.id()).map_or(Verdict::FINE, Probing::verdict)
    }

    /// Computes the status and has it sent if it changed.
    fn report(&mut self) {
        let host_ips = self.kubelet.config.host_ips();
        let status = status::compute(&status::Inputs {
            pod: &self.pod,
            observed: &self.observed,
            waiting: &self.waiting,
            probes: &|c| self.probing.get(c.id()).map_or((false, false), Probing::readiness),
            failure: self.failure.as_ref(),
            ended: self.ended,
            host_ips: &host_ips,
            start_time: self.start_time,
            old: &self.status,
            now: self.kubelet.now(),
        });
        self.sent = self.kubelet.statuses.send(&self.pod, status.clone());
        self.status = status;
    }

    /// One step of a pod that should run.
    async fn sync(&mut self) -> Step {
        if let Err(failure) = self.admit() {
            self.kubelet.pod_warning(&self.pod, &failure.reason, &failure.message);
            self.failure = Some(failure);
            return Step::Again;
        }
        if self.out_of_time() {
            return Step::Again;
        }
        let plan = plan::plan(&self.pod, &self.observed, |c| self.verdict(c));
        if plan.finished {
            self.ended = true;
            return Step::Again;
        }
        self.report();
        let mut done = false;
        for kill in plan.kill {
            done = true;
            self.kill(&kill).await;
        }
        let starts = !plan.start.is_empty() || plan.create_sandbox.is_some();
        if !self.prepare_volumes(starts).await {
            return Step::Wait;
        }
        if starts && !self.network_ready() {
            return Step::Wait;
        }
        if let Some(attempt) = plan.create_sandbox {
            if plan.kill_pod {
                self.kubelet.pod_event(
                    &self.pod,
                    "SandboxChanged",
                    "Pod sandbox changed, it will be killed and re-created.",
                );
                if !self.stop_everything().await {
                    return Step::Wait;
                }
            }
            return match self.create_sandbox(attempt).await {
                true => Step::Again,
                false => Step::Wait,
            };
        }
        for start in &plan.start {
            done |= self.start(start).await;
            if *self.handle.terminating.borrow() {
                return Step::Again;
            }
        }
        if done {
            return Step::Again;
        }
        // Containers that wait show why.
        self.report();
        self.forget_old_containers().await;
        if let Some(left) = self.volumes.next_republish() {
            self.look_again(left);
        }
        if let Some(renewal) = self.volumes.next_renewal() {
            let left = renewal.duration_since(self.kubelet.now());
            self.look_again(left.try_into().unwrap_or_default());
        }
        Step::Wait
    }

    fn admit(&mut self) -> Result<(), Failure> {
        if self.admitted {
            return Ok(());
        }
        if self.observed.sandboxes.is_empty() {
            let node = self.kubelet.node.get("", &self.kubelet.config.node_name);
            let kubelet = &self.kubelet;
            kubelet.eviction.admit(&self.pod)?;
            kubelet.admission.admit(&self.pod, node.as_deref(), &kubelet.capacity, kubelet.config.max_pods)?;
        } else {
            // What runs was taken before.
            self.kubelet.admission.adopt(&self.pod);
        }
        self.admitted = true;
        Ok(())
    }

    /// `activeDeadlineSeconds`.
    fn out_of_time(&mut self) -> bool {
        let Some(seconds) = PodExt::spec(&*self.pod).active_deadline_seconds else { return false };
        let since = self.status.start_time.as_ref().map_or(self.start_time, |t| t.0);
        let used = self.kubelet.now().duration_since(since).as_secs();
        if used < seconds {
            self.look_again(Duration::from_secs(u64::try_from(seconds - used).unwrap_or(1)));
            return false;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.kubelet.pod_event(&self.pod, "DeadlineExceeded", &message);
        self.failure = Some(Failure { reason: "DeadlineExceeded".to_owned(), message });
        true
    }

    /// Whether containers can be started as far as volumes are concerned.
    async fn prepare_volumes(&mut self, starts: bool) -> bool {
        let dir = self.kubelet.config.pod_dir(self.handle.uid.as_str());
        if let Err(error) = make_pod_dir(&dir) {
            tracing::warn!(pod = %self.handle.uid, %error, "cannot make a pod's directory");
            self.look_again(RETRY);
            return false;
        }
        match self.volumes.prepare(&self.kubelet, &self.pod).await {
            Ok(()) => {
                self.volume_failures = 0;
                true
            }
            Err(VolumeError::Pending { since, .. }) if starts => {
                // It wakes this worker when it is done.
                let waited = since.elapsed();
                if waited >= VOLUME_PATIENCE && self.told_to_wait.is_none_or(|told| told.elapsed() >= VOLUME_PATIENCE) {
                    self.told_to_wait = Some(Instant::now());
                    self.kubelet.pod_warning(&self.pod, "FailedMount", &self.volumes.timed_out());
                }
                self.look_again(VOLUME_PATIENCE.saturating_sub(waited).max(RETRY));
                false
            }
            Err(error) if starts => {
                self.kubelet.pod_warning(&self.pod, "FailedMount", &error.to_string());
                let delay = self.volume_back_off();
                self.look_again(delay);
                false
            }
            Err(error) => {
                // What runs goes on with what it has.
                tracing::debug!(pod = %self.handle.uid, %error, "a volume cannot be brought up to date");
                true
            }
        }
    }

    /// How long to wait before volumes are tried again.
    fn volume_back_off(&mut self) -> Duration {
        let delay = VOLUME_RETRY.saturating_mul(1 << self.volume_failures.min(8)).min(VOLUME_RETRY_MAX);
        self.volume_failures += 1;
        delay
    }

    fn network_ready(&mut self) -> bool {
        if self.pod.host_network() {
            return true;
        }
        let unready = self.kubelet.network.borrow().clone();
        let Some(why) = unready else { return true };
        self.kubelet.pod_warning(&self.pod, "NetworkNotReady", &format!("network is not ready: {why}"));
        self.look_again(RETRY);
        false
    }

    async fn create_sandbox(&mut self, attempt: u32) -> bool {
        let config = &self.kubelet.config;
        self.kubelet
            .cgroups
            .ensure(&qos::cgroup_parent(&config.cgroup_parent, &self.pod), &qos::pod_resources(&self.pod));
        let made = sandbox_config(&self.pod, attempt, config, &self.kubelet.resolv_conf(), self.start_time);
        let result = match made {
            Ok(config) => {
                let handler = String::new();
                self.kubelet
                    .runtime
                    .run_sandbox(config, handler)
                    .await
                    .map_err(|e| format!("rpc error: code = Unknown desc = {e}"))
            }
            Err(message) => Err(message),
        };
        match result {
            Ok(_) => {
                self.sandbox_failures = 0;
                true
            }
            Err(message) => {
                let text = format!("Failed to create pod sandbox: {message}");
                self.kubelet.pod_warning(&self.pod, "FailedCreatePodSandBox", &text);
                let delay = RETRY.saturating_mul(1 << self.sandbox_failures.min(4));
                self.sandbox_failures += 1;
                self.look_again(delay.min(CONFIG_RETRY));
                false
            }
        }
    }

    /// Of each container's runs, the last and the one before are kept, for `lastState` and `logs --previous`.
    async fn forget_old_containers(&mut self) {
        let mut kept: HashMap<&str, u32> = HashMap::new();
        let mut old = Vec::new();
        for container in &self.observed.containers {
            let count = kept.entry(&container.name).or_default();
            *count += 1;
            if *count > 2 && container.is_exited() {
                old.push((container.id().to_owned(), container.status.log_path.clone()));
            }
        }
        for (id, log) in old {
            if let Err(error) = self.kubelet.runtime.remove_container(&id).await {
                tracing::warn!(container = id, %error, "cannot remove an old container");
                continue;
            }
            if !log.is_empty()
                && let Err(error) = logs::rotate::remove(std::path::Path::new(&log))
            {
                tracing::warn!(log, %error, "cannot remove an old container's log");
            }
        }
    }

    /// When the newest run that has ended did, for back-off. Of a container that is about to be ended, by its
    /// liveness probe for example, that is the run before.
    fn ended_at(&self, name: &str) -> Option<Timestamp> {
        let newest = self.observed.containers.iter().find(|c| c.name == name && c.is_exited())?;
        timestamp(newest.status.finished_at).or_else(|| timestamp(newest.status.created_at))
    }
}

fn make_pod_dir(dir: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for (dir, mode) in [(dir.to_owned(), 0o750), (dir.join("volumes"), 0o750), (dir.join("containers"), 0o750)] {
        if !dir.is_dir() {
            std::fs::create_dir_all(&dir)?;
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}
