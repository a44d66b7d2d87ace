//! StatefulSet.

use super::validate_workload;
use crate::registry::{
    core::{default_field, each, object_mut, pod_spec},
    strategy::{Strategy, col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| {
        let spec = &mut o["spec"];
        if !spec.is_object() {
            return;
        }
        default_field(spec, "replicas", 1);
        default_field(spec, "revisionHistoryLimit", 10);
        default_field(spec, "podManagementPolicy", "OrderedReady");
        let strategy = object_mut(spec, "updateStrategy");
        default_field(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            default_field(object_mut(strategy, "rollingUpdate"), "partition", 0);
        }
        let retention = object_mut(spec, "persistentVolumeClaimRetentionPolicy");
        default_field(retention, "whenDeleted", "Retain");
        default_field(retention, "whenScaled", "Retain");
        for claim in each(spec, "volumeClaimTemplates") {
            default_field(claim, "apiVersion", "v1");
            default_field(claim, "kind", "PersistentVolumeClaim");
            default_field(object_mut(claim, "spec"), "volumeMode", "Filesystem");
            default_field(object_mut(claim, "status"), "phase", "Pending");
        }
        if spec["template"].is_object() {
            pod_spec::template_defaults(&mut spec["template"]);
        }
    },
    prepare_create: |o| o["status"] = serde_json::json!({"replicas": 0, "availableReplicas": 0}),
    validate: validate_workload,
    validate_update: |new, old, faults| {
        for field in ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"] {
            if new["spec"][field] != old["spec"][field] {
                faults.push(skiff_api::validation::FieldError::forbidden(
                    "spec",
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                ));
                return;
            }
        }
    },
    columns: &[name_col(), col("Ready"), col("Age"), wide("Containers"), wide("Images")],
    row: |o| {
        let (names, images) = table::containers(&o["spec"]["template"]);
        vec![
            o["metadata"]["name"].clone(),
            format!("{}/{}", table::int(&o["status"]["readyReplicas"]), table::int(&o["spec"]["replicas"])).into(),
            table::created(o),
            names,
            images,
        ]
    },
    ..Strategy::DEFAULT
};
