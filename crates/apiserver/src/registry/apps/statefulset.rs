//! StatefulSet.

use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::{validate_part, validate_replica_status, validate_workload, workload_defaults};
use crate::registry::{
    core::{default_field, each, object_mut, persistentvolumeclaim},
    strategy::{Strategy, col, name_col, wide},
    table,
};

/// What an update may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(crate) static STRATEGY: Strategy = Strategy {
    names: names::dns1123_label,
    generation: true,
    defaults,
    prepare_create: |o| o["status"] = json!({"replicas": 0, "availableReplicas": 0}),
    validate,
    validate_update,
    validate_status: validate_replica_status,
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

fn defaults(o: &mut Value) {
    workload_defaults(o, |spec| {
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
    });
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    match spec["podManagementPolicy"].as_str().unwrap_or_default() {
        "" => faults.required("spec.podManagementPolicy", ""),
        "OrderedReady" | "Parallel" => {}
        other => faults.invalid("spec.podManagementPolicy", other, "must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = &spec["updateStrategy"];
    let rolling = &strategy["rollingUpdate"];
    match strategy["type"].as_str().unwrap_or_default() {
        "" => faults.required("spec.updateStrategy", ""),
        "OnDelete" if rolling.is_object() => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            faults.invalid("spec.updateStrategy.rollingUpdate", rolling.clone(), why);
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            let at = "spec.updateStrategy.rollingUpdate";
            faults.non_negative(&format!("{at}.partition"), rolling["partition"].as_i64().unwrap_or(0));
            let at = format!("{at}.maxUnavailable");
            if validate_part(&rolling["maxUnavailable"], &at, faults) == Some(0) {
                faults.invalid(at, rolling["maxUnavailable"].clone(), "cannot be 0");
            }
        }
        _ => faults.invalid("spec.updateStrategy", strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
    for when in ["whenDeleted", "whenScaled"] {
        let at = format!("spec.persistentVolumeClaimRetentionPolicy.{when}");
        let policy = spec["persistentVolumeClaimRetentionPolicy"][when].as_str().unwrap_or_default();
        faults.one_of(&at, policy, &["Retain", "Delete"]);
    }
    faults.non_negative("spec.ordinals.start", spec["ordinals"]["start"].as_i64().unwrap_or(0));
    if let Some(name) = spec["serviceName"].as_str().filter(|name| !name.is_empty()) {
        faults.rule("spec.serviceName", name, names::dns1123_label(name));
    }
    for (i, claim) in spec["volumeClaimTemplates"].as_array().into_iter().flatten().enumerate() {
        let at = format!("spec.volumeClaimTemplates[{i}].spec");
        persistentvolumeclaim::validate_spec(&claim["spec"], &at, faults);
    }
    validate_workload(&with_claims(o), faults);
}

/// The object as its pods will be: each claim template gives them a volume, in place of one of the same name.
fn with_claims(o: &Value) -> Value {
    let mut whole = o.clone();
    let Some(claims) = o["spec"]["volumeClaimTemplates"].as_array() else { return whole };
    let names: Vec<_> = claims.iter().map(|claim| &claim["metadata"]["name"]).collect();
    let of_claims = names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let pod = &mut whole["spec"]["template"]["spec"];
    let others = pod["volumes"].as_array().into_iter().flatten().filter(|v| !names.contains(&&v["name"])).cloned();
    pod["volumes"] = others.chain(of_claims).collect();
    whole
}

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let fixed = |o: &Value| {
        let mut spec = o["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|field, value| !MUTABLE.contains(&field.as_str()) && !value.is_null());
        }
        spec
    };
    if fixed(new) != fixed(old) {
        faults.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(fields: Value) -> Value {
        let mut o = json!({"kind": "StatefulSet", "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels":
            {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in fields.as_object().unwrap() {
            o["spec"][key] = value.clone();
        }
        defaults(&mut o);
        o
    }

    fn faults(fields: Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(&set(fields), &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn claim_templates_are_volumes() {
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        let container = |volume: &str| {
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
                "volumeMounts": [{"name": volume, "mountPath": "/data"}]}]}})
        };
        let with = |volume: &str| faults(json!({"template": container(volume), "volumeClaimTemplates": [claim]}));
        assert_eq!(with("data"), Vec::<String>::new());
        assert_eq!(with("dat"), ["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"dat\""]);
    }

    #[test]
    fn faults_are_upstreams() {
        assert_eq!(faults(json!({})), [""; 0]);
        assert_eq!(
            faults(json!({"podManagementPolicy": "Any"})),
            ["spec.podManagementPolicy: Invalid value: \"Any\": must be 'OrderedReady' or 'Parallel'"]
        );
        assert_eq!(
            faults(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": -1}}})),
            ["spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(faults(json!({"selector": null}))[0], "spec.selector: Required value");
        assert!(faults(json!({"selector": {}}))[0].ends_with("empty selector is invalid for statefulset"));
    }

    #[test]
    fn most_fields_do_not_change() {
        let changed = |fields: Value| {
            let mut faults = Faults::default();
            validate_update(&set(fields), &set(json!({})), &mut faults);
            !faults.0.is_empty()
        };
        assert!(!changed(json!({"replicas": 4, "ordinals": {"start": 1}, "revisionHistoryLimit": 2})));
        assert!(changed(json!({"serviceName": "other"})));
        assert!(changed(json!({"podManagementPolicy": "Parallel"})));
    }
}
