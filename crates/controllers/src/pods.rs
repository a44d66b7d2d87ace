//! What several controllers ask of pods.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::{Resource, ResourceExt as _};
use serde_json::Value;
use skiff_api::selector;

/// A selector in the form that matches. A selector that cannot be read selects nothing.
pub(crate) fn compile(selector: &LabelSelector) -> Option<selector::LabelSelector> {
    let value = serde_json::to_value(selector).ok()?;
    selector::LabelSelector::from_value(&value).ok()
}

/// Whether an object's labels are selected.
pub(crate) fn selects<K: Resource>(selector: &selector::LabelSelector, object: &K) -> bool {
    let labels = object.labels();
    selector.matches(|key| labels.get(key).map(String::as_str))
}

/// The owner that controls an object.
pub(crate) fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|o| o.controller == Some(true))
}

/// A reference to the controller of what it makes.
pub(crate) fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Neither over nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !matches!(phase(pod), "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_none()
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether one of the pods has this UID and is not being deleted.
pub(crate) fn is_present(pods: &[Arc<Pod>], uid: &str) -> bool {
    pods.iter().any(|p| p.metadata.uid.as_deref() == Some(uid) && p.metadata.deletion_timestamp.is_none())
}

/// When the pod became ready, if it is.
fn ready_since(pod: &Pod) -> Option<Option<Timestamp>> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map(|t| t.0))
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Ready for at least this long; otherwise, if only time is missing, when it will be.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Result<bool, Timestamp> {
    match ready_since(pod) {
        None => Ok(false),
        Some(_) if min_ready_seconds <= 0 => Ok(true),
        Some(None) => Ok(false),
        Some(Some(since)) => {
            let then = since + SignedDuration::from_secs(min_ready_seconds.into());
            if then <= now { Ok(true) } else { Err(then) }
        }
    }
}

/// A pod of a template, controlled by `owner`. Its name is made by the API server.
pub(crate) fn from_template<K: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &K) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name_any())),
            namespace: owner.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The number that an amount or a share of `total` is.
pub(crate) fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(s)) => {
            let percent: i64 = s.trim_end_matches('%').parse().unwrap_or(0);
            let exact = percent * i64::from(total);
            let n = if round_up { (exact + 99) / 100 } else { exact / 100 };
            i32::try_from(n).unwrap_or(i32::MAX)
        }
    }
}

/// Hash of a template, and of how often its name was taken, in the letters that names are made of.
pub(crate) fn hash(template: &Value, collisions: Option<i32>) -> String {
    // FNV-1a, as upstream; what is hashed is the template's JSON in a fixed order.
    let mut text = canonical(template);
    if let Some(count) = collisions {
        text.push_str(&count.to_string());
    }
    let hash = text.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()])).collect()
}

/// JSON with sorted keys.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, String> = map.iter().map(|(k, v)| (k, canonical(v))).collect();
            let parts: Vec<String> = sorted.into_iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Order in which pods are given up: those first that are worth least.
pub(crate) fn deletion_rank(pod: &Pod, now: Timestamp) -> impl Ord + use<> {
    let unassigned = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_none_or(str::is_empty);
    let phase_rank = match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost: i32 =
        pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").and_then(|c| c.parse().ok()).unwrap_or(0);
    let ready = ready_since(pod);
    // Ages are compared by powers of two, so that not always the very youngest goes.
    let bucket = |t: Option<Timestamp>| t.map_or(0, |t| now.duration_since(t).as_secs().max(1).ilog2());
    let restarts: i32 = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0);
    (
        !unassigned,
        phase_rank,
        ready.is_some(),
        cost,
        bucket(ready.flatten()),
        std::cmp::Reverse(restarts),
        bucket(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
        pod.metadata.name.clone(),
    )
}
