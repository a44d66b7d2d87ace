//! CSIDriver.

use serde_json::json;

use crate::registry::{
    core::default_field,
    strategy::{Column, Strategy, col, name_col},
    table,
};

const fn boolean(name: &'static str) -> Column {
    Column { name, ty: "boolean", format: "", priority: 0 }
}

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| {
        if o["spec"].is_object() {
            let spec = &mut o["spec"];
            default_field(spec, "attachRequired", true);
            for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
                default_field(spec, field, false);
            }
            default_field(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            default_field(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }
    },
    columns: &[
        name_col(),
        boolean("AttachRequired"),
        boolean("PodInfoOnMount"),
        boolean("StorageCapacity"),
        col("TokenRequests"),
        boolean("RequiresRepublish"),
        col("Modes"),
        col("Age"),
    ],
    row: |o| {
        let spec = &o["spec"];
        let list = |field: &str, part: Option<&str>| {
            let items = spec[field].as_array().into_iter().flatten();
            let texts: Vec<&str> = items.filter_map(|v| part.map_or(v, |p| &v[p]).as_str()).collect();
            texts.join(",")
        };
        let audiences = list("tokenRequests", Some("audience"));
        let modes = list("volumeLifecycleModes", None);
        vec![
            o["metadata"]["name"].clone(),
            spec["attachRequired"].as_bool().unwrap_or(true).into(),
            spec["podInfoOnMount"].as_bool().unwrap_or(false).into(),
            spec["storageCapacity"].as_bool().unwrap_or(false).into(),
            if spec["tokenRequests"].is_array() { audiences.into() } else { "<unset>".into() },
            spec["requiresRepublish"].as_bool().unwrap_or(false).into(),
            if modes.is_empty() { "<none>".into() } else { modes.into() },
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};
