//! ReplicationController.

use serde_json::{Value, json};

use super::{default_field, pod_spec};
use crate::registry::{
    strategy::{Strategy, col, int_col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    selectable: &["status.replicas"],
    defaults: |o| {
        let labels = o["spec"]["template"]["metadata"]["labels"].clone();
        let spec = &mut o["spec"];
        if !spec.is_object() {
            return;
        }
        default_field(spec, "replicas", 1);
        if labels.is_object() {
            if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
                spec["selector"] = labels.clone();
            }
            if o["metadata"]["labels"].is_null() {
                o["metadata"]["labels"] = labels;
            }
        }
        pod_spec::template_defaults(&mut o["spec"]["template"]);
    },
    prepare_create: |o| o["status"] = json!({"replicas": 0}),
    columns: &[
        name_col(),
        int_col("Desired"),
        int_col("Current"),
        int_col("Ready"),
        col("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o: &Value| {
        let (names, images) = table::containers(&o["spec"]["template"]);
        vec![
            o["metadata"]["name"].clone(),
            table::int(&o["spec"]["replicas"]),
            table::int(&o["status"]["replicas"]),
            table::int(&o["status"]["readyReplicas"]),
            table::created(o),
            names,
            images,
            table::pairs(&o["spec"]["selector"]),
        ]
    },
    ..Strategy::DEFAULT
};
