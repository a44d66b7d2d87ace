//! InterPodAffinity: pods that want to be near others, or far from them. Required anti-affinity works both ways: also
//! pods that are there keep those away that they do not want.

use std::collections::{HashMap, HashSet};

use super::{Refusal, terms::Namespaces};
use crate::nodes::{NodeInfo, PodInfo};

/// Weight of required affinity of pods that are there, upstream's default.
const HARD_WEIGHT: i64 = 1;

/// A part of the cluster: nodes with this value of this label.
type Place = (String, String);

/// What is the same for all nodes.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Where pods are that do not want this one near.
    unwelcome: HashSet<Place>,
    /// Where pods are that the required terms mean, all of them.
    near: HashMap<Place, usize>,
    /// Where pods are that this one does not want near, for each term.
    far: Vec<HashSet<Place>>,
    /// The pod is itself among those that it wants near.
    wants_itself: bool,
    scores: HashMap<Place, i64>,
}

fn place(node: &NodeInfo, key: &str) -> Option<Place> {
    node.label(key).map(|value| (key.to_owned(), value.to_owned()))
}

impl State {
    pub(crate) fn new(pod: &PodInfo, nodes: &[&NodeInfo], namespaces: &Namespaces) -> State {
        let terms = &pod.terms;
        let mut state = State { far: vec![HashSet::new(); terms.required_anti.len()], ..State::default() };
        state.wants_itself =
            !terms.required.is_empty() && terms.required.iter().all(|t| t.matches(&pod.pod, namespaces));
        for node in nodes {
            // Without wishes of its own only pods with wishes matter.
            for other in node.pods.values().filter(|p| !terms.is_empty() || !p.terms.is_empty()) {
                state.add(pod, node, other, namespaces);
            }
        }
        state
    }

    fn add(&mut self, pod: &PodInfo, node: &NodeInfo, other: &PodInfo, namespaces: &Namespaces) {
        let (mine, theirs) = (&pod.terms, &other.terms);
        for term in theirs.required_anti.iter().filter(|t| t.matches(&pod.pod, namespaces)) {
            self.unwelcome.extend(place(node, &term.key));
        }
        if !mine.required.is_empty() && mine.required.iter().all(|t| t.matches(&other.pod, namespaces)) {
            for place in mine.required.iter().filter_map(|t| place(node, &t.key)) {
                *self.near.entry(place).or_default() += 1;
            }
        }
        for (term, places) in mine.required_anti.iter().zip(&mut self.far) {
            if term.matches(&other.pod, namespaces) {
                places.extend(place(node, &term.key));
            }
        }
        let weighted = (mine.preferred.iter().map(|t| (t, t.weight, false)))
            .chain(mine.preferred_anti.iter().map(|t| (t, -t.weight, false)))
            .chain(theirs.required.iter().map(|t| (t, HARD_WEIGHT, true)))
            .chain(theirs.preferred.iter().map(|t| (t, t.weight, true)))
            .chain(theirs.preferred_anti.iter().map(|t| (t, -t.weight, true)));
        for (term, weight, is_theirs) in weighted {
            let meant = if is_theirs { &pod.pod } else { &other.pod };
            if let Some(place) = place(node, &term.key).filter(|_| term.matches(meant, namespaces)) {
                *self.scores.entry(place).or_default() += weight;
            }
        }
    }

    pub(crate) fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
        let terms = &pod.terms;
        let has_keys = terms.required.iter().all(|t| node.label(&t.key).is_some());
        let near = terms.required.iter().all(|t| place(node, &t.key).is_some_and(|p| self.near.contains_key(&p)));
        // The first of a group that wants to be together has nobody to be near.
        let first = self.near.is_empty() && self.wants_itself && has_keys;
        if !near && !first {
            return Err(Refusal::final_("node(s) didn't match pod affinity rules"));
        }
        let mut far = terms.required_anti.iter().zip(&self.far);
        if far.any(|(t, places)| place(node, &t.key).is_some_and(|p| places.contains(&p))) {
            return Err(Refusal::of("node(s) didn't match pod anti-affinity rules"));
        }
        if self.unwelcome.iter().any(|(key, value)| node.label(key) == Some(value)) {
            return Err(Refusal::of("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    pub(crate) fn score(&self, nodes: &[&NodeInfo]) -> Vec<i64> {
        let sum = |node: &&NodeInfo| -> i64 {
            self.scores.iter().filter(|((key, value), _)| node.label(key) == Some(value)).map(|(_, s)| s).sum()
        };
        let mut scores: Vec<i64> = nodes.iter().map(sum).collect();
        let (low, high) =
            (scores.iter().min().copied().unwrap_or_default(), scores.iter().max().copied().unwrap_or_default());
        for score in &mut scores {
            *score = if high == low { 0 } else { 100 * (*score - low) / (high - low) };
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::tests::{cluster, labelled},
        *,
    };

    fn near(app: &str, kind: &str) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "zone"}]}}})
    }

    fn verdicts(pod: &PodInfo, nodes: &[NodeInfo]) -> Vec<Option<String>> {
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let state = State::new(pod, &all, &Namespaces::new());
        nodes.iter().map(|n| state.filter(pod, n).err().map(|r| r.reasons[0].clone())).collect()
    }

    #[test]
    fn near_and_far() {
        let nodes = cluster(&[("a", "x", &[labelled("web", json!({}))]), ("b", "x", &[]), ("c", "y", &[])]);
        let wants = labelled("db", near("web", "podAffinity"));
        let refused = Some("node(s) didn't match pod affinity rules".to_owned());
        assert_eq!(verdicts(&wants, &nodes), [None, None, refused]);
        let avoids = labelled("db", near("web", "podAntiAffinity"));
        let refused = Some("node(s) didn't match pod anti-affinity rules".to_owned());
        assert_eq!(verdicts(&avoids, &nodes), [refused.clone(), refused, None]);
    }

    #[test]
    fn those_that_are_there_are_asked_too() {
        let hermit = labelled("hermit", near("web", "podAntiAffinity"));
        let nodes = cluster(&[("a", "x", &[hermit]), ("b", "y", &[])]);
        let refused = Some("node(s) didn't satisfy existing pods anti-affinity rules".to_owned());
        assert_eq!(verdicts(&labelled("web", json!({})), &nodes), [refused, None]);
        assert_eq!(verdicts(&labelled("other", json!({})), &nodes), [None, None]);
    }

    #[test]
    fn the_first_of_a_group() {
        let nodes = cluster(&[("a", "x", &[])]);
        assert_eq!(verdicts(&labelled("web", near("web", "podAffinity")), &nodes), [None]);
        assert!(verdicts(&labelled("db", near("web", "podAffinity")), &nodes)[0].is_some());
    }

    #[test]
    fn preferences_are_scored() {
        let nodes = cluster(&[("a", "x", &[labelled("web", json!({}))]), ("b", "y", &[])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let term = json!([{"weight": 10, "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"}}]);
        let pod = labelled(
            "db",
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": term}}}),
        );
        assert_eq!(State::new(&pod, &all, &Namespaces::new()).score(&all), [0, 100]);
    }
}
