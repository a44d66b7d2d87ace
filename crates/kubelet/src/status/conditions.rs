//! The conditions of a pod's status.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};

use super::Inputs;
use crate::{
    pod::{PodExt, is_sidecar},
    time::api_time,
};

/// Those that the kubelet writes; all others are other people's and kept.
pub(in crate::status) const OWNED: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Why an evicted pod ended: others write this condition too, for their own reasons.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
pub(in crate::status) const TERMINATED_BY_KUBELET: &str = "TerminationByKubelet";

struct Finding {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Finding {
    const TRUE: Finding = Finding { holds: true, reason: "", message: String::new() };

    fn no(reason: &'static str, message: String) -> Finding {
        Finding { holds: false, reason, message }
    }
}

/// All conditions: the kubelet's, and those of others as they were. Times change with the status only.
pub(super) fn conditions(inputs: &Inputs<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let old = inputs.old.conditions.as_deref().unwrap_or_default();
    let containers_ready = containers_ready(inputs, status);
    let ready = ready(inputs, old, &containers_ready);
    let has_sandbox = inputs.observed.ready_sandbox().is_some()
        && (inputs.pod.host_network() || !inputs.observed.pod_ips().is_empty());
    let sandbox = if has_sandbox { Finding::TRUE } else { Finding::no("", String::new()) };
    let findings = [sandbox, initialized(inputs, status), ready, containers_ready, Finding::TRUE];
    let mut out: Vec<PodCondition> = Vec::with_capacity(OWNED.len() + old.len());
    for (kind, finding) in OWNED.iter().zip(findings) {
        let text = if finding.holds { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == *kind);
        let since = before.filter(|c| c.status == text).and_then(|c| c.last_transition_time.clone());
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        out.push(PodCondition {
            type_: (*kind).to_owned(),
            status: text.to_owned(),
            reason: some(finding.reason),
            message: some(&finding.message),
            last_transition_time: Some(since.unwrap_or_else(|| api_time(inputs.now))),
            observed_generation: inputs.pod.metadata.generation,
            last_probe_time: None,
        });
    }
    // As the API has them now: others write these.
    let current = inputs.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    out.extend(current.iter().filter(|c| !OWNED.contains(&c.type_.as_str())).cloned());
    if let Some(failure) =
        inputs.failure.filter(|f| f.reason == "Evicted" && !f.message.starts_with("Pod was rejected"))
    {
        let before = old.iter().find(|c| c.type_ == DISRUPTION_TARGET && c.status == "True").cloned();
        out.retain(|c| c.type_ != DISRUPTION_TARGET);
        out.push(before.unwrap_or_else(|| PodCondition {
            type_: DISRUPTION_TARGET.to_owned(),
            status: "True".to_owned(),
            reason: Some(TERMINATED_BY_KUBELET.to_owned()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(api_time(inputs.now)),
            observed_generation: inputs.pod.metadata.generation,
            last_probe_time: None,
        }));
    }
    out
}

fn find<'a>(list: Option<&'a Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    list.into_iter().flatten().find(|s| s.name == name)
}

fn names(text: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {text} status: [{}]", names.join(" ")))
}

fn initialized(inputs: &Inputs<'_>, status: &PodStatus) -> Finding {
    let pod = inputs.pod;
    if status.phase.as_deref() == Some("Succeeded") {
        return Finding { holds: true, reason: "PodCompleted", message: String::new() };
    }
    let started = |s: &ContainerStatus| {
        let past =
            |state: Option<&k8s_openapi::api::core::v1::ContainerState>| state.is_some_and(|s| s.terminated.is_some());
        s.state.as_ref().is_some_and(|s| s.running.is_some()) || past(s.state.as_ref()) || past(s.last_state.as_ref())
    };
    if status.container_statuses.iter().flatten().any(started) {
        return Finding::TRUE;
    }
    let (mut incomplete, mut unknown) = (Vec::new(), Vec::new());
    for container in pod.init_containers() {
        match find(status.init_container_statuses.as_ref(), &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) if is_sidecar(container) && s.started == Some(true) => {}
            Some(s) if !is_sidecar(container) && s.ready => {}
            Some(_) => incomplete.push(container.name.as_str()),
        }
    }
    if status.phase.as_deref() == Some("Failed") && inputs.failure.is_some() && !incomplete.is_empty() {
        return Finding::no("PodFailed", String::new());
    }
    let parts: Vec<String> = names("unknown", &unknown).into_iter().chain(names("incomplete", &incomplete)).collect();
    match parts.is_empty() {
        true => Finding::TRUE,
        false => Finding::no("ContainersNotInitialized", parts.join(", ")),
    }
}

fn containers_ready(inputs: &Inputs<'_>, status: &PodStatus) -> Finding {
    match status.phase.as_deref() {
        Some("Succeeded") => return Finding::no("PodCompleted", String::new()),
        Some("Failed") => return Finding::no("PodFailed", String::new()),
        _ => {}
    }
    let (mut unready, mut unknown) = (Vec::new(), Vec::new());
    let sidecars = inputs.pod.init_containers().iter().filter(|c| is_sidecar(c));
    let sidecars = sidecars.map(|c| (c, status.init_container_statuses.as_ref()));
    let regular = PodExt::spec(inputs.pod).containers.iter().map(|c| (c, status.container_statuses.as_ref()));
    for (container, list) in sidecars.chain(regular) {
        match find(list, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) if s.ready => {}
            Some(_) => unready.push(container.name.as_str()),
        }
    }
    let parts: Vec<String> = names("unknown", &unknown).into_iter().chain(names("unready", &unready)).collect();
    match parts.is_empty() {
        true => Finding::TRUE,
        false => Finding::no("ContainersNotReady", parts.join(", ")),
    }
}

fn ready(inputs: &Inputs<'_>, old: &[PodCondition], containers_ready: &Finding) -> Finding {
    if !containers_ready.holds {
        return Finding { message: containers_ready.message.clone(), ..*containers_ready };
    }
    let mut messages = Vec::new();
    let mut seen = HashSet::new();
    for gate in PodExt::spec(inputs.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        if !seen.insert(kind) {
            continue;
        }
        // The pod as it is in the API: others write these.
        let current = inputs.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let condition = current.into_iter().flatten().chain(old).find(|c| c.type_ == *kind);
        match condition {
            None => messages.push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => {
                messages.push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status));
            }
            Some(_) => {}
        }
    }
    match messages.is_empty() {
        true => Finding::TRUE,
        false => Finding::no("ReadinessGatesNotReady", messages.join(", ")),
    }
}
