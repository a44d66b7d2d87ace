//! Rules of what says where a pod may run: tolerations, affinity, spreading.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use crate::registry::{core::list, meta};

pub(super) fn validate_tolerations(spec: &Value, at: &str, faults: &mut Faults) {
    for (i, t) in spec["tolerations"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.tolerations[{i}]");
        let key = t["key"].as_str().unwrap_or_default();
        let operator = t["operator"].as_str().unwrap_or_default();
        let effect = t["effect"].as_str().unwrap_or_default();
        if !key.is_empty() {
            faults.rule(&format!("{here}.key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            faults.invalid(
                format!("{here}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !["", "Equal", "Exists", "Lt", "Gt"].contains(&operator) {
            faults.push(FieldError::not_supported(format!("{here}.operator"), operator, &["Equal", "Exists"]));
        }
        if operator == "Exists" && t["value"].as_str().is_some_and(|v| !v.is_empty()) {
            faults.invalid(
                format!("{here}.operator"),
                t["value"].clone(),
                "value must be empty when `operator` is 'Exists'",
            );
        }
        if !["", "NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            faults.push(FieldError::not_supported(
                format!("{here}.effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
        if t["tolerationSeconds"].is_i64() && effect != "NoExecute" {
            faults.invalid(
                format!("{here}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}

/// Rules of all kinds of affinity.
pub(super) fn validate_affinity(affinity: &Value, at: &str, faults: &mut Faults) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let nodes = &affinity["nodeAffinity"];
    if nodes[REQUIRED].is_object() {
        let here = format!("{at}.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
        let terms = list(&nodes[REQUIRED]["nodeSelectorTerms"]);
        if terms.is_empty() {
            faults.required(here.clone(), "must have at least one node selector term");
        }
        for (i, term) in terms.iter().enumerate() {
            validate_node_term(term, true, &format!("{here}[{i}]"), faults);
        }
    }
    for (i, term) in list(&nodes[PREFERRED]).iter().enumerate() {
        let here = format!("{at}.nodeAffinity.{PREFERRED}[{i}]");
        validate_weight(term, &here, faults);
        validate_node_term(&term["preference"], false, &format!("{here}.preference"), faults);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in list(&affinity[kind][REQUIRED]).iter().enumerate() {
            validate_pod_term(term, &format!("{at}.{kind}.{REQUIRED}[{i}]"), faults);
        }
        for (i, term) in list(&affinity[kind][PREFERRED]).iter().enumerate() {
            let here = format!("{at}.{kind}.{PREFERRED}[{i}]");
            validate_weight(term, &here, faults);
            validate_pod_term(&term["podAffinityTerm"], &format!("{here}.podAffinityTerm"), faults);
        }
    }
}

fn validate_weight(term: &Value, at: &str, faults: &mut Faults) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        faults.invalid(format!("{at}.weight"), weight, "must be in the range 1-100");
    }
}

/// `strict` ones have values that a label may have; upstream lets others pass where nothing depends on them.
fn validate_node_term(term: &Value, strict: bool, at: &str, faults: &mut Faults) {
    for (j, e) in list(&term["matchExpressions"]).iter().enumerate() {
        let path = format!("{at}.matchExpressions[{j}]");
        meta::operator(e, &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"], &path, faults);
        let key = e["key"].as_str().unwrap_or_default();
        faults.rule(&format!("{path}.key"), key, names::qualified_name(key));
        let values = list(&e["values"]).iter().filter_map(Value::as_str).enumerate();
        for (i, value) in values.filter(|_| strict) {
            faults.rule(&format!("{path}.values[{i}]"), value, names::label_value(value));
        }
    }
    for (j, e) in list(&term["matchFields"]).iter().enumerate() {
        let path = format!("{at}.matchFields[{j}]");
        match e["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if list(&e["values"]).len() == 1 => {}
            "In" | "NotIn" => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                faults.required(format!("{path}.values"), why);
            }
            other => faults.invalid(format!("{path}.operator"), other, "not a valid selector operator"),
        }
        if e["key"] != "metadata.name" {
            faults.invalid(format!("{path}.key"), e["key"].clone(), "not a valid field selector key");
        }
    }
}

fn validate_pod_term(term: &Value, at: &str, faults: &mut Faults) {
    for selector in ["labelSelector", "namespaceSelector"] {
        meta::label_selector(&term[selector], &format!("{at}.{selector}"), faults);
    }
    for name in list(&term["namespaces"]).iter().filter_map(Value::as_str) {
        faults.rule(&format!("{at}.namespace"), name, names::dns1123_label(name));
    }
    let key = term["topologyKey"].as_str().unwrap_or_default();
    if key.is_empty() {
        faults.required(format!("{at}.topologyKey"), "can not be empty");
    }
    faults.rule(&format!("{at}.topologyKey"), key, names::qualified_name(key));
}

/// Rules of spreading over topologies.
pub(super) fn validate_spread(constraints: &Value, at: &str, faults: &mut Faults) {
    let constraints = list(constraints);
    for (i, c) in constraints.iter().enumerate() {
        let here = format!("{at}[{i}]");
        let skew = c["maxSkew"].as_i64().unwrap_or(0);
        if skew < 1 {
            faults.invalid(format!("{here}.maxSkew"), skew, "must be greater than zero");
        }
        if c["topologyKey"].as_str().is_none_or(str::is_empty) {
            faults.required(format!("{here}.topologyKey"), "can not be empty");
        }
        let action = c["whenUnsatisfiable"].as_str().unwrap_or_default();
        faults.one_of(&format!("{here}.whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        let same = |other: &Value| other["topologyKey"] == c["topologyKey"] && other["whenUnsatisfiable"] == action;
        if constraints[i + 1..].iter().any(same) {
            let pair = format!("{{{}, {action}}}", c["topologyKey"].as_str().unwrap_or_default());
            faults.push(FieldError::duplicate(format!("{here}.{{topologyKey, whenUnsatisfiable}}"), pair));
        }
        if let Some(n) = c["minDomains"].as_i64() {
            let here = format!("{here}.minDomains");
            if n < 1 {
                faults.invalid(here.clone(), n, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                faults.invalid(here, n, why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(value) = c[policy].as_str() {
                faults.one_of(&format!("{here}.{policy}"), value, &["Honor", "Ignore"]);
            }
        }
        meta::label_selector(&c["labelSelector"], &format!("{here}.labelSelector"), faults);
    }
}
