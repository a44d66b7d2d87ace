//! Rules, selectors and conditions, which webhooks and policies share: their defaults and what is wrong with them.

use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Fault, Faults, FieldError},
};

use crate::{
    cel,
    registry::core::{default_field, each},
};

/// Most conditions of one webhook or policy.
const MAX_CONDITIONS: usize = 64;

/// What rules and selectors are when nothing is said of them.
pub(super) fn match_defaults(constraints: &mut Value) {
    if !constraints.is_object() {
        return;
    }
    default_field(constraints, "matchPolicy", "Equivalent");
    default_field(constraints, "namespaceSelector", json!({}));
    default_field(constraints, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules", "rules"] {
        for rule in each(constraints, list) {
            default_field(rule, "scope", "*");
        }
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// `matchConstraints` or `matchResources` of a policy.
pub(super) fn match_resources(constraints: &Value, at: &str, faults: &mut Faults) {
    if !constraints.is_object() {
        return;
    }
    selectors(constraints, at, faults);
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in constraints[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{at}.{list}[{i}]");
            let mut seen = Vec::new();
            for (j, name) in texts(&rule["resourceNames"]).into_iter().enumerate() {
                let at = format!("{at}.resourceNames[{j}]");
                faults.rule(&at, name, names::path_segment(name));
                if seen.contains(&name) {
                    faults.push(FieldError::duplicate(at, name));
                }
                seen.push(name);
            }
            self::rule(rule, &at, faults);
        }
    }
}

/// `matchPolicy` and the two selectors.
pub(super) fn selectors(of: &Value, at: &str, faults: &mut Faults) {
    if let Some(policy) = of["matchPolicy"].as_str() {
        faults.one_of(&format!("{at}.matchPolicy"), policy, &["Equivalent", "Exact"]);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        selector(&of[field], &format!("{at}.{field}"), faults);
    }
}

/// A label selector.
fn selector(selector: &Value, at: &str, faults: &mut Faults) {
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        let at = format!("{at}.matchLabels");
        faults.rule(&at, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        faults.rule(&at, value, names::label_value(value));
    }
    for (i, expression) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        let values = texts(&expression["values"]);
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values.is_empty() => {
                faults.required(format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.push(FieldError::forbidden(format!("{at}.values"), why));
            }
            "Exists" | "DoesNotExist" => {}
            other => faults.invalid(format!("{at}.operator"), other, "not a valid selector operator"),
        }
        let key = expression["key"].as_str().unwrap_or_default();
        faults.rule(&format!("{at}.key"), key, names::qualified_name(key));
        for (j, value) in values.into_iter().enumerate() {
            faults.rule(&format!("{at}.values[{j}]"), value, names::label_value(value));
        }
    }
}

/// A rule of operations and resources.
pub(super) fn rule(rule: &Value, at: &str, faults: &mut Faults) {
    let operations = texts(&rule["operations"]);
    alone(&operations, &rule["operations"], &format!("{at}.operations"), "operations", faults);
    for (i, operation) in operations.iter().enumerate() {
        let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        faults.one_of(&format!("{at}.operations[{i}]"), operation, &known);
    }
    let groups = texts(&rule["apiGroups"]);
    alone(&groups, &rule["apiGroups"], &format!("{at}.apiGroups"), "API groups", faults);
    let versions = texts(&rule["apiVersions"]);
    alone(&versions, &rule["apiVersions"], &format!("{at}.apiVersions"), "API versions", faults);
    for (i, _) in versions.iter().enumerate().filter(|(_, v)| v.is_empty()) {
        faults.required(format!("{at}.apiVersions[{i}]"), "");
    }
    resources(&rule["resources"], &format!("{at}.resources"), faults);
    if let Some(scope) = rule["scope"].as_str() {
        faults.one_of(&format!("{at}.scope"), scope, &["*", "Cluster", "Namespaced"]);
    }
}

/// A list that must not be empty, and in which `*` stands alone.
fn alone(list: &[&str], shown: &Value, at: &str, what: &str, faults: &mut Faults) {
    if list.is_empty() {
        faults.required(at, "");
    } else if list.len() > 1 && list.contains(&"*") {
        faults.invalid(at, shown.clone(), format!("if '*' is present, must not specify other {what}"));
    }
}

fn resources(list: &Value, at: &str, faults: &mut Faults) {
    let given = texts(list);
    if given.is_empty() {
        faults.required(at, "");
    }
    let (mut with_all_subresources, mut of_all_resources) = (Vec::new(), Vec::new());
    for (i, resource) in given.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if resource.is_empty() {
            faults.required(at, "");
            continue;
        }
        let Some((name, sub)) = resource.split_once('/') else { continue };
        if with_all_subresources.contains(&name) {
            let why = format!("if '{name}/*' is present, must not specify {resource}");
            faults.invalid(at.clone(), *resource, why);
        }
        if of_all_resources.contains(&sub) {
            faults.invalid(at, *resource, format!("if '*/{sub}' is present, must not specify {resource}"));
        }
        if sub == "*" {
            with_all_subresources.push(name);
        }
        if name == "*" {
            of_all_resources.push(sub);
        }
    }
    if given.len() > 1 && given.contains(&"*/*") {
        faults.invalid(at, list.clone(), "if '*/*' is present, must not specify other resources");
    }
    if given.contains(&"*") && given.iter().any(|r| *r != "*" && !r.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        faults.invalid(at, list.clone(), why);
    }
}

/// `matchConditions`.
pub(super) fn conditions(conditions: &Value, at: &str, variables: &[&str], faults: &mut Faults) {
    let list = conditions.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.len() > MAX_CONDITIONS {
        let why = format!("must have at most {MAX_CONDITIONS} items");
        faults.push(FieldError::new(Fault::TooMany, at, list.len(), why));
    }
    let mut seen = Vec::new();
    for (i, condition) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        expression(condition, "expression", &at, "", variables, faults);
        let name = condition["name"].as_str().unwrap_or_default();
        let at = format!("{at}.name");
        if name.is_empty() {
            faults.required(at, "");
            continue;
        }
        faults.rule(&at, name, names::qualified_name(name));
        if seen.contains(&name) {
            faults.push(FieldError::duplicate(at, name));
        }
        seen.push(name);
    }
}

/// An expression over these variables; `missing` is said of one that is not there.
pub(super) fn expression(of: &Value, field: &str, at: &str, missing: &str, variables: &[&str], faults: &mut Faults) {
    let text = of[field].as_str().unwrap_or_default();
    let at = format!("{at}.{field}");
    if text.trim().is_empty() {
        faults.required(at, missing);
    } else if let Some(fault) = cel::fault(text, variables) {
        faults.invalid(at, text, fault);
    }
}
