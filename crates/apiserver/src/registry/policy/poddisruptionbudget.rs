//! PodDisruptionBudget.

use serde_json::{Value, json};
use skiff_api::validation::Faults;

use crate::registry::{
    apps::validate_part,
    meta,
    strategy::{Strategy, col, int_col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    unconditional_update: false,
    prepare_create: |o| {
        o["status"] = json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    },
    validate,
    validate_status: |new, _, faults| {
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            faults.non_negative(&format!("status.{field}"), new["status"][field].as_i64().unwrap_or(0));
        }
    },
    columns: &[name_col(), col("Min Available"), col("Max Unavailable"), int_col("Allowed Disruptions"), col("Age")],
    row: |o| {
        let limit = |field: &str| match &o["spec"][field] {
            Value::Null => "N/A".into(),
            Value::String(s) => s.as_str().into(),
            n => Value::String(n.to_string()),
        };
        vec![
            o["metadata"]["name"].clone(),
            limit("minAvailable"),
            limit("maxUnavailable"),
            table::int(&o["status"]["disruptionsAllowed"]),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        faults.invalid("spec", spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        validate_part(&spec[field], &format!("spec.{field}"), faults);
    }
    meta::label_selector(&spec["selector"], "spec.selector", faults);
    if let Some(policy) = spec["unhealthyPodEvictionPolicy"].as_str() {
        faults.one_of("spec.unhealthyPodEvictionPolicy", policy, &["AlwaysAllow", "IfHealthyBudget"]);
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

    #[test]
    fn faults_are_upstreams() {
        assert_eq!(faults(json!({"minAvailable": 1, "selector": {}})), [""; 0]);
        assert!(faults(json!({"minAvailable": 1, "maxUnavailable": 1}))[0].ends_with("cannot be both set"));
        assert_eq!(
            faults(json!({"minAvailable": "101%"})),
            ["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"]
        );
        assert_eq!(
            faults(json!({"maxUnavailable": -1})),
            ["spec.maxUnavailable: Invalid value: -1: must be greater than or equal to 0"]
        );
    }

    #[test]
    fn columns() {
        let row = (STRATEGY.row)(&json!({"metadata": {"name": "b"}, "spec": {"minAvailable": "50%"}}));
        assert_eq!(row[1..4], [json!("50%"), json!("N/A"), json!(0)]);
    }
}
