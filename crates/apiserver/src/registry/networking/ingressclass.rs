//! IngressClass.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use crate::registry::{
    core::default_field,
    strategy::{Strategy, col, name_col},
    table,
};

const LONGEST_CONTROLLER: usize = 250;

/// Whether Ingresses without a class get this one.
pub(crate) fn is_default(class: &Value) -> bool {
    class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true"
}

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| {
        let parameters = &mut o["spec"]["parameters"];
        if parameters.is_object() {
            default_field(parameters, "scope", "Cluster");
        }
    },
    validate,
    validate_update: |new, old, faults| {
        if new["spec"]["controller"] != old["spec"]["controller"] {
            faults.invalid("spec.controller", new["spec"]["controller"].clone(), "field is immutable");
        }
    },
    columns: &[name_col(), col("Controller"), col("Parameters"), col("Age")],
    row: |o| {
        let parameters = &o["spec"]["parameters"];
        let text = |field: &str| parameters[field].as_str().unwrap_or_default();
        let parameters = match (parameters.is_object(), text("apiGroup")) {
            (false, _) => "<none>".to_owned(),
            (true, "") => format!("{}/{}", text("kind"), text("name")),
            (true, group) => format!("{}.{group}/{}", text("kind"), text("name")),
        };
        vec![
            o["metadata"]["name"].clone(),
            table::text_or(&o["spec"]["controller"], ""),
            parameters.into(),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let controller = o["spec"]["controller"].as_str().unwrap_or_default();
    if controller.len() > LONGEST_CONTROLLER {
        faults.push(FieldError::too_long("spec.controller", LONGEST_CONTROLLER));
    }
    validate_domain_path(controller, faults);
    let parameters = &o["spec"]["parameters"];
    if !parameters.is_object() {
        return;
    }
    let text = |field: &str| parameters[field].as_str().unwrap_or_default();
    let at = |field: &str| format!("spec.parameters.{field}");
    if !text("apiGroup").is_empty() {
        faults.rule(&at("apiGroup"), text("apiGroup"), names::dns1123_subdomain(text("apiGroup")));
    }
    for field in ["kind", "name"] {
        if text(field).is_empty() {
            faults.required(at(field), format!("{field} is required"));
        } else {
            faults.rule(&at(field), text(field), names::path_segment(text(field)));
        }
    }
    let namespace = &parameters["namespace"];
    match text("scope") {
        "Cluster" => {
            if !namespace.is_null() {
                let why = "`parameters.scope` is set to 'Cluster'";
                faults.push(FieldError::forbidden(at("namespace"), why));
            }
        }
        "Namespace" => match namespace.as_str() {
            None | Some("") => faults.required(at("namespace"), "`parameters.scope` is set to 'Namespace'"),
            Some(name) => faults.rule(&at("namespace"), name, names::dns1123_label(name)),
        },
        other => faults.one_of(&at("scope"), other, &["Cluster", "Namespace"]),
    }
}

/// A domain and a path, as in `example.com/controller`.
fn validate_domain_path(path: &str, faults: &mut Faults) {
    const AT: &str = "spec.controller";
    if path.is_empty() {
        return faults.required(AT, "");
    }
    let Some((host, rest)) = path.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty()) else {
        return faults.invalid(AT, path, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    faults.rule(AT, host, names::dns1123_subdomain(host));
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        faults.invalid(
            AT,
            path,
            "Invalid path (e.g. 'foo/bar', or 'foo', regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut o = json!({"spec": spec});
        (STRATEGY.defaults)(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_are_upstreams() {
        assert_eq!(faults(json!({"controller": "skiff.dev/ingress"})), [""; 0]);
        assert_eq!(faults(json!({})), ["spec.controller: Required value"]);
        assert_eq!(
            faults(json!({"controller": "nginx"})),
            ["spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")"]
        );
        assert_eq!(
            faults(json!({"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", "scope": "Namespace"}})),
            ["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]
        );
    }

    #[test]
    fn columns() {
        let o = json!({"metadata": {"name": "c"}, "spec": {"controller": "a/b", "parameters": {
            "apiGroup": "g", "kind": "K", "name": "n"}}});
        assert_eq!((STRATEGY.row)(&o)[1..3], [json!("a/b"), json!("K.g/n")]);
    }
}
