//! What a schema must be to be structural: every part says its type.

use serde_json::Value;
use skiff_api::validation::Faults;

use crate::cel;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Checks the schema of a version; `at` is where it stands.
pub(super) fn validate(schema: &Value, at: &str, faults: &mut Faults) {
    match schema["type"].as_str() {
        None | Some("") => faults.required(format!("{at}.type"), "must not be empty at the root"),
        Some("object") => {}
        Some(other) => faults.invalid(format!("{at}.type"), other, "must be object at the root"),
    }
    walk(schema, at, true, "at the root", faults);
}

fn walk(schema: &Value, at: &str, is_root: bool, what: &str, faults: &mut Faults) {
    let is = |marker: &str| schema[marker] == true;
    let free = is("x-kubernetes-int-or-string") || is("x-kubernetes-preserve-unknown-fields");
    match schema["type"].as_str() {
        None | Some("") if !is_root && !free => {
            faults.required(format!("{at}.type"), format!("must not be empty for {what}"))
        }
        Some(ty) if !ty.is_empty() => faults.one_of(&format!("{at}.type"), ty, &TYPES),
        _ => {}
    }
    if is("x-kubernetes-int-or-string") && !schema["type"].is_null() && schema["type"] != "" {
        faults.invalid(
            format!("{at}.type"),
            schema["type"].clone(),
            "must be empty if x-kubernetes-int-or-string is true",
        );
    }
    if is("x-kubernetes-embedded-resource") && schema["type"] != "object" {
        faults.invalid(
            format!("{at}.type"),
            schema["type"].clone(),
            "must be object if x-kubernetes-embedded-resource is true",
        );
    }
    if schema["$ref"].as_str().is_some_and(|r| !r.is_empty()) {
        faults.push(skiff_api::validation::FieldError::forbidden(format!("{at}.$ref"), "$ref is not supported"));
    }
    if is("uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        faults.push(skiff_api::validation::FieldError::forbidden(format!("{at}.uniqueItems"), why));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(e) = regex::Regex::new(pattern)
    {
        faults.invalid(format!("{at}.pattern"), pattern, format!("must be a valid regular expression, but isn't: {e}"));
    }
    match schema["x-kubernetes-list-type"].as_str() {
        Some(kind) => {
            faults.one_of(&format!("{at}.x-kubernetes-list-type"), kind, &["atomic", "map", "set"]);
            let keys = schema["x-kubernetes-list-map-keys"].as_array().map_or(0, Vec::len);
            if kind == "map" && keys == 0 {
                faults.required(
                    format!("{at}.x-kubernetes-list-map-keys"),
                    "must not be empty if x-kubernetes-list-type is map",
                );
            }
        }
        None if schema["type"] == "array" && !schema["items"].is_object() => {
            faults.required(format!("{at}.items"), "must be specified");
        }
        None => {}
    }
    for (i, rule) in schema["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate() {
        check_rule(rule, &format!("{at}.x-kubernetes-validations[{i}]"), faults);
    }
    if schema["properties"].as_object().is_some_and(|p| !p.is_empty()) && schema["additionalProperties"].is_object() {
        let why = "additionalProperties and properties are mutual exclusive";
        faults.push(skiff_api::validation::FieldError::forbidden(format!("{at}.additionalProperties"), why));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let of_root = is_root && ["metadata", "kind", "apiVersion"].contains(&name.as_str());
        walk(property, &format!("{at}.properties[{name}]"), of_root, "specified object fields", faults);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{at}.items"), false, "specified array items", faults);
    }
    if schema["additionalProperties"].is_object() {
        let at = format!("{at}.additionalProperties");
        walk(&schema["additionalProperties"], &at, false, "specified object fields", faults);
    }
}

fn check_rule(rule: &Value, at: &str, faults: &mut Faults) {
    const VARIABLES: [&str; 2] = ["self", "oldSelf"];
    let text = rule["rule"].as_str().unwrap_or_default();
    if text.trim().is_empty() {
        faults.required(format!("{at}.rule"), "rule is not specified");
    } else if let Some(fault) = cel::fault(text, &VARIABLES) {
        faults.invalid(format!("{at}.rule"), text, fault);
    }
    if let Some(expression) = rule["messageExpression"].as_str()
        && let Some(fault) = cel::fault(expression, &VARIABLES)
    {
        faults.invalid(format!("{at}.messageExpression"), expression, fault);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_part_says_its_type() {
        let said = |schema: Value| {
            let mut faults = Faults::default();
            validate(&schema, "s", &mut faults);
            faults.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let good = json!({"type": "object", "properties": {
            "spec": {"x-kubernetes-preserve-unknown-fields": true}, "port": {"x-kubernetes-int-or-string": true},
            "names": {"type": "array", "items": {"type": "string"}},
        }, "x-kubernetes-validations": [{"rule": "self.port == 1"}]});
        assert_eq!(said(good), [""; 0]);
        assert_eq!(
            said(
                json!({"properties": {"spec": {}, "list": {"type": "array"}}, "x-kubernetes-validations": [{"rule": "self.x ="}]})
            )[..1],
            ["s.type: Required value: must not be empty at the root"]
        );
        let faults =
            said(json!({"type": "object", "properties": {"spec": {"properties": {}}, "list": {"type": "list"}}}));
        assert_eq!(
            faults,
            [
                "s.properties[spec].type: Required value: must not be empty for specified object fields",
                "s.properties[list].type: Unsupported value: \"list\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
            ]
        );
    }
}
