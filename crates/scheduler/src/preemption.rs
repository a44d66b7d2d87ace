//! DefaultPreemption: if a pod fits nowhere, which pods of lower priority have to go so that it fits somewhere.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};

use crate::{
    nodes::{NodeInfo, PodInfo},
    plugins::{Attempt, Refusal, World, terms},
};

/// Which pods leave which node.
#[derive(Debug)]
pub(crate) struct Eviction {
    pub(crate) node: String,
    pub(crate) victims: Vec<PodInfo>,
    /// Victims whose budget does not allow it.
    violations: usize,
}

/// What preemption can do, or why it can do nothing: upstream's words.
pub(crate) fn plan(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    refusals: &HashMap<String, Refusal>,
    world: &World,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Eviction, String> {
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    // Room is being made already.
    let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).unwrap_or_default();
    let on_nominated = nodes.iter().filter(|n| n.name() == nominated).flat_map(|n| n.pods.values());
    let resolvable = refusals.get(nominated).is_none_or(|r| r.resolvable);
    let mut ending = on_nominated.filter(|p| p.pod.metadata.deletion_timestamp.is_some());
    if resolvable && ending.any(|p| p.priority() < pod.priority()) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let mut why: BTreeMap<&str, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for node in nodes {
        if refusals.get(node.name()).is_none_or(|r| !r.resolvable) {
            *why.entry("Preemption is not helpful for scheduling").or_default() += 1;
        } else if let Some(eviction) = on_node(pod, node, nodes, world, budgets) {
            found.push(eviction);
        } else {
            *why.entry("No preemption victims found for incoming pod").or_default() += 1;
        }
    }
    let total = nodes.len();
    let reasons: Vec<String> = why.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    // Best is what violates no budget, then what costs least: the lowest highest priority, the least sum, the fewest.
    let cost = |e: &Eviction| {
        let priorities = || e.victims.iter().map(|v| i64::from(v.priority()));
        let latest = e.victims.iter().map(started).min();
        (
            e.violations,
            priorities().max(),
            priorities().map(|p| p - i64::from(i32::MIN)).sum::<i64>(),
            e.victims.len(),
            std::cmp::Reverse(latest),
        )
    };
    found.into_iter().min_by_key(cost).ok_or_else(|| format!("0/{total} nodes are available: {}.", reasons.join(", ")))
}

fn started(pod: &PodInfo) -> Option<jiff::Timestamp> {
    pod.pod.status.as_ref()?.start_time.as_ref().map(|t| t.0)
}

/// The fewest and least important pods that have to leave a node; None if that would not help.
fn on_node(
    pod: &PodInfo,
    node: &NodeInfo,
    nodes: &[&NodeInfo],
    world: &World,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<Eviction> {
    let mut lower: Vec<PodInfo> = node.pods.values().filter(|p| p.priority() < pod.priority()).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    let fits = |gone: &[&PodInfo]| {
        let left = node.changed(gone.iter().map(|p| p.uid()), []);
        let all: Vec<&NodeInfo> = nodes.iter().map(|n| if n.name() == node.name() { &left } else { *n }).collect();
        Attempt::new(pod, &all, world).is_ok_and(|a| a.filter(&left).is_ok())
    };
    if !fits(&lower.iter().collect::<Vec<_>>()) {
        return None;
    }
    // The most important stay first, and those whose budget is used up before all others.
    lower.sort_by_key(|p| (std::cmp::Reverse(p.priority()), started(p)));
    let (violating, allowed) = split(lower, budgets);
    let mut gone: Vec<(bool, PodInfo)> =
        violating.into_iter().map(|p| (true, p)).chain(allowed.into_iter().map(|p| (false, p))).collect();
    let mut i = 0;
    while i < gone.len() {
        let spared = gone.remove(i);
        if !fits(&gone.iter().map(|(_, p)| p).collect::<Vec<_>>()) {
            gone.insert(i, spared);
            i += 1;
        }
    }
    let violations = gone.iter().filter(|(violates, _)| *violates).count();
    let victims = gone.into_iter().map(|(_, p)| p).collect();
    Some(Eviction { node: node.name().to_owned(), victims, violations })
}

/// Pods whose disruption a budget does not allow, and the others.
fn split(pods: Vec<PodInfo>, budgets: &[Arc<PodDisruptionBudget>]) -> (Vec<PodInfo>, Vec<PodInfo>) {
    let mut left: Vec<i32> =
        budgets.iter().map(|b| b.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0)).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut left).filter(|(b, _)| covers(b, &pod.pod)) {
            let name = pod.pod.metadata.name.as_deref().unwrap_or_default();
            let known = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
            // It is counted there already.
            if known.is_none_or(|k| !k.contains_key(name)) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref()).and_then(terms::compile);
    budget.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|s| terms::matches(&s, pod.metadata.labels.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::tests::{cluster, labelled};

    fn pod(app: &str, priority: i32, cpu: &str) -> PodInfo {
        labelled(
            app,
            json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}),
        )
    }

    fn try_plan(pod: &PodInfo, nodes: &[NodeInfo], budgets: Value) -> Result<Eviction, String> {
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let world = World::default();
        let attempt = Attempt::new(pod, &all, &world).unwrap();
        let refusals = nodes.iter().filter_map(|n| Some((n.name().to_owned(), attempt.filter(n).err()?))).collect();
        let budgets: Vec<_> =
            budgets.as_array().unwrap().iter().map(|b| Arc::new(serde_json::from_value(b.clone()).unwrap())).collect();
        plan(pod, &all, &refusals, &world, &budgets)
    }

    fn apps(eviction: &Eviction) -> Vec<&str> {
        eviction.victims.iter().map(|v| v.pod.metadata.labels.as_ref().unwrap()["app"].as_str()).collect()
    }

    #[test]
    fn the_least_important_go() {
        let nodes =
            cluster(&[("a", "x", &[pod("low", 1, "1"), pod("lower", 0, "1")]), ("b", "x", &[pod("high", 50, "2")])]);
        let eviction = try_plan(&pod("new", 100, "1"), &nodes, json!([])).unwrap();
        assert_eq!((eviction.node.as_str(), apps(&eviction)), ("a", vec!["lower"]));
    }

    #[test]
    fn when_nobody_can_go() {
        let nodes = cluster(&[("a", "x", &[pod("same", 100, "2")])]);
        assert_eq!(
            try_plan(&pod("new", 100, "1"), &nodes, json!([])).unwrap_err(),
            "0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        assert_eq!(
            try_plan(&pod("new", 200, "5"), &nodes, json!([])).unwrap_err(),
            "0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn budgets_are_spared() {
        let nodes = cluster(&[("a", "x", &[pod("guarded", 0, "2")]), ("b", "x", &[pod("free", 10, "2")])]);
        let budget = json!([{"metadata": {}, "spec": {"selector": {"matchLabels": {"app": "guarded"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}]);
        let eviction = try_plan(&pod("new", 100, "1"), &nodes, budget).unwrap();
        assert_eq!(apps(&eviction), ["free"]);
        let eviction = try_plan(&pod("new", 100, "1"), &nodes, json!([])).unwrap();
        assert_eq!(apps(&eviction), ["guarded"]);
    }
}
