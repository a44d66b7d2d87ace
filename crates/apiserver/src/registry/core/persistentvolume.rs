//! PersistentVolume.

use serde_json::json;

use super::{default_field, persistentvolumeclaim::access_modes};
use crate::registry::{
    strategy::{Strategy, col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| {
        if o["spec"].is_object() {
            default_field(&mut o["spec"], "persistentVolumeReclaimPolicy", "Retain");
            default_field(&mut o["spec"], "volumeMode", "Filesystem");
        }
    },
    prepare_create: |o| o["status"] = json!({"phase": "Pending"}),
    columns: &[
        name_col(),
        col("Capacity"),
        col("Access Modes"),
        col("Reclaim Policy"),
        col("Status"),
        col("Claim"),
        col("StorageClass"),
        col("VolumeAttributesClass"),
        col("Reason"),
        col("Age"),
        wide("VolumeMode"),
    ],
    row: |o| {
        let claim = &o["spec"]["claimRef"];
        let claim = match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(ns), Some(name)) => format!("{ns}/{name}"),
            _ => String::new(),
        };
        let phase = if o["metadata"]["deletionTimestamp"].is_string() {
            "Terminating".into()
        } else {
            o["status"]["phase"].clone()
        };
        vec![
            o["metadata"]["name"].clone(),
            table::text_or(&o["spec"]["capacity"]["storage"], ""),
            access_modes(&o["spec"]["accessModes"]),
            o["spec"]["persistentVolumeReclaimPolicy"].clone(),
            phase,
            claim.into(),
            table::text_or(&o["spec"]["storageClassName"], ""),
            table::text_or(&o["spec"]["volumeAttributesClassName"], "<unset>"),
            table::text_or(&o["status"]["reason"], ""),
            table::created(o),
            table::text_or(&o["spec"]["volumeMode"], "<unset>"),
        ]
    },
    ..Strategy::DEFAULT
};
