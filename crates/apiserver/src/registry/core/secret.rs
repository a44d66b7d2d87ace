//! Secret.

use base64::Engine as _;
use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::default_field;
use crate::registry::{
    strategy::{Strategy, col, int_col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults,
    validate,
    validate_update,
    selectable: &["type"],
    columns: &[name_col(), col("Type"), int_col("Data"), col("Age")],
    row: |o| {
        let count = o["data"].as_object().map_or(0, serde_json::Map::len);
        vec![o["metadata"]["name"].clone(), o["type"].clone(), count.into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};

fn defaults(o: &mut Value) {
    default_field(o, "type", "Opaque");
    // What was written as text is kept as bytes.
    if let Some(Value::Object(text)) = o.as_object_mut().and_then(|m| m.shift_remove("stringData")) {
        if !o["data"].is_object() {
            o["data"] = json!({});
        }
        for (key, value) in text {
            let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
            o["data"][key] = encoded.into();
        }
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let mut total = 0;
    for (key, value) in o["data"].as_object().into_iter().flatten() {
        faults.rule(&format!("data[{key}]"), key, names::config_key(key));
        total += value.as_str().unwrap_or_default().len() / 4 * 3;
    }
    if total > super::configmap::MAX_BYTES {
        faults.push(FieldError::too_long("data", super::configmap::MAX_BYTES));
    }
    let mut needs = |keys: &[&str]| {
        for key in keys {
            if o["data"].get(*key).is_none() {
                faults.required(format!("data[{key}]"), "");
            }
        }
    };
    match o["type"].as_str().unwrap_or_default() {
        "kubernetes.io/tls" => needs(&["tls.crt", "tls.key"]),
        "kubernetes.io/dockerconfigjson" => needs(&[".dockerconfigjson"]),
        "kubernetes.io/dockercfg" => needs(&[".dockercfg"]),
        "kubernetes.io/ssh-auth" => needs(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if o["data"].get("username").is_none() && o["data"].get("password").is_none() => {
            needs(&["username", "password"]);
        }
        "kubernetes.io/service-account-token" => {
            let name = &o["metadata"]["annotations"]["kubernetes.io/service-account.name"];
            if name.as_str().is_none_or(str::is_empty) {
                faults.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
        }
        _ => {}
    }
}

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    if new["type"] != old["type"] {
        faults.invalid("type", new["type"].clone(), "field is immutable");
    }
    if old["immutable"] == true {
        for field in ["immutable", "data"] {
            if new[field] != old[field] {
                faults.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_bytes() {
        let mut o = json!({"stringData": {"a": "b"}, "data": {"a": "x", "c": "ZA=="}});
        defaults(&mut o);
        assert_eq!(o, json!({"data": {"a": "Yg==", "c": "ZA=="}, "type": "Opaque"}));
    }
}
