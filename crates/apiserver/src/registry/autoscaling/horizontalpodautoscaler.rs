//! HorizontalPodAutoscaler, stored as `autoscaling/v2`.

use serde_json::{Value, json};
use skiff_api::{
    names,
    quantity::Quantity,
    validation::{Faults, FieldError},
};

use crate::registry::{
    strategy::{Strategy, col, int_col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults,
    validate,
    // Older ones without a group may stay.
    validate_create: |o, faults| {
        let version = o["spec"]["scaleTargetRef"]["apiVersion"].as_str().unwrap_or_default();
        if !version.contains('/') {
            faults.invalid("spec.scaleTargetRef.apiVersion", version, "apiVersion must specify API group");
        }
    },
    columns: &[
        name_col(),
        col("Reference"),
        col("Targets"),
        col("MinPods"),
        int_col("MaxPods"),
        int_col("Replicas"),
        col("Age"),
    ],
    row: |o| {
        let spec = in_v2(o);
        let target = &spec["scaleTargetRef"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        vec![
            o["metadata"]["name"].clone(),
            format!("{}/{}", text(&target["kind"]), text(&target["name"])).into(),
            targets(&spec["metrics"], &metrics_status(o)).into(),
            spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |n| n.to_string()).into(),
            table::int(&spec["maxReplicas"]),
            table::int(&o["status"]["currentReplicas"]),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

/// The utilization that is aimed at when nothing is said.
const DEFAULT_CPU_PERCENT: i64 = 80;

/// Rows are made of the version that was asked for; both show the same.
fn in_v2(o: &Value) -> Value {
    if o["apiVersion"] == "autoscaling/v1" {
        crate::convert::autoscaler_in_v2(o)["spec"].clone()
    } else {
        o["spec"].clone()
    }
}

fn metrics_status(o: &Value) -> Value {
    let o = if o["apiVersion"] == "autoscaling/v1" { crate::convert::autoscaler_in_v2(o) } else { o.clone() };
    o["status"]["currentMetrics"].clone()
}

fn defaults(o: &mut Value) {
    let Some(spec) = o["spec"].as_object_mut() else { return };
    spec.entry("minReplicas").or_insert_with(|| 1.into());
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let target = json!({"type": "Utilization", "averageUtilization": DEFAULT_CPU_PERCENT});
        spec.insert("metrics".into(), json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) else { return };
    let up = json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (direction, window, policies) in [("scaleUp", Some(0), up), ("scaleDown", None, down)] {
        let rules = behavior.entry(direction).or_insert_with(|| json!({}));
        let Some(rules) = rules.as_object_mut() else { continue };
        if let Some(seconds) = window {
            rules.entry("stabilizationWindowSeconds").or_insert_with(|| seconds.into());
        }
        rules.entry("selectPolicy").or_insert_with(|| "Max".into());
        rules.entry("policies").or_insert(policies);
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let min = spec["minReplicas"].as_i64();
    let max = spec["maxReplicas"].as_i64().unwrap_or(0);
    if let Some(min) = min.filter(|n| *n < 1) {
        faults.invalid("spec.minReplicas", min, "must be greater than or equal to 1");
    }
    match max {
        0 => faults.required("spec.maxReplicas", "must be set and greater than 0"),
        max if max < 0 => faults.invalid("spec.maxReplicas", max, "must be greater than or equal to 1"),
        _ => {}
    }
    if min.is_some_and(|min| min > max) {
        faults.invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`");
    }
    validate_reference(&spec["scaleTargetRef"], "spec.scaleTargetRef", faults);
    for (i, metric) in spec["metrics"].as_array().into_iter().flatten().enumerate() {
        validate_metric(metric, &format!("spec.metrics[{i}]"), faults);
    }
    for direction in ["scaleUp", "scaleDown"] {
        validate_rules(&spec["behavior"][direction], &format!("spec.behavior.{direction}"), faults);
    }
}

fn validate_reference(reference: &Value, at: &str, faults: &mut Faults) {
    for field in ["kind", "name"] {
        match reference[field].as_str() {
            None | Some("") => faults.required(format!("{at}.{field}"), ""),
            Some(text) => faults.rule(&format!("{at}.{field}"), text, names::path_segment(text)),
        }
    }
    if let Some(version) = reference["apiVersion"].as_str().filter(|v| v.matches('/').count() > 1) {
        faults.invalid(format!("{at}.apiVersion"), version, format!("unexpected GroupVersion string: {version}"));
    }
}

/// Types of metrics, and the field that each one fills.
const SOURCES: &[(&str, &str)] = &[
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn validate_metric(metric: &Value, at: &str, faults: &mut Faults) {
    let ty = metric["type"].as_str().unwrap_or_default();
    if ty.is_empty() {
        faults.required(format!("{at}.type"), "must specify a metric source type");
    }
    let Some((_, field)) = SOURCES.iter().find(|(name, _)| *name == ty) else {
        let supported: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
        faults.one_of(&format!("{at}.type"), ty, &supported);
        return;
    };
    for (_, other) in SOURCES {
        let given = !metric[*other].is_null();
        if other == field && !given {
            faults.required(format!("{at}.{field}"), "must populate information for the given metric source");
        } else if other != field && given {
            let why = "must populate the given metric source only";
            faults.push(FieldError::forbidden(format!("{at}.{other}"), why));
        }
    }
    let source = &metric[*field];
    if source.is_null() {
        return;
    }
    let at = format!("{at}.{field}");
    let target = &source["target"];
    validate_target(target, &format!("{at}.target"), faults);
    let has = |field: &str| !target[field].is_null();
    match *field {
        "resource" | "containerResource" => {
            if source["name"].as_str().is_none_or(str::is_empty) {
                faults.required(format!("{at}.name"), "must specify a resource name");
            }
            if *field == "containerResource" && source["container"].as_str().is_none_or(str::is_empty) {
                faults.required(format!("{at}.container"), "must specify a container");
            }
            if has("averageUtilization") && has("averageValue") {
                let why = "may not set both a target raw value and a target utilization";
                faults.push(FieldError::forbidden(format!("{at}.target.averageValue"), why));
            }
            if !has("averageUtilization") && !has("averageValue") {
                let why = "must set either a target raw value or a target utilization";
                faults.required(format!("{at}.target.averageUtilization"), why);
            }
        }
        "pods" => {
            validate_identifier(&source["metric"], &at, faults);
            if !has("averageValue") {
                faults.required(format!("{at}.target.averageValue"), "must specify a positive target averageValue");
            }
        }
        "object" => {
            validate_reference(&source["describedObject"], &format!("{at}.describedObject"), faults);
            validate_identifier(&source["metric"], &at, faults);
            if !has("value") && !has("averageValue") {
                let why = "must set either a target value or averageValue";
                faults.required(format!("{at}.target.averageValue"), why);
            }
        }
        _ => {
            validate_identifier(&source["metric"], &at, faults);
            if has("value") && has("averageValue") {
                let why = "may not set both a target value for metric and a per-pod target";
                faults.push(FieldError::forbidden(format!("{at}.target.value"), why));
            }
            if !has("value") && !has("averageValue") {
                let why = "must set either a target value for metric or a per-pod target";
                faults.required(format!("{at}.target.averageValue"), why);
            }
        }
    }
}

fn validate_identifier(metric: &Value, at: &str, faults: &mut Faults) {
    match metric["name"].as_str() {
        None | Some("") => faults.required(format!("{at}.metric.name"), "must specify a metric name"),
        Some(name) => faults.rule(&format!("{at}.metric.name"), name, names::path_segment(name)),
    }
}

fn validate_target(target: &Value, at: &str, faults: &mut Faults) {
    let ty = target["type"].as_str().unwrap_or_default();
    if ty.is_empty() {
        faults.required(format!("{at}.type"), "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&ty) {
        faults.invalid(format!("{at}.type"), ty, "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"] {
        let quantity = target[field].as_str().and_then(|q| q.parse::<Quantity>().ok());
        if quantity.is_some_and(|q| q.is_zero() || q.is_negative()) {
            faults.invalid(format!("{at}.{field}"), target[field].clone(), "must be positive");
        }
    }
    if let Some(percent) = target["averageUtilization"].as_i64().filter(|n| *n < 1) {
        faults.invalid(format!("{at}.averageUtilization"), percent, "must be greater than 0");
    }
}

fn validate_rules(rules: &Value, at: &str, faults: &mut Faults) {
    const LONGEST_WINDOW_S: i64 = 3600;
    const LONGEST_PERIOD_S: i64 = 1800;
    if !rules.is_object() {
        return;
    }
    if let Some(seconds) = rules["stabilizationWindowSeconds"].as_i64() {
        let field = format!("{at}.stabilizationWindowSeconds");
        if seconds < 0 {
            faults.invalid(field, seconds, "must be greater than or equal to zero");
        } else if seconds > LONGEST_WINDOW_S {
            faults.invalid(field, seconds, format!("must be less than or equal to {LONGEST_WINDOW_S}"));
        }
    }
    if let Some(select) = rules["selectPolicy"].as_str() {
        faults.one_of(&format!("{at}.selectPolicy"), select, &["Disabled", "Max", "Min"]);
    }
    if let Some(tolerance) = rules["tolerance"].as_str()
        && tolerance.parse::<Quantity>().is_ok_and(|q| q.is_negative())
    {
        faults.invalid(format!("{at}.tolerance"), tolerance, "must be greater or equal to zero");
    }
    let policies = rules["policies"].as_array().map(Vec::as_slice).unwrap_or_default();
    if policies.is_empty() {
        faults.required(format!("{at}.policies"), "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let at = format!("{at}.policies[{i}]");
        faults.one_of(&format!("{at}.type"), policy["type"].as_str().unwrap_or_default(), &["Percent", "Pods"]);
        for field in ["value", "periodSeconds"] {
            let number = policy[field].as_i64().unwrap_or(0);
            if number <= 0 {
                faults.invalid(format!("{at}.{field}"), number, "must be greater than zero");
            } else if field == "periodSeconds" && number > LONGEST_PERIOD_S {
                faults.invalid(
                    format!("{at}.{field}"),
                    number,
                    format!("must be less than or equal to {LONGEST_PERIOD_S}"),
                );
            }
        }
    }
}

/// The column of targets: `cpu: 3%/80%`, with at most two metrics.
fn targets(metrics: &Value, status: &Value) -> String {
    const SHOWN: usize = 2;
    let metrics = metrics.as_array().map(Vec::as_slice).unwrap_or_default();
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<String> =
        metrics.iter().enumerate().take(SHOWN).map(|(i, metric)| target(metric, status.get(i))).collect();
    let shown = shown.join(", ");
    match metrics.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn target(metric: &Value, status: Option<&Value>) -> String {
    let Some((_, field)) = SOURCES.iter().find(|(name, _)| metric["type"] == *name) else {
        return "<unknown type>".to_owned();
    };
    let source = &metric[*field];
    let current = |of: &str| match status.map(|s| &s[*field]["current"][of]) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => format!("{n}%"),
        _ => "<unknown>".to_owned(),
    };
    let wanted = |of: &str| source["target"][of].as_str().unwrap_or_default().to_owned();
    let per_pod = !source["target"]["averageValue"].is_null();
    match *field {
        "resource" | "containerResource" => {
            let name = source["name"].as_str().unwrap_or_default();
            if per_pod {
                return format!("{name}: {}/{}", current("averageValue"), wanted("averageValue"));
            }
            let percent = source["target"]["averageUtilization"].as_i64();
            let percent = percent.map_or_else(|| "<auto>".to_owned(), |n| format!("{n}%"));
            format!("{name}: {}/{percent}", current("averageUtilization"))
        }
        "pods" => format!("{}/{}", current("averageValue"), wanted("averageValue")),
        _ if per_pod => format!("{}/{} (avg)", current("averageValue"), wanted("averageValue")),
        _ => format!("{}/{}", current("value"), wanted("value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(&json!({"spec": spec}), &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    fn spec() -> Value {
        json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}})
    }

    #[test]
    fn defaults_are_upstreams() {
        let mut o = json!({"spec": spec()});
        defaults(&mut o);
        assert_eq!(o["spec"]["minReplicas"], 1);
        assert_eq!(o["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(o["spec"]["behavior"].is_null());
        o["spec"]["behavior"] = json!({"scaleDown": {"stabilizationWindowSeconds": 5}});
        defaults(&mut o);
        let behavior = &o["spec"]["behavior"];
        assert_eq!(behavior["scaleUp"]["policies"][0], json!({"type": "Pods", "value": 4, "periodSeconds": 15}));
        assert_eq!(behavior["scaleDown"]["stabilizationWindowSeconds"], 5);
        assert_eq!(behavior["scaleDown"]["selectPolicy"], "Max");
        assert_eq!(faults(o["spec"].clone()), [""; 0]);
    }

    #[test]
    fn faults_are_upstreams() {
        let mut bad = spec();
        bad["minReplicas"] = 5.into();
        assert_eq!(
            faults(bad.clone()),
            ["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]
        );
        bad["maxReplicas"] = 0.into();
        assert_eq!(faults(bad)[0], "spec.maxReplicas: Required value: must be set and greater than 0");
        let mut bad = spec();
        bad["scaleTargetRef"] = json!({});
        bad["metrics"] = json!([
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}},
            {"type": "Pods", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 1}}},
            {},
        ]);
        bad["behavior"] = json!({"scaleUp": {"policies": []}});
        assert_eq!(
            faults(bad),
            [
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Required value",
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
                "spec.metrics[1].pods: Required value: must populate information for the given metric source",
                "spec.metrics[1].resource: Forbidden: must populate the given metric source only",
                "spec.metrics[2].type: Required value: must specify a metric source type",
                "spec.metrics[2].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
                "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy",
            ]
        );
    }

    #[test]
    fn targets_are_shown() {
        let mut o = json!({"metadata": {"name": "h"}, "spec": spec(), "status": {"currentReplicas": 2}});
        defaults(&mut o);
        let row = (STRATEGY.row)(&o);
        assert_eq!(
            row[..6],
            [json!("h"), json!("Deployment/d"), json!("cpu: <unknown>/80%"), json!("1"), json!(3), json!(2)]
        );
        o["status"]["currentMetrics"] = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 0, "averageValue": "1m"}}}]);
        assert_eq!((STRATEGY.row)(&o)[2], "cpu: 0%/80%");
        let pods = json!({"type": "Pods", "pods": {"metric": {"name": "x"}, "target": {"type": "AverageValue", "averageValue": "5"}}});
        let metrics = json!([o["spec"]["metrics"][0], pods, pods]);
        assert_eq!(targets(&metrics, &Value::Null), "cpu: <unknown>/80%, <unknown>/5 + 1 more...");
    }
}
