//! ReplicaSet, and what it shares with ReplicationController.

use serde_json::{Value, json};

use super::{immutable, validate_replica_status, validate_workload, workload_defaults};
use crate::registry::{
    core::default_field,
    strategy::{Column, Strategy, col, int_col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| workload_defaults(o, |spec| default_field(spec, "replicas", 1)),
    validate: validate_workload,
    validate_update: |new, old, faults| immutable(new, old, "selector", faults),
    row: |o| row(o, table::selector(&o["spec"]["selector"])),
    ..SHARED
};

/// What both kinds have alike.
pub(crate) const SHARED: Strategy = Strategy {
    generation: true,
    selectable: &["status.replicas"],
    prepare_create: |o| o["status"] = json!({"replicas": 0}),
    validate_status: validate_replica_status,
    columns: COLUMNS,
    ..Strategy::DEFAULT
};

const COLUMNS: &[Column] = &[
    name_col(),
    int_col("Desired"),
    int_col("Current"),
    int_col("Ready"),
    col("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// The cells of a row with the selector as it is shown.
pub(crate) fn row(o: &Value, selector: Value) -> Vec<Value> {
    let (names, images) = table::containers(&o["spec"]["template"]);
    vec![
        o["metadata"]["name"].clone(),
        table::int(&o["spec"]["replicas"]),
        table::int(&o["status"]["replicas"]),
        table::int(&o["status"]["readyReplicas"]),
        table::created(o),
        names,
        images,
        selector,
    ]
}
