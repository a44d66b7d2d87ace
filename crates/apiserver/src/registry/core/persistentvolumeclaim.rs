//! PersistentVolumeClaim.

use serde_json::{Value, json};
use skiff_api::{
    names,
    quantity::Quantity,
    selector,
    validation::{Faults, FieldError},
};

use super::{default_field, object_mut};
use crate::registry::{
    strategy::{Strategy, col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults: |o| {
        if o["spec"].is_object() {
            default_field(&mut o["spec"], "volumeMode", "Filesystem");
            normalize_sources(&mut o["spec"]);
        }
        default_field(object_mut(o, "status"), "phase", "Pending");
    },
    prepare_create: |o| o["status"] = json!({"phase": "Pending"}),
    validate: |o, faults| validate_spec(&o["spec"], "spec", faults),
    validate_update,
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

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Access modes of claims and volumes; `missing` is what is said if there are none.
pub(super) fn validate_access_modes(modes: &Value, missing: &str, faults: &mut Faults) {
    let at = "spec.accessModes";
    let modes = modes.as_array().map(Vec::as_slice).unwrap_or_default();
    if modes.is_empty() {
        faults.required(at, missing);
    }
    for mode in modes {
        faults.one_of(at, mode.as_str().unwrap_or_default(), &ACCESS_MODES);
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        faults.push(FieldError::forbidden(at, "may not use ReadWriteOncePod with other access modes"));
    }
}

/// A size must be more than nothing.
pub(super) fn validate_size(size: &Value, at: &str, faults: &mut Faults) {
    let text = size.as_str().unwrap_or_default();
    if text.parse::<Quantity>().is_ok_and(|q| q.is_zero() || q.is_negative()) {
        faults.invalid(at, text, "must be greater than zero");
    }
}

/// The spec of a claim, also of one in a template.
pub(crate) fn validate_spec(spec: &Value, at: &str, faults: &mut Faults) {
    let start = faults.0.len();
    validate_access_modes(&spec["accessModes"], "at least 1 access mode is required", faults);
    if at != "spec" {
        for fault in &mut faults.0[start..] {
            fault.field = fault.field.replacen("spec", at, 1);
        }
    }
    if spec["selector"].is_object()
        && let Err(error) = selector::LabelSelector::from_value(&spec["selector"])
    {
        faults.invalid(format!("{at}.selector"), spec["selector"].clone(), error.to_string());
    }
    let size = &spec["resources"]["requests"]["storage"];
    match size.is_null() {
        true => faults.required(format!("{at}.resources[storage]"), ""),
        false => validate_size(size, &format!("{at}.resources[storage]"), faults),
    }
    let class = spec["storageClassName"].as_str().unwrap_or_default();
    if !class.is_empty() {
        faults.rule(&format!("{at}.storageClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(mode) = spec["volumeMode"].as_str() {
        faults.one_of(&format!("{at}.volumeMode"), mode, &["Block", "Filesystem"]);
    }
    validate_source(spec, "dataSource", at, faults);
    validate_source(spec, "dataSourceRef", at, faults);
    let (old, new) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if old.is_object() && new.is_object() && ["apiGroup", "kind", "name"].iter().any(|f| old[*f] != new[*f]) {
        faults.invalid(at, format!("{at}.dataSource"), "must match dataSourceRef");
    }
}

/// What a claim is to begin with has an old field and a new one, which say the same where the old one can say it:
/// it never could for other kinds than claims and snapshots, nor for other namespaces.
fn normalize_sources(spec: &mut Value) {
    let is_of_old = |source: &Value| {
        let group = source["apiGroup"].as_str().unwrap_or_default();
        matches!(
            (group, source["kind"].as_str().unwrap_or_default()),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        )
    };
    if spec["dataSource"].is_object()
        && !is_of_old(&spec["dataSource"])
        && let Some(spec) = spec.as_object_mut()
    {
        spec.shift_remove("dataSource");
    }
    let (old, new) = (spec["dataSource"].clone(), spec["dataSourceRef"].clone());
    match (old.is_object(), new.is_object()) {
        (true, false) => spec["dataSourceRef"] = old,
        (false, true) if new["namespace"].as_str().is_none_or(str::is_empty) => spec["dataSource"] = new,
        _ => {}
    }
}

/// What a claim is to begin with.
fn validate_source(spec: &Value, field: &str, at: &str, faults: &mut Faults) {
    let source = &spec[field];
    if !source.is_object() {
        return;
    }
    let text = |name: &str| source[name].as_str().unwrap_or_default();
    for name in ["name", "kind"] {
        if text(name).is_empty() {
            faults.required(format!("{at}.{field}.{name}"), "");
        }
    }
    if text("apiGroup").is_empty() && text("kind") != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        faults.invalid(format!("{at}.{field}"), text("kind"), why);
    } else if !text("apiGroup").is_empty() {
        faults.rule(&format!("{at}.{field}.apiGroup"), text("apiGroup"), names::dns1123_subdomain(text("apiGroup")));
    }
    let namespace = text("namespace");
    if !namespace.is_empty() {
        faults.rule(&format!("{at}.{field}.namespace"), namespace, names::dns1123_label(namespace));
    }
}

const IMMUTABLE: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let (now, before) = (&new["spec"], &old["spec"]);
    let is_bound = old["status"]["phase"] == "Bound";
    let unset = |v: &Value| v.as_str().is_none_or(str::is_empty);
    let mut allowed = now.clone();
    let mut keep = |field: &str| match before.get(field) {
        Some(v) => allowed[field] = v.clone(),
        None => {
            if let Some(map) = allowed.as_object_mut() {
                map.shift_remove(field);
            }
        }
    };
    // The binder names the volume, once.
    if unset(&before["volumeName"]) {
        keep("volumeName");
        // A class may be given later, while there is no volume.
        if before["storageClassName"].is_null() {
            keep("storageClassName");
        }
    }
    if is_bound {
        keep("resources");
        keep("volumeAttributesClassName");
        // Of the resources only the requests.
        if now["resources"]["limits"] != before["resources"]["limits"] {
            allowed["resources"]["limits"] = now["resources"]["limits"].clone();
        }
    }
    if allowed != *before {
        faults.push(FieldError::forbidden("spec", IMMUTABLE));
    }
    let size = |v: &Value| v.as_str().and_then(|s| s.parse::<Quantity>().ok());
    let (wanted, asked) =
        (size(&now["resources"]["requests"]["storage"]), size(&before["resources"]["requests"]["storage"]));
    let has = size(&old["status"]["capacity"]["storage"]);
    // A claim whose expansion failed may ask for less again, but for no less than it has.
    if is_bound && wanted < asked && wanted <= has {
        let at = "spec.resources.requests.storage";
        faults.push(FieldError::forbidden(at, "field can not be less than status.capacity"));
    }
    if now["volumeMode"] != before["volumeMode"] {
        faults.invalid("spec.volumeMode", now["volumeMode"].clone(), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(change: impl Fn(&mut Value), phase: &str) -> Vec<String> {
        let old = json!({
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "resources": {"requests": {"storage": "2Gi"}}},
            "status": {"phase": phase, "capacity": {"storage": "2Gi"}},
        });
        let mut new = old.clone();
        change(&mut new);
        let mut faults = Faults::default();
        validate_update(&new, &old, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_a_claim_needs() {
        let mut faults = Faults::default();
        validate_spec(&json!({"volumeMode": "Filesystem"}), "spec", &mut faults);
        let texts: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value"
            ]
        );
        let mut faults = Faults::default();
        let spec = json!({"accessModes": ["ReadWriteOncePod", "x"], "resources": {"requests": {"storage": "0"}}});
        validate_spec(&spec, "spec", &mut faults);
        assert_eq!(faults.0.len(), 3, "{faults:?}");
    }

    #[test]
    fn what_it_begins_with() {
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let mut spec = json!({"dataSource": snapshot});
        normalize_sources(&mut spec);
        assert_eq!(spec["dataSourceRef"], snapshot);
        let other = json!({"apiGroup": "example.com", "kind": "Backup", "name": "b"});
        let mut spec = json!({"dataSource": other});
        normalize_sources(&mut spec);
        assert!(spec["dataSource"].is_null() && spec["dataSourceRef"].is_null());
        let base = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let faults = |source: Value| {
            let mut spec = base.clone();
            spec["dataSource"] = source;
            let mut faults = Faults::default();
            validate_spec(&spec, "spec", &mut faults);
            faults.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(faults(snapshot).is_empty());
        assert_eq!(
            faults(json!({"kind": "VolumeSnapshot", "name": "s"})),
            [
                "spec.dataSource: Invalid value: \"VolumeSnapshot\": must be 'PersistentVolumeClaim' when referencing the default apiGroup"
            ]
        );
    }

    #[test]
    fn only_the_size_changes_and_only_upwards() {
        let size = |to: &'static str| move |o: &mut Value| o["spec"]["resources"]["requests"]["storage"] = to.into();
        let immutable = format!("spec: Forbidden: {IMMUTABLE}");
        assert!(update(size("3Gi"), "Bound").is_empty());
        assert_eq!(update(size("3Gi"), "Pending"), std::slice::from_ref(&immutable));
        assert_eq!(
            update(size("1Gi"), "Bound"),
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
        assert!(update(|o| o["spec"]["volumeName"] = "v".into(), "Pending").is_empty());
        assert_eq!(update(|o| o["spec"]["accessModes"] = json!(["ReadWriteMany"]), "Bound"), [immutable]);
    }
}
