//! ValidatingAdmissionPolicy.

use serde_json::Value;
use skiff_api::validation::Faults;

use super::matching::{self, expression, match_defaults};
use crate::registry::{
    core::{default_field, object_mut},
    strategy::{Column, Strategy, int_col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: default_policy,
    validate,
    columns: &[
        name_col(),
        int_col("Validations"),
        Column { name: "ParamKind", ty: "string", format: "", priority: 0 },
        Column { name: "Age", ty: "string", format: "", priority: 0 },
    ],
    row: |o| {
        vec![
            o["metadata"]["name"].clone(),
            o["spec"]["validations"].as_array().map_or(0, Vec::len).into(),
            param_kind(o).into(),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

/// What is said of an expression that is not there.
pub(super) const MISSING: &str = "expression is not specified";

/// Fills in what a policy of either kind leaves out.
pub(super) fn default_policy(o: &mut Value) {
    let spec = object_mut(o, "spec");
    default_field(spec, "failurePolicy", "Fail");
    if let Some(constraints) = spec.get_mut("matchConstraints") {
        match_defaults(constraints);
    }
}

/// The kind of a policy's parameters as its column shows it.
pub(super) fn param_kind(o: &Value) -> String {
    let kind = &o["spec"]["paramKind"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    match kind.is_object() {
        true => format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"])),
        false => "<unset>".to_owned(),
    }
}

/// Checks what policies of both kinds say of when they hold.
pub(super) fn validate_match(spec: &Value, faults: &mut Faults) {
    if let Some(policy) = spec["failurePolicy"].as_str() {
        faults.one_of("spec.failurePolicy", policy, &["Fail", "Ignore"]);
    }
    let constraints = &spec["matchConstraints"];
    if !constraints.is_object() {
        faults.required("spec.matchConstraints", "");
    } else if constraints["resourceRules"].as_array().is_none_or(Vec::is_empty) {
        faults.required("spec.matchConstraints.resourceRules", "");
    }
    matching::match_resources(constraints, "spec.matchConstraints", faults);
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    validate_match(spec, faults);
    let mut variables = vec!["object", "oldObject", "request", "namespaceObject", "authorizer"];
    if spec["paramKind"].is_object() {
        variables.push("params");
    }
    matching::conditions(&spec["matchConditions"], "spec.matchConditions", &variables, faults);
    variables.push("variables");
    for (i, variable) in spec["variables"].as_array().into_iter().flatten().enumerate() {
        expression(variable, "expression", &format!("spec.variables[{i}]"), MISSING, &variables, faults);
    }
    let validations = spec["validations"].as_array().cloned().unwrap_or_default();
    if validations.is_empty() && spec["auditAnnotations"].as_array().is_none_or(Vec::is_empty) {
        faults.required("spec.validations", "validations or auditAnnotations must be specified");
    }
    for (i, validation) in validations.iter().enumerate() {
        let at = format!("spec.validations[{i}]");
        expression(validation, "expression", &at, MISSING, &variables, faults);
        if validation["messageExpression"].is_string() {
            expression(validation, "messageExpression", &at, "must be non-empty if specified", &variables, faults);
        }
        if let Some(reason) = validation["reason"].as_str() {
            let known = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
            faults.one_of(&format!("{at}.reason"), reason, &known);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_are_compiled() {
        let mut o = json!({"spec": {"matchConstraints": {"resourceRules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]},
            "validations": [{"expression": "object.metadata.name =="}, {"expression": "params.x == 1"}]}});
        (STRATEGY.defaults)(&mut o);
        assert_eq!(
            (&o["spec"]["failurePolicy"], &o["spec"]["matchConstraints"]["matchPolicy"]),
            (&json!("Fail"), &json!("Equivalent"))
        );
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        let said: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("spec.validations[0].expression: Invalid value: "), "{said:?}");
        assert!(said[1].contains("undeclared reference to 'params'"), "{said:?}");
    }
}
