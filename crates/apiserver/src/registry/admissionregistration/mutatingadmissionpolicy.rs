//! MutatingAdmissionPolicy.

use serde_json::Value;
use skiff_api::validation::Faults;

use super::{
    matching::{self, expression},
    validatingadmissionpolicy::{MISSING, default_policy, validate_match},
};
use crate::{
    cel::mutation,
    registry::{
        core::list,
        strategy::{Column, Strategy, int_col, name_col},
        table,
    },
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: default_policy,
    validate,
    columns: &[
        name_col(),
        int_col("Mutations"),
        Column { name: "ParamKind", ty: "string", format: "", priority: 0 },
        Column { name: "Age", ty: "string", format: "", priority: 0 },
    ],
    row: |o| {
        let mutations = o["spec"]["mutations"].as_array().map_or(0, Vec::len);
        vec![
            o["metadata"]["name"].clone(),
            mutations.into(),
            super::validatingadmissionpolicy::param_kind(o).into(),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

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
    let mutations = list(&spec["mutations"]);
    if mutations.is_empty() {
        faults.required("spec.mutations", "mutations must contain at least one item");
    }
    variables.extend(mutation::NAMES);
    for (i, mutation) in mutations.iter().enumerate() {
        validate_mutation(mutation, &format!("spec.mutations[{i}]"), &variables, faults);
    }
    match spec["reinvocationPolicy"].as_str() {
        Some(policy) if !policy.is_empty() => {
            faults.one_of("spec.reinvocationPolicy", policy, &["IfNeeded", "Never"]);
        }
        _ => faults.required("spec.reinvocationPolicy", ""),
    }
}

fn validate_mutation(of: &Value, at: &str, variables: &[&str], faults: &mut Faults) {
    let fields = [("JSONPatch", "jsonPatch"), ("ApplyConfiguration", "applyConfiguration")];
    let patch_type = of["patchType"].as_str().unwrap_or_default();
    if patch_type.is_empty() {
        return faults.required(format!("{at}.patchType"), "");
    }
    let Some((_, own)) = fields.iter().find(|(ty, _)| *ty == patch_type) else {
        return faults.one_of(&format!("{at}.patchType"), patch_type, &["ApplyConfiguration", "JSONPatch"]);
    };
    if of[own].is_object() {
        let at = format!("{at}.{own}");
        let before = faults.0.len();
        expression(&of[own], "expression", &at, "", variables, faults);
        let text = of[own]["expression"].as_str().unwrap_or_default();
        if faults.0.len() == before
            && let Err(fault) = mutation::compile(text.trim())
        {
            faults.invalid(
                format!("{at}.expression"),
                text,
                format!("compilation failed: ERROR: <input>:1:1: {fault}"),
            );
        }
    } else {
        faults.required(format!("{at}.{own}"), format!("must be specified when patchType is {patch_type}"));
    }
    for (_, other) in fields.iter().filter(|(ty, field)| *ty != patch_type && of[*field].is_object()) {
        let why = format!("must not be specified when patchType is {patch_type}");
        faults.invalid(format!("{at}.{other}"), format!("{{{other}}}"), why);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(mutations: Value) -> Vec<String> {
        let mut o = json!({"spec": {"reinvocationPolicy": "Never", "mutations": mutations, "matchConstraints": {"resourceRules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}}});
        (STRATEGY.defaults)(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mutations_are_checked() {
        let apply = |text: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": text}});
        assert_eq!(said(json!([apply("Object{spec: Object.spec{}}")])), [""; 0]);
        let patch = json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: jsonpatch.escapeKey('a')}]"}});
        assert_eq!(said(json!([patch])), [""; 0]);
        assert_eq!(said(json!([])), ["spec.mutations: Required value: mutations must contain at least one item"]);
        assert!(said(json!([apply("Object{spec: Object.metadata{}}")]))[0].contains("unexpected type name"));
        assert!(said(json!([apply("params.x")]))[0].contains("undeclared reference to 'params'"));
        assert_eq!(
            said(json!([{"patchType": "JSONPatch"}])),
            ["spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch"]
        );
    }
}
