//! The workloads of `apps`.

pub(crate) mod daemonset;
pub(crate) mod deployment;
pub(crate) mod replicaset;
pub(crate) mod statefulset;

use serde_json::Value;
use skiff_api::{selector::LabelSelector, validation::Faults};

use super::core::pod_spec;

/// Rules that all workloads with a selector and a template share.
pub(crate) fn validate_workload(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    if spec["replicas"].is_i64() {
        faults.non_negative("spec.replicas", spec["replicas"].as_i64().unwrap_or(0));
    }
    validate_selector(&spec["selector"], "spec.selector", faults);
    faults.non_negative("spec.minReadySeconds", spec["minReadySeconds"].as_i64().unwrap_or(0));
    if let Some(n) = spec["revisionHistoryLimit"].as_i64() {
        faults.non_negative("spec.revisionHistoryLimit", n);
    }
    pod_spec::validate_template(&spec["template"], &spec["selector"], faults);
    pod_spec::validate_always_restarts(&spec["template"], faults);
}

/// A selector must be there and select something in particular.
pub(crate) fn validate_selector(selector: &Value, at: &str, faults: &mut Faults) {
    if !selector.is_object() {
        faults.required(at, "");
        return;
    }
    match LabelSelector::from_value(selector) {
        Ok(s) if s.is_empty() => {
            faults.invalid(at, selector.clone(), "empty selector is invalid for deployment");
        }
        Ok(_) => {}
        Err(e) => faults.invalid(at, selector.clone(), e.to_string()),
    }
}

/// Fields that never change after creation.
pub(crate) fn immutable(new: &Value, old: &Value, field: &str, faults: &mut Faults) {
    let (mut n, mut o) = (&new["spec"], &old["spec"]);
    for part in field.split('.') {
        n = &n[part];
        o = &o[part];
    }
    if n != o {
        faults.invalid(format!("spec.{field}"), n.clone(), "field is immutable");
    }
}
