//! VolumeAttributesClass.

use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    validate: |o, faults| {
        if o["driverName"].as_str().is_none_or(str::is_empty) {
            faults.required("driverName", "");
        }
    },
    validate_update: |new, old, faults| {
        for field in ["driverName", "parameters"] {
            if new[field] != old[field] {
                faults.invalid(field, new[field].clone(), "field is immutable");
            }
        }
    },
    columns: &[name_col(), col("DriverName"), col("Age")],
    row: |o| vec![o["metadata"]["name"].clone(), o["driverName"].clone(), table::created(o)],
    ..Strategy::DEFAULT
};
