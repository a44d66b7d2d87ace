//! CertificateSigningRequest. Who asked is set by the server, in the handler.

use serde_json::Value;

use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    selectable: &["spec.signerName"],
    validate: |o, faults| {
        let spec = &o["spec"];
        if spec["request"].as_str().is_none_or(str::is_empty) {
            faults.invalid("spec.request", "", "PEM block type must be CERTIFICATE REQUEST");
        }
        if spec["signerName"].as_str().is_none_or(str::is_empty) {
            faults.required("spec.signerName", "");
        }
        if spec["usages"].as_array().is_none_or(Vec::is_empty) {
            faults.required("spec.usages", "usages is required");
        }
    },
    prepare_update: |new, old| new["spec"] = old["spec"].clone(),
    columns: &[name_col(), col("Age"), col("SignerName"), col("Requestor"), col("RequestedDuration"), col("Condition")],
    row: |o| {
        let duration = match o["spec"]["expirationSeconds"].as_i64() {
            Some(s) => table::human_duration(s),
            None => "<none>".into(),
        };
        vec![
            o["metadata"]["name"].clone(),
            table::created(o),
            o["spec"]["signerName"].clone(),
            o["spec"]["username"].clone(),
            duration.into(),
            condition(o).into(),
        ]
    },
    ..Strategy::DEFAULT
};

fn condition(o: &Value) -> String {
    let has = |kind: &str| o["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == kind);
    let mut text = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        text.push_str(",Failed");
    }
    if o["status"]["certificate"].as_str().is_some_and(|c| !c.is_empty()) {
        text.push_str(",Issued");
    }
    text
}
