//! CustomResourceDefinition.

use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::structural;
use crate::{
    custom::controller,
    registry::{
        core::{default_field, object_mut},
        strategy::{Column, Strategy, name_col},
    },
    webhook,
};

const APPROVAL: &str = "api-approved.kubernetes.io";

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults,
    prepare_create: |o| {
        o["status"] = json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
        note_storage(o);
    },
    prepare_update: |new, _| note_storage(new),
    prepare_delete: controller::mark_terminating,
    validate,
    validate_update: |new, old, faults| {
        if !controller::is_true(old, "Established") {
            return;
        }
        for (path, field) in [("/spec/scope", "spec.scope"), ("/spec/names/kind", "spec.names.kind")] {
            fixed(new, old, path, field, faults);
        }
        for (path, field) in [("/spec/group", "spec.group"), ("/spec/names/plural", "spec.names.plural")] {
            fixed(new, old, path, field, faults);
        }
        let names: Vec<&Value> = versions(new).map(|v| &v["name"]).collect();
        for (i, stored) in old["status"]["storedVersions"].as_array().into_iter().flatten().enumerate() {
            if !names.contains(&stored) {
                let why = format!(
                    "missing from spec.versions; {} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {0} and removes {0} from status.storedVersions",
                    stored.as_str().unwrap_or_default()
                );
                faults.invalid(format!("status.storedVersions[{i}]"), stored.clone(), why);
            }
        }
    },
    columns: &[name_col(), Column { name: "Created At", ty: "date", format: "", priority: 0 }],
    ..Strategy::DEFAULT
};

fn fixed(new: &Value, old: &Value, path: &str, field: &str, faults: &mut Faults) {
    if new.pointer(path) != old.pointer(path) {
        faults.invalid(field, new.pointer(path).cloned().unwrap_or_default(), "field is immutable");
    }
}

fn versions(definition: &Value) -> impl Iterator<Item = &Value> {
    definition["spec"]["versions"].as_array().into_iter().flatten()
}

fn defaults(o: &mut Value) {
    let spec = object_mut(o, "spec");
    let names = object_mut(spec, "names");
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    if !kind.is_empty() {
        default_field(names, "listKind", format!("{kind}List"));
        default_field(names, "singular", kind.to_ascii_lowercase());
    }
    default_field(spec, "conversion", json!({"strategy": "None"}));
    let conversion = &mut spec["conversion"];
    if conversion["webhook"].is_object() {
        webhook::default_config(&mut conversion["webhook"]["clientConfig"]);
    } else if let Some(conversion) = conversion.as_object_mut() {
        conversion.shift_remove("webhook");
    }
}

/// The version that objects are stored in is remembered.
fn note_storage(o: &mut Value) {
    let storage = versions(o).find(|v| v["storage"] == true).map(|v| v["name"].clone());
    let stored = &mut o["status"]["storedVersions"];
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let (Some(list), Some(name)) = (stored.as_array_mut(), storage)
        && !list.contains(&name)
    {
        list.push(name);
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let name = text(&o["metadata"]["name"]);
    if name != format!("{plural}.{group}") {
        faults.invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group");
    }
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|p| group == *p || group.ends_with(&format!(".{p}")));
    if protected && text(&o["metadata"]["annotations"][APPROVAL]).is_empty() {
        let why = format!(
            "protected groups must have approval annotation {APPROVAL:?}, see https://github.com/kubernetes/enhancements/pull/1111"
        );
        faults.required(format!("metadata.annotations[{APPROVAL}]"), why);
    }
    if group.is_empty() {
        faults.required("spec.group", "");
    } else {
        faults.rule("spec.group", &group, names::dns1123_subdomain(&group));
        if !group.contains('.') {
            faults.invalid("spec.group", group, "should be a domain with at least one dot");
        }
    }
    match spec["scope"].as_str() {
        Some(scope) if !scope.is_empty() => faults.one_of("spec.scope", scope, &["Cluster", "Namespaced"]),
        _ => faults.required("spec.scope", ""),
    }
    if spec["preserveUnknownFields"] == true {
        faults.invalid(
            "spec.preserveUnknownFields",
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    validate_names(&spec["names"], faults);
    let count = versions(o).count();
    if versions(o).filter(|v| v["storage"] == true).count() != 1 {
        faults.invalid(
            "spec.versions",
            spec["versions"].clone(),
            "must have exactly one version marked as storage version",
        );
    }
    let mut seen = Vec::new();
    for (i, version) in versions(o).enumerate() {
        let at = format!("spec.versions[{i}]");
        let name = text(&version["name"]);
        faults.rule(&format!("{at}.name"), &name, names::dns1035_label(&name));
        if seen.contains(&name) {
            faults.invalid("spec.versions", spec["versions"].clone(), "must contain unique version names");
        }
        seen.push(name);
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            structural::validate(schema, &format!("{at}.schema.openAPIV3Schema"), faults);
        } else {
            faults.required(format!("{at}.schema.openAPIV3Schema"), "schemas are required");
        }
        for (j, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
            let at = format!("{at}.additionalPrinterColumns[{j}]");
            for field in ["name", "type", "jsonPath"] {
                if text(&column[field]).is_empty() {
                    faults.required(format!("{at}.{field}"), "");
                }
            }
            let types = ["integer", "number", "string", "boolean", "date"];
            if let Some(ty) = column["type"].as_str() {
                faults.one_of(&format!("{at}.type"), ty, &types);
            }
            if let Some(path) = column["jsonPath"].as_str().filter(|p| !crate::custom::columns::is_path(p)) {
                faults.invalid(format!("{at}.jsonPath"), path, "must be a simple json path starting with .");
            }
        }
        let scale = &version["subresources"]["scale"];
        for field in ["specReplicasPath", "statusReplicasPath"] {
            let head = if field.starts_with("spec") { ".spec." } else { ".status." };
            if scale.is_object() && !text(&scale[field]).starts_with(head) {
                let at = format!("{at}.subresources.scale.{field}");
                faults.invalid(
                    at,
                    text(&scale[field]),
                    format!("should be a json path under {}", head.trim_end_matches('.')),
                );
            }
        }
    }
    if count == 0 {
        faults.required("spec.versions", "");
    }
    validate_conversion(&spec["conversion"], faults);
}

/// The paths are those of upstream's own form of a definition.
fn validate_conversion(conversion: &Value, faults: &mut Faults) {
    const CLIENT: &str = "spec.conversion.webhookClientConfig";
    const REVIEWS: &str = "spec.conversion.conversionReviewVersions";
    let (client, reviews) =
        (&conversion["webhook"]["clientConfig"], &conversion["webhook"]["conversionReviewVersions"]);
    match conversion["strategy"].as_str() {
        Some("Webhook") => {
            if client.is_object() {
                webhook::validate_config(client, CLIENT, faults);
            } else {
                faults.required(CLIENT, "required when strategy is set to Webhook");
            }
            webhook::validate_reviews(reviews, REVIEWS, "", faults);
        }
        Some("None") | None => {
            let why = "should not be set when strategy is not set to Webhook";
            if client.is_object() {
                faults.push(FieldError::forbidden(CLIENT, why));
            }
            if reviews.as_array().is_some_and(|r| !r.is_empty()) {
                faults.push(FieldError::forbidden(REVIEWS, why));
            }
        }
        Some(other) => faults.one_of("spec.conversion.strategy", other, &["None", "Webhook"]),
    }
}

fn validate_names(given: &Value, faults: &mut Faults) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    for field in ["plural", "singular", "kind", "listKind"] {
        let at = format!("spec.names.{field}");
        let name = text(&given[field]);
        if name.is_empty() {
            if ["plural", "kind"].contains(&field) {
                faults.required(at, "");
            }
            continue;
        }
        faults.rule(&at, &name, names::dns1035_label(&name.to_ascii_lowercase()));
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in given[field].as_array().into_iter().flatten().enumerate() {
            faults.rule(&format!("spec.names.{field}[{i}]"), &text(name), names::dns1035_label(&text(name)));
        }
    }
    if given["kind"].is_string() && given["kind"] == given["listKind"] {
        faults.invalid("spec.names.listKind", given["listKind"].clone(), "kind and listKind may not be the same");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"metadata": {"name": "as.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "as", "kind": "A"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    fn said(o: &Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_definition_is_completed() {
        let mut o = definition();
        defaults(&mut o);
        note_storage(&mut o);
        assert_eq!((&o["spec"]["names"]["listKind"], &o["spec"]["names"]["singular"]), (&json!("AList"), &json!("a")));
        assert_eq!(o["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(o["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(said(&o), [""; 0]);
    }

    #[test]
    fn faults_are_named() {
        let mut o = definition();
        o["metadata"]["name"] = "b".into();
        o["spec"]["scope"] = "Everywhere".into();
        o["spec"]["versions"][0]["storage"] = false.into();
        o["spec"]["versions"][0]["schema"] = Value::Null;
        let said = said(&o);
        assert_eq!(said[0], "metadata.name: Invalid value: \"b\": must be spec.names.plural+\".\"+spec.group");
        assert_eq!(
            said[1],
            "spec.scope: Unsupported value: \"Everywhere\": supported values: \"Cluster\", \"Namespaced\""
        );
        assert!(said[2].ends_with("must have exactly one version marked as storage version"));
        assert_eq!(said[3], "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required");
    }
}
