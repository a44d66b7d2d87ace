//! The statuses of a pod's containers.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, VolumeMountStatus,
};

use super::Inputs;
use crate::{
    observed::ObservedContainer,
    pod::{PodExt, Role, ephemeral as as_container, is_sidecar},
    time::api_nanos,
    worker::plan::wants_start,
};

/// The runtime's name in container ids.
const SCHEME: &str = "skiff";
/// The exit code of a container that ended without anybody seeing how.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// In the order of the spec; `None` if there are none.
pub(super) fn init(inputs: &Inputs<'_>) -> Option<Vec<ContainerStatus>> {
    let containers = inputs.pod.init_containers();
    let old = inputs.old.init_container_statuses.as_deref().unwrap_or_default();
    let statuses: Vec<ContainerStatus> = containers
        .iter()
        .map(|c| container_status(inputs, if is_sidecar(c) { Role::Sidecar } else { Role::Init }, c, old))
        .collect();
    (!statuses.is_empty()).then_some(statuses)
}

/// By name.
pub(super) fn regular(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs.old.container_statuses.as_deref().unwrap_or_default();
    let containers = &PodExt::spec(inputs.pod).containers;
    let mut statuses: Vec<_> = containers.iter().map(|c| container_status(inputs, Role::Regular, c, old)).collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

/// By name; `None` if there are none.
pub(super) fn ephemeral(inputs: &Inputs<'_>) -> Option<Vec<ContainerStatus>> {
    let old = inputs.old.ephemeral_container_statuses.as_deref().unwrap_or_default();
    let containers = PodExt::spec(inputs.pod).ephemeral_containers.as_deref().unwrap_or_default();
    let mut statuses: Vec<_> =
        containers.iter().map(|c| container_status(inputs, Role::Ephemeral, &as_container(c), old)).collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    (!statuses.is_empty()).then_some(statuses)
}

fn container_status(
    inputs: &Inputs<'_>,
    role: Role,
    container: &Container,
    old: &[ContainerStatus],
) -> ContainerStatus {
    let mut runs = inputs.observed.containers.iter().filter(|c| c.name == container.name);
    let latest = runs.next();
    let old = old.iter().find(|s| s.name == container.name);
    let mut status = match latest {
        Some(latest) => from_runtime(container, latest, runs.next(), waiting_default(inputs, role)),
        None => not_in_runtime(inputs, role, container, old),
    };
    if status.last_state.as_ref().is_none_or(|s| *s == ContainerState::default())
        && let Some(old) = old
        && old.restart_count == status.restart_count
    {
        // The runtime may have forgotten the run before.
        status.last_state = old.last_state.clone();
    }
    // A container that is to be started shows why it is not.
    if wants_start(inputs.pod, role, container, latest)
        && let Some(waiting) = inputs.waiting.get(&container.name)
    {
        if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            status.last_state = status.state.take();
        }
        status.state = Some(waiting_state(&waiting.reason, &waiting.message));
    }
    status.last_state.get_or_insert_with(ContainerState::default);
    let (started, ready) = match latest {
        Some(c) if c.is_running() => (inputs.probes)(c),
        _ => (false, false),
    };
    let succeeded = status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
    status.ready = match role {
        Role::Init => succeeded,
        Role::Ephemeral => false,
        Role::Regular | Role::Sidecar => started && ready,
    };
    status.started = (role != Role::Ephemeral).then_some(started);
    status.volume_mounts = volume_mounts(container);
    if let Some(resources) = container.resources.as_ref().filter(|_| role != Role::Ephemeral) {
        status.allocated_resources = resources.requests.clone();
        status.resources = Some(resources.clone());
    }
    status
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

/// What is said of a container that was not tried yet.
fn waiting_default(inputs: &Inputs<'_>, role: Role) -> ContainerState {
    let has_init = !inputs.pod.init_containers().is_empty() && role != Role::Ephemeral;
    waiting_state(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
}

/// The status of a container that the runtime does not know (any more).
fn not_in_runtime(
    inputs: &Inputs<'_>,
    role: Role,
    container: &Container,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting_default(inputs, role)),
        ..ContainerStatus::default()
    };
    let Some(old) = old else { return status };
    let Some(old_state) = &old.state else { return status };
    if old_state.running.is_none() && old_state.terminated.is_none() {
        status.restart_count = old.restart_count;
        status.last_state = old.last_state.clone();
        return status;
    }
    status.container_id = old.container_id.clone();
    status.image_id = old.image_id.clone();
    status.restart_count = old.restart_count;
    if old_state.terminated.is_some() {
        status.state = Some(old_state.clone());
        status.last_state = old.last_state.clone();
        return status;
    }
    // It ran and is gone without a trace.
    let lost = ContainerState {
        terminated: Some(ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            exit_code: UNKNOWN_EXIT_CODE,
            container_id: old.container_id.clone(),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    };
    if inputs.ended || inputs.pod.restart_policy() == "Never" {
        status.state = Some(lost);
        status.last_state = old.last_state.clone();
    } else {
        status.last_state = Some(lost);
        status.restart_count += 1;
    }
    status
}

fn from_runtime(
    container: &Container,
    latest: &ObservedContainer,
    previous: Option<&ObservedContainer>,
    waiting: ContainerState,
) -> ContainerStatus {
    let of_runtime = &latest.status;
    let state = if latest.is_running() {
        ContainerState {
            running: Some(ContainerStateRunning { started_at: api_nanos(of_runtime.started_at) }),
            ..ContainerState::default()
        }
    } else if latest.is_exited() {
        terminated(latest)
    } else {
        waiting
    };
    let linux = of_runtime.user.as_ref().and_then(|u| u.linux.as_ref());
    ContainerStatus {
        name: container.name.clone(),
        image: match &of_runtime.image {
            Some(spec) if !spec.user_specified_image.is_empty() => spec.user_specified_image.clone(),
            Some(spec) if !spec.image.is_empty() => spec.image.clone(),
            _ => container.image.clone().unwrap_or_default(),
        },
        image_id: of_runtime.image_ref.clone(),
        container_id: Some(format!("{SCHEME}://{}", latest.id())),
        restart_count: i32::try_from(latest.restart_count).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: previous.filter(|p| p.is_exited()).map(terminated),
        user: linux.map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone()),
            }),
        }),
        ..ContainerStatus::default()
    }
}

fn terminated(container: &ObservedContainer) -> ContainerState {
    let status = &container.status;
    let message = match (status.message.is_empty(), container.last_words.is_empty()) {
        (true, true) => None,
        (false, true) => Some(status.message.clone()),
        (true, false) => Some(container.last_words.clone()),
        (false, false) => Some(format!("{}: {}", status.message, container.last_words)),
    };
    let reason = match status.reason.as_str() {
        "" if status.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{SCHEME}://{}", container.id())),
            exit_code: status.exit_code,
            reason: Some(reason.to_owned()),
            message,
            started_at: api_nanos(status.started_at).or_else(|| api_nanos(status.created_at)),
            finished_at: api_nanos(status.finished_at),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let read_only = mount.read_only == Some(true);
            VolumeMountStatus {
                mount_path: mount.mount_path.clone(),
                name: mount.name.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| {
                    match mount.recursive_read_only.as_deref() {
                        Some("Enabled" | "IfPossible") => "Enabled",
                        _ => "Disabled",
                    }
                    .to_owned()
                }),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}
