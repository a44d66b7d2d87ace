//! DaemonSet.

use super::{immutable, validate_workload};
use crate::registry::{
    core::{default_field, object_mut, pod_spec},
    strategy::{Strategy, col, int_col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| {
        let spec = &mut o["spec"];
        if !spec.is_object() {
            return;
        }
        default_field(spec, "revisionHistoryLimit", 10);
        let strategy = object_mut(spec, "updateStrategy");
        default_field(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = object_mut(strategy, "rollingUpdate");
            default_field(rolling, "maxUnavailable", 1);
            default_field(rolling, "maxSurge", 0);
        }
        if spec["template"].is_object() {
            pod_spec::template_defaults(&mut spec["template"]);
        }
    },
    prepare_create: |o| {
        o["status"] = serde_json::json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
        });
    },
    validate: validate_workload,
    validate_update: |new, old, faults| immutable(new, old, "selector", faults),
    columns: &[
        name_col(),
        int_col("Desired"),
        int_col("Current"),
        int_col("Ready"),
        int_col("Up-to-date"),
        int_col("Available"),
        col("Node Selector"),
        col("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o| {
        let (names, images) = table::containers(&o["spec"]["template"]);
        let status = &o["status"];
        vec![
            o["metadata"]["name"].clone(),
            table::int(&status["desiredNumberScheduled"]),
            table::int(&status["currentNumberScheduled"]),
            table::int(&status["numberReady"]),
            table::int(&status["updatedNumberScheduled"]),
            table::int(&status["numberAvailable"]),
            table::pairs(&o["spec"]["template"]["spec"]["nodeSelector"]),
            table::created(o),
            names,
            images,
            table::selector(&o["spec"]["selector"]),
        ]
    },
    ..Strategy::DEFAULT
};
