//! A pod's CSI volumes as its worker sees them: what is under way, and what is ready.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;

use super::{Failure, Operation, Outcome, Request, Volume, expand, mount};
use crate::{kubelet::Kubelet, pod::PodExt, volumes::VolumeError};

/// How often volumes of drivers that ask for it are published anew, upstream's period of pods.
const REPUBLISH: Duration = Duration::from_secs(60);

/// By their names in the pod.
#[derive(Default)]
pub(crate) struct PodVolumes(HashMap<String, State>);

struct State {
    volume: Volume,
    /// Since when it is tried to make it ready.
    since: Instant,
    mounting: Option<Operation<Result<PathBuf, Failure>>>,
    ready: Option<PathBuf>,
    growing: Option<Operation<()>>,
    republishing: Option<Operation<Result<PathBuf, Failure>>>,
    /// When it is to be published anew, if its driver asks for it.
    republish_at: Option<Instant>,
}

impl PodVolumes {
    /// What was asked for before under this name.
    pub(crate) fn known(&self, name: &str) -> Option<Volume> {
        self.0.get(name).filter(|s| s.ready.is_some() || s.mounting.is_some()).map(|s| s.volume.clone())
    }

    /// Begins to make a volume ready, or looks how far that is. Returns where it is once it is ready.
    pub(crate) async fn prepare(
        &mut self,
        kubelet: &Arc<Kubelet>,
        pod: &Arc<Pod>,
        name: &str,
        request: Request,
    ) -> Result<PathBuf, VolumeError> {
        let state = self.0.entry(name.to_owned()).or_insert_with(|| State {
            volume: request.volume.clone(),
            since: Instant::now(),
            mounting: None,
            ready: None,
            growing: None,
            republishing: None,
            republish_at: None,
        });
        if let Some(path) = state.ready.clone() {
            state.grow(kubelet, pod, &path).await;
            state.republish(kubelet, pod, request);
            return Ok(path);
        }
        let failed = |failure: Failure| VolumeError::Failed {
            step: failure.step,
            volume: request.volume.name.clone(),
            message: failure.message,
        };
        let pending = Err(VolumeError::Pending { since: state.since });
        let Some(mounting) = &state.mounting else {
            state.volume = request.volume.clone();
            let work = mount::set_up(kubelet.clone(), pod.clone(), request);
            state.mounting = Some(Operation::start(kubelet.clone(), pod.uid(), work));
            return pending;
        };
        match mounting.poll() {
            Outcome::Running => pending,
            Outcome::Done(Ok(path)) => {
                state.mounting = None;
                state.ready = Some(path.clone());
                kubelet.csi.mounted(pod.uid(), name, &state.volume);
                state.grow(kubelet, pod, &path).await;
                state.republish(kubelet, pod, request);
                Ok(path)
            }
            Outcome::Done(Err(failure)) => {
                state.mounting = None;
                Err(failed(failure))
            }
            Outcome::Lost => {
                state.mounting = None;
                Err(failed(Failure { step: "MountVolume.SetUp", message: "internal error".to_owned() }))
            }
        }
    }

    /// How long until the next volume is to be published anew.
    pub(crate) fn next_republish(&self) -> Option<Duration> {
        let next = self.0.values().filter_map(|s| s.republish_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Volumes that are not ready.
    pub(crate) fn waiting(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().filter(|(_, s)| s.ready.is_none()).map(|(n, _)| n.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Waits for what is under way: nothing is to be taken away while a driver still makes it.
    pub(crate) async fn finish(&mut self) {
        for state in self.0.values_mut() {
            state.growing = None;
            for under_way in [state.mounting.take(), state.republishing.take()].into_iter().flatten() {
                under_way.finish().await;
            }
        }
    }
}

impl State {
    /// Publishes it anew if its driver wants that, for tokens that end for example, and it is time. What the pod has
    /// stays if that fails.
    fn republish(&mut self, kubelet: &Arc<Kubelet>, pod: &Arc<Pod>, request: Request) {
        if !kubelet.csi.requires_republish(&self.volume.driver) {
            self.republish_at = None;
            return;
        }
        let at = *self.republish_at.get_or_insert_with(|| Instant::now() + REPUBLISH);
        match self.republishing.as_ref().map(Operation::poll) {
            Some(Outcome::Running) => return,
            Some(Outcome::Done(Err(failure))) => {
                tracing::warn!(volume = self.volume.name, error = failure.message, "cannot publish a volume anew");
            }
            _ => {}
        }
        self.republishing = None;
        if at <= Instant::now() {
            self.republish_at = Some(Instant::now() + REPUBLISH);
            let work = mount::set_up(kubelet.clone(), pod.clone(), request);
            self.republishing = Some(Operation::start(kubelet.clone(), pod.uid(), work));
        }
    }

    /// Has the driver do its part if the volume has become larger. The pod is woken when its claim changes.
    async fn grow(&mut self, kubelet: &Arc<Kubelet>, pod: &Arc<Pod>, path: &std::path::Path) {
        let Some((namespace, claim)) = &self.volume.claim else { return };
        if self.growing.as_ref().is_some_and(|g| matches!(g.poll(), Outcome::Running)) {
            return;
        }
        self.growing = None;
        // Without the claim there is nothing to do for it.
        let Ok(Some(claim)) = kubelet.claims.get(namespace, claim, &pod.uid()).await else { return };
        if expand::is_due(&claim) {
            let work = expand::run(kubelet.clone(), pod.clone(), self.volume.clone(), path.to_owned());
            self.growing = Some(Operation::start(kubelet.clone(), pod.uid(), work));
        }
    }
}
