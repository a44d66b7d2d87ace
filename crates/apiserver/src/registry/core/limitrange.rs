//! LimitRange. What it does to pods and claims is in `crate::admission::limit_ranger`.

use serde_json::{Map, Value};
use skiff_api::{
    names,
    quantity::Quantity,
    validation::{Faults, FieldError},
};

use super::each;
use crate::registry::strategy::{Column, Strategy, name_col};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| each(&mut o["spec"], "limits").filter(|l| l["type"] == "Container").for_each(item_defaults),
    validate: |o, faults| validate_limits(&o["spec"]["limits"], faults),
    columns: &[name_col(), Column { name: "Created At", ty: "date", format: "", priority: 0 }],
    ..Strategy::DEFAULT
};

fn list<'a>(limit: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    limit[name].as_object().into_iter().flatten()
}

/// What is not said of the default follows from what is: the limit from the maximum, the request from the limit or
/// the minimum.
fn item_defaults(limit: &mut Value) {
    let mut default: Map<String, Value> = limit["default"].as_object().cloned().unwrap_or_default();
    for (name, quantity) in list(limit, "max") {
        default.entry(name.clone()).or_insert_with(|| quantity.clone());
    }
    let mut request: Map<String, Value> = limit["defaultRequest"].as_object().cloned().unwrap_or_default();
    for (name, quantity) in default.iter().chain(list(limit, "min")) {
        request.entry(name.clone()).or_insert_with(|| quantity.clone());
    }
    for (field, map) in [("default", default), ("defaultRequest", request)] {
        if !map.is_empty() {
            limit[field] = map.into();
        }
    }
}

fn validate_limits(limits: &Value, faults: &mut Faults) {
    const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    const TYPES: &[&str] = &["Pod", "Container", "PersistentVolumeClaim"];
    let mut seen: Vec<&str> = Vec::new();
    for (i, limit) in limits.as_array().into_iter().flatten().enumerate() {
        let at = format!("spec.limits[{i}]");
        let ty = limit["type"].as_str().unwrap_or_default();
        faults.rule(&format!("{at}.type"), ty, names::qualified_name(ty));
        if !ty.is_empty() && !ty.contains('/') && !TYPES.contains(&ty) {
            faults.invalid(format!("{at}.type"), ty, "must be a standard limit type or fully qualified");
        }
        if seen.contains(&ty) {
            faults.push(FieldError::duplicate(format!("{at}.type"), ty));
        }
        seen.push(ty);
        for field in LISTS {
            for (name, _) in list(limit, field) {
                let at = format!("{at}.{field}[{name}]");
                faults.rule(&at, name, names::qualified_name(name));
                if !name.contains('/') && !is_standard(name) {
                    faults.invalid(at, name.as_str(), "must be a standard resource type or fully qualified");
                }
            }
        }
        if ty == "Pod" {
            for field in ["default", "defaultRequest"] {
                if list(limit, field).next().is_some() {
                    let why = "may not be specified when `type` is 'Pod'";
                    faults.push(FieldError::forbidden(format!("{at}.{field}"), why));
                }
            }
        }
        if ty == "PersistentVolumeClaim" && limit["min"]["storage"].is_null() && limit["max"]["storage"].is_null() {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            faults.required(format!("{at}.limits"), why);
        }
        validate_order(limit, &at, faults);
    }
}

fn is_standard(name: &str) -> bool {
    ["cpu", "memory", "storage", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-")
}

/// The amounts of each resource must be in order.
fn validate_order(limit: &Value, at: &str, faults: &mut Faults) {
    let amount = |field: &str, name: &str| limit[field][name].as_str()?.parse::<Quantity>().ok();
    let mut names: Vec<&String> = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        .iter()
        .flat_map(|f| list(limit, f))
        .map(|(n, _)| n)
        .collect();
    names.sort();
    names.dedup();
    // The field that is blamed, and its value, are those of the smaller side.
    let order = [
        ("min", "max", "min", "min value {a} is greater than max value {b}"),
        ("min", "defaultRequest", "defaultRequest", "min value {a} is greater than default request value {b}"),
        ("defaultRequest", "max", "defaultRequest", "default request value {a} is greater than max value {b}"),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "default request value {a} is greater than default limit value {b}",
        ),
        ("min", "default", "default", "min value {a} is greater than default value {b}"),
        ("default", "max", "default", "default value {a} is greater than max value {b}"),
    ];
    for name in names {
        for (low, high, blamed, text) in order {
            if let (Some(a), Some(b)) = (amount(low, name), amount(high, name))
                && a > b
            {
                let value = if blamed == low { a } else { b };
                let text = text.replace("{a}", &a.to_string()).replace("{b}", &b.to_string());
                faults.invalid(format!("{at}.{blamed}[{name}]"), value.to_string(), text);
            }
        }
        let Some(ratio) = amount("maxLimitRequestRatio", name) else { continue };
        let blamed = format!("{at}.maxLimitRequestRatio[{name}]");
        if ratio < Quantity::from_units(1) {
            faults.invalid(blamed.as_str(), ratio.to_string(), format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (amount("min", name), amount("max", name)) {
            let most = max.millis() as f64 / min.millis() as f64;
            if ratio.millis() as f64 / 1000.0 > most {
                let text = format!("ratio {ratio} is greater than max/min = {most:.6}");
                faults.invalid(blamed, ratio.to_string(), text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_follow_from_the_limits() {
        let mut o = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"memory": "4Mi"}},
            {"type": "Pod", "max": {"cpu": "2"}},
        ]}});
        (STRATEGY.defaults)(&mut o);
        let limits = &o["spec"]["limits"];
        assert_eq!(limits[0]["default"], json!({"memory": "4Mi", "cpu": "2"}));
        assert_eq!(limits[0]["defaultRequest"], json!({"memory": "4Mi", "cpu": "2"}));
        assert!(limits[1]["default"].is_null());
    }

    #[test]
    fn faults_are_upstreams() {
        let mut faults = Faults::default();
        let limits = json!([
            {"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"}},
            {"type": "Pod", "default": {"cpu": "1"}},
            {"type": "Pod"},
            {"type": "PersistentVolumeClaim"},
        ]);
        validate_limits(&limits, &mut faults);
        let texts: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[2].type: Duplicate value: \"Pod\"",
                "spec.limits[3].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ]
        );
    }
}
