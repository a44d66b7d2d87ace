//! Resources: the pod's quality of service class and what requests and limits mean to the kernel.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use skiff_api::quantity::Quantity;
use skiff_cri::v1::{HugepageLimit, LinuxContainerResources};

use crate::pod::{PodExt, is_sidecar};

/// The scheduler's period over which a CPU limit holds, microseconds.
const CPU_PERIOD_US: i64 = 100_000;
/// The smallest CPU quota that the kernel takes, microseconds.
const MIN_QUOTA_US: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// Which pods suffer first when the node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

type Resources = BTreeMap<String, ApiQuantity>;

/// The value of a quantity; what cannot be read counts as none, because the API server has checked it.
pub(crate) fn quantity(list: Option<&Resources>, name: &str) -> Option<Quantity> {
    list?.get(name)?.0.parse().ok()
}

pub(crate) fn request(container: &Container, name: &str) -> Option<Quantity> {
    quantity(container.resources.as_ref()?.requests.as_ref(), name)
}

pub(crate) fn limit(container: &Container, name: &str) -> Option<Quantity> {
    quantity(container.resources.as_ref()?.limits.as_ref(), name)
}

/// The class, from the pod's status if the API server has set it there, which it does at creation.
pub(crate) fn class_of(pod: &Pod) -> QosClass {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => compute_class(pod),
    }
}

/// Guaranteed: every container limits both CPU and memory and requests no less. Best effort: nobody asks for anything.
pub(crate) fn compute_class(pod: &Pod) -> QosClass {
    let spec = PodExt::spec(pod);
    let pod_level = spec.resources.as_ref();
    let containers = || pod.init_containers().iter().chain(&spec.containers);
    let positive = |q: Option<Quantity>| q.is_some_and(|q| !q.is_zero());
    let mut any = false;
    let mut guaranteed = true;
    let mut consider = |requests: &dyn Fn(&str) -> Option<Quantity>, limits: &dyn Fn(&str) -> Option<Quantity>| {
        for name in ["cpu", "memory"] {
            any |= positive(requests(name)) || positive(limits(name));
            let (request, limit) = (requests(name), limits(name));
            guaranteed &= positive(limit) && request.is_none_or(|request| Some(request) == limit);
        }
    };
    match pod_level {
        Some(resources) if resources.requests.is_some() || resources.limits.is_some() => {
            consider(&|name| quantity(resources.requests.as_ref(), name), &|name| {
                quantity(resources.limits.as_ref(), name)
            })
        }
        _ => containers().for_each(|c| consider(&|name| request(c, name), &|name| limit(c, name))),
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// What the pod asks of the node: the larger of the containers' sum and of each init step, plus overhead.
pub(crate) fn pod_request(pod: &Pod, name: &str) -> Quantity {
    let spec = PodExt::spec(pod);
    let of = |c: &Container| request(c, name).unwrap_or(Quantity::ZERO);
    let mut sidecars = Quantity::ZERO;
    let mut init_peak = Quantity::ZERO;
    for container in pod.init_containers() {
        if is_sidecar(container) {
            sidecars = sidecars + of(container);
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars + of(container));
        }
    }
    let sum = spec.containers.iter().fold(sidecars, |sum, c| sum + of(c));
    let containers = match spec.resources.as_ref().and_then(|r| quantity(r.requests.as_ref(), name)) {
        Some(pod_level) => pod_level,
        None => sum.max(init_peak),
    };
    containers + quantity(spec.overhead.as_ref(), name).unwrap_or(Quantity::ZERO)
}

/// The pod's limit, if every container has one.
pub(crate) fn pod_limit(pod: &Pod, name: &str) -> Option<Quantity> {
    let spec = PodExt::spec(pod);
    if let Some(limit) = spec.resources.as_ref().and_then(|r| quantity(r.limits.as_ref(), name)) {
        return Some(limit);
    }
    let mut sidecars = Quantity::ZERO;
    let mut init_peak = Quantity::ZERO;
    for container in pod.init_containers() {
        let of = limit(container, name)?;
        if is_sidecar(container) {
            sidecars = sidecars + of;
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars + of);
        }
    }
    let mut sum = sidecars;
    for container in &spec.containers {
        sum = sum + limit(container, name)?;
    }
    Some(sum.max(init_peak))
}

/// The relative weight of a CPU request.
pub(crate) fn shares(millicores: i64) -> i64 {
    (millicores * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// The quota of a CPU limit within [`CPU_PERIOD_US`]; 0 for no limit.
pub(crate) fn quota(millicores: i64) -> i64 {
    if millicores == 0 { 0 } else { (millicores * CPU_PERIOD_US / 1000).max(MIN_QUOTA_US) }
}

/// How readily the kernel ends the container's processes when memory runs out: from -997 for guaranteed pods
/// over a value by the share of the node's memory that is requested, to 1000 for best effort.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    if PodExt::spec(pod).priority.is_some_and(|priority| priority >= 2_000_000_000) {
        return -997;
    }
    match class_of(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = request(container, "memory").map_or(0, |q| q.units());
            let score = 1000 - 1000i128 * i128::from(request) / i128::from(node_memory.max(1));
            // Always more readily than guaranteed ones and less than best effort ones.
            i64::try_from(score).unwrap_or(1000).clamp(3, 999)
        }
    }
}

/// A container's resources as the runtime takes them.
pub(crate) fn container_resources(pod: &Pod, container: &Container, node_memory: i64) -> LinuxContainerResources {
    let cpu_limit = limit(container, "cpu").map_or(0, |q| q.millis());
    let cpu_request = request(container, "cpu").map_or(0, |q| q.millis());
    // Without a request the limit counts as one.
    let weight = if cpu_request == 0 && cpu_limit != 0 { cpu_limit } else { cpu_request };
    let memory = limit(container, "memory").map_or(0, |q| q.units());
    let hugepages = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: quota(cpu_limit),
        cpu_shares: shares(weight),
        memory_limit_in_bytes: memory,
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        hugepage_limits: hugepages
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| {
                let size: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
                let limit = value.0.parse::<Quantity>().ok()?.units();
                Some(HugepageLimit { page_size: page_size(size.units()), limit: u64::try_from(limit).ok()? })
            })
            .collect(),
        ..Default::default()
    }
}

/// The kernel's name of a page size: `2MB`.
fn page_size(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// The resources of the pod as a whole, for its cgroup.
pub(crate) fn pod_resources(pod: &Pod) -> LinuxContainerResources {
    let weight = pod_request(pod, "cpu").millis();
    let limit = pod_limit(pod, "cpu").map_or(0, |q| q.millis());
    let best_effort = class_of(pod) == QosClass::BestEffort;
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: quota(limit),
        cpu_shares: if best_effort { MIN_SHARES } else { shares(weight) },
        memory_limit_in_bytes: pod_limit(pod, "memory").map_or(0, |q| q.units()),
        ..Default::default()
    }
}

/// The path of the pod's cgroup below the hierarchy's root.
pub(crate) fn cgroup_parent(parent: &str, pod: &Pod) -> String {
    let parent = parent.trim_end_matches('/');
    let uid = pod.uid();
    match class_of(pod) {
        QosClass::Guaranteed => format!("{parent}/pod{uid}"),
        QosClass::Burstable => format!("{parent}/burstable/pod{uid}"),
        QosClass::BestEffort => format!("{parent}/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes() {
        let limits = |c: &str, m: &str| json!({"limits": {"cpu": c, "memory": m}, "requests": {"cpu": c, "memory": m}});
        let guaranteed = pod(json!([{"name": "a", "resources": limits("1", "1Gi")}]));
        assert_eq!(compute_class(&guaranteed), QosClass::Guaranteed);
        let burstable = pod(json!([{"name": "a", "resources": limits("1", "1Gi")}, {"name": "b"}]));
        assert_eq!(compute_class(&burstable), QosClass::Burstable);
        assert_eq!(compute_class(&pod(json!([{"name": "a"}]))), QosClass::BestEffort);
        assert_eq!(cgroup_parent("/kubepods", &guaranteed), "/kubepods/podu");
        assert_eq!(cgroup_parent("/kubepods", &burstable), "/kubepods/burstable/podu");
    }

    #[test]
    fn requests_and_limits_in_the_kernels_terms() {
        let resources =
            json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}});
        let pod = pod(json!([{"name": "a", "resources": resources}]));
        let made = container_resources(&pod, &PodExt::spec(&pod).containers[0], 1 << 30);
        assert_eq!((made.cpu_quota, made.cpu_period, made.cpu_shares), (50_000, 100_000, 256));
        assert_eq!(made.memory_limit_in_bytes, 64 << 20);
        assert_eq!(made.oom_score_adj, 1000 - 31);
        assert_eq!(shares(0), 2);
        assert_eq!(quota(1), 1000);
    }

    #[test]
    fn init_containers_raise_the_request_to_their_peak() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "1"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}}],
        }}))
        .unwrap();
        assert_eq!(pod_request(&pod, "cpu").millis(), 1100);
    }
}
