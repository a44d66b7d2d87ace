//! A pod as the runtime has it: its sandboxes and containers.

use std::collections::HashMap;

use skiff_cri::v1::{self, ContainerState, PodSandboxState};

use crate::{
    cri::{Runtime, RuntimeError},
    names,
    pod::PodUid,
};

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    /// Newest first.
    pub(crate) sandboxes: Vec<v1::PodSandboxStatus>,
    /// Newest first.
    pub(crate) containers: Vec<ObservedContainer>,
}

/// A container, ended or not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ObservedContainer {
    pub(crate) sandbox_id: String,
    pub(crate) name: String,
    pub(crate) restart_count: u32,
    pub(crate) hash: String,
    pub(crate) status: v1::ContainerStatus,
    /// What the container left as its last words, or its log's end.
    pub(crate) last_words: String,
}

impl ObservedContainer {
    pub(crate) fn id(&self) -> &str {
        &self.status.id
    }

    pub(crate) fn state(&self) -> ContainerState {
        ContainerState::try_from(self.status.state).unwrap_or(ContainerState::Unknown)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state() == ContainerState::Running
    }

    pub(crate) fn is_exited(&self) -> bool {
        self.state() == ContainerState::Exited
    }

    /// Running or about to.
    pub(crate) fn may_run(&self) -> bool {
        !self.is_exited()
    }
}

impl Observed {
    /// The newest sandbox if it can hold containers.
    pub(crate) fn ready_sandbox(&self) -> Option<&v1::PodSandboxStatus> {
        self.sandboxes.first().filter(|s| s.state == PodSandboxState::Ready as i32)
    }

    /// The newest container of this name.
    pub(crate) fn latest(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container of this name in the sandbox that is in use.
    pub(crate) fn current(&self, name: &str) -> Option<&ObservedContainer> {
        let sandbox = self.sandboxes.first()?;
        self.latest(name).filter(|c| c.sandbox_id == sandbox.id)
    }

    /// All addresses of the newest sandbox that runs.
    pub(crate) fn pod_ips(&self) -> Vec<String> {
        let Some(network) = self.ready_sandbox().and_then(|s| s.network.as_ref()) else { return Vec::new() };
        let first = (!network.ip.is_empty()).then(|| network.ip.clone());
        first.into_iter().chain(network.additional_ips.iter().map(|ip| ip.ip.clone())).collect()
    }

    pub(crate) fn anything_runs(&self) -> bool {
        self.containers.iter().any(ObservedContainer::may_run)
    }
}

/// The restart count that a container was made with.
pub(crate) fn restart_count(status: &v1::ContainerStatus) -> u32 {
    status
        .annotations
        .get(names::RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .or(status.metadata.as_ref().map(|m| m.attempt))
        .unwrap_or(0)
}

/// Asks the runtime for everything it has of a pod. Containers that have ended do not change any more and are
/// taken from `before`.
pub(crate) async fn observe(runtime: &Runtime, uid: &PodUid, before: &Observed) -> Result<Observed, RuntimeError> {
    let (sandboxes, containers) = tokio::try_join!(runtime.sandboxes_of(uid), runtime.containers_of(uid))?;
    let known: HashMap<&str, &ObservedContainer> =
        before.containers.iter().filter(|c| c.is_exited()).map(|c| (c.id(), c)).collect();
    let sandbox_statuses = sandboxes.iter().map(|s| runtime.sandbox_status(&s.id));
    let container_statuses = containers.iter().map(|c| {
        let known = known.get(c.id.as_str()).map(|known| (*known).clone());
        async move {
            if let Some(known) = known {
                return Ok(Some(known));
            }
            // What was removed since it was listed is not there.
            let Some(status) = runtime.container_status(&c.id).await? else { return Ok(None) };
            let name = c.labels.get(names::CONTAINER_NAME).cloned().unwrap_or_default();
            let last_words = match status.state == ContainerState::Exited as i32 {
                true => crate::termination::last_words(&status).await,
                false => String::new(),
            };
            Ok::<_, RuntimeError>(Some(ObservedContainer {
                sandbox_id: c.pod_sandbox_id.clone(),
                name,
                restart_count: restart_count(&status),
                hash: status.annotations.get(names::CONTAINER_HASH).cloned().unwrap_or_default(),
                status,
                last_words,
            }))
        }
    });
    let (sandboxes, containers) = tokio::try_join!(
        futures::future::try_join_all(sandbox_statuses),
        futures::future::try_join_all(container_statuses)
    )?;
    let mut observed = Observed {
        sandboxes: sandboxes.into_iter().flatten().collect(),
        containers: containers.into_iter().flatten().collect(),
    };
    observed.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.metadata.as_ref().map(|m| m.attempt))));
    observed.containers.sort_by_key(|c| std::cmp::Reverse((c.status.created_at, c.restart_count)));
    Ok(observed)
}
