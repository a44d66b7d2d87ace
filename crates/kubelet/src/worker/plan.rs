//! What is to be done for a pod, from what it should be and what is: a function without I/O.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{
    observed::{Observed, ObservedContainer},
    pod::{PodExt, Role, ephemeral, is_sidecar},
};

/// What probes say of a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Its startup probe succeeded, or it has none; postStart included.
    pub(crate) started: bool,
    pub(crate) liveness_failed: bool,
    pub(crate) startup_failed: bool,
}

impl Verdict {
    /// Of a container without probes.
    pub(crate) const FINE: Verdict = Verdict { started: true, liveness_failed: false, startup_failed: false };
}

/// A container to start, unless its back-off says otherwise.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Start {
    pub(crate) role: Role,
    pub(crate) container: Container,
}

/// A container to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) name: String,
    /// For the event; upstream's words.
    pub(crate) message: String,
    /// The probe's own grace period, if that is why.
    pub(crate) grace: Option<i64>,
}

/// The next step of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// End all containers and sandboxes that there are before anything else.
    pub(crate) kill_pod: bool,
    /// A new sandbox is needed; the number of its attempt.
    pub(crate) create_sandbox: Option<u32>,
    pub(crate) start: Vec<Start>,
    pub(crate) kill: Vec<Kill>,
    /// All that was to run has run, and nothing is to be started again.
    pub(crate) finished: bool,
}

/// Whether a container that ended with `exit_code` is to run again.
pub(crate) fn restarts(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        if rule.action == "Restart" && (codes.operator == "In") == listed {
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or(pod.restart_policy()) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a regular container is to be started (again), as the status needs to know it too.
pub(crate) fn wants_start(pod: &Pod, role: Role, container: &Container, latest: Option<&ObservedContainer>) -> bool {
    if pod.is_deleting() {
        return false;
    }
    match latest {
        None => true,
        Some(c) if c.is_running() => false,
        Some(c) if c.is_exited() => match role {
            Role::Ephemeral => false,
            Role::Sidecar => true,
            Role::Init => c.status.exit_code != 0 && pod.restart_policy() != "Never",
            Role::Regular => restarts(pod, container, c.status.exit_code),
        },
        Some(_) => true,
    }
}

/// A hash of what a container cannot change without being started anew: name and image.
pub(crate) fn container_hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:x}")
}

/// The next step for a pod that should run.
pub(crate) fn plan(pod: &Pod, observed: &Observed, verdict: impl Fn(&ObservedContainer) -> Verdict) -> Plan {
    let spec = PodExt::spec(pod);
    if let Some(attempt) = new_sandbox(pod, observed) {
        return plan_new_sandbox(pod, observed, attempt);
    }
    let mut plan = Plan::default();
    for container in spec.ephemeral_containers.iter().flatten().map(ephemeral) {
        if observed.latest(&container.name).is_none() {
            plan.start.push(Start { role: Role::Ephemeral, container });
        }
    }
    match plan_init(pod, observed, &verdict, &mut plan) {
        Init::Done => {}
        Init::Pending => return plan,
        Init::Failed => {
            plan.kill_pod = true;
            plan.finished = true;
            return plan;
        }
    }
    let mut kept = 0;
    for container in &spec.containers {
        let start = || Start { role: Role::Regular, container: container.clone() };
        let Some(current) = observed.current(&container.name) else {
            // In a new sandbox: what has ended for good in the old one stays so.
            if wants_start(pod, Role::Regular, container, observed.latest(&container.name)) {
                plan.start.push(start());
                kept += 1;
            }
            continue;
        };
        if !current.is_running() {
            if wants_start(pod, Role::Regular, container, Some(current)) {
                if !current.is_exited() {
                    plan.kill.push(kill(current, "is in unknown state, try killing it before restart"));
                }
                plan.start.push(start());
                kept += 1;
            }
            continue;
        }
        match reason_to_kill(container, current, &verdict) {
            None => kept += 1,
            Some((kill, may_stay_dead)) => {
                plan.kill.push(kill);
                // 137 stands for any failure here: the container did not end by itself.
                if !may_stay_dead || restarts(pod, container, 137) {
                    plan.start.push(start());
                    kept += 1;
                }
            }
        }
    }
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        plan.finished = true;
    }
    plan
}

/// The attempt of the sandbox to be made, if the pod has none that can be used.
fn new_sandbox(pod: &Pod, observed: &Observed) -> Option<u32> {
    let Some(newest) = observed.sandboxes.first() else { return Some(0) };
    let next = newest.metadata.as_ref().map_or(0, |m| m.attempt) + 1;
    if observed.ready_sandbox().is_none() {
        return Some(next);
    }
    // A sandbox that lost its network.
    (!pod.host_network() && observed.pod_ips().is_empty()).then_some(next)
}

fn plan_new_sandbox(pod: &Pod, observed: &Observed, attempt: u32) -> Plan {
    let spec = PodExt::spec(pod);
    let finished = Plan { kill_pod: true, finished: true, ..Plan::default() };
    let never = pod.restart_policy() == "Never" && spec.containers.iter().all(|c| c.restart_policy.is_none());
    if never && attempt != 0 && !observed.containers.is_empty() {
        return finished;
    }
    let wanted: Vec<&Container> = spec
        .containers
        .iter()
        .filter(|c| match observed.latest(&c.name) {
            Some(latest) if latest.is_exited() => restarts(pod, c, latest.status.exit_code),
            _ => true,
        })
        .collect();
    if wanted.is_empty() {
        return finished;
    }
    let start = match pod.init_containers().first() {
        Some(first) => {
            let role = if is_sidecar(first) { Role::Sidecar } else { Role::Init };
            vec![Start { role, container: first.clone() }]
        }
        None => wanted.into_iter().map(|c| Start { role: Role::Regular, container: c.clone() }).collect(),
    };
    Plan { kill_pod: !observed.sandboxes.is_empty(), create_sandbox: Some(attempt), start, ..Plan::default() }
}

enum Init {
    /// Regular containers may run.
    Done,
    Pending,
    /// One failed, and the pod does not try again.
    Failed,
}

fn plan_init(
    pod: &Pod,
    observed: &Observed,
    verdict: &impl Fn(&ObservedContainer) -> Verdict,
    plan: &mut Plan,
) -> Init {
    let regular_created = PodExt::spec(pod).containers.iter().any(|c| observed.current(&c.name).is_some());
    for container in pod.init_containers() {
        let sidecar = is_sidecar(container);
        let role = if sidecar { Role::Sidecar } else { Role::Init };
        let start = Start { role, container: container.clone() };
        if regular_created && !sidecar {
            // All init containers have run, whether the runtime still knows them or not.
            continue;
        }
        let Some(current) = observed.current(&container.name) else {
            plan.start.push(start);
            if regular_created {
                continue;
            }
            return Init::Pending;
        };
        if sidecar {
            if current.is_running() {
                if let Some((kill, _)) = reason_to_kill(container, current, verdict) {
                    plan.kill.push(kill);
                    plan.start.push(start);
                } else if verdict(current).started {
                    continue;
                }
            } else {
                if !current.is_exited() {
                    plan.kill.push(kill(current, "is in unknown state, try killing it before restart"));
                }
                plan.start.push(start);
            }
            if !regular_created {
                return Init::Pending;
            }
            continue;
        }
        match current {
            c if c.is_running() => return Init::Pending,
            c if c.is_exited() && c.status.exit_code == 0 => {}
            c if c.is_exited() && pod.restart_policy() == "Never" => return Init::Failed,
            c => {
                if !c.is_exited() {
                    plan.kill.push(kill(c, "is in unknown state, try killing it before restart"));
                }
                plan.start.push(start);
                return Init::Pending;
            }
        }
    }
    Init::Done
}

fn kill(container: &ObservedContainer, why: &str) -> Kill {
    let name = container.name.clone();
    let message = if why.starts_with("is in") {
        format!("Container {name} {why}")
    } else {
        format!("Container {name} {why}, will be restarted")
    };
    Kill { id: container.id().to_owned(), name, message, grace: None }
}

/// Why a running container is to be ended; and whether the restart policy may leave it ended.
fn reason_to_kill(
    container: &Container,
    current: &ObservedContainer,
    verdict: &impl Fn(&ObservedContainer) -> Verdict,
) -> Option<(Kill, bool)> {
    if !current.hash.is_empty() && current.hash != container_hash(container) {
        return Some((kill(current, "definition changed"), false));
    }
    let verdict = verdict(current);
    let (why, probe) = if verdict.liveness_failed {
        ("failed liveness probe", &container.liveness_probe)
    } else if verdict.startup_failed {
        ("failed startup probe", &container.startup_probe)
    } else {
        return None;
    };
    let grace = probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
    Some((Kill { grace, ..kill(current, why) }, true))
}

#[cfg(test)]
mod tests;
