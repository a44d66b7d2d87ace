//! Node.

use serde_json::Value;

use crate::registry::{
    strategy::{Strategy, col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    selectable: &["spec.unschedulable"],
    field: |o, f| match f {
        "spec.unschedulable" => o["spec"]["unschedulable"].as_bool().unwrap_or(false).to_string(),
        _ => crate::object::plain_field(o, f),
    },
    columns: &[
        name_col(),
        col("Status"),
        col("Roles"),
        col("Age"),
        col("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    row,
    ..Strategy::DEFAULT
};

fn row(o: &Value) -> Vec<Value> {
    let ready = o["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| c["status"] == "True") {
        Some(true) => "Ready".to_owned(),
        Some(false) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if o["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = o["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role).filter(|r| !r.is_empty()),
            None => v.as_str().filter(|v| k == "kubernetes.io/role" && !v.is_empty()),
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| -> Value {
        o["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|a| a["type"] == kind)
            .map_or_else(|| "<none>".into(), |a| a["address"].clone())
    };
    let info = &o["status"]["nodeInfo"];
    vec![
        o["metadata"]["name"].clone(),
        status.into(),
        if roles.is_empty() { "<none>".into() } else { roles.join(",").into() },
        table::created(o),
        info["kubeletVersion"].clone(),
        address("InternalIP"),
        address("ExternalIP"),
        table::text_or(&info["osImage"], "<unknown>"),
        table::text_or(&info["kernelVersion"], "<unknown>"),
        table::text_or(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}
