//! Which ReplicaSets there should be, and how large.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;
use serde_json::Value;

use crate::pods;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";

/// Annotations of a Deployment that are not for its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// One change to be made.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    SetRevision(String),
    Annotate { set: String, annotations: BTreeMap<String, String> },
    Create(Box<ReplicaSet>),
    Scale { set: String, from: i32, to: i32, annotations: BTreeMap<String, String> },
    Delete { set: String, uid: String },
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub(crate) fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// A template without the label that only the ReplicaSet's has.
fn plain_template(template: Option<&PodTemplateSpec>) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    if let Some(labels) = value["metadata"]["labels"].as_object_mut() {
        labels.shift_remove(HASH);
    }
    value
}

/// Whether a set is of the Deployment's present template.
pub(crate) fn has_template_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let of_set = set.spec.as_ref().and_then(|s| s.template.as_ref());
    let of_deployment = deployment.spec.as_ref().map(|s| &s.template);
    plain_template(of_set) == plain_template(of_deployment)
}

/// The set of the present template, the oldest if there are several, and all others.
pub(crate) fn split(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut matching: Vec<&Arc<ReplicaSet>> = sets.iter().filter(|s| has_template_of(s, deployment)).collect();
    matching.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.name_any()));
    let new = matching.first().map(|s| Arc::clone(s));
    let old = sets.iter().filter(|s| new.as_ref().is_none_or(|n| n.uid() != s.uid())).cloned().collect();
    (new, old)
}

fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// How many pods more and how many fewer there may be during a roll.
pub(crate) fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let total = wanted(deployment);
    let surge = pods::resolve(rolling.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = pods::resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), total, false);
    // Without either nothing would ever move.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(total)) }
}

/// Hash of a template in the letters that names are made of.
fn template_hash(deployment: &Deployment) -> String {
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    pods::hash(&plain_template(deployment.spec.as_ref().map(|s| &s.template)), collisions)
}

fn revision_of<K: kube::Resource>(object: &K) -> i64 {
    object.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn size_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let (surge, _) = fenceposts(deployment);
    let total = wanted(deployment);
    [(DESIRED.to_owned(), total.to_string()), (MAX.to_owned(), (total + surge).to_string())].into()
}

/// Annotations that the set of the present template should have.
fn new_set_annotations(
    deployment: &Deployment,
    revision: i64,
    current: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut wanted: BTreeMap<String, String> = deployment
        .annotations()
        .iter()
        .filter(|(k, _)| !NOT_COPIED.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    wanted.insert(REVISION.to_owned(), revision.to_string());
    // A set that comes back remembers under which numbers it was known.
    if let Some(before) = current.get(REVISION).filter(|r| **r != revision.to_string()) {
        let mut history: Vec<&str> = current.get(REVISION_HISTORY).map(|h| h.split(',').collect()).unwrap_or_default();
        history.push(before);
        wanted.insert(REVISION_HISTORY.to_owned(), history.join(","));
    }
    wanted
}

/// What to do now. `old_pods_left`: whether pods of old sets still run.
pub(crate) fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], old_pods_left: bool) -> Vec<Step> {
    let (new, old) = split(deployment, sets);
    let mut steps = Vec::new();
    let spec = deployment.spec.clone().unwrap_or_default();
    let paused = spec.paused.unwrap_or(false);
    let highest_old = old.iter().map(|s| revision_of(&**s)).max().unwrap_or(0);
    match &new {
        None if paused => {}
        None => {
            if !is_rolling(deployment) && (old.iter().any(|s| replicas(s) > 0) || old_pods_left) {
                scale_to_zero(deployment, &old, &mut steps);
                return steps;
            }
            let revision = highest_old + 1;
            steps.push(Step::SetRevision(revision.to_string()));
            steps.push(Step::Create(Box::new(new_set(deployment, revision, &old))));
            return steps;
        }
        Some(set) => {
            let revision = revision_of(&**set).max(if old.is_empty() { 1 } else { highest_old + 1 });
            let annotations = new_set_annotations(deployment, revision, set.annotations());
            if annotations.iter().any(|(k, v)| set.annotations().get(k) != Some(v)) {
                steps.push(Step::Annotate { set: set.name_any(), annotations });
            }
            if revision_of(deployment) != revision {
                steps.push(Step::SetRevision(revision.to_string()));
            }
        }
    }
    if paused || is_scaling(deployment, sets) {
        scale_proportionally(deployment, new.as_ref(), &old, &mut steps);
    } else if is_rolling(deployment) {
        if let Some(new) = &new {
            roll(deployment, new, &old, &mut steps);
        }
    } else if old.iter().any(|s| replicas(s) > 0) {
        scale_to_zero(deployment, &old, &mut steps);
    } else if let Some(new) = new.as_ref().filter(|_| !old_pods_left) {
        scale(deployment, new, wanted(deployment), &mut steps);
    }
    if is_complete(deployment, new.as_ref(), &old) {
        clean_up(&spec, &old, &mut steps);
    }
    steps
}

fn scale(deployment: &Deployment, set: &ReplicaSet, to: i32, steps: &mut Vec<Step>) {
    let annotations = size_annotations(deployment);
    let annotated = annotations.iter().all(|(k, v)| set.annotations().get(k) == Some(v));
    if replicas(set) != to || !annotated {
        steps.push(Step::Scale { set: set.name_any(), from: replicas(set), to, annotations });
    }
}

fn scale_to_zero(deployment: &Deployment, sets: &[Arc<ReplicaSet>], steps: &mut Vec<Step>) {
    for set in sets.iter().filter(|s| replicas(s) > 0) {
        scale(deployment, set, 0, steps);
    }
}

/// Whether the number of replicas changed rather than the template.
fn is_scaling(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    sets.iter().filter(|s| replicas(s) > 0).any(|s| {
        s.annotations().get(DESIRED).and_then(|d| d.parse::<i32>().ok()).is_some_and(|d| d != wanted(deployment))
    })
}

fn new_set(deployment: &Deployment, revision: i64, old: &[Arc<ReplicaSet>]) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = template_hash(deployment);
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let mut annotations = new_set_annotations(deployment, revision, &BTreeMap::new());
    annotations.extend(size_annotations(deployment));
    // Room for the new set: what the surge leaves beside the old ones.
    let (surge, _) = fenceposts(deployment);
    let total = wanted(deployment);
    let existing: i32 = old.iter().map(|s| replicas(s)).sum();
    let size = if is_rolling(deployment) { (total + surge - existing).clamp(0, total) } else { total };
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![pods::owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// One step of a rolling update: the new set grows as far as the surge lets it, the old ones shrink as far as enough
/// pods stay available.
fn roll(deployment: &Deployment, new: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>], steps: &mut Vec<Step>) {
    let total = wanted(deployment);
    let (surge, unavailable) = fenceposts(deployment);
    let everything: i32 = old.iter().map(|s| replicas(s)).sum::<i32>() + replicas(new);
    if replicas(new) > total {
        scale(deployment, new, total, steps);
        return;
    }
    if replicas(new) < total {
        let room = (total + surge - everything).max(0);
        let to = replicas(new) + room.min(total - replicas(new));
        if to != replicas(new) {
            scale(deployment, new, to, steps);
            return;
        }
    } else {
        scale(deployment, new, total, steps);
    }
    let old_total: i32 = old.iter().map(|s| replicas(s)).sum();
    if old_total == 0 {
        return;
    }
    let least = total - unavailable;
    let new_unavailable = replicas(new) - available(new);
    let most_to_remove = everything - least - new_unavailable;
    if most_to_remove <= 0 {
        return;
    }
    // First those that serve nobody, then, if enough are available, the others; the oldest first.
    let mut oldest_first = old.to_vec();
    oldest_first.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.name_any()));
    let mut sizes: Vec<i32> = oldest_first.iter().map(|s| replicas(s)).collect();
    let mut budget = most_to_remove;
    for (set, size) in oldest_first.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).clamp(0, budget);
        *size -= unhealthy;
        budget -= unhealthy;
    }
    let all_available: i32 = available(new) + oldest_first.iter().map(|s| available(s)).sum::<i32>();
    let mut healthy_budget = (all_available - least).max(0);
    for size in &mut sizes {
        let n = (*size).min(healthy_budget);
        *size -= n;
        healthy_budget -= n;
    }
    for (set, size) in oldest_first.iter().zip(sizes) {
        if size != replicas(set) {
            scale(deployment, set, size, steps);
        }
    }
}

/// The number of replicas changed in the middle of a roll or while it is paused: all sets keep their share.
fn scale_proportionally(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    steps: &mut Vec<Step>,
) {
    let total = wanted(deployment);
    let active: Vec<&Arc<ReplicaSet>> = new.into_iter().chain(old).filter(|s| replicas(s) > 0).collect();
    // With one active set, or none, there is nothing to share.
    if active.len() <= 1 {
        let target = active.first().copied().or(new).or(old.last());
        if let Some(set) = target {
            scale(deployment, set, total, steps);
        }
        return;
    }
    // A complete new set takes all; what is left of old ones goes.
    if let Some(new) = new
        && replicas(new) == total
        && available(new) == total
    {
        scale_to_zero(deployment, old, steps);
        scale(deployment, new, total, steps);
        return;
    }
    if !is_rolling(deployment) {
        return;
    }
    let (surge, _) = fenceposts(deployment);
    let allowed = if total > 0 { total + surge } else { 0 };
    let existing: i32 = active.iter().map(|s| replicas(s)).sum();
    let mut to_add = allowed - existing;
    let mut by_size = active.clone();
    by_size.sort_by_key(|s| (std::cmp::Reverse(replicas(s)), s.name_any()));
    let mut sizes: Vec<i32> = Vec::new();
    for set in &by_size {
        let before: i32 = set.annotations().get(MAX).and_then(|m| m.parse().ok()).unwrap_or(existing).max(1);
        let exact = f64::from(replicas(set)) * f64::from(allowed) / f64::from(before);
        let change = (exact.round() as i32 - replicas(set)).clamp(to_add.min(0), to_add.max(0));
        to_add -= change;
        sizes.push(replicas(set) + change);
    }
    // What rounding left over goes to the largest.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add).max(0);
    }
    for (set, size) in by_size.iter().zip(sizes) {
        scale(deployment, set, size, steps);
    }
}

/// Whether the roll is over: all pods are new and available.
pub(crate) fn is_complete(deployment: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> bool {
    let total = wanted(deployment);
    let old_pods: i32 = old.iter().map(|s| s.status.as_ref().map_or(0, |s| s.replicas)).sum();
    new.is_some_and(|n| {
        n.status.as_ref().map_or(0, |s| s.replicas) == total && available(n) == total && replicas(n) == total
    }) && old_pods == 0
}

/// Removes the oldest sets beyond the limit of the history.
fn clean_up(spec: &k8s_openapi::api::apps::v1::DeploymentSpec, old: &[Arc<ReplicaSet>], steps: &mut Vec<Step>) {
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut empty: Vec<&Arc<ReplicaSet>> = old
        .iter()
        .filter(|s| {
            replicas(s) == 0
                && s.status.as_ref().map_or(0, |s| s.replicas) == 0
                && s.metadata.deletion_timestamp.is_none()
        })
        .collect();
    if empty.len() <= limit {
        return;
    }
    empty.sort_by_key(|s| revision_of(&***s));
    for set in &empty[..empty.len() - limit] {
        steps.push(Step::Delete { set: set.name_any(), uid: set.uid().unwrap_or_default() });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn deployment(spec: Value) -> Deployment {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "a"}});
        if spec["template"].is_null() {
            spec["template"] = template("1");
        }
        if spec["strategy"].is_null() {
            spec["strategy"] =
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
        }
        serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "x", "uid": "du", "annotations": {REVISION: "1"}, "generation": 1}, "spec": spec})).unwrap()
    }

    pub(crate) fn template(image: &str) -> Value {
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
    }

    pub(crate) fn set(
        name: &str,
        image: &str,
        revision: i64,
        size: i32,
        available: i32,
        desired: i32,
    ) -> Arc<ReplicaSet> {
        let mut t = template(image);
        t["metadata"]["labels"][HASH] = name.into();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "namespace": "x", "annotations": {
                    REVISION: revision.to_string(), DESIRED: desired.to_string(), MAX: (desired + (desired + 3) / 4).to_string()},
                    "creationTimestamp": format!("2026-01-0{revision}T00:00:00Z")},
                "spec": {"replicas": size, "selector": {}, "template": t},
                "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available}}))
            .unwrap(),
        )
    }

    fn scales(steps: &[Step]) -> Vec<(String, i32, i32)> {
        steps
            .iter()
            .filter_map(|s| match s {
                Step::Scale { set, from, to, .. } => Some((set.clone(), *from, *to)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn the_first_set_has_all_replicas() {
        let d = deployment(json!({"replicas": 3}));
        let steps = plan(&d, &[], false);
        let Step::Create(created) = &steps[1] else { panic!("{steps:?}") };
        assert_eq!(replicas(created), 3);
        let hash = created.labels()[HASH].clone();
        assert_eq!(created.name_any(), format!("d-{hash}"));
        assert_eq!(created.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()[HASH], hash);
        assert_eq!(steps[0], Step::SetRevision("1".into()));
        assert!(has_template_of(created, &d));
    }

    #[test]
    fn a_roll_keeps_enough_pods() {
        let d = deployment(json!({"replicas": 4, "template": template("2")}));
        let old = set("old", "1", 1, 4, 4, 4);
        // A set for the new template, of the size that the surge allows.
        let Step::Create(created) = &plan(&d, std::slice::from_ref(&old), true)[1] else { panic!() };
        assert_eq!(replicas(created), 1);
        // It exists: one old pod may be unavailable.
        let steps = plan(&d, &[old.clone(), set("new", "2", 2, 1, 0, 4)], true);
        assert_eq!(scales(&steps), [("old".into(), 4, 3)]);
        // The surge has room again.
        let steps = plan(&d, &[set("old", "1", 1, 3, 3, 4), set("new", "2", 2, 1, 0, 4)], true);
        assert_eq!(scales(&steps), [("new".into(), 1, 2)]);
        // Nothing may go while the new ones are not available.
        let steps = plan(&d, &[set("old", "1", 1, 3, 3, 4), set("new", "2", 2, 2, 0, 4)], true);
        assert!(scales(&steps).is_empty(), "{steps:?}");
        let steps = plan(&d, &[set("old", "1", 1, 3, 3, 4), set("new", "2", 2, 2, 2, 4)], true);
        assert_eq!(scales(&steps), [("old".into(), 3, 1)]);
    }

    #[test]
    fn no_request_fails_with_one_replica() {
        let d = deployment(json!({"replicas": 1, "template": template("2")}));
        assert_eq!(fenceposts(&d), (1, 0));
        let steps = plan(&d, &[set("old", "1", 1, 1, 1, 1), set("new", "2", 2, 1, 0, 1)], true);
        assert!(scales(&steps).is_empty());
        let steps = plan(&d, &[set("old", "1", 1, 1, 1, 1), set("new", "2", 2, 1, 1, 1)], true);
        assert_eq!(scales(&steps), [("old".into(), 1, 0)]);
    }

    #[test]
    fn scaling_scales_the_only_set() {
        let d = deployment(json!({"replicas": 5}));
        let steps = plan(&d, &[set("new", "1", 1, 2, 2, 2)], false);
        assert_eq!(scales(&steps), [("new".into(), 2, 5)]);
    }

    #[test]
    fn recreate_waits_for_the_old_pods() {
        let d = deployment(json!({"replicas": 2, "template": template("2"), "strategy": {"type": "Recreate"}}));
        assert_eq!(scales(&plan(&d, &[set("old", "1", 1, 2, 2, 2)], true)), [("old".into(), 2, 0)]);
        assert!(plan(&d, &[set("old", "1", 1, 0, 0, 2)], true).is_empty());
        assert!(matches!(plan(&d, &[set("old", "1", 1, 0, 0, 2)], false)[1], Step::Create(_)));
    }

    #[test]
    fn an_undo_takes_the_old_set_with_a_new_number() {
        let d = deployment(json!({"replicas": 1, "template": template("1")}));
        let steps = plan(&d, &[set("one", "1", 1, 0, 0, 1), set("two", "2", 2, 1, 1, 1)], true);
        let Step::Annotate { set, annotations } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!(
            (set.as_str(), annotations[REVISION].as_str(), annotations[REVISION_HISTORY].as_str()),
            ("one", "3", "1")
        );
        assert_eq!(steps[1], Step::SetRevision("3".into()));
    }

    #[test]
    fn old_history_goes() {
        let d = deployment(json!({"replicas": 1, "revisionHistoryLimit": 1, "template": template("9")}));
        let sets = [set("a", "1", 1, 0, 0, 1), set("b", "2", 2, 0, 0, 1), set("n", "9", 3, 1, 1, 1)];
        let steps = plan(&d, &sets, false);
        assert!(steps.contains(&Step::Delete { set: "a".into(), uid: "a".into() }), "{steps:?}");
        assert!(!steps.iter().any(|s| matches!(s, Step::Delete { set, .. } if set == "b")));
    }

    #[test]
    fn a_paused_deployment_only_scales() {
        let d = deployment(json!({"replicas": 4, "paused": true, "template": template("2")}));
        assert_eq!(scales(&plan(&d, &[set("old", "1", 1, 2, 2, 2)], true)), [("old".into(), 2, 4)]);
    }
}
