//! ConfigMap.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use crate::registry::{
    strategy::{Strategy, col, int_col, name_col},
    table,
};

/// All keys and values together.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

pub(crate) static STRATEGY: Strategy = Strategy {
    validate,
    validate_update,
    columns: &[name_col(), int_col("Data"), col("Age")],
    row: |o| {
        let count = |f: &str| o[f].as_object().map_or(0, serde_json::Map::len);
        vec![o["metadata"]["name"].clone(), (count("data") + count("binaryData")).into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let mut total = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in o[field].as_object().into_iter().flatten() {
            faults.rule(&format!("{field}[{key}]"), key, names::config_key(key));
            if field == "binaryData" && o["data"].get(key).is_some() {
                faults.invalid(format!("data[{key}]"), key.as_str(), format!("duplicate of key present in {field}"));
            }
            let len = value.as_str().unwrap_or_default().len();
            total += if field == "binaryData" { len / 4 * 3 } else { len };
        }
    }
    if total > MAX_BYTES {
        faults.push(FieldError::too_long("", MAX_BYTES));
    }
}

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    if old["immutable"] != true {
        return;
    }
    for field in ["immutable", "data", "binaryData"] {
        if new[field] != old[field] {
            faults.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}
