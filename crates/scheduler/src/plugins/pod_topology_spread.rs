//! PodTopologySpread: pods of a kind are spread evenly over parts of the cluster. Pods without constraints of their own
//! get upstream's default ones, as a wish, together with the pods of the same controller.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use skiff_api::selector::LabelSelector;

use super::{Refusal, node_affinity, taint_toleration, terms};
use crate::nodes::{NodeInfo, PodInfo};

/// The default constraints: label of the nodes and the skew that is allowed.
const DEFAULTS: [(&str, i64); 2] = [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)];

/// Which pods are counted.
#[derive(Debug)]
enum Counted {
    Selected(Option<LabelSelector>),
    /// Those with this owner's UID.
    OwnedBy(String),
}

#[derive(Debug)]
struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: usize,
    counted: Counted,
    /// Nodes that the pod could not be on anyhow are left out.
    honors_affinity: bool,
    honors_taints: bool,
    by_domain: BTreeMap<String, i64>,
}

/// What is the same for all nodes.
#[derive(Debug, Default)]
pub(crate) struct State {
    hard: Vec<Constraint>,
    soft: Vec<Constraint>,
    /// Names of nodes that lack a label of the wishes.
    ignored: HashSet<String>,
}

fn owner(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.filter(|o| o.controller == Some(true)).map(|o| o.uid.clone()).next()
}

impl Constraint {
    fn new(pod: &Pod, c: &TopologySpreadConstraint) -> Constraint {
        let mut selector = c.label_selector.as_ref().and_then(terms::compile);
        if let Some(selector) = &mut selector {
            terms::with_keys(selector, pod, c.match_label_keys.as_ref(), true);
        }
        Constraint {
            key: c.topology_key.clone(),
            max_skew: c.max_skew.into(),
            min_domains: usize::try_from(c.min_domains.unwrap_or(1)).unwrap_or(1),
            counted: Counted::Selected(selector),
            honors_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: c.node_taints_policy.as_deref() == Some("Honor"),
            by_domain: BTreeMap::new(),
        }
    }

    fn default(key: &str, max_skew: i64, owner: &str) -> Constraint {
        Constraint {
            key: key.to_owned(),
            max_skew,
            min_domains: 1,
            counted: Counted::OwnedBy(owner.to_owned()),
            honors_affinity: true,
            honors_taints: false,
            by_domain: BTreeMap::new(),
        }
    }

    fn counts(&self, pod: &Pod) -> bool {
        match &self.counted {
            Counted::Selected(selector) => {
                selector.as_ref().is_some_and(|s| terms::matches(s, pod.metadata.labels.as_ref()))
            }
            Counted::OwnedBy(uid) => owner(pod).as_deref() == Some(uid),
        }
    }

    fn admits(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honors_affinity || node_affinity::filter(pod, node).is_ok())
            && (!self.honors_taints || taint_toleration::filter(pod, node).is_ok())
    }

    /// How many pods that count are on a node.
    fn on(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let namespace = &pod.pod.metadata.namespace;
        let counted = node.pods.values().filter(|other| {
            let meta = &other.pod.metadata;
            meta.deletion_timestamp.is_none() && meta.namespace == *namespace && self.counts(&other.pod)
        });
        i64::try_from(counted.count()).unwrap_or(i64::MAX)
    }
}

/// Counts pods for constraints; nodes without all of their labels are left out.
fn count(constraints: &mut [Constraint], pod: &PodInfo, nodes: &[&NodeInfo]) {
    let keys: Vec<String> = constraints.iter().map(|c| c.key.clone()).collect();
    for node in nodes.iter().filter(|n| keys.iter().all(|k| n.label(k).is_some())) {
        for constraint in &mut *constraints {
            if constraint.admits(pod, node) {
                let found = constraint.on(pod, node);
                let domain = node.label(&constraint.key).unwrap_or_default().to_owned();
                *constraint.by_domain.entry(domain).or_default() += found;
            }
        }
    }
}

impl State {
    pub(crate) fn new(pod: &PodInfo, nodes: &[&NodeInfo]) -> State {
        let given: Vec<_> = pod.pod.spec.iter().flat_map(|s| s.topology_spread_constraints.iter().flatten()).collect();
        let of = |hard: bool| -> Vec<Constraint> {
            let chosen = given.iter().filter(|c| (c.when_unsatisfiable == "DoNotSchedule") == hard);
            chosen.map(|c| Constraint::new(&pod.pod, c)).collect()
        };
        let (mut hard, mut soft) = (of(true), of(false));
        if given.is_empty()
            && let Some(owner) = owner(&pod.pod)
        {
            // Zones are a wish only where there are any.
            let known = DEFAULTS.iter().filter(|(key, _)| nodes.iter().any(|n| n.label(key).is_some()));
            soft = known.map(|(key, skew)| Constraint::default(key, *skew, &owner)).collect();
        }
        count(&mut hard, pod, nodes);
        count(&mut soft, pod, nodes);
        let lacking = nodes.iter().filter(|n| soft.iter().any(|c| n.label(&c.key).is_none()));
        let ignored = lacking.map(|n| n.name().to_owned()).collect();
        State { hard, soft, ignored }
    }

    pub(crate) fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
        for constraint in &self.hard {
            let Some(domain) = node.label(&constraint.key) else {
                return Err(Refusal::final_(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let fewest = constraint.by_domain.values().min().copied().unwrap_or(0);
            // Domains that are still to come are empty.
            let fewest = if constraint.by_domain.len() < constraint.min_domains { 0 } else { fewest };
            let there = constraint.by_domain.get(domain).copied().unwrap_or(0);
            if there + i64::from(constraint.counts(&pod.pod)) - fewest > constraint.max_skew {
                return Err(Refusal::of("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    pub(crate) fn score(&self, nodes: &[&NodeInfo]) -> Vec<i64> {
        if self.soft.is_empty() {
            return vec![0; nodes.len()];
        }
        let weights: HashMap<&str, f64> =
            self.soft.iter().map(|c| (c.key.as_str(), (c.by_domain.len() as f64 + 2.0).ln())).collect();
        let raw: Vec<Option<f64>> = nodes
            .iter()
            .map(|node| {
                if self.ignored.contains(node.name()) {
                    return None;
                }
                let parts = self.soft.iter().map(|c| {
                    let there = node.label(&c.key).and_then(|d| c.by_domain.get(d)).copied().unwrap_or(0);
                    there as f64 * weights[c.key.as_str()] + (c.max_skew - 1) as f64
                });
                Some(parts.sum::<f64>().round())
            })
            .collect();
        let most = raw.iter().flatten().copied().fold(0.0, f64::max);
        let least = raw.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let score = |value: &Option<f64>| match value {
            None => 0,
            Some(_) if most == 0.0 => 100,
            Some(value) => (100.0 * (most + least - value) / most) as i64,
        };
        raw.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::tests::{cluster, labelled},
        *,
    };

    fn spread(more: Value) -> PodInfo {
        let mut c = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        for (key, value) in more.as_object().unwrap() {
            c[key] = value.clone();
        }
        labelled("web", json!({"topologySpreadConstraints": [c]}))
    }

    fn fits(pod: &PodInfo, nodes: &[NodeInfo]) -> Vec<bool> {
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let state = State::new(pod, &all);
        nodes.iter().map(|n| state.filter(pod, n).is_ok()).collect()
    }

    #[test]
    fn skew() {
        let web = || labelled("web", json!({}));
        let nodes = cluster(&[("a", "x", &[web()]), ("b", "x", &[]), ("c", "y", &[labelled("db", json!({}))])]);
        assert_eq!(fits(&spread(json!({})), &nodes), [false, false, true]);
        assert_eq!(fits(&spread(json!({"maxSkew": 2})), &nodes), [true, true, true]);
        // With a third zone wanted the emptiest has none.
        let even = cluster(&[("a", "x", &[web()]), ("c", "y", &[web()])]);
        assert_eq!(fits(&spread(json!({})), &even), [true, true]);
        assert_eq!(fits(&spread(json!({"minDomains": 3})), &even), [false, false]);
        assert_eq!(fits(&spread(json!({"topologyKey": "rack"})), &even), [false, false]);
    }

    #[test]
    fn wishes_prefer_the_emptier() {
        let nodes = cluster(&[("a", "x", &[labelled("web", json!({}))]), ("b", "y", &[])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let pod = spread(json!({"whenUnsatisfiable": "ScheduleAnyway"}));
        let scores = State::new(&pod, &all).score(&all);
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}
