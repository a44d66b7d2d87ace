//! What a structural schema does to an object before it is checked: unknown fields go, defaults come.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use skiff_api::decode;

/// Fields that an object has at its root, and an embedded one has as well.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

pub(super) fn is(schema: &Value, marker: &str) -> bool {
    schema[marker] == true
}

/// The schema of a field, if one says anything of it; the flag tells that anything goes.
fn of_field<'a>(schema: &'a Value, name: &str) -> (Option<&'a Value>, bool) {
    if let Some(field) = schema["properties"].get(name) {
        return (Some(field), false);
    }
    match &schema["additionalProperties"] {
        Value::Bool(true) => (None, true),
        more if more.is_object() => (Some(more), false),
        _ => (None, is(schema, "x-kubernetes-preserve-unknown-fields")),
    }
}

/// Removes the fields that the schema does not know; their paths are added to `unknown`.
pub(super) fn prune(schema: &Value, value: &mut Value, unknown: &mut Vec<String>) {
    walk_prune(schema, value, true, &mut String::new(), unknown);
}

fn walk_prune(schema: &Value, value: &mut Value, is_object: bool, path: &mut String, unknown: &mut Vec<String>) {
    let base = path.len();
    match value {
        Value::Object(map) => {
            let embedded = is_object || is(schema, "x-kubernetes-embedded-resource");
            let mut gone = Vec::new();
            for (name, field) in map.iter_mut() {
                if embedded && META.contains(&name.as_str()) {
                    // The object's own metadata has been brought into form before.
                    if name == "metadata" && !is_object && field.is_object() {
                        let of_meta = decode::conform(field, "apimachinery.pkg.apis.meta.v1.ObjectMeta");
                        let at = if base > 0 { format!("{path}.metadata") } else { "metadata".to_owned() };
                        unknown.extend(of_meta.into_iter().flatten().map(|field| format!("{at}.{field}")));
                    }
                    continue;
                }
                if base > 0 {
                    path.push('.');
                }
                path.push_str(name);
                match of_field(schema, name) {
                    (Some(of), _) => walk_prune(of, field, false, path, unknown),
                    (None, true) => {}
                    (None, false) => {
                        unknown.push(path.clone());
                        gone.push(name.clone());
                    }
                }
                path.truncate(base);
            }
            for name in gone {
                map.shift_remove(&name);
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for (i, item) in list.iter_mut().enumerate() {
                let _ = write!(path, "[{i}]");
                walk_prune(&schema["items"], item, false, path, unknown);
                path.truncate(base);
            }
        }
        _ => {}
    }
}

/// Removes fields that are null where the schema allows no null and has no default, which comes later.
pub(super) fn prune_nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, field| match of_field(schema, name).0 {
                Some(of) if field.is_null() => is(of, "nullable") || of.get("default").is_some(),
                _ => true,
            });
            for (name, field) in map.iter_mut() {
                if let (Some(of), _) = of_field(schema, name) {
                    prune_nulls(of, field);
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            list.iter_mut().for_each(|item| prune_nulls(&schema["items"], item));
        }
        _ => {}
    }
}

/// Fills in what is missing and has a default; a null that cannot be one is missing.
pub(super) fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let Some(preset) = field.get("default") else { continue };
                let missing = match map.get(name) {
                    None => true,
                    Some(Value::Null) => !is(field, "nullable"),
                    Some(_) => false,
                };
                if missing {
                    map.insert(name.clone(), preset.clone());
                }
            }
            for (name, field) in map.iter_mut() {
                if let (Some(of), _) = of_field(schema, name) {
                    default(of, field);
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            list.iter_mut().for_each(|item| default(&schema["items"], item));
        }
        _ => {}
    }
}

/// Whether any part of the schema has a default.
pub(super) fn has_defaults(schema: &Value) -> bool {
    any(schema, &|s| s.get("default").is_some())
}

/// Whether any part of the schema has rules in CEL.
pub(super) fn has_rules(schema: &Value) -> bool {
    any(schema, &|s| s["x-kubernetes-validations"].as_array().is_some_and(|r| !r.is_empty()))
}

fn any(schema: &Value, holds: &dyn Fn(&Value) -> bool) -> bool {
    schema.is_object()
        && (holds(schema)
            || schema["properties"].as_object().into_iter().flatten().any(|(_, s)| any(s, holds))
            || any(&schema["items"], holds)
            || any(&schema["additionalProperties"], holds))
}

/// The schema without its descriptions, which nothing but explanations need.
pub(super) fn bare(schema: &Value) -> Value {
    let Some(map) = schema.as_object() else { return schema.clone() };
    let each = |list: &Value| -> Value {
        list.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), bare(v))).collect::<Map<_, _>>().into()
    };
    let mut out = Map::new();
    for (key, value) in map {
        match key.as_str() {
            "description" | "externalDocs" | "example" => {}
            "properties" => drop(out.insert(key.clone(), each(value))),
            "items" | "additionalProperties" | "not" => drop(out.insert(key.clone(), bare(value))),
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(out)
}

/// The schema of a version as OpenAPI documents publish it: with what every object has.
pub(crate) fn published(schema: &Value, gvk: &Value) -> Value {
    let mut out = if schema.is_object() { schema.clone() } else { json!({"type": "object"}) };
    if is(schema, "x-kubernetes-preserve-unknown-fields") && schema["properties"].is_null() {
        out = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    out["x-kubernetes-group-version-kind"] = json!([gvk]);
    let properties = &mut out["properties"];
    if !properties.is_object() {
        *properties = json!({});
    }
    properties["apiVersion"] = json!({"type": "string", "description": API_VERSION});
    properties["kind"] = json!({"type": "string", "description": KIND});
    properties["metadata"] = json!({
        "allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}],
        "description": "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
    });
    out
}

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_go_and_are_named() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true},
            }},
        }});
        let mut value = json!({"kind": "K", "metadata": {"x": 1}, "other": 1, "spec": {
            "a": "b", "b": 1, "list": [{"x": "", "y": 1}], "free": {"z": 1}, "map": {"k": "v"},
            "template": {"kind": "Pod", "metadata": {"name": "x", "nick": "y"}, "spec": {}},
        }});
        let mut unknown = Vec::new();
        prune(&schema, &mut value, &mut unknown);
        assert_eq!(unknown, ["other", "spec.b", "spec.list[0].y", "spec.template.metadata.nick", "spec.template.spec"]);
        assert_eq!(
            value["spec"],
            json!({"a": "b", "list": [{"x": ""}], "free": {"z": 1}, "map": {"k": "v"}, "template": {"kind": "Pod", "metadata": {"name": "x"}}})
        );
    }

    #[test]
    fn nulls_go_where_they_mean_nothing() {
        let schema = json!({"properties": {
            "operation": {"type": "object"},
            "kept": {"type": "object", "nullable": true},
            "preset": {"type": "integer", "default": 3},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        let mut value = json!({
            "operation": null, "kept": null, "preset": null, "map": {"a": null, "b": "c"},
            "list": [null, {"x": null}], "free": {"y": null},
        });
        prune_nulls(&schema, &mut value);
        let wanted = json!({
            "kept": null, "preset": null, "map": {"b": "c"}, "list": [null, {}], "free": {"y": null},
        });
        assert_eq!(value, wanted);
    }

    #[test]
    fn defaults_come_where_something_is_missing() {
        let schema = json!({"properties": {"spec": {"default": {}, "properties": {
            "n": {"type": "integer", "default": 3}, "m": {"nullable": true, "default": 1},
        }}}});
        let mut value = json!({});
        default(&schema, &mut value);
        assert_eq!(value, json!({"spec": {"n": 3, "m": 1}}));
        let mut value = json!({"spec": {"n": null, "m": null}});
        default(&schema, &mut value);
        assert_eq!(value, json!({"spec": {"n": 3, "m": null}}));
        assert!(has_defaults(&schema) && !has_rules(&schema));
    }
}
