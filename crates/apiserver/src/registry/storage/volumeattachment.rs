//! VolumeAttachment.

use serde_json::json;

use crate::registry::{
    strategy::{Column, Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    prepare_create: |o| o["status"] = json!({"attached": false}),
    validate: |o, faults| {
        for field in ["attacher", "nodeName"] {
            if o["spec"][field].as_str().is_none_or(str::is_empty) {
                faults.required(format!("spec.{field}"), "");
            }
        }
    },
    validate_update: |new, old, faults| {
        if new["spec"] != old["spec"] {
            faults.invalid("spec", new["spec"].clone(), "field is immutable");
        }
    },
    columns: &[
        name_col(),
        col("Attacher"),
        col("PV"),
        col("Node"),
        Column { name: "Attached", ty: "boolean", format: "", priority: 0 },
        col("Age"),
    ],
    row: |o| {
        vec![
            o["metadata"]["name"].clone(),
            o["spec"]["attacher"].clone(),
            table::text_or(&o["spec"]["source"]["persistentVolumeName"], ""),
            o["spec"]["nodeName"].clone(),
            o["status"]["attached"].as_bool().unwrap_or(false).into(),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};
