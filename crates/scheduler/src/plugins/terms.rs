//! Terms of pod affinity: which pods are meant, and within which part of the cluster.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::core::v1::{Pod, PodAffinityTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector,
};
use skiff_api::selector::{LabelSelector, Op, Requirement};

/// Labels of each namespace.
pub(crate) type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// A term in the form that matches.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    /// None selects nothing.
    selector: Option<LabelSelector>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    /// Label of nodes: those with the same value are one place.
    pub(crate) key: String,
    pub(crate) weight: i64,
}

/// A selector in the form that matches. One that cannot be read selects nothing.
pub(crate) fn compile(selector: &ApiSelector) -> Option<LabelSelector> {
    LabelSelector::from_value(&serde_json::to_value(selector).ok()?).ok()
}

pub(crate) fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.matches(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
}

/// Adds that a label is, or is not, what the pod has.
pub(crate) fn with_keys(selector: &mut LabelSelector, pod: &Pod, keys: Option<&Vec<String>>, same: bool) {
    let labels = pod.metadata.labels.as_ref();
    for key in keys.into_iter().flatten() {
        let Some(value) = labels.and_then(|l| l.get(key)) else { continue };
        let values = vec![value.clone()];
        let op = if same { Op::In(values) } else { Op::NotIn(values) };
        selector.requirements.push(Requirement { key: key.clone(), op });
    }
}

impl Term {
    pub(crate) fn new(pod: &Pod, term: &PodAffinityTerm, weight: i32) -> Term {
        let mut selector = term.label_selector.as_ref().and_then(compile);
        if let Some(selector) = &mut selector {
            with_keys(selector, pod, term.match_label_keys.as_ref(), true);
            with_keys(selector, pod, term.mismatch_label_keys.as_ref(), false);
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(pod.metadata.namespace.clone().unwrap_or_default());
        }
        Term {
            selector,
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().and_then(compile),
            key: term.topology_key.clone(),
            weight: weight.into(),
        }
    }

    /// Whether a pod is meant.
    pub(crate) fn matches(&self, pod: &Pod, namespaces: &Namespaces) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let selected = |s: &LabelSelector| matches(s, namespaces.get(namespace));
        let within =
            self.namespaces.iter().any(|n| n == namespace) || self.namespace_selector.as_ref().is_some_and(selected);
        within && self.selector.as_ref().is_some_and(|s| matches(s, pod.metadata.labels.as_ref()))
    }
}

/// All terms of a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) required: Vec<Term>,
    pub(crate) preferred: Vec<Term>,
    pub(crate) required_anti: Vec<Term>,
    pub(crate) preferred_anti: Vec<Term>,
}

impl Terms {
    pub(crate) fn of(pod: &Pod) -> Terms {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let mut terms = Terms::default();
        if let Some(a) = affinity.and_then(|a| a.pod_affinity.as_ref()) {
            let required = a.required_during_scheduling_ignored_during_execution.iter().flatten();
            terms.required = required.map(|t| Term::new(pod, t, 0)).collect();
            let preferred = a.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            terms.preferred = preferred.map(|t| Term::new(pod, &t.pod_affinity_term, t.weight)).collect();
        }
        if let Some(a) = affinity.and_then(|a| a.pod_anti_affinity.as_ref()) {
            let required = a.required_during_scheduling_ignored_during_execution.iter().flatten();
            terms.required_anti = required.map(|t| Term::new(pod, t, 0)).collect();
            let preferred = a.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            terms.preferred_anti = preferred.map(|t| Term::new(pod, &t.pod_affinity_term, t.weight)).collect();
        }
        terms
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.required.is_empty()
            && self.preferred.is_empty()
            && self.required_anti.is_empty()
            && self.preferred_anti.is_empty()
    }
}
