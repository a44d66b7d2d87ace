//! PersistentVolume.

use serde_json::{Map, Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::{
    default_field,
    persistentvolumeclaim::{access_modes, validate_access_modes, validate_size},
};
use crate::registry::{
    strategy::{Strategy, col, name_col, wide},
    table,
};

/// The fields of a volume's spec that are no source.
const NO_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| {
        if o["spec"].is_object() {
            default_field(&mut o["spec"], "persistentVolumeReclaimPolicy", "Retain");
            default_field(&mut o["spec"], "volumeMode", "Filesystem");
            if o["spec"].get("hostPath").is_some_and(Value::is_object) {
                default_field(&mut o["spec"]["hostPath"], "type", "");
            }
        }
    },
    prepare_create: |o| {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        o["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now});
    },
    validate,
    validate_update,
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

/// Name and value of each source that is given.
fn sources(spec: &Value) -> impl Iterator<Item = (&String, &Value)> {
    spec.as_object().into_iter().flatten().filter(|(k, v)| !NO_SOURCES.contains(&k.as_str()) && v.is_object())
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    validate_access_modes(&spec["accessModes"], "", faults);
    let capacity = spec["capacity"].as_object();
    if capacity.is_none_or(Map::is_empty) {
        faults.required("spec.capacity", "");
    }
    match capacity {
        Some(capacity) if capacity.len() == 1 && capacity.contains_key("storage") => {
            validate_size(&capacity["storage"], "spec.capacity[storage]", faults);
        }
        _ => faults.push(FieldError::not_supported("spec.capacity", spec["capacity"].clone(), &["storage"])),
    }
    let policy = spec["persistentVolumeReclaimPolicy"].as_str().unwrap_or_default();
    faults.one_of("spec.persistentVolumeReclaimPolicy", policy, &["Delete", "Recycle", "Retain"]);
    let mode = spec["volumeMode"].as_str().unwrap_or_default();
    faults.one_of("spec.volumeMode", mode, &["Block", "Filesystem"]);
    let class = spec["storageClassName"].as_str().unwrap_or_default();
    if !class.is_empty() {
        faults.rule("spec.storageClassName", class, names::dns1123_subdomain(class));
    }
    let mut given = sources(spec).map(|(name, _)| name);
    if given.next().is_none() {
        faults.required("spec", "must specify a volume type");
    }
    for name in given {
        faults.push(FieldError::forbidden(format!("spec.{name}"), "may not specify more than 1 volume type"));
    }
    for source in ["hostPath", "local"] {
        if spec[source].is_object() {
            validate_path(&spec[source], &format!("spec.{source}.path"), faults);
        }
    }
    if spec["csi"].is_object() {
        validate_csi_driver_name(&spec["csi"]["driver"], "spec.csi.driver", faults);
        if spec["csi"]["volumeHandle"].as_str().is_none_or(str::is_empty) {
            faults.required("spec.csi.volumeHandle", "");
        }
    }
    if spec["hostPath"]["path"] == "/" && policy == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        faults.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", why));
    }
    let affinity = &spec["nodeAffinity"];
    if affinity.is_object() {
        let terms = affinity["required"]["nodeSelectorTerms"].as_array().map_or(0, Vec::len);
        if !affinity["required"].is_object() {
            faults.required("spec.nodeAffinity.required", "must specify required node constraints");
        } else if terms == 0 {
            let at = "spec.nodeAffinity.required.nodeSelectorTerms";
            faults.required(at, "must have at least one node selector term");
        }
    } else if spec["local"].is_object() {
        faults.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
}

/// The name of a CSI driver, which becomes part of paths.
pub(crate) fn validate_csi_driver_name(name: &Value, at: &str, faults: &mut Faults) {
    let name = name.as_str().unwrap_or_default();
    if name.is_empty() {
        faults.required(at, "");
    } else if name.len() > 63 {
        faults.push(FieldError::too_long(at, 63));
    } else {
        faults.rule(at, name, names::dns1123_subdomain(&name.to_lowercase()));
    }
}

fn validate_path(source: &Value, at: &str, faults: &mut Faults) {
    let path = source["path"].as_str().unwrap_or_default();
    if path.is_empty() {
        faults.required(at, "");
    } else if path.split('/').any(|p| p == "..") {
        faults.invalid(at, path, "must not contain '..'");
    }
}

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let (now, before) = (&new["spec"], &old["spec"]);
    if !sources(now).eq(sources(before)) {
        let why = "spec.persistentvolumesource is immutable after creation";
        faults.push(FieldError::forbidden("spec.persistentvolumesource", why));
    }
    for field in ["volumeMode", "nodeAffinity"] {
        // An affinity may be added later, but not changed.
        if now[field] != before[field] && !before[field].is_null() {
            faults.invalid(format!("spec.{field}"), now[field].clone(), "field is immutable");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut o = json!({"metadata": {"name": "v"}, "spec": spec});
        (STRATEGY.defaults)(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_a_volume_needs() {
        let good =
            json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}});
        assert!(faults(good.clone()).is_empty());
        assert_eq!(
            faults(json!({})),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec.capacity: Unsupported value: null: supported values: \"storage\"",
                "spec: Required value: must specify a volume type"
            ]
        );
        let mut two = good.clone();
        two["nfs"] = json!({"server": "s", "path": "/"});
        assert_eq!(faults(two), ["spec.nfs: Forbidden: may not specify more than 1 volume type"]);
        let mut local = good;
        local.as_object_mut().unwrap().shift_remove("hostPath");
        local["local"] = json!({"path": "/x"});
        assert_eq!(faults(local), ["spec.nodeAffinity: Required value: Local volume requires node affinity"]);
    }

    #[test]
    fn the_source_stays() {
        let old = json!({"spec": {"hostPath": {"path": "/a"}, "volumeMode": "Filesystem"}});
        let new = json!({"spec": {"hostPath": {"path": "/b"}, "volumeMode": "Filesystem"}});
        let mut faults = Faults::default();
        validate_update(&new, &old, &mut faults);
        assert_eq!(
            faults.0[0].to_string(),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
        );
    }
}
