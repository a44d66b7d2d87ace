//! Whether the node takes a pod that was bound to it: what the scheduler has checked, checked again, because pods can
//! be bound by others and by several at once.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;

use crate::{
    node::capacity::Capacity,
    pod::{PodExt, PodUid},
    qos::pod_request,
    status::Failure,
};

/// What the pods on the node have asked for.
#[derive(Default)]
pub(crate) struct Admission {
    taken: Mutex<HashMap<PodUid, Request>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Request {
    cpu_millis: i64,
    memory_bytes: i64,
    storage_bytes: i64,
}

impl Request {
    fn of(pod: &Pod) -> Request {
        Request {
            cpu_millis: pod_request(pod, "cpu").millis(),
            memory_bytes: pod_request(pod, "memory").units(),
            storage_bytes: pod_request(pod, "ephemeral-storage").units(),
        }
    }
}

impl Admission {
    /// Counts a pod that runs already.
    pub(crate) fn adopt(&self, pod: &Pod) {
        self.taken.lock().insert(pod.uid(), Request::of(pod));
    }

    /// The pod needs nothing any more.
    pub(crate) fn release(&self, uid: &PodUid) {
        self.taken.lock().remove(uid);
    }

    /// Takes the pod, or says why not.
    pub(crate) fn admit(
        &self,
        pod: &Pod,
        node: Option<&Node>,
        capacity: &Capacity,
        max_pods: u32,
    ) -> Result<(), Failure> {
        let rejected = |reason: &str, message: String| {
            Err(Failure { reason: reason.to_owned(), message: format!("Pod was rejected: {message}") })
        };
        if let Some(labels) = node.map(|n| n.metadata.labels.clone().unwrap_or_default()) {
            let selector = PodExt::spec(pod).node_selector.iter().flatten();
            if !selector.into_iter().all(|(k, v)| labels.get(k) == Some(v)) {
                return rejected(
                    "NodeAffinity",
                    "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned(),
                );
            }
        }
        let mut taken = self.taken.lock();
        if taken.contains_key(&pod.uid()) {
            return Ok(());
        }
        let lacking = |name: &str, requested: i64, used: i64, of: i64| {
            rejected(
                &format!("OutOf{name}"),
                format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {of}"
                ),
            )
        };
        let pods = i64::try_from(taken.len()).unwrap_or(i64::MAX);
        if pods >= i64::from(max_pods) {
            return lacking("pods", 1, pods, i64::from(max_pods));
        }
        let request = Request::of(pod);
        let sum = |of: fn(&Request) -> i64| taken.values().map(of).sum::<i64>();
        let allocatable = capacity.allocatable();
        let checks = [
            ("cpu", request.cpu_millis, sum(|r| r.cpu_millis), allocatable.cpu_millis),
            ("memory", request.memory_bytes, sum(|r| r.memory_bytes), allocatable.memory_bytes),
            ("ephemeral-storage", request.storage_bytes, sum(|r| r.storage_bytes), allocatable.ephemeral_storage_bytes),
        ];
        for (name, requested, used, of) in checks {
            if requested > 0 && requested > of - used {
                return lacking(name, requested, used, of);
            }
        }
        taken.insert(pod.uid(), request);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, cpu: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {
            "nodeSelector": {"disk": "fast"},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}],
        }}))
        .unwrap()
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let capacity = Capacity::fixed(2000, 1 << 30, 1 << 30);
        let admission = Admission::default();
        admission.admit(&pod("a", "1500m"), None, &capacity, 110).unwrap();
        let refused = admission.admit(&pod("b", "1"), None, &capacity, 110).unwrap_err();
        assert_eq!(refused.reason, "OutOfcpu");
        let used =
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000";
        assert_eq!(refused.message, used);
        assert_eq!(admission.admit(&pod("c", "0"), None, &capacity, 1).unwrap_err().reason, "OutOfpods");
        let node: Node = serde_json::from_value(json!({"metadata": {"labels": {"disk": "slow"}}})).unwrap();
        assert_eq!(admission.admit(&pod("d", "0"), Some(&node), &capacity, 9).unwrap_err().reason, "NodeAffinity");
        admission.release(&PodUid::new("a"));
        admission.admit(&pod("b", "1"), None, &capacity, 110).unwrap();
    }
}
