//! PriorityClass.

use crate::registry::{
    core::default_field,
    strategy::{Strategy, col, int_col, name_col},
    table,
};

/// The highest priority that users may give; above are those of the system.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| default_field(o, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |o, faults| {
        match o["preemptionPolicy"].as_str().unwrap_or_default() {
            "" => faults.required("preemptionPolicy", ""),
            policy => faults.one_of("preemptionPolicy", policy, &["PreemptLowerPriority", "Never"]),
        }
        let name = o["metadata"]["name"].as_str().unwrap_or_default();
        let known = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
        let value = o["value"].as_i64().unwrap_or(0);
        if name.starts_with("system-") {
            if !known.contains(&(name, value)) {
                faults.push(skiff_api::validation::FieldError::forbidden(
                    "metadata.name",
                    "priority class names with 'system-' prefix are reserved for system use only. error: the PriorityClass is not a known system priority class",
                ));
            }
        } else if value > HIGHEST_USER_PRIORITY {
            faults.push(skiff_api::validation::FieldError::forbidden(
                "value",
                format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
            ));
        }
    },
    validate_update: |new, old, faults| {
        for field in ["value", "preemptionPolicy"] {
            if new[field] != old[field] {
                faults.push(skiff_api::validation::FieldError::invalid(
                    field,
                    new[field].clone(),
                    "field is immutable",
                ));
            }
        }
    },
    columns: &[name_col(), int_col("Value"), col("Global-Default"), col("Age"), col("PreemptionPolicy")],
    row: |o| {
        vec![
            o["metadata"]["name"].clone(),
            table::int(&o["value"]),
            o["globalDefault"].as_bool().unwrap_or(false).into(),
            table::created(o),
            o["preemptionPolicy"].clone(),
        ]
    },
    ..Strategy::DEFAULT
};
