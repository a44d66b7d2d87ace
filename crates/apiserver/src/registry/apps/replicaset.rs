//! ReplicaSet.

use super::{immutable, validate_workload};
use crate::registry::{
    core::{default_field, pod_spec},
    strategy::{Strategy, col, int_col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    selectable: &["status.replicas"],
    defaults: |o| {
        let spec = &mut o["spec"];
        if !spec.is_object() {
            return;
        }
        default_field(spec, "replicas", 1);
        if spec["template"].is_object() {
            pod_spec::template_defaults(&mut spec["template"]);
        }
    },
    prepare_create: |o| o["status"] = serde_json::json!({"replicas": 0}),
    validate: validate_workload,
    validate_update: |new, old, faults| immutable(new, old, "selector", faults),
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
    row: |o| {
        let (names, images) = table::containers(&o["spec"]["template"]);
        vec![
            o["metadata"]["name"].clone(),
            table::int(&o["spec"]["replicas"]),
            table::int(&o["status"]["replicas"]),
            table::int(&o["status"]["readyReplicas"]),
            table::created(o),
            names,
            images,
            table::selector(&o["spec"]["selector"]),
        ]
    },
    ..Strategy::DEFAULT
};
