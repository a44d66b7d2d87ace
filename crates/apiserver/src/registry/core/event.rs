//! Event.

use serde_json::Value;

use crate::{
    object::plain_field,
    registry::{
        strategy::{Strategy, col, wide},
        table,
    },
};

pub(crate) static STRATEGY: Strategy = Strategy {
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    field: |o, f| match f {
        "source" => {
            let source = plain_field(o, "source.component");
            if source.is_empty() { plain_field(o, "reportingComponent") } else { source }
        }
        f => plain_field(o, f),
    },
    columns: &[
        col("Last Seen"),
        col("Type"),
        col("Reason"),
        col("Object"),
        wide("Subobject"),
        wide("Source"),
        col("Message"),
        wide("First Seen"),
        wide("Count"),
        wide("Name"),
    ],
    row,
    create_on_update: true,
    ..Strategy::DEFAULT
};

fn row(o: &Value) -> Vec<Value> {
    let time = |f: &str| Some(&o[f]).filter(|v| v.is_string());
    let first = time("firstTimestamp").or(time("eventTime")).unwrap_or(&Value::Null);
    let last = o["series"].get("lastObservedTime").filter(|v| v.is_string()).or(time("lastTimestamp")).unwrap_or(first);
    let count = o["series"]["count"].as_i64().or_else(|| o["count"].as_i64()).unwrap_or(1).max(1);
    let object = &o["involvedObject"];
    let target = format!(
        "{}/{}",
        object["kind"].as_str().unwrap_or_default().to_ascii_lowercase(),
        object["name"].as_str().unwrap_or_default()
    );
    let source = match (o["source"]["component"].as_str().filter(|s| !s.is_empty()), o["source"]["host"].as_str()) {
        (Some(component), Some(host)) if !host.is_empty() => format!("{component}, {host}"),
        (Some(component), _) => component.to_owned(),
        (None, _) => o["reportingComponent"].as_str().unwrap_or_default().to_owned(),
    };
    vec![
        table::age(last),
        o["type"].clone(),
        o["reason"].clone(),
        target.into(),
        object["fieldPath"].as_str().unwrap_or_default().into(),
        source.into(),
        o["message"].as_str().unwrap_or_default().trim().into(),
        table::age(first),
        count.into(),
        o["metadata"]["name"].clone(),
    ]
}
