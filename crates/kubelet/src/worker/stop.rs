//! Ending containers and pods: hooks, grace, sandboxes, directories, and the pod's removal from the API.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use tokio::{task::JoinSet, time::Instant};

use super::{RETRY, Step, Worker, hooks, plan::Kill};
use crate::{
    config::Traffic,
    eviction,
    kubelet::Kubelet,
    observed::ObservedContainer,
    orphans,
    pod::{PodExt, Role},
    volumes::{api_message, mounts},
};

/// How long a pod that serves goes on before its containers are asked to end, within its grace, after the node's own
/// traffic has left it. Other nodes learn of its end at the same moment; what is on its way meanwhile still finds
/// somebody. Upstream leaves this to `preStop` hooks that sleep.
const SETTLE: Duration = Duration::from_millis(150);
/// How long it is waited for that at most: whoever looks after endpoints may be down.
const LEAVE: Duration = Duration::from_secs(2);

/// What a pod gets that was removed by force, seconds.
const FORCED_GRACE: i64 = 2;
/// What is left for a container at least after its preStop hook, seconds.
const MINIMUM_GRACE: i64 = 2;

/// Containers that are being stopped.
#[derive(Default)]
pub(super) struct Stopping {
    tasks: JoinSet<()>,
    /// Until when, by container id.
    deadlines: HashMap<String, Instant>,
    /// Everything on the node is gone but what `logs` needs.
    cleaned: bool,
    /// Its removal from the API was asked for.
    deleted: bool,
}

impl Worker {
    /// Ends a container that is to be started again.
    pub(super) async fn kill(&self, kill: &Kill) {
        let (pod, id) = (&self.pod, &kill.id);
        self.kubelet.container_event(pod, &kill.name, "Killing", &kill.message);
        let grace = kill.grace.unwrap_or_else(|| pod.grace_period());
        let containers = pod.all_containers();
        let container = containers.iter().find(|(_, c)| c.name == kill.name).map(|(_, c)| c.clone());
        let stop = stop_container(self.kubelet.clone(), pod.clone(), container, id.clone(), self.pod_ip(), grace);
        tokio::select! {
            () = stop => {}
            // The pod's own end takes over, with its grace.
            () = self.handle.ended() => {}
        }
    }

    /// Stops all containers and sandboxes there are, for a new sandbox. False if that failed.
    pub(super) async fn stop_everything(&mut self) -> bool {
        for container in self.observed.containers.iter().filter(|c| c.is_running()) {
            let message = format!("Stopping container {}", container.name);
            self.kubelet.container_event(&self.pod, &container.name, "Killing", &message);
            if let Err(error) = self.kubelet.runtime.stop_container(container.id(), self.pod.grace_period()).await {
                tracing::warn!(container = container.id(), %error, "cannot stop a container");
                self.look_again(RETRY);
                return false;
            }
        }
        self.stop_sandboxes().await
    }

    async fn stop_sandboxes(&mut self) -> bool {
        let stops = self.observed.sandboxes.iter().map(|s| self.kubelet.runtime.stop_sandbox(&s.id));
        if let Err(error) = futures::future::try_join_all(stops).await {
            self.kubelet.pod_warning(&self.pod, "FailedKillPod", &format!("error killing pod: {error}"));
            self.look_again(RETRY);
            return false;
        }
        true
    }

    /// One step of a pod that is to end; `removed` if it is gone from the API already.
    pub(super) async fn terminate(&mut self, removed: bool) -> Step {
        self.handle.terminating.send_replace(true);
        if self.observed.anything_runs() {
            self.stop_containers(removed);
            self.report();
            if let Some(joined) = self.stopping.tasks.try_join_next() {
                log_panic(joined);
            }
            // Events tell when containers end; this is for a runtime whose events fail.
            self.look_again(RETRY * 10);
            return Step::Wait;
        }
        self.ended = true;
        self.report();
        if !self.clean().await {
            return Step::Wait;
        }
        if removed {
            return self.forget().await;
        }
        if self.pod.is_deleting() && !self.stopping.deleted {
            self.kubelet.statuses.wait(&self.handle.uid, self.sent).await;
            return self.delete().await;
        }
        Step::Wait
    }

    /// A pod whose containers are done, until it is deleted.
    pub(super) async fn rest(&mut self) -> Step {
        if self.observed.anything_runs() {
            self.stop_containers(false);
            self.look_again(RETRY * 10);
        } else if self.clean().await {
            self.kubelet.admission.release(&self.handle.uid);
        }
        self.report();
        Step::Wait
    }

    /// Begins to stop what runs: sidecars last, in the reverse order of their start.
    fn stop_containers(&mut self, removed: bool) {
        let grace = match removed && !self.pod.is_deleting() {
            true => self.pod.grace_period().min(FORCED_GRACE),
            false => self.pod.grace_period(),
        }
        .max(1);
        let grace = if self.handle.eviction().is_some() { grace.min(eviction::GRACE_S) } else { grace };
        let containers = self.pod.all_containers();
        let role_of =
            |c: &ObservedContainer| containers.iter().position(|(_, o)| o.name == c.name).map(|i| (i, containers[i].0));
        let running: Vec<&ObservedContainer> = self.observed.containers.iter().filter(|c| c.may_run()).collect();
        let mains: Vec<_> =
            running.iter().copied().filter(|c| role_of(c).is_none_or(|(_, r)| r != Role::Sidecar)).collect();
        let now = Instant::now();
        let grace_of_pod = Duration::from_secs(u64::try_from(grace).unwrap_or(1));
        // The grace is the whole pod's: what the others used, sidecars no longer have.
        let begun = self.stopping.deadlines.values().min().copied();
        let deadline = begun.map_or(now + grace_of_pod, |begun| begun.min(now + grace_of_pod));
        let next: Vec<&ObservedContainer> = match mains.is_empty() {
            false => mains,
            true => running.into_iter().max_by_key(|c| role_of(c).map(|(i, _)| i)).into_iter().collect(),
        };
        let (pod_ip, pod_ips) = (self.pod_ip(), self.pod_ips());
        for container in next {
            let known = self.stopping.deadlines.get(container.id()).copied();
            // A grace that was shortened meanwhile counts at once.
            if known.is_some_and(|known| known <= deadline + Duration::from_secs(1)) {
                continue;
            }
            if known.is_none() {
                let message = format!("Stopping container {}", container.name);
                self.kubelet.container_event(&self.pod, &container.name, "Killing", &message);
            }
            let left = deadline.saturating_duration_since(now).as_secs_f64().ceil() as i64;
            let spec = containers.iter().find(|(_, c)| c.name == container.name).map(|(_, c)| c.clone());
            // The hook ran with the first try.
            let spec = spec.filter(|_| known.is_none());
            self.stopping.deadlines.insert(container.id().to_owned(), deadline);
            let (kubelet, pod) = (self.kubelet.clone(), self.pod.clone());
            let (id, pod_ip, handle) = (container.id().to_owned(), pod_ip.clone(), self.handle.clone());
            let pod_ips = pod_ips.clone();
            let settles = known.is_none() && grace > 1 && serves(&self.pod);
            self.stopping.tasks.spawn(async move {
                if settles {
                    let traffic = kubelet.config.traffic.clone();
                    settle(traffic, &pod_ips, grace_of_pod).await;
                }
                stop_container(kubelet, pod, spec, id, pod_ip, left.max(1)).await;
                handle.wake.notify_one();
            });
        }
    }

    /// Takes away what a pod without running containers has on the node. False if something is left.
    async fn clean(&mut self) -> bool {
        if self.stopping.cleaned {
            return true;
        }
        if !self.stop_sandboxes().await {
            return false;
        }
        self.volumes.finish().await;
        if let Err(error) = self.kubelet.csi.tear_down(&self.handle.uid).await {
            tracing::warn!(pod = %self.handle.uid, error, "cannot take a pod's volumes away");
            let delay = self.volume_back_off();
            self.look_again(delay);
            return false;
        }
        let dir = self.kubelet.config.pod_dir(self.handle.uid.as_str());
        let removed = tokio::task::spawn_blocking(move || mounts::remove_tree(&dir)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(pod = %self.handle.uid, %error, "cannot remove a pod's directory");
            self.look_again(RETRY);
            return false;
        }
        self.kubelet.cgroups.remove(&self.handle.uid);
        self.kubelet.config_maps.release(&self.handle.uid);
        self.kubelet.secrets.release(&self.handle.uid);
        self.kubelet.claims.release(&self.handle.uid);
        self.stopping.cleaned = true;
        true
    }

    /// Removes the pod from the API; its containers are gone.
    async fn delete(&mut self) -> Step {
        let pods: Api<Pod> = Api::namespaced(self.kubelet.client.clone(), self.pod.namespace());
        let preconditions = Preconditions { uid: Some(self.handle.uid.as_str().to_owned()), resource_version: None };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match pods.delete(self.pod.name(), &parameters).await {
            Ok(_) => self.stopping.deleted = true,
            // Gone, or a namesake is in its place: the informer tells.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => self.stopping.deleted = true,
            Err(error) => {
                tracing::warn!(pod = %self.handle.uid, error = api_message(&error), "cannot remove a pod from the API");
                self.look_again(RETRY);
            }
        }
        Step::Wait
    }

    /// Removes what was kept for `logs`.
    async fn forget(&mut self) -> Step {
        let removals = self.observed.sandboxes.iter().map(|s| self.kubelet.runtime.remove_sandbox(&s.id));
        if let Err(error) = futures::future::try_join_all(removals).await {
            tracing::warn!(pod = %self.handle.uid, %error, "cannot remove a pod's sandbox");
            self.look_again(RETRY);
            return Step::Wait;
        }
        let pod = &self.pod;
        orphans::remove_logs(&self.kubelet.config.pod_log_dir(pod.namespace(), pod.name(), self.handle.uid.as_str()));
        self.kubelet.cgroups.remove(&self.handle.uid);
        Step::Gone
    }
}

fn log_panic(joined: Result<(), tokio::task::JoinError>) {
    if let Err(error) = joined {
        tracing::error!(%error, "stopping a container panicked");
    }
}

/// Whether Services may be sending requests to the pod.
fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Waits until requests to the pod have ended, for a part of its grace.
async fn settle(traffic: Option<Arc<dyn Traffic>>, pod_ips: &[String], grace: Duration) {
    if let Some(traffic) = traffic {
        let left = async {
            for address in pod_ips.iter().filter_map(|ip| ip.parse().ok()) {
                traffic.left(address).await;
            }
        };
        if tokio::time::timeout(LEAVE.min(grace / 4), left).await.is_err() {
            tracing::debug!(?pod_ips, "the pod ends though Services still lead to it");
        }
    }
    tokio::time::sleep(SETTLE).await;
}

/// Runs the preStop hook and stops a container, both within `grace` seconds.
async fn stop_container(
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    container: Option<Container>,
    id: String,
    pod_ip: String,
    grace: i64,
) {
    let begun = Instant::now();
    let hook = container.as_ref().and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    let mut left = grace;
    if let Some((container, hook)) = hook {
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let ran = tokio::time::timeout(limit, hooks::run(&kubelet, container, &id, &pod_ip, hook)).await;
        if let Ok(Err(message)) = ran {
            tracing::debug!(container = id, message, "a preStop hook failed");
            kubelet.container_warning(&pod, &container.name, "FailedPreStopHook", "PreStopHook failed");
        }
        let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
        left = (grace - used).max(MINIMUM_GRACE);
    }
    if let Err(error) = kubelet.runtime.stop_container(&id, left).await {
        tracing::warn!(container = id, %error, "cannot stop a container");
    }
}
