//! StorageClass.

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

/// The annotations that make a class the default; the second one is of old.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// Whether claims without a class get this one.
pub(crate) fn is_default(class: &Value) -> bool {
    DEFAULT_CLASS.iter().any(|a| class["metadata"]["annotations"][*a] == "true")
}

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| {
        default_field(o, "reclaimPolicy", "Delete");
        default_field(o, "volumeBindingMode", "Immediate");
    },
    validate,
    validate_update,
    columns: &[
        name_col(),
        col("Provisioner"),
        col("ReclaimPolicy"),
        col("VolumeBindingMode"),
        col("AllowVolumeExpansion"),
        col("Age"),
    ],
    row: |o| {
        let name = o["metadata"]["name"].as_str().unwrap_or_default();
        vec![
            if is_default(o) { format!("{name} (default)").into() } else { name.into() },
            o["provisioner"].clone(),
            table::text_or(&o["reclaimPolicy"], "Delete"),
            table::text_or(&o["volumeBindingMode"], "<unset>"),
            o["allowVolumeExpansion"].as_bool().unwrap_or(false).into(),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let provisioner = o["provisioner"].as_str().unwrap_or_default();
    if provisioner.is_empty() {
        faults.required("provisioner", provisioner);
    } else {
        let lower = provisioner.to_lowercase();
        faults.rule("provisioner", &lower, names::qualified_name(&lower));
    }
    for key in o["parameters"].as_object().into_iter().flat_map(|p| p.keys()).filter(|k| k.is_empty()) {
        faults.invalid("parameters", key.as_str(), "field can not be empty.");
    }
    let text = |field: &str| o[field].as_str().unwrap_or_default();
    faults.one_of("reclaimPolicy", text("reclaimPolicy"), &["Delete", "Retain"]);
    faults.one_of("volumeBindingMode", text("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
}

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if new[field] != old[field] {
            faults.push(FieldError::forbidden(field, format!("updates to {field} are forbidden.")));
        }
    }
    if new["volumeBindingMode"] != old["volumeBindingMode"] {
        faults.invalid("volumeBindingMode", new["volumeBindingMode"].clone(), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_class_is() {
        let mut o =
            json!({"metadata": {"name": "standard", "annotations": {DEFAULT_CLASS[0]: "true"}}, "provisioner": "a/b"});
        (STRATEGY.defaults)(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        assert!(faults.0.is_empty(), "{faults:?}");
        assert_eq!(
            (STRATEGY.row)(&o)[..5],
            [json!("standard (default)"), json!("a/b"), json!("Delete"), json!("Immediate"), json!(false)]
        );
        let mut other = o.clone();
        other["provisioner"] = "c".into();
        validate_update(&other, &o, &mut faults);
        assert_eq!(faults.0[0].to_string(), "provisioner: Forbidden: updates to provisioner are forbidden.");
    }
}
