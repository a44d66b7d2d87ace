//! RoleBinding and ClusterRoleBinding.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use crate::registry::{
    core::{default_field, each},
    strategy::{Strategy, col, name_col, wide},
    table,
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) static STRATEGY: Strategy = Strategy {
    names: names::path_segment,
    defaults: |o| {
        if o["roleRef"].is_object() {
            default_field(&mut o["roleRef"], "apiGroup", GROUP);
        }
        for subject in each(o, "subjects") {
            let group = if subject["kind"] == "ServiceAccount" { "" } else { GROUP };
            if !group.is_empty() {
                default_field(subject, "apiGroup", group);
            }
        }
    },
    validate,
    validate_update: |new, old, faults| {
        if new["roleRef"] != old["roleRef"] {
            faults.invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef");
        }
    },
    columns: &[name_col(), col("Role"), col("Age"), wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    row: |o| {
        let subjects = |kind: &str| -> Value {
            let list = o["subjects"].as_array().into_iter().flatten().filter(|s| s["kind"] == kind);
            let list: Vec<String> = list
                .map(|s| {
                    let name = s["name"].as_str().unwrap_or_default();
                    if kind == "ServiceAccount" {
                        format!("{}/{name}", s["namespace"].as_str().unwrap_or_default())
                    } else {
                        name.to_owned()
                    }
                })
                .collect();
            list.join(", ").into()
        };
        let role = &o["roleRef"];
        let role =
            format!("{}/{}", role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default());
        vec![
            o["metadata"]["name"].clone(),
            role.into(),
            table::created(o),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let role = &o["roleRef"];
    let kinds: &[&str] = if o["kind"] == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    faults.one_of("roleRef.apiGroup", role["apiGroup"].as_str().unwrap_or_default(), &[GROUP]);
    faults.one_of("roleRef.kind", role["kind"].as_str().unwrap_or_default(), kinds);
    if role["name"].as_str().is_none_or(str::is_empty) {
        faults.required("roleRef.name", "");
    }
    for (i, s) in o["subjects"].as_array().into_iter().flatten().enumerate() {
        let at = format!("subjects[{i}]");
        if s["name"].as_str().is_none_or(str::is_empty) {
            faults.required(format!("{at}.name"), "");
        }
        match s["kind"].as_str().unwrap_or_default() {
            "ServiceAccount" => {
                if s["namespace"].as_str().is_none_or(str::is_empty) && o["kind"] != "RoleBinding" {
                    faults.required(format!("{at}.namespace"), "");
                }
            }
            "User" | "Group" => {
                faults.one_of(&format!("{at}.apiGroup"), s["apiGroup"].as_str().unwrap_or_default(), &[GROUP]);
            }
            other => {
                faults.push(FieldError::not_supported(
                    format!("{at}.kind"),
                    other,
                    &["ServiceAccount", "User", "Group"],
                ));
            }
        }
    }
}
