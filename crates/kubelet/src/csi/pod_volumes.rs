//! A pod's CSI volumes as its worker sees them: what is under way, and what is ready.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Pod;

use super::{Failure, Operation, Outcome, Request, Volume, expand, mount};
use crate::{kubelet::Kubelet, pod::PodExt, volumes::VolumeError};

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
        });
        if let Some(path) = state.ready.clone() {
            state.grow(kubelet, pod, &path).await;
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
            if let Some(mounting) = state.mounting.take() {
                mounting.finish().await;
            }
        }
    }
}

impl State {
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
