//! Kinds that are served in more than one version, between the stored version and the others.

use serde_json::{Map, Value, json};
use skiff_api::{Kind, kinds::Storage};

/// An object as it is stored, from the version that the client wrote.
///
/// A custom kind's objects stay in that version: its schema is the one that they are checked against.
pub fn to_stored(kind: &Kind, mut value: Value) -> Value {
    if kind.is_custom() {
        return value;
    }
    let Storage::Version { group, version } = kind.storage else { return value };
    match (kind.group, kind.kind) {
        ("events.k8s.io", _) => rename(&mut value, EVENT, true),
        ("autoscaling", _) => autoscaler_to_v2(&mut value),
        _ => {}
    }
    value["apiVersion"] = if group.is_empty() { version.into() } else { format!("{group}/{version}").into() };
    value
}

/// An object in the version that the client asked for; `None` if that is the stored one.
pub fn from_stored(kind: &Kind, bytes: &[u8]) -> Option<Value> {
    if !matches!(kind.storage, Storage::Version { .. }) {
        return None;
    }
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    match (kind.group, kind.kind) {
        ("events.k8s.io", _) => rename(&mut value, EVENT, false),
        ("autoscaling", _) => autoscaler_to_v1(&mut value),
        _ => {}
    }
    value["apiVersion"] = kind.api_version().into();
    Some(value)
}

/// Fields of events: in `events.k8s.io` and in the core group.
const EVENT: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(value: &mut Value, names: &[(&str, &str)], forward: bool) {
    let Some(map) = value.as_object_mut() else { return };
    let mut renamed = Map::new();
    for (key, v) in std::mem::take(map) {
        let found = names.iter().find(|(a, b)| key == if forward { *a } else { *b });
        let key = match found {
            Some((a, b)) => (if forward { *b } else { *a }).to_owned(),
            None => key,
        };
        renamed.insert(key, v);
    }
    *map = renamed;
}

/// Where the parts of a v2 autoscaler that v1 has no field for are kept.
const V2_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

fn autoscaler_to_v2(value: &mut Value) {
    let kept = value["metadata"]["annotations"]
        .as_object_mut()
        .and_then(|a| a.shift_remove(V2_METRICS))
        .and_then(|m| serde_json::from_str::<Vec<Value>>(m.as_str()?).ok());
    if let Some(spec) = value["spec"].as_object_mut() {
        let target = spec.shift_remove("targetCPUUtilizationPercentage");
        let mut metrics = kept.unwrap_or_default();
        if let Some(n) = target {
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": n}}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
    }
    if let Some(status) = value["status"].as_object_mut() {
        status.shift_remove("currentCPUUtilizationPercentage");
    }
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_i64()
}

fn autoscaler_to_v1(value: &mut Value) {
    let Some(spec) = value["spec"].as_object_mut() else { return };
    spec.shift_remove("behavior");
    let metrics = spec.shift_remove("metrics");
    let (cpu, others): (Vec<Value>, Vec<Value>) =
        metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default().into_iter().partition(is_cpu_utilization);
    if let Some(first) = cpu.first() {
        spec.insert("targetCPUUtilizationPercentage".into(), first["resource"]["target"]["averageUtilization"].clone());
    }
    if !others.is_empty() {
        value["metadata"]["annotations"][V2_METRICS] = Value::Array(others).to_string().into();
    }
    if let Some(status) = value["status"].as_object_mut() {
        status.shift_remove("currentMetrics");
        status.shift_remove("conditions");
    }
}

#[cfg(test)]
mod tests {
    use skiff_api::kinds::by_kind;

    use super::*;

    #[test]
    fn versions_round_trip() {
        let event = by_kind("events.k8s.io", "v1", "Event").unwrap();
        let v = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "x"}});
        let stored = to_stored(event, v.clone());
        assert_eq!(
            stored,
            json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"name": "x"}})
        );
        assert_eq!(from_stored(event, stored.to_string().as_bytes()), Some(v));

        let hpa = by_kind("autoscaling", "v1", "HorizontalPodAutoscaler").unwrap();
        let v = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        let stored = to_stored(hpa, v);
        assert_eq!(stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        let back = from_stored(hpa, stored.to_string().as_bytes()).unwrap();
        assert_eq!(back["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
    }
}
