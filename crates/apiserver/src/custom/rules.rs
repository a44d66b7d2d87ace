//! `x-kubernetes-validations`: rules of a schema, in CEL.

use serde_json::{Map, Value};
use skiff_api::validation::{Fault, Faults, FieldError};

use crate::cel;

/// The values of a list entry's keys.
pub(super) fn map_key(schema: &Value, item: &Value) -> Value {
    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let defaults = &schema["items"]["properties"];
    keys.map(|k| {
        let value = match item.get(k) {
            Some(value) => value.clone(),
            None => defaults[k]["default"].clone(),
        };
        (k.to_owned(), value)
    })
    .collect::<Map<_, _>>()
    .into()
}

/// Evaluates all rules of an object; types have been checked.
pub(super) fn check(schema: &Value, value: &Value, old: Option<&Value>, faults: &mut Faults) {
    if super::schema::has_rules(schema) {
        walk(schema, value, old, "", &cel::Budget::of_object(), faults);
    }
}

fn walk(schema: &Value, value: &Value, old: Option<&Value>, path: &str, budget: &cel::Budget, faults: &mut Faults) {
    if value.is_null() || budget.is_spent() {
        return;
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        apply(schema, rule, value, old, path, budget, faults);
        if budget.is_spent() {
            let why = "validation failed due to running out of cost budget, no further validation rules will be run";
            let field = if path.is_empty() { "<nil>" } else { path };
            return faults.invalid(field, schema["type"].as_str().unwrap_or("object"), why);
        }
    }
    match value {
        Value::Object(map) => {
            for (name, field) in map {
                let of = match schema["properties"].get(name) {
                    Some(of) => of,
                    None => &schema["additionalProperties"],
                };
                if of.is_object() {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(of, field, old.and_then(|o| o.get(name)), &path, budget, faults);
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            let keyed = schema["x-kubernetes-list-type"] == "map";
            for (i, item) in list.iter().enumerate() {
                // Entries are the same ones only where keys say so.
                let before = old.and_then(Value::as_array).filter(|_| keyed).and_then(|before| {
                    let key = map_key(schema, item);
                    before.iter().find(|b| map_key(schema, b) == key)
                });
                walk(&schema["items"], item, before, &format!("{path}[{i}]"), budget, faults);
            }
        }
        _ => {}
    }
}

/// Whether a rule compares with what was before.
fn is_transition(rule: &str) -> bool {
    cel::compile(rule).is_ok_and(|p| p.uses("oldSelf"))
}

fn apply(
    schema: &Value,
    rule: &Value,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    budget: &cel::Budget,
    faults: &mut Faults,
) {
    let text = rule["rule"].as_str().unwrap_or_default();
    let mut variables = vec![("self", cel::value(value))];
    if is_transition(text) {
        let Some(old) = old else { return };
        variables.push(("oldSelf", cel::value(old)));
    }
    let failed = || {
        if let Some(expression) = rule["messageExpression"].as_str()
            && let Ok(message) = cel::text(expression, &variables)
            && !message.trim().is_empty()
            && !message.contains('\n')
        {
            return message;
        }
        match rule["message"].as_str() {
            Some(message) => message.trim().to_owned(),
            None => format!("failed rule: {}", text.trim()),
        }
    };
    let detail = match cel::holds_within(text, &variables, budget) {
        Ok(true) => return,
        Ok(false) => failed(),
        Err(e) => format!("{e} evaluating rule: {}", failed()),
    };
    let field = match rule["fieldPath"].as_str() {
        Some(more) if path.is_empty() => more.trim_start_matches('.').to_owned(),
        Some(more) => format!("{path}{more}"),
        None if path.is_empty() => "<nil>".to_owned(),
        None => path.to_owned(),
    };
    let shown = schema["type"].as_str().unwrap_or("object");
    faults.push(match rule["reason"].as_str() {
        Some("FieldValueRequired") => FieldError::required(field, detail),
        Some("FieldValueForbidden") => FieldError::forbidden(field, detail),
        Some("FieldValueDuplicate") => FieldError::new(Fault::Duplicate, field, shown, detail),
        _ => FieldError::invalid(field, shown, detail),
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_hold_or_say_why() {
        let schema = json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min is above max"},
                {"rule": "self.max < 100", "messageExpression": "'max is ' + string(self.max)", "fieldPath": ".max"},
            ],
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"},
                "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed"}]},
            },
        }}});
        let said = |value: Value, old: Option<Value>| {
            let mut faults = Faults::default();
            check(&schema, &value, old.as_ref(), &mut faults);
            faults.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(json!({"spec": {"min": 200, "max": 100, "fixed": "a"}}), None),
            ["spec: Invalid value: \"object\": min is above max", "spec.max: Invalid value: \"object\": max is 100"]
        );
        let old = json!({"spec": {"min": 1, "max": 2, "fixed": "a"}});
        assert_eq!(
            said(json!({"spec": {"min": 1, "max": 2, "fixed": "b"}}), Some(old)),
            ["spec.fixed: Invalid value: \"string\": fixed"]
        );
    }
}
