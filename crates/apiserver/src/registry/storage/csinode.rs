//! CSINode.

use serde_json::Value;
use skiff_api::validation::{Faults, FieldError};

use crate::registry::{
    core::{list, persistentvolume::validate_csi_driver_name},
    strategy::{Strategy, col, int_col, name_col},
    table,
};

/// The longest identity of a node.
const NODE_ID: usize = 256;

pub(crate) static STRATEGY: Strategy = Strategy {
    validate,
    validate_update,
    columns: &[name_col(), int_col("Drivers"), col("Age")],
    row: |o| {
        let drivers = o["spec"]["drivers"].as_array().map_or(0, Vec::len);
        vec![o["metadata"]["name"].clone(), drivers.into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};

fn drivers(o: &Value) -> &[Value] {
    list(&o["spec"]["drivers"])
}

fn validate(o: &Value, faults: &mut Faults) {
    for (i, driver) in drivers(o).iter().enumerate() {
        let at = format!("spec.drivers[{i}]");
        validate_csi_driver_name(&driver["name"], &format!("{at}.name"), faults);
        let id = driver["nodeID"].as_str().unwrap_or_default();
        if id.is_empty() {
            faults.required(format!("{at}.nodeID"), "");
        } else if id.len() > NODE_ID {
            faults.invalid(format!("{at}.nodeID"), id, "nodeID should be less than 256 characters");
        }
        if let Some(count) = driver["allocatable"]["count"].as_i64().filter(|c| *c < 0) {
            faults.invalid(format!("{at}.allocatable.count"), count, "must be greater than or equal to 0");
        }
        if drivers(o)[..i].iter().any(|other| other["name"] == driver["name"]) {
            faults.push(FieldError::duplicate(format!("{at}.name"), driver["name"].clone()));
        }
    }
}

/// A driver stays as it is until it is gone, but for how many volumes it takes.
fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let fixed = |driver: &Value| {
        let mut driver = driver.clone();
        if let Some(fields) = driver.as_object_mut() {
            fields.shift_remove("allocatable");
        }
        driver
    };
    for was in drivers(old) {
        if let Some(is) = drivers(new).iter().find(|d| d["name"] == was["name"])
            && fixed(is) != fixed(was)
        {
            faults.invalid("CSINode.Spec.Drivers", is.clone(), "field is immutable");
        }
    }
}
