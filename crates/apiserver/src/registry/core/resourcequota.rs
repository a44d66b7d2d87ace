//! ResourceQuota. What it counts is in `crate::quota`.

use serde_json::Value;
use skiff_api::{
    names,
    quantity::Quantity,
    validation::{Faults, FieldError},
};

use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    validate: |o, faults| validate_spec(&o["spec"], faults),
    validate_update: |new, old, faults| {
        if new["spec"]["scopes"] != old["spec"]["scopes"] {
            faults.invalid("spec.scopes", new["spec"]["scopes"].clone(), "field is immutable");
        }
    },
    validate_status: |new, _, faults| {
        for list in ["hard", "used"] {
            for (name, quantity) in new["status"][list].as_object().into_iter().flatten() {
                validate_amount(name, quantity, &format!("status.{list}[{name}]"), faults);
            }
        }
    },
    columns: &[name_col(), col("Request"), col("Limit"), col("Age")],
    row: |o| {
        let status = &o["status"];
        let mut names: Vec<&String> = status["hard"].as_object().into_iter().flat_map(|m| m.keys()).collect();
        names.sort();
        let shown = |limits: bool| {
            let of = names.iter().filter(|name| name.starts_with("limits.") == limits).map(|name| {
                let text = |list: &str| status[list][name.as_str()].as_str().unwrap_or("0").to_owned();
                format!("{name}: {}/{}", text("used"), text("hard"))
            });
            of.collect::<Vec<_>>().join(", ")
        };
        vec![o["metadata"]["name"].clone(), shown(false).into(), shown(true).into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};

/// Amounts that quotas know, of resources without a group.
const AMOUNTS: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
/// And what is counted: there are whole ones alone.
const COUNTS: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

fn is_standard(name: &str) -> bool {
    [AMOUNTS, COUNTS].iter().any(|names| names.contains(&name))
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

fn validate_name(name: &str, at: &str, faults: &mut Faults) {
    let before = faults.0.len();
    faults.rule(at, name, names::qualified_name(name));
    if faults.0.len() == before && !name.contains('/') && !is_standard(name) {
        faults.invalid(at, name, "must be a standard resource for quotas");
    }
}

fn validate_amount(name: &str, quantity: &Value, at: &str, faults: &mut Faults) {
    validate_name(name, at, faults);
    let Some(amount) = quantity.as_str().and_then(|q| q.parse::<Quantity>().ok()) else { return };
    if amount.is_negative() {
        faults.invalid(at, quantity.clone(), "must be greater than or equal to 0");
    }
    if (COUNTS.contains(&name) || name.starts_with("count/")) && !amount.is_whole() {
        faults.invalid(at, quantity.clone(), "must be an integer");
    }
}

/// Whether a quota of this scope can limit this.
fn fits(scope: &str, name: &str) -> bool {
    const COMPUTE: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    match scope {
        "BestEffort" => ["pods", "count/pods"].contains(&name),
        "VolumeAttributesClass" => {
            ["persistentvolumeclaims", "count/persistentvolumeclaims", "requests.storage"].contains(&name)
                || name.contains(".storageclass.storage.k8s.io/")
        }
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            COMPUTE.contains(&name)
                || ["pods", "count/pods", "ephemeral-storage"].contains(&name)
                || name.ends_with(".ephemeral-storage")
                || (name.starts_with("requests.") && name != "requests.storage")
        }
        _ => true,
    }
}

fn validate_spec(spec: &Value, faults: &mut Faults) {
    let hard: Vec<(&String, &Value)> = spec["hard"].as_object().into_iter().flatten().collect();
    for (name, quantity) in &hard {
        validate_amount(name, quantity, &format!("spec.hard[{name}]"), faults);
    }
    let scopes: Vec<&str> = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    validate_scopes(&scopes, &hard, "spec.scopes", spec["scopes"].clone(), faults);
    let expressions = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    for (i, expression) in expressions.enumerate() {
        let at = format!("spec.scopeSelector.matchExpressions[{i}]");
        let scope = expression["scopeName"].as_str().unwrap_or_default();
        let operator = expression["operator"].as_str().unwrap_or_default();
        let values = expression["values"].as_array().map_or(0, Vec::len);
        if !SCOPES.contains(&scope) {
            faults.invalid(format!("{at}.scopeName"), scope, "unsupported scope");
        }
        if !["PriorityClass", "VolumeAttributesClass"].contains(&scope) && operator != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            faults.invalid(format!("{at}.operator"), operator, why);
        }
        match operator {
            "In" | "NotIn" if values == 0 => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                faults.required(format!("{at}.values"), why);
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                faults.invalid(format!("{at}.values"), expression["values"].clone(), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => faults.invalid(format!("{at}.operator"), operator, "not a valid selector operator"),
        }
        for _ in hard.iter().filter(|(name, _)| !fits(scope, name)) {
            faults.invalid("spec.scopeSelector.matchExpressions", scope, "unsupported scope applied to resource");
        }
    }
}

fn validate_scopes(scopes: &[&str], hard: &[(&String, &Value)], at: &str, value: Value, faults: &mut Faults) {
    for scope in scopes {
        if !SCOPES.contains(scope) {
            faults.invalid(at, value.clone(), "unsupported scope");
        }
        if hard.iter().any(|(name, _)| !fits(scope, name)) {
            faults.invalid(at, value.clone(), "unsupported scope applied to resource");
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            faults.push(FieldError::invalid(at, value.clone(), "conflicting scopes"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate_spec(&spec, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_are_upstreams() {
        let good = json!({"hard": {"requests.cpu": "10", "count/deployments.apps": "3", "requests.nvidia.com/gpu": "1",
            "gold.storageclass.storage.k8s.io/requests.storage": "5Gi"}});
        assert_eq!(faults(good), [""; 0]);
        assert_eq!(
            faults(json!({"hard": {"podz": "1", "pods": "1500m", "cpu": "-1"}})),
            [
                "spec.hard[podz]: Invalid value: \"podz\": must be a standard resource for quotas",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ]
        );
        let scopes = faults(json!({"hard": {"secrets": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}));
        assert!(scopes.iter().any(|f| f.ends_with("unsupported scope applied to resource")), "{scopes:?}");
        assert!(scopes.iter().any(|f| f.ends_with("conflicting scopes")), "{scopes:?}");
    }

    #[test]
    fn columns() {
        let o = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "2", "limits.cpu": "4", "cpu": "2"},
            "used": {"pods": "1", "limits.cpu": "1", "cpu": "500m"}}});
        let row = (STRATEGY.row)(&o);
        assert_eq!(row[1..3], [json!("cpu: 500m/2, pods: 1/2"), json!("limits.cpu: 1/4")]);
    }
}
