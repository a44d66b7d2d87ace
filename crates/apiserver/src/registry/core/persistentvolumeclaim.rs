//! PersistentVolumeClaim.

use serde_json::{Value, json};

use super::{default_field, object_mut};
use crate::registry::{
    strategy::{Strategy, col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| {
        if o["spec"].is_object() {
            default_field(&mut o["spec"], "volumeMode", "Filesystem");
        }
        default_field(object_mut(o, "status"), "phase", "Pending");
    },
    prepare_create: |o| o["status"] = json!({"phase": "Pending"}),
    columns: &[
        name_col(),
        col("Status"),
        col("Volume"),
        col("Capacity"),
        col("Access Modes"),
        col("StorageClass"),
        col("VolumeAttributesClass"),
        col("Age"),
        wide("VolumeMode"),
    ],
    row: |o| {
        let bound = o["spec"]["volumeName"].as_str().is_some_and(|v| !v.is_empty());
        let phase = if o["metadata"]["deletionTimestamp"].is_string() {
            "Terminating".into()
        } else {
            o["status"]["phase"].clone()
        };
        vec![
            o["metadata"]["name"].clone(),
            phase,
            table::text_or(&o["spec"]["volumeName"], ""),
            if bound { table::text_or(&o["status"]["capacity"]["storage"], "") } else { "".into() },
            if bound { access_modes(&o["status"]["accessModes"]) } else { "".into() },
            table::text_or(&o["spec"]["storageClassName"], ""),
            table::text_or(&o["spec"]["volumeAttributesClassName"], "<unset>"),
            table::created(o),
            table::text_or(&o["spec"]["volumeMode"], "<unset>"),
        ]
    },
    ..Strategy::DEFAULT
};

/// `RWO,ROX,RWX,RWOP`.
pub(super) fn access_modes(modes: &Value) -> Value {
    let has = |m: &str| modes.as_array().into_iter().flatten().any(|x| x == m);
    let names =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    names.iter().filter(|(m, _)| has(m)).map(|(_, s)| *s).collect::<Vec<_>>().join(",").into()
}
