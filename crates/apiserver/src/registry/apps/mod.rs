//! The workloads of `apps`.

pub(crate) mod daemonset;
pub(crate) mod deployment;
pub(crate) mod replicaset;
pub(crate) mod statefulset;

use serde_json::{Map, Value};
use skiff_api::validation::{Faults, FieldError};

use super::{core::pod_spec, meta};

/// Defaults of a workload: its own, given its spec, and those of its pods' template.
pub(crate) fn workload_defaults(o: &mut Value, own: impl FnOnce(&mut Value)) {
    let spec = &mut o["spec"];
    if !spec.is_object() {
        return;
    }
    own(spec);
    if spec["template"].is_object() {
        pod_spec::template_defaults(&mut spec["template"]);
    }
}

/// Rules that all workloads with a selector and a template share.
pub(crate) fn validate_workload(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let kind = o["kind"].as_str().unwrap_or_default();
    if spec["replicas"].is_i64() {
        faults.non_negative("spec.replicas", spec["replicas"].as_i64().unwrap_or(0));
    }
    let right = validate_selector(&spec["selector"], "spec.selector", kind, faults);
    faults.non_negative("spec.minReadySeconds", spec["minReadySeconds"].as_i64().unwrap_or(0));
    if let Some(n) = spec["revisionHistoryLimit"].as_i64() {
        faults.non_negative("spec.revisionHistoryLimit", n);
    }
    if right {
        pod_spec::validate_template(&spec["template"], &spec["selector"], faults);
        validate_lives_forever(&spec["template"], kind, faults);
    }
}

/// Pods of workloads without end have neither a deadline nor another restart policy than `Always`.
pub(crate) fn validate_lives_forever(template: &Value, kind: &str, faults: &mut Faults) {
    pod_spec::validate_always_restarts(template, faults);
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let kind = if kind == "Deployment" { "ReplicaSet" } else { kind };
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        faults.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

/// A selector must be there, be right and select something in particular. False if it is not right, so that nothing
/// can be compared with it.
pub(crate) fn validate_selector(selector: &Value, at: &str, kind: &str, faults: &mut Faults) -> bool {
    // Upstream does not ask DaemonSets for one; their templates fit to none.
    if !selector.is_object() {
        if kind != "DaemonSet" {
            faults.required(at, "");
        }
        return true;
    }
    let before = faults.0.len();
    meta::label_selector(selector, at, faults);
    let right = faults.0.len() == before;
    let empty = |field: &str| selector[field].as_object().is_none_or(Map::is_empty);
    if empty("matchLabels") && selector["matchExpressions"].as_array().is_none_or(Vec::is_empty) {
        let why = format!("empty selector is invalid for {}", kind.to_ascii_lowercase());
        faults.invalid(at, selector.clone(), why);
    }
    if !right && kind != "DaemonSet" {
        let why = if kind == "StatefulSet" { "" } else { "invalid label selector" };
        faults.invalid(at, selector.clone(), why);
    }
    right
}

/// Rules for the status of what has replicas: no count is negative, none exceeds the total.
pub(crate) fn validate_replica_status(new: &Value, _: &Value, faults: &mut Faults) {
    let status = &new["status"];
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    const PARTS: [&str; 6] = [
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "currentReplicas",
        "updatedReplicas",
        "observedGeneration",
    ];
    for field in ["replicas"].iter().chain(&PARTS) {
        faults.non_negative(&format!("status.{field}"), count(field));
    }
    for field in &PARTS[..5] {
        if count(field) > count("replicas") {
            faults.invalid(format!("status.{field}"), count(field), "cannot be greater than status.replicas");
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let why = "cannot be greater than readyReplicas";
        faults.invalid("status.availableReplicas", count("availableReplicas"), why);
    }
}

/// A number, or a share such as `25%`, as upstream checks it.
pub(crate) fn validate_int_or_percent(value: &Value, at: &str, faults: &mut Faults) -> Option<i64> {
    match value {
        Value::String(s) => {
            let n = s.strip_suffix('%').and_then(|n| n.parse::<i64>().ok());
            if n.is_none() {
                faults.invalid(at, s.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
            }
            n
        }
        v => {
            let n = v.as_i64()?;
            faults.non_negative(at, n);
            Some(n)
        }
    }
}

/// [`validate_int_or_percent`] of what cannot be more than all.
pub(crate) fn validate_part(value: &Value, at: &str, faults: &mut Faults) -> Option<i64> {
    let n = validate_int_or_percent(value, at, faults);
    if value.is_string() && n.is_some_and(|n| n > 100) {
        faults.invalid(at, value.clone(), "must not be greater than 100%");
    }
    n
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
