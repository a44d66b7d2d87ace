//! ConfigMaps, Secrets, Namespaces with their quotas and limits.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{
    Describer, array, date, keys, show, str,
    text::{Text, line},
};
use crate::error::Result;

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(str(value)).unwrap_or_default()
}

fn head(w: &mut Text, object: &Value) {
    line!(w, 0, "Name:\t{}", str(&object["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&object["metadata"]["namespace"]));
    w.labels("Labels", &object["metadata"]["labels"]);
    w.annotations("Annotations", &object["metadata"]["annotations"]);
}

pub(super) fn config_map(w: &mut Text, map: &Value) {
    head(w, map);
    line!(w, 0, "\nData\n====");
    for key in keys(&map["data"]) {
        line!(w, 0, "{key}:\n----\n{}\n", show(&map["data"][key]));
    }
    line!(w, 0, "\nBinaryData\n====");
    for key in keys(&map["binaryData"]) {
        line!(w, 0, "{key}: {} bytes", bytes(&map["binaryData"][key]).len());
    }
    line!(w, 0, "");
}

pub(super) fn secret(secret: &Value) -> String {
    let mut text = Text::default();
    let w = &mut text;
    head(w, secret);
    line!(w, 0, "\nType:\t{}", str(&secret["type"]));
    line!(w, 0, "\nData\n====");
    for key in keys(&secret["data"]) {
        let content = bytes(&secret["data"][key]);
        match key == "token" && secret["type"] == "kubernetes.io/service-account-token" {
            true => line!(w, 0, "{key}:\t{}", String::from_utf8_lossy(&content)),
            false => line!(w, 0, "{key}:\t{} bytes", content.len()),
        }
    }
    text.finish()
}

pub(super) async fn namespace(describer: &Describer<'_>, object: &Value) -> Result<String> {
    let mut text = Text::default();
    let w = &mut text;
    let name = str(&object["metadata"]["name"]);
    line!(w, 0, "Name:\t{name}");
    w.labels("Labels", &object["metadata"]["labels"]);
    w.annotations("Annotations", &object["metadata"]["annotations"]);
    line!(w, 0, "Status:\t{}", str(&object["status"]["phase"]));
    let conditions = array(&object["status"]["conditions"]);
    if !conditions.is_empty() {
        line!(w, 0, "Conditions:");
        line!(w, 1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
        line!(w, 1, "----\t------\t------------------\t------\t-------");
    }
    for condition in conditions {
        let text = |field: &str| str(&condition[field]);
        let change = date(&condition["lastTransitionTime"]);
        line!(w, 1, "{}\t{}\t{change}\t{}\t{}", text("type"), text("status"), text("reason"), text("message"));
    }
    let mut quotas = describer.list("resourcequotas", Some(name), "", "").await?;
    quotas.sort_by(|a, b| str(&a["metadata"]["name"]).cmp(str(&b["metadata"]["name"])));
    line!(w, 0, "");
    match quotas.is_empty() {
        true => line!(w, 0, "No resource quota."),
        false => line!(w, 0, "Resource Quotas"),
    }
    for quota in &quotas {
        line!(w, 1, "Name:\t{}", str(&quota["metadata"]["name"]));
        scopes(w, quota, "  ", "  * ");
        line!(w, 1, "Resource\tUsed\tHard");
        line!(w, 1, "--------\t---\t---");
        amounts(w, 1, quota);
    }
    let limits = describer.list("limitranges", Some(name), "", "").await?;
    line!(w, 0, "");
    match limits.is_empty() {
        true => line!(w, 0, "No LimitRange resource."),
        false => {
            line!(w, 0, "Resource Limits");
            limit_titles(w, " ");
        }
    }
    limits.iter().for_each(|limit| limit_rows(w, limit, " "));
    Ok(text.finish())
}

fn scopes(w: &mut Text, quota: &Value, indent: &str, bullet: &str) {
    let mut scopes: Vec<&str> = array(&quota["spec"]["scopes"]).iter().map(str).collect();
    scopes.sort();
    if scopes.is_empty() {
        return;
    }
    line!(w, 0, "{indent}Scopes:\t{}", scopes.join(", "));
    for scope in scopes {
        let help = match scope {
            "Terminating" => {
                "Matches all pods that have an active deadline. These pods have a limited lifespan on a node before being actively terminated by the system."
            }
            "NotTerminating" => {
                "Matches all pods that do not have an active deadline. These pods usually include long running pods whose container command is not expected to terminate."
            }
            "BestEffort" => {
                "Matches all pods that do not have resource requirements set. These pods have a best effort quality of service."
            }
            "NotBestEffort" => {
                "Matches all pods that have at least one resource requirement set. These pods have a burstable or guaranteed quality of service."
            }
            _ => continue,
        };
        line!(w, 0, "{bullet}{help}");
    }
}

fn amounts(w: &mut Text, level: usize, quota: &Value) {
    let status = &quota["status"];
    for resource in keys(&status["hard"]) {
        let used = show(&status["used"][resource]);
        let used = if used.is_empty() { "0" } else { &used };
        line!(w, level, "{resource}\t{used}\t{}", show(&status["hard"][resource]));
    }
}

pub(super) fn quota(quota: &Value) -> String {
    let mut text = Text::default();
    let w = &mut text;
    line!(w, 0, "Name:\t{}", str(&quota["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&quota["metadata"]["namespace"]));
    scopes(w, quota, "", " * ");
    line!(w, 0, "Resource\tUsed\tHard");
    line!(w, 0, "--------\t----\t----");
    amounts(w, 0, quota);
    text.finish()
}

fn limit_titles(w: &mut Text, prefix: &str) {
    line!(w, 0, "{prefix}Type\tResource\tMin\tMax\tDefault Request\tDefault Limit\tMax Limit/Request Ratio");
    line!(w, 0, "{prefix}----\t--------\t---\t---\t---------------\t-------------\t-----------------------");
}

fn limit_rows(w: &mut Text, limit: &Value, prefix: &str) {
    const FIELDS: [&str; 5] = ["min", "max", "defaultRequest", "default", "maxLimitRequestRatio"];
    for item in array(&limit["spec"]["limits"]) {
        let mut resources: Vec<&String> = FIELDS.iter().flat_map(|field| keys(&item[*field])).collect();
        resources.sort();
        resources.dedup();
        for resource in resources {
            let cells = FIELDS.map(|field| match show(&item[field][resource]) {
                text if text.is_empty() => "-".to_owned(),
                text => text,
            });
            line!(w, 0, "{prefix}{}\t{resource}\t{}", str(&item["type"]), cells.join("\t"));
        }
    }
}

pub(super) fn limit_range(limit: &Value) -> String {
    let mut text = Text::default();
    let w = &mut text;
    line!(w, 0, "Name:\t{}", str(&limit["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&limit["metadata"]["namespace"]));
    limit_titles(w, "");
    limit_rows(w, limit, "");
    text.finish()
}
