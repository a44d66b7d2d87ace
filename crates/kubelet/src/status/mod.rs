//! A pod's status: computed here from its spec and what the runtime has, sent by [`sender`].

mod conditions;
mod containers;
pub(crate) mod sender;

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};

use crate::{
    observed::{Observed, ObservedContainer},
    pod::{PodExt, is_sidecar},
    qos,
    time::api_time,
};

/// Why a container waits, in upstream's words: `CrashLoopBackOff`, `ErrImagePull`, …
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A pod's end that the kubelet decided on: refused, evicted, out of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Everything that a status is computed from.
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) observed: &'a Observed,
    /// By container name.
    pub(crate) waiting: &'a HashMap<String, Waiting>,
    /// Whether a running container is (started, ready).
    pub(crate) probes: &'a dyn Fn(&ObservedContainer) -> (bool, bool),
    pub(crate) failure: Option<&'a Failure>,
    /// No container runs or will run any more.
    pub(crate) ended: bool,
    /// The node's addresses, the primary one first.
    pub(crate) host_ips: &'a [String],
    /// When the kubelet first saw the pod.
    pub(crate) start_time: Timestamp,
    /// The status as it was computed or read last.
    pub(crate) old: &'a PodStatus,
    pub(crate) now: Timestamp,
}

/// The status of the pod.
pub(crate) fn compute(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let mut status = PodStatus {
        qos_class: Some(qos::class_of(pod).as_str().to_owned()),
        start_time: inputs.old.start_time.clone().or_else(|| Some(api_time(inputs.start_time))),
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(inputs.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        observed_generation: pod.metadata.generation,
        nominated_node_name: inputs.old.nominated_node_name.clone(),
        resource_claim_statuses: inputs.old.resource_claim_statuses.clone(),
        ..PodStatus::default()
    };
    let refused =
        inputs.failure.is_some() && inputs.observed.sandboxes.is_empty() && inputs.observed.containers.is_empty();
    if !refused {
        status.init_container_statuses = containers::init(inputs);
        status.container_statuses = Some(containers::regular(inputs));
        status.ephemeral_container_statuses = containers::ephemeral(inputs);
    }
    set_ips(&mut status, inputs);
    let phase = phase(inputs, &status);
    status.phase = Some(phase.to_owned());
    match inputs.failure {
        Some(failure) => {
            status.phase = Some("Failed".to_owned());
            status.reason = Some(failure.reason.clone());
            status.message = Some(failure.message.clone());
        }
        None => {
            status.reason = inputs.old.reason.clone();
            status.message = inputs.old.message.clone();
        }
    }
    status.conditions = Some(conditions::conditions(inputs, &status));
    status
}

fn set_ips(status: &mut PodStatus, inputs: &Inputs<'_>) {
    let mut ips = match inputs.pod.host_network() {
        true => inputs.host_ips.to_vec(),
        false => inputs.observed.pod_ips(),
    };
    if ips.is_empty() {
        // An address stays shown after the sandbox has ended.
        ips = inputs.old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    }
    if inputs.observed.sandboxes.is_empty() && inputs.old.pod_ip.is_none() && !inputs.pod.host_network() {
        return;
    }
    if let Some(first) = ips.first() {
        status.pod_ip = Some(first.clone());
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

/// Where the pod is in its life.
fn phase(inputs: &Inputs<'_>, status: &PodStatus) -> &'static str {
    let pod = inputs.pod;
    match inputs.old.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let find =
        |list: Option<&Vec<ContainerStatus>>, name: &str| list.into_iter().flatten().find(|s| s.name == name).cloned();
    let exit_code = |s: &ContainerStatus| {
        let of = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            state?.terminated.as_ref().map(|t| t.exit_code)
        };
        (of(s.state.as_ref()), of(s.last_state.as_ref()))
    };
    let running = |s: &ContainerStatus| s.state.as_ref().is_some_and(|state| state.running.is_some());
    let (mut pending_init, mut failed_init, mut live_sidecars) = (0, 0, 0);
    let regular_started = status
        .container_statuses
        .iter()
        .flatten()
        .any(|s| running(s) || exit_code(s).0.is_some() || exit_code(s).1.is_some());
    for container in pod.init_containers() {
        let found = find(status.init_container_statuses.as_ref(), &container.name);
        if is_sidecar(container) {
            match &found {
                Some(s) if running(s) => {
                    live_sidecars += 1;
                    if s.started != Some(true) && !regular_started {
                        pending_init += 1;
                    }
                }
                _ if regular_started => {}
                _ => pending_init += 1,
            }
            continue;
        }
        match found.as_ref().map(|s| (running(s), exit_code(s))) {
            Some((true, _)) | None => pending_init += 1,
            Some((_, (Some(0), _))) => {}
            Some((_, (Some(_), _))) => {
                pending_init += 1;
                failed_init += 1;
            }
            Some((_, (None, Some(0)))) => {}
            Some((_, (None, _))) => pending_init += 1,
        }
    }
    let (mut waiting, mut live, mut stopped, mut succeeded, mut unknown) = (0, 0, 0, 0, 0);
    for container in &PodExt::spec(pod).containers {
        match find(status.container_statuses.as_ref(), &container.name) {
            None => unknown += 1,
            Some(s) if running(&s) => live += 1,
            Some(s) => match exit_code(&s) {
                (Some(code), _) => {
                    stopped += 1;
                    succeeded += i32::from(code == 0);
                }
                // It will be started again.
                (None, Some(_)) => stopped += 1,
                (None, None) => waiting += 1,
            },
        }
    }
    if failed_init > 0 && pod.restart_policy() == "Never" {
        return "Failed";
    }
    let by_exit_codes = || if stopped == succeeded { "Succeeded" } else { "Failed" };
    if inputs.ended && live == 0 && live_sidecars == 0 {
        // Nothing will change any more, whatever the restart policy says.
        return if stopped > 0 && waiting == 0 && pending_init == 0 { by_exit_codes() } else { "Failed" };
    }
    if pending_init > 0 || waiting > 0 || unknown > 0 {
        return "Pending";
    }
    if live > 0 {
        return "Running";
    }
    if stopped == 0 {
        return "Pending";
    }
    let will_run_again = PodExt::spec(pod).containers.iter().any(|c| {
        let latest = inputs.observed.latest(&c.name);
        latest.is_some_and(|l| crate::worker::plan::restarts(pod, c, l.status.exit_code))
    });
    if will_run_again || live_sidecars > 0 || pod.restart_policy() == "Always" {
        return "Running";
    }
    by_exit_codes()
}

#[cfg(test)]
mod tests;
