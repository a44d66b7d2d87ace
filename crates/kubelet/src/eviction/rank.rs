//! Who has to go first, and what he is told: upstream's order and words.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, Toleration};
use skiff_api::quantity::Quantity;

use super::{
    Observation,
    thresholds::{Pressure, Signal, Threshold},
};
use crate::{
    pod::PodExt,
    qos::{self, QosClass},
    status::Failure,
};

/// From this priority on pods are not evicted.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A pod and what it uses of what is short.
pub(super) struct Candidate {
    pub(super) pod: Arc<Pod>,
    /// Bytes or pieces, by container; what the pod itself uses (volumes, logs) has no name.
    pub(super) usage: Vec<(String, i64)>,
}

impl Candidate {
    fn used(&self) -> i64 {
        self.usage.iter().map(|(_, used)| used).sum()
    }

    /// What it uses beyond its request; inodes and processes cannot be requested.
    fn excess(&self, signal: Signal) -> i64 {
        let request = match signal.resource() {
            "inodes" | "pids" => 0,
            resource => qos::pod_request(&self.pod, resource).units(),
        };
        self.used() - request
    }
}

fn priority(pod: &Pod) -> i32 {
    PodExt::spec(pod).priority.unwrap_or(0)
}

/// Whether the node may not go on without this pod.
pub(super) fn is_critical(pod: &Pod) -> bool {
    priority(pod) >= CRITICAL_PRIORITY
}

/// First those that use more than they requested, then those of lower priority, then those that exceed it by most.
pub(super) fn rank(signal: Signal, candidates: &mut [Candidate]) {
    candidates.sort_by_key(|c| {
        let excess = c.excess(signal);
        let within = signal != Signal::PidAvailable && excess <= 0;
        (within, priority(&c.pod), Reverse(excess))
    });
}

/// The reason and message of an evicted pod.
pub(super) fn failure(candidate: &Candidate, threshold: &Threshold, seen: Observation) -> Failure {
    let resource = threshold.signal.resource();
    let text = |units: i64| match resource {
        "memory" | "ephemeral-storage" => kibi(units),
        _ => units.to_string(),
    };
    let quantity = match threshold.quantity(seen.capacity) {
        units if resource == "memory" || resource == "ephemeral-storage" => Quantity::from_bytes(units).to_string(),
        units => units.to_string(),
    };
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {quantity}, available: {}. ",
        text(seen.available)
    );
    for container in PodExt::spec(&*candidate.pod).containers.iter().chain(candidate.pod.init_containers()) {
        let Some((_, used)) = candidate.usage.iter().find(|(name, _)| *name == container.name) else { continue };
        let request = qos::request(container, resource).unwrap_or(Quantity::ZERO);
        if *used > request.units() {
            message += &format!(
                "Container {} was using {}, request is {request}, has larger consumption of {resource}. ",
                container.name,
                text(*used)
            );
        }
    }
    Failure { reason: "Evicted".to_owned(), message }
}

/// Bytes as measured values are printed.
fn kibi(bytes: i64) -> String {
    match bytes % 1024 {
        0 => Quantity::from_bytes(bytes).to_string(),
        _ => format!("{}Ki", bytes.div_euclid(1024)),
    }
}

/// Whether a pod may begin on a node with these pressures, or why not.
pub(super) fn admit(pod: &Pod, pressures: &[Pressure]) -> Result<(), Failure> {
    if pressures.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if pressures == [Pressure::Memory] {
        let tolerates = |t: &Toleration| {
            let any = |field: &Option<String>, value: &str| field.as_deref().is_none_or(|f| f.is_empty() || f == value);
            any(&t.key, "node.kubernetes.io/memory-pressure")
                && any(&t.effect, "NoSchedule")
                && t.operator.as_deref() == Some("Exists")
        };
        let tolerated = PodExt::spec(pod).tolerations.iter().flatten().any(tolerates);
        if tolerated || qos::class_of(pod) != QosClass::BestEffort {
            return Ok(());
        }
    }
    let names: Vec<&str> = pressures.iter().map(|p| p.condition()).collect();
    let message = format!("Pod was rejected: The node had condition: [{}]. ", names.join(" "));
    Err(Failure { reason: "Evicted".to_owned(), message })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eviction::EvictionThresholds;

    fn candidate(name: &str, request: &str, priority: i32, used: i64) -> Candidate {
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}}))
        .unwrap();
        Candidate { pod: Arc::new(pod), usage: vec![("c".to_owned(), used)] }
    }

    #[test]
    fn the_order_is_upstreams() {
        let mut all = vec![
            candidate("within", "100Mi", 0, 50 << 20),
            candidate("important", "1Mi", 10, 90 << 20),
            candidate("little", "1Mi", 0, 2 << 20),
            candidate("much", "1Mi", 0, 9 << 20),
        ];
        rank(Signal::MemoryAvailable, &mut all);
        let names: Vec<&str> = all.iter().map(|c| c.pod.name()).collect();
        assert_eq!(names, ["much", "little", "important", "within"]);
    }

    #[test]
    fn evicted_pods_are_told_why() {
        let threshold = "memory.available<100Mi".parse::<EvictionThresholds>().unwrap().0[0];
        let seen = Observation { available: 51_200 << 10, capacity: 1 << 30 };
        let failure = failure(&candidate("p", "0", 0, 9 << 20), &threshold, seen);
        assert_eq!(failure.reason, "Evicted");
        assert_eq!(
            failure.message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 9Mi, request is 0, has larger consumption of memory. "
        );
    }

    #[test]
    fn who_may_begin_under_pressure() {
        let best_effort = candidate("p", "0", 0, 0).pod;
        let burstable = candidate("p", "1Mi", 0, 0).pod;
        assert_eq!(admit(&best_effort, &[]), Ok(()));
        assert_eq!(
            admit(&best_effort, &[Pressure::Memory]).unwrap_err().message,
            "Pod was rejected: The node had condition: [MemoryPressure]. "
        );
        assert_eq!(admit(&burstable, &[Pressure::Memory]), Ok(()));
        assert!(admit(&burstable, &[Pressure::Disk]).is_err());
        assert_eq!(admit(&candidate("p", "0", CRITICAL_PRIORITY, 0).pod, &[Pressure::Disk]), Ok(()));
    }
}
