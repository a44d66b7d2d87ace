//! `metadata`: what the server sets, keeps and checks, the same for every kind.

use serde_json::{Map, Value, json};
use skiff_api::{
    Kind, names,
    validation::{Faults, FieldError},
};

use crate::object::{meta_mut, meta_str};

/// Letters and digits of generated names: none that makes a word or looks like another, as upstream's.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const MAX_NAME_LENGTH: usize = 63;
/// All annotations of an object together.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// A time as the API writes it, in whole seconds.
pub(crate) fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name that begins with `base`.
pub(crate) fn generate_name(base: &str) -> String {
    let room = MAX_NAME_LENGTH - SUFFIX_LENGTH;
    let mut name: String = base.chars().take(room).collect();
    for _ in 0..SUFFIX_LENGTH {
        name.push(char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]));
    }
    name
}

/// A random UUID from the thread's generator: asking the kernel each time costs more than all else here.
fn new_uid() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

/// Sets what a new object's metadata must have and removes what a client cannot set.
pub(crate) fn prepare_create(value: &mut Value, namespace: &str) {
    let meta = meta_mut(value);
    for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        meta.shift_remove(field);
    }
    let base = meta.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if meta.get("name").and_then(Value::as_str).is_none_or(str::is_empty) && !base.is_empty() {
        meta.insert("name".into(), generate_name(&base).into());
    }
    if namespace.is_empty() {
        meta.shift_remove("namespace");
    } else {
        meta.insert("namespace".into(), namespace.into());
    }
    meta.insert("uid".into(), new_uid().into());
    meta.insert("creationTimestamp".into(), timestamp(jiff::Timestamp::now()).into());
    drop_empty(meta);
}

/// Keeps what an update cannot change.
pub(crate) fn prepare_update(new: &mut Value, old: &Value) {
    let old_meta = old["metadata"].as_object().cloned().unwrap_or_default();
    let meta = meta_mut(new);
    for field in [
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
    ] {
        match old_meta.get(field) {
            Some(v) => {
                meta.insert(field.into(), v.clone());
            }
            None => {
                meta.shift_remove(field);
            }
        }
    }
    drop_empty(meta);
}

/// Empty maps and lists are not kept, as Go's encoding leaves them out.
fn drop_empty(meta: &mut Map<String, Value>) {
    meta.retain(|_, v| match v {
        Value::Object(m) => !m.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::String(s) => !s.is_empty(),
        Value::Null => false,
        _ => true,
    });
}

/// Checks the metadata of a new object.
pub(crate) fn validate(kind: &Kind, value: &Value, rule: fn(&str) -> Vec<String>, faults: &mut Faults) {
    let meta = &value["metadata"];
    let name = meta_str(value, "name");
    if name.is_empty() {
        faults.required("metadata.name", "name or generateName is required");
    } else {
        faults.rule("metadata.name", name, rule(name));
    }
    labels(&meta["labels"], "metadata.labels", faults);
    annotations(&meta["annotations"], "metadata.annotations", faults);
    for (i, f) in meta["finalizers"].as_array().into_iter().flatten().enumerate() {
        let text = f.as_str().unwrap_or_default();
        faults.rule("metadata.finalizers", text, names::qualified_name(text));
        // Names without a path are for Kubernetes itself; upstream does not say so of definitions and custom objects.
        let extension = kind.is_custom() || kind.group == crate::custom::GROUP;
        if !extension && !text.contains('/') && !["orphan", "foregroundDeletion", "kubernetes"].contains(&text) {
            faults.invalid(
                format!("metadata.finalizers[{i}]"),
                text,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    let mut controllers = 0;
    for o in meta["ownerReferences"].as_array().into_iter().flatten() {
        // Upstream leaves out which one.
        let at = "metadata.ownerReferences";
        for field in ["apiVersion", "kind", "name", "uid"] {
            if o[field].as_str().is_none_or(str::is_empty) {
                faults.invalid(
                    format!("{at}.{field}"),
                    "",
                    if field == "apiVersion" { "version must not be empty" } else { "must not be empty" },
                );
            }
        }
        controllers += usize::from(o["controller"] == true);
    }
    if controllers > 1 {
        faults.invalid(
            "metadata.ownerReferences",
            meta["ownerReferences"].clone(),
            "Only one reference can have Controller set to true",
        );
    }
}

/// Checks what an update may not change.
pub(crate) fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    if meta_str(new, "name") != meta_str(old, "name") {
        faults.invalid("metadata.name", meta_str(new, "name"), "field is immutable");
    }
    // A deletion under way takes no new finalizers.
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let before = old["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let added: Vec<Value> = new["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|f| !before.contains(f))
            .cloned()
            .collect();
        if !added.is_empty() {
            faults.push(skiff_api::validation::FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {}",
                    json!(added)
                ),
            ));
        }
    }
}

/// Rules for the operator of a selector's expression, one of `known`, and how many values it has.
pub(crate) fn operator(expression: &Value, known: &[&str], at: &str, faults: &mut Faults) {
    let values = expression["values"].as_array().map_or(0, Vec::len);
    match expression["operator"].as_str().unwrap_or_default() {
        other if !known.contains(&other) => {
            faults.invalid(format!("{at}.operator"), other, "not a valid selector operator");
        }
        "In" | "NotIn" if values == 0 => {
            faults.required(format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            faults.push(FieldError::forbidden(format!("{at}.values"), why));
        }
        "Gt" | "Lt" if values != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            faults.required(format!("{at}.values"), why);
        }
        _ => {}
    }
}

/// Checks a map of labels.
pub(crate) fn labels(labels: &Value, at: &str, faults: &mut Faults) {
    for (k, v) in labels.as_object().into_iter().flatten() {
        faults.rule(at, k, names::qualified_name(k));
        let v = v.as_str().unwrap_or_default();
        faults.rule(at, v, names::label_value(v));
    }
}

/// Checks a selector of labels.
pub(crate) fn label_selector(selector: &Value, at: &str, faults: &mut Faults) {
    labels(&selector["matchLabels"], &format!("{at}.matchLabels"), faults);
    for (i, expression) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        operator(expression, &["In", "NotIn", "Exists", "DoesNotExist"], &at, faults);
        let key = expression["key"].as_str().unwrap_or_default();
        faults.rule(&format!("{at}.key"), key, names::qualified_name(key));
        for (i, value) in expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).enumerate() {
            faults.rule(&format!("{at}.values[{i}]"), value, names::label_value(value));
        }
    }
}

fn annotations(annotations: &Value, at: &str, faults: &mut Faults) {
    let mut total = 0;
    for (k, v) in annotations.as_object().into_iter().flatten() {
        faults.rule(at, k, names::qualified_name(&k.to_ascii_lowercase()));
        total += k.len() + v.as_str().unwrap_or_default().len();
    }
    if total > MAX_ANNOTATION_BYTES {
        faults.push(skiff_api::validation::FieldError::too_long(at, MAX_ANNOTATION_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        let n = generate_name(&"a".repeat(80));
        assert_eq!(n.len(), 63);
        assert!(names::dns1123_label(&generate_name("web-")).is_empty());
    }

    #[test]
    fn a_client_cannot_set_what_the_server_sets() {
        let mut v = json!({"metadata": {"generateName": "x-", "uid": "mine", "resourceVersion": "5", "deletionTimestamp": "now", "labels": {}}});
        prepare_create(&mut v, "default");
        let m = &v["metadata"];
        assert!(m["name"].as_str().unwrap().starts_with("x-"));
        assert_ne!(m["uid"], "mine");
        assert!(m["resourceVersion"].is_null() && m["deletionTimestamp"].is_null() && m.get("labels").is_none());
    }

    #[test]
    fn faults_of_metadata() {
        let mut f = Faults::default();
        validate(
            skiff_api::kinds::by_kind("", "v1", "ConfigMap").unwrap(),
            &json!({"metadata": {"name": "Bad_Name", "labels": {"a b": "c"}, "finalizers": ["x"]}}),
            names::dns1123_subdomain,
            &mut f,
        );
        let text: Vec<String> = f.0.iter().map(ToString::to_string).collect();
        assert!(
            text[0].starts_with("metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain"),
            "{text:?}"
        );
        assert_eq!(text.len(), 3, "{text:?}");
    }
}
