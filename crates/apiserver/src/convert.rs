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
    match kind.storage {
        Storage::Version { .. } => from_stored_value(kind, &serde_json::from_slice(bytes).ok()?),
        _ => None,
    }
}

/// The same for an object that has been parsed.
pub fn from_stored_value(kind: &Kind, stored: &Value) -> Option<Value> {
    if !matches!(kind.storage, Storage::Version { .. }) {
        return None;
    }
    let mut value = stored.clone();
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

/// Where the parts of a v2 autoscaler that v1 has no field for are kept, in v1's own words.
const V2_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const V2_BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const V2_CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const V2_CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// Where a field of v2 is in v1, for each source of metrics: in a spec and in a status.
const METRIC_FIELDS: &[(&str, &str, &str)] = &[
    ("name", "name", "name"),
    ("container", "container", "container"),
    ("describedObject", "target", "target"),
    ("metric/name", "metricName", "metricName"),
    ("metric/selector", "selector", "selector"),
    ("value", "targetValue", "currentValue"),
    ("averageValue", "targetAverageValue", "currentAverageValue"),
    ("averageUtilization", "targetAverageUtilization", "currentAverageUtilization"),
];

/// The field of v1 for one of v2; a few sources have names of their own.
fn v1_field(source: &str, (v2, spec, status): (&str, &'static str, &'static str), of_status: bool) -> &'static str {
    match (source, v2) {
        ("object", "averageValue") => "averageValue",
        ("external", "metric/selector") => "metricSelector",
        _ if of_status => status,
        _ => spec,
    }
}

/// The path of a field within the source of a metric in v2.
fn v2_path(v2: &str, of_status: bool) -> String {
    match v2 {
        "value" | "averageValue" | "averageUtilization" if of_status => format!("/current/{v2}"),
        "value" | "averageValue" | "averageUtilization" => format!("/target/{v2}"),
        _ => format!("/{v2}"),
    }
}

fn source_of(metric: &Value) -> Option<&'static str> {
    ["resource", "containerResource", "pods", "object", "external"].into_iter().find(|s| metric[*s].is_object())
}

fn metric_to_v1(metric: &Value, of_status: bool) -> Value {
    let Some(source) = source_of(metric) else { return metric.clone() };
    let mut out = json!({});
    for field in METRIC_FIELDS {
        if let Some(v) = metric[source].pointer(&v2_path(field.0, of_status)) {
            out[v1_field(source, *field, of_status)] = v.clone();
        }
    }
    json!({"type": metric["type"], source: out})
}

fn metric_to_v2(metric: &Value, of_status: bool) -> Value {
    let Some(source) = source_of(metric) else { return metric.clone() };
    let mut out = json!({});
    for field in METRIC_FIELDS {
        let v = &metric[source][v1_field(source, *field, of_status)];
        if !v.is_null() {
            match v2_path(field.0, of_status).trim_start_matches('/').split_once('/') {
                Some((outer, inner)) => out[outer][inner] = v.clone(),
                None => out[field.0] = v.clone(),
            }
        }
    }
    if !of_status {
        let has = |field: &str| !out["target"][field].is_null();
        out["target"]["type"] = match (has("averageUtilization"), has("averageValue")) {
            (true, _) => "Utilization".into(),
            (_, true) => "AverageValue".into(),
            _ => "Value".into(),
        };
    }
    json!({"type": metric["type"], source: out})
}

/// A v1 autoscaler as v2 shows it.
pub fn autoscaler_in_v2(value: &Value) -> Value {
    let mut value = value.clone();
    autoscaler_to_v2(&mut value);
    value
}

fn autoscaler_to_v2(value: &mut Value) {
    let mut kept = |name: &str| {
        let annotations = value["metadata"].get_mut("annotations")?.as_object_mut()?;
        let kept = annotations.shift_remove(name)?;
        serde_json::from_str::<Value>(kept.as_str()?).ok()
    };
    let (metrics, behavior, current, conditions) =
        (kept(V2_METRICS), kept(V2_BEHAVIOR), kept(V2_CURRENT), kept(V2_CONDITIONS));
    let list = |of: Option<Value>, of_status: bool| -> Vec<Value> {
        let of = of.unwrap_or_default();
        of.as_array().into_iter().flatten().map(|m| metric_to_v2(m, of_status)).collect()
    };
    if let Some(spec) = value["spec"].as_object_mut() {
        let target = spec.shift_remove("targetCPUUtilizationPercentage");
        let mut metrics = list(metrics, false);
        if let Some(n) = target {
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": n}}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = behavior.filter(Value::is_object) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        let cpu = status.shift_remove("currentCPUUtilizationPercentage");
        let mut current = list(current, true);
        if let Some(n) = cpu
            && !current.iter().any(is_cpu_status)
        {
            current.insert(
                0,
                json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": n}}}),
            );
        }
        if !current.is_empty() {
            status.insert("currentMetrics".into(), current.into());
        }
        if let Some(conditions) = conditions.filter(Value::is_array) {
            status.insert("conditions".into(), conditions);
        }
    }
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_i64()
}

fn is_cpu_status(metric: &Value) -> bool {
    metric["resource"]["name"] == "cpu" && metric["resource"]["current"]["averageUtilization"].is_i64()
}

fn autoscaler_to_v1(value: &mut Value) {
    let Some(spec) = value["spec"].as_object_mut() else { return };
    let mut keep: Vec<(&str, Value)> = Vec::new();
    if let Some(behavior) = spec.shift_remove("behavior") {
        keep.push((V2_BEHAVIOR, behavior));
    }
    let metrics = spec.shift_remove("metrics");
    let mut others = metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default();
    // The first one has a field; a second of the same is kept with the others.
    if let Some(i) = others.iter().position(is_cpu_utilization) {
        let cpu = others.remove(i);
        spec.insert("targetCPUUtilizationPercentage".into(), cpu["resource"]["target"]["averageUtilization"].clone());
    }
    if !others.is_empty() {
        keep.push((V2_METRICS, others.iter().map(|m| metric_to_v1(m, false)).collect()));
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        let current = status.shift_remove("currentMetrics").and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(cpu) = current.iter().find(|m| is_cpu_status(m)) {
            let percent = cpu["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        if !current.is_empty() {
            keep.push((V2_CURRENT, current.iter().map(|m| metric_to_v1(m, true)).collect()));
        }
        if let Some(conditions) = status.shift_remove("conditions") {
            keep.push((V2_CONDITIONS, conditions));
        }
    }
    for (name, kept) in keep {
        value["metadata"]["annotations"][name] = kept.to_string().into();
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

    #[test]
    fn what_v1_has_no_field_for_is_kept() {
        let hpa = by_kind("autoscaling", "v1", "HorizontalPodAutoscaler").unwrap();
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let external = json!({"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "5"}}});
        let object = json!({"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "q"}, "target": {"type": "Value", "value": "5"}}});
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [cpu, external, object], "behavior": {"scaleUp": {"selectPolicy": "Min"}}},
            "status": {"conditions": [{"type": "AbleToScale"}], "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "1m"}}}]},
        });
        let v1 = from_stored(hpa, v2.to_string().as_bytes()).unwrap();
        assert_eq!(v1["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(v1["status"], json!({"currentCPUUtilizationPercentage": 7}));
        let kept: Value = serde_json::from_str(v1["metadata"]["annotations"][V2_METRICS].as_str().unwrap()).unwrap();
        assert_eq!(
            kept[0]["external"],
            json!({"metricName": "q", "metricSelector": {"matchLabels": {"a": "b"}}, "targetAverageValue": "5"})
        );
        let mut back = to_stored(hpa, v1);
        back["metadata"].as_object_mut().unwrap().shift_remove("annotations");
        assert_eq!(back, v2);
    }
}
