//! Custom objects against their schema, with upstream's words for every fault.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use regex::Regex;
use serde_json::Value;
use skiff_api::validation::{Fault, Faults, FieldError};

use super::{rules, schema::is};

/// How upstream names the root of an object in messages.
const ROOT: &str = "<nil>";

/// Patterns are compiled once; these many are kept.
const KEPT_PATTERNS: usize = 256;

/// Whether a text matches a pattern; one that cannot be compiled was refused with its definition.
fn matches(pattern: &str, text: &str) -> bool {
    static KEPT: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock();
    if let Some(regex) = kept.get(pattern) {
        return regex.is_match(text);
    }
    let Ok(regex) = Regex::new(pattern) else { return true };
    let found = regex.is_match(text);
    if kept.len() >= KEPT_PATTERNS {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), Arc::new(regex));
    found
}

/// Checks an object. `old` is what it was before an update: rules may compare.
pub(super) fn validate(schema: &Value, value: &Value, old: Option<&Value>, with_rules: bool, faults: &mut Faults) {
    let before = faults.0.len();
    walk(schema, value, "", faults);
    // Rules may count on the types that the schema asks for.
    if with_rules && faults.0.len() == before {
        rules::check(schema, value, old, faults);
    }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() && n.as_f64().is_some_and(|f| f.fract() != 0.0) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn type_fits(schema: &Value, value: &Value) -> Result<(), String> {
    let found = type_of(value);
    if is(schema, "x-kubernetes-int-or-string") {
        let fits = matches!(found, "integer" | "string");
        return if fits { Ok(()) } else { Err("integer,string".into()) };
    }
    match schema["type"].as_str() {
        None | Some("") => Ok(()),
        Some(wanted) if wanted == found || (wanted == "number" && found == "integer") => Ok(()),
        Some(wanted) => Err(wanted.to_owned()),
    }
}

/// A fault below a path, in the words of upstream's schema checker.
fn invalid(faults: &mut Faults, path: &str, shown: impl Into<Value>, why: &str) {
    let (field, named) = if path.is_empty() { (ROOT, String::new()) } else { (path, format!("{path} ")) };
    faults.invalid(field, shown, format!("{named}in body {why}"));
}

/// A number as Go prints it.
fn go_number(value: &Value) -> String {
    match value.as_f64() {
        Some(f) if f.fract() == 0.0 && f.abs() < 1e15 => format!("{f:.0}"),
        _ => value.to_string(),
    }
}

fn walk(schema: &Value, value: &Value, path: &str, faults: &mut Faults) {
    if !schema.is_object() || (value.is_null() && is(schema, "nullable")) {
        return;
    }
    if let Err(wanted) = type_fits(schema, value) {
        let found = type_of(value);
        invalid(faults, path, found, &format!("must be of type {wanted}: {found:?}"));
        return;
    }
    match value {
        Value::String(text) => string(schema, text, path, faults),
        Value::Number(_) => number(schema, value, path, faults),
        Value::Array(list) => array(schema, list, path, faults),
        Value::Object(_) => object(schema, value, path, faults),
        _ => {}
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let detail = format!("supported values: {}", list.join(", "));
        faults.push(FieldError::new(Fault::NotSupported, path, value.clone(), detail));
    }
    alternatives(schema, value, path, faults);
}

fn string(schema: &Value, text: &str, path: &str, faults: &mut Faults) {
    let length = text.chars().count() as u64;
    if let Some(max) = schema["maxLength"].as_u64().filter(|max| length > *max) {
        faults.push(FieldError::too_long(path, usize::try_from(max).unwrap_or(usize::MAX)));
    }
    if let Some(min) = schema["minLength"].as_u64().filter(|min| length < *min) {
        invalid(faults, path, text, &format!("should be at least {min} chars long"));
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|p| !matches(p, text)) {
        invalid(faults, path, text, &format!("should match '{pattern}'"));
    }
    if let Some(format) = schema["format"].as_str().filter(|f| !super::formats::fits(f, text)) {
        invalid(faults, path, text, &format!("must be of type {format}: {text:?}"));
    }
}

fn number(schema: &Value, value: &Value, path: &str, faults: &mut Faults) {
    let n = value.as_f64().unwrap_or_default();
    if let Some(min) = schema["minimum"].as_f64() {
        let exclusive = is(schema, "exclusiveMinimum");
        if n < min || (exclusive && n <= min) {
            let or = if exclusive { "" } else { " or equal to" };
            invalid(
                faults,
                path,
                value.clone(),
                &format!("should be greater than{or} {}", go_number(&schema["minimum"])),
            );
        }
    }
    if let Some(max) = schema["maximum"].as_f64() {
        let exclusive = is(schema, "exclusiveMaximum");
        if n > max || (exclusive && n >= max) {
            let or = if exclusive { "" } else { " or equal to" };
            invalid(faults, path, value.clone(), &format!("should be less than{or} {}", go_number(&schema["maximum"])));
        }
    }
    if let Some(of) = schema["multipleOf"].as_f64().filter(|of| *of > 0.0)
        && (n / of).fract() != 0.0
    {
        invalid(faults, path, value.clone(), &format!("should be a multiple of {}", go_number(&schema["multipleOf"])));
    }
}

fn array(schema: &Value, list: &[Value], path: &str, faults: &mut Faults) {
    let length = list.len() as u64;
    if let Some(max) = schema["maxItems"].as_u64().filter(|max| length > *max) {
        let detail = format!("must have at most {max} items");
        faults.push(FieldError::new(Fault::TooMany, path, length, detail));
    }
    if let Some(min) = schema["minItems"].as_u64().filter(|min| length < *min) {
        invalid(faults, path, length, &format!("should have at least {min} items"));
    }
    for (i, item) in list.iter().enumerate() {
        walk(&schema["items"], item, &format!("{path}[{i}]"), faults);
    }
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => {
            for (i, item) in list.iter().enumerate().filter(|(i, item)| list[..*i].contains(item)) {
                faults.push(FieldError::duplicate(format!("{path}[{i}]"), item.clone()));
            }
        }
        Some("map") => {
            let keys: Vec<Value> = list.iter().map(|item| rules::map_key(schema, item)).collect();
            for (i, key) in keys.iter().enumerate().filter(|(i, key)| keys[..*i].contains(key)) {
                faults.push(FieldError::duplicate(format!("{path}[{i}]"), key.clone()));
            }
        }
        _ => {}
    }
}

fn object(schema: &Value, value: &Value, path: &str, faults: &mut Faults) {
    let Some(map) = value.as_object() else { return };
    let length = map.len() as u64;
    if let Some(max) = schema["maxProperties"].as_u64().filter(|max| length > *max) {
        let detail = format!("must have at most {max} items");
        faults.push(FieldError::new(Fault::TooMany, path, length, detail));
    }
    if let Some(min) = schema["minProperties"].as_u64().filter(|min| length < *min) {
        invalid(faults, path, length, &format!("should have at least {min} properties"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            faults.required(child(path, name), "");
        }
    }
    let embedded = is(schema, "x-kubernetes-embedded-resource");
    if embedded {
        for name in ["apiVersion", "kind"] {
            if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                faults.required(child(path, name), "must not be empty");
            }
        }
    }
    let root = path.is_empty();
    for (name, field) in map {
        // These are checked as metadata.
        if root && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            if name == "metadata" {
                for of in ["name", "generateName"] {
                    let schema = &schema["properties"]["metadata"]["properties"][of];
                    if schema.is_object() && field[of].is_string() {
                        walk(schema, &field[of], &format!("metadata.{of}"), faults);
                    }
                }
            }
            continue;
        }
        let of = match schema["properties"].get(name) {
            Some(of) => of,
            None => &schema["additionalProperties"],
        };
        walk(of, field, &child(path, name), faults);
    }
}

/// `allOf`, `anyOf`, `oneOf` and `not`.
fn alternatives(schema: &Value, value: &Value, path: &str, faults: &mut Faults) {
    let fits = |of: &Value| {
        let mut inner = Faults::default();
        walk(of, value, path, &mut inner);
        inner.0.is_empty()
    };
    let list = |name: &str| schema[name].as_array().filter(|l| !l.is_empty());
    let mut say =
        |why: String| faults.invalid(if path.is_empty() { ROOT } else { path }, "", format!("{path:?} {why}"));
    if let Some(any) = list("anyOf")
        && !any.iter().any(fits)
    {
        say("must validate at least one schema (anyOf)".into());
    }
    if let Some(one) = list("oneOf") {
        match one.iter().filter(|s| fits(s)).count() {
            1 => {}
            0 => say("must validate one and only one schema (oneOf). Found none valid".into()),
            n => say(format!("must validate one and only one schema (oneOf). Found {n} valid alternatives")),
        }
    }
    if let Some(all) = list("allOf") {
        let failed = all.iter().filter(|s| !fits(s)).count();
        if failed > 0 {
            let none = if failed == all.len() { ". None validated" } else { "" };
            say(format!("must validate all the schemas (allOf){none}"));
        }
    }
    if schema["not"].is_object() && fits(&schema["not"]) {
        say("must not validate the schema (not)".into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: Value, value: Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(&schema, &value, None, true, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_are_worded_as_upstream_words_them() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "version": {"type": "string", "enum": ["12", "13"]},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 5},
            "storage": {"type": "string", "pattern": "^[0-9]+[MGT]i"},
            "names": {"type": "array", "maxItems": 1, "x-kubernetes-list-type": "set", "items": {"type": "string", "maxLength": 3}},
            "port": {"x-kubernetes-int-or-string": true},
            "either": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        }}}});
        let value = json!({"spec": {"version": "16", "replicas": 9, "storage": "x", "names": ["abcd", "abcd"], "port": 1.5, "either": {}}});
        assert_eq!(
            said(schema.clone(), value),
            [
                "spec.size: Required value",
                "spec.version: Unsupported value: \"16\": supported values: \"12\", \"13\"",
                "spec.replicas: Invalid value: 9: spec.replicas in body should be less than or equal to 5",
                "spec.storage: Invalid value: \"x\": spec.storage in body should match '^[0-9]+[MGT]i'",
                "spec.names: Too many: 2: must have at most 1 items",
                "spec.names[0]: Too long: may not be more than 3 bytes",
                "spec.names[1]: Too long: may not be more than 3 bytes",
                "spec.names[1]: Duplicate value: \"abcd\"",
                "spec.port: Invalid value: \"number\": spec.port in body must be of type integer,string: \"number\"",
                "spec.either: Invalid value: \"\": \"spec.either\" must validate one and only one schema (oneOf). Found none valid",
            ]
        );
        assert_eq!(
            said(schema, json!({"spec": {"size": 1, "replicas": "three"}})),
            ["spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""]
        );
    }
}
