//! ValidatingAdmissionPolicyBinding.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::matching::{self, match_defaults};
use crate::registry::{
    core::object_mut,
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults,
    validate,
    columns: &[name_col(), col("PolicyName"), col("ParamRef"), col("Age")],
    row,
    ..Strategy::DEFAULT
};

/// Fills in what a binding of either kind leaves out.
pub(super) fn defaults(o: &mut Value) {
    let spec = object_mut(o, "spec");
    if let Some(resources) = spec.get_mut("matchResources") {
        match_defaults(resources);
    }
}

pub(super) fn row(o: &Value) -> Vec<Value> {
    let reference = &o["spec"]["paramRef"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let param = match (reference.is_object(), reference["name"].as_str()) {
        (false, _) => "<unset>".to_owned(),
        (_, Some(name)) => match text(&reference["namespace"]) {
            namespace if namespace.is_empty() => format!("*/{name}"),
            namespace => format!("{namespace}/{name}"),
        },
        _ => "*".to_owned(),
    };
    vec![o["metadata"]["name"].clone(), o["spec"]["policyName"].clone(), param.into(), table::created(o)]
}

/// Checks what bindings of both kinds have.
pub(super) fn validate_binding(spec: &Value, faults: &mut Faults) {
    match spec["policyName"].as_str() {
        Some(name) if !name.is_empty() => faults.rule("spec.policyName", name, names::dns1123_subdomain(name)),
        _ => faults.required("spec.policyName", ""),
    }
    let reference = &spec["paramRef"];
    if reference.is_object() {
        let name = reference["name"].as_str().unwrap_or_default();
        let selector = &reference["selector"];
        if !name.is_empty() {
            faults.rule("spec.paramRef.name", name, names::path_segment(name));
        }
        match (name.is_empty(), selector.is_object()) {
            (false, true) => {
                for field in ["name", "selector"] {
                    let why = "name and selector are mutually exclusive";
                    faults.push(FieldError::forbidden(format!("spec.paramRef.{field}"), why));
                }
            }
            (true, false) => faults.required("spec.paramRef", "one of name or selector must be specified"),
            _ => {}
        }
        match reference["parameterNotFoundAction"].as_str() {
            Some(action) if !action.is_empty() => {
                faults.one_of("spec.paramRef.parameterNotFoundAction", action, &["Deny", "Allow"]);
            }
            _ => faults.required("spec.paramRef.parameterNotFoundAction", ""),
        }
    }
    // The path is misspelt as upstream has it.
    matching::match_resources(&spec["matchResources"], "spec.matchResouces", faults);
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    validate_binding(spec, faults);
    let actions: Vec<&str> =
        spec["validationActions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if actions.is_empty() {
        faults.required("spec.validationActions", "at least one validation action is required");
    }
    for (i, action) in actions.iter().enumerate() {
        let at = format!("spec.validationActions[{i}]");
        faults.one_of(&at, action, &["Audit", "Deny", "Warn"]);
        if actions[..i].contains(action) {
            faults.push(FieldError::duplicate(at, *action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        faults.invalid("spec.validationActions", spec["validationActions"].clone(), why);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn actions_are_checked() {
        let said = |actions: Value| {
            let mut faults = Faults::default();
            validate(&json!({"spec": {"policyName": "p", "validationActions": actions}}), &mut faults);
            faults.0.len()
        };
        assert_eq!(
            (said(json!(["Deny", "Audit"])), said(json!([])), said(json!(["Deny", "Warn"])), said(json!(["No"]))),
            (0, 1, 1, 1)
        );
    }
}
