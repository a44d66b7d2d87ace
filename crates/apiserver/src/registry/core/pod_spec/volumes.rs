//! Rules of a pod's volumes.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use crate::registry::core::{persistentvolume, persistentvolumeclaim};

/// The names of the volumes that may be mounted.
pub(super) fn validate<'a>(spec: &'a Value, at: &str, faults: &mut Faults) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (i, v) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.volumes[{i}]");
        let faults_before = faults.0.len();
        let name = v["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            faults.required(format!("{here}.name"), "");
        } else {
            faults.rule(&format!("{here}.name"), name, names::dns1123_label(name));
            if seen.contains(&name) {
                faults.push(FieldError::duplicate(format!("{here}.name"), name));
            }
        }
        let sources: Vec<&String> =
            v.as_object().into_iter().flatten().map(|(k, _)| k).filter(|k| *k != "name").collect();
        match sources.as_slice() {
            [] => faults.required(here.clone(), "must specify a volume type"),
            [_] => {}
            [_, more @ ..] => {
                for source in more {
                    faults.push(FieldError::forbidden(
                        format!("{here}.{source}"),
                        "may not specify more than 1 volume type",
                    ));
                }
            }
        }
        for (source, field, required) in [
            ("configMap", "name", "name"),
            ("secret", "secretName", "secretName"),
            ("persistentVolumeClaim", "claimName", "claimName"),
            ("hostPath", "path", "path"),
        ] {
            if v[source].is_object() && v[source][field].as_str().is_none_or(str::is_empty) {
                faults.required(format!("{here}.{source}.{required}"), "");
            }
        }
        if v["csi"].is_object() {
            let at = format!("{here}.csi");
            persistentvolume::validate_csi_driver_name(&v["csi"]["driver"], &format!("{at}.driver"), faults);
            let secret = &v["csi"]["nodePublishSecretRef"];
            if secret.is_object() && secret["name"].as_str().is_none_or(str::is_empty) {
                faults.required(format!("{at}.nodePublishSecretRef.name"), "");
            }
        }
        if v["ephemeral"].is_object() {
            let at = format!("{here}.ephemeral.volumeClaimTemplate");
            match &v["ephemeral"]["volumeClaimTemplate"] {
                Value::Object(template) => {
                    let claim = template.get("spec").unwrap_or(&Value::Null);
                    persistentvolumeclaim::validate_spec(claim, &format!("{at}.spec"), faults);
                }
                _ => faults.required(at, ""),
            }
        }
        if let Some(path) = v["hostPath"]["path"].as_str()
            && path.split('/').any(|p| p == "..")
        {
            faults.invalid(format!("{here}.hostPath.path"), path, "must not contain '..'");
        }
        if let Some(kind) = v["hostPath"]["type"].as_str() {
            let kinds =
                ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            faults.one_of(&format!("{here}.hostPath.type"), kind, &kinds);
        }
        for source in ["configMap", "secret", "downwardAPI"] {
            validate_items(&v[source], &format!("{here}.{source}"), faults);
        }
        for (j, p) in v["projected"]["sources"].as_array().into_iter().flatten().enumerate() {
            for source in ["configMap", "secret", "downwardAPI"] {
                validate_items(&p[source], &format!("{here}.projected.sources[{j}].{source}"), faults);
            }
        }
        // A faulty one cannot be mounted.
        if faults.0.len() == faults_before {
            seen.push(name);
        }
    }
    seen
}

fn validate_items(source: &Value, at: &str, faults: &mut Faults) {
    if let Some(mode) = source["defaultMode"].as_i64()
        && !(0..=0o777).contains(&mode)
    {
        faults.invalid(
            format!("{at}.defaultMode"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
    for (i, item) in source["items"].as_array().into_iter().flatten().enumerate() {
        let path = item["path"].as_str().unwrap_or_default();
        let here = format!("{at}.items[{i}].path");
        if path.is_empty() {
            faults.required(here, "");
        } else if path.starts_with('/') {
            faults.invalid(here, path, "must be a relative path");
        } else if path.split('/').any(|p| p == "..") {
            faults.invalid(here, path, "must not contain '..'");
        } else if path.starts_with("..") {
            faults.invalid(here, path, "must not start with '..'");
        }
    }
}
