//! The plugins: each is one file with one rule. Filters say on which nodes a pod cannot run and why; scores say
//! which of the others is better, from 0 to 100.

mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod taint_toleration;
pub(crate) mod terms;
pub(crate) mod volume_binding;

use self::{
    terms::Namespaces,
    volume_binding::{Binding, Storage},
};
use crate::nodes::{NodeInfo, PodInfo};

/// Why a node cannot take a pod, in upstream's words: they are counted and shown to users.
pub(crate) type Reasons = Vec<String>;

/// A node's answer to a pod that it cannot take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reasons: Reasons,
    /// It could take the pod if others went.
    pub(crate) resolvable: bool,
}

impl Refusal {
    fn of(reason: &str) -> Refusal {
        Refusal { reasons: vec![reason.to_owned()], resolvable: true }
    }

    /// Whoever goes, it stays like this.
    fn final_(reason: &str) -> Refusal {
        Refusal { reasons: vec![reason.to_owned()], resolvable: false }
    }
}

/// A rule that a node must keep, by itself.
type Filter = fn(&PodInfo, &NodeInfo) -> Result<(), Reasons>;

/// A preference, with its weight: 0 to 100 for each of the nodes.
type Score = (fn(&PodInfo, &[&NodeInfo]) -> Vec<i64>, i64);

/// In upstream's order; the first that refuses is the reason that is shown. Nothing helps against these.
const FILTERS: &[Filter] =
    &[node_unschedulable::filter, node_name::filter, taint_toleration::filter, node_affinity::filter];

/// With upstream's weights.
const SCORES: &[Score] = &[
    (taint_toleration::score, 3),
    (node_affinity::score, 2),
    (node_resources::least_allocated, 1),
    (node_resources::balanced, 1),
    (image_locality::score, 1),
];

/// What is known of the cluster beside its nodes.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) namespaces: Namespaces,
    pub(crate) storage: Storage,
}

/// One attempt to place a pod: what the plugins have found out about all nodes before they are asked for each.
pub(crate) struct Attempt<'a> {
    pod: &'a PodInfo,
    affinity: inter_pod_affinity::State,
    spread: pod_topology_spread::State,
    volumes: volume_binding::State,
    limits: node_volume_limits::State,
}

impl<'a> Attempt<'a> {
    /// The error is said of all nodes: none can take the pod, and nothing on them helps.
    pub(crate) fn new(pod: &'a PodInfo, nodes: &[&NodeInfo], world: &World) -> Result<Attempt<'a>, String> {
        Ok(Attempt {
            pod,
            affinity: inter_pod_affinity::State::new(pod, nodes, &world.namespaces),
            spread: pod_topology_spread::State::new(pod, nodes),
            volumes: volume_binding::State::new(pod, nodes, &world.storage)?,
            limits: node_volume_limits::State::new(pod, nodes, &world.storage),
        })
    }

    /// Runs all filters against a node.
    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let pod = self.pod;
        for filter in FILTERS {
            filter(pod, node).map_err(|reasons| Refusal { reasons, resolvable: false })?;
        }
        node_ports::filter(pod, node).map_err(|reasons| Refusal { reasons, resolvable: true })?;
        // What is more than the whole node has, it never has.
        node_resources::filter(pod, node)
            .map_err(|reasons| Refusal { reasons, resolvable: node_resources::fits_empty(pod, node) })?;
        self.limits.filter(node)?;
        self.volumes.filter(node)?;
        self.spread.filter(pod, node)?;
        self.affinity.filter(pod, node)
    }

    /// The weighted sum of all scores for each node.
    pub(crate) fn score(&self, nodes: &[&NodeInfo]) -> Vec<i64> {
        let mut total = vec![0; nodes.len()];
        let mut add = |scores: Vec<i64>, weight: i64| {
            for (sum, score) in total.iter_mut().zip(scores) {
                *sum += score * weight;
            }
        };
        for (score, weight) in SCORES {
            add(score(self.pod, nodes), *weight);
        }
        add(self.spread.score(nodes), 2);
        add(self.affinity.score(nodes), 2);
        total
    }

    /// What is to be written for the pod's claims if it goes to this node.
    pub(crate) fn bindings(&self, node: &NodeInfo) -> Vec<Binding> {
        self.volumes.bindings(node).unwrap_or_default()
    }
}

/// Brings scores to 0–100 by the highest one; `reverse` makes the lowest the best.
fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if highest == 0 { 0 } else { *score * 100 / highest };
        if reverse {
            *score = 100 - *score;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::nodes::Nodes;

    pub(crate) fn pod(spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        PodInfo::new(Arc::new(
            serde_json::from_value(json!({"metadata": {"uid": "u", "name": "p"}, "spec": spec})).unwrap(),
        ))
    }

    pub(crate) fn node(spec: Value, labels: Value) -> NodeInfo {
        let mut nodes = Nodes::default();
        nodes.set_node(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels}, "spec": spec,
                "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}}))
            .unwrap(),
        ));
        nodes.iter().next().unwrap().clone()
    }

    /// A pod with the label `app`.
    pub(crate) fn labelled(app: &str, spec: Value) -> PodInfo {
        let mut info = pod(spec);
        let labelled = Arc::make_mut(&mut info.pod);
        labelled.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        labelled.metadata.uid = Some(format!("{app}-{}", labelled.spec.as_ref().map_or(0, |s| s.containers.len())));
        PodInfo::new(info.pod)
    }

    /// Nodes with a name, a zone and pods.
    pub(crate) fn cluster(nodes: &[(&str, &str, &[PodInfo])]) -> Vec<NodeInfo> {
        let mut all = Nodes::default();
        for (name, zone, pods) in nodes {
            let node = json!({"metadata": {"name": name, "labels": {"zone": zone}},
                "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}});
            all.set_node(Arc::new(serde_json::from_value(node).unwrap()));
            for (i, pod) in pods.iter().enumerate() {
                let mut pod = pod.clone();
                Arc::make_mut(&mut pod.pod).metadata.uid = Some(format!("{name}-{i}"));
                all.place(pod, name);
            }
        }
        all.iter().cloned().collect()
    }

    #[test]
    fn scores_are_normalized() {
        let mut s = [0, 5, 10];
        normalize(&mut s, false);
        assert_eq!(s, [0, 50, 100]);
        normalize(&mut s, true);
        assert_eq!(s, [100, 50, 0]);
        let mut s = [0, 0];
        normalize(&mut s, true);
        assert_eq!(s, [100, 100]);
    }
}
