//! Namespace.

use serde_json::{Value, json};
use skiff_api::names;

use crate::{
    object::{meta_mut, meta_str},
    registry::{
        strategy::{Strategy, col, name_col},
        table,
    },
};

pub(crate) static STRATEGY: Strategy = Strategy {
    names: names::dns1123_label,
    defaults: label_with_name,
    prepare_create: |o| {
        o["status"] = json!({"phase": "Active"});
        if !o["spec"].is_object() {
            o["spec"] = json!({});
        }
        let finalizers = &mut o["spec"]["finalizers"];
        match finalizers.as_array_mut() {
            Some(list) if list.iter().any(|f| f == "kubernetes") => {}
            Some(list) => list.push("kubernetes".into()),
            None => *finalizers = json!(["kubernetes"]),
        }
    },
    // The spec is the finalizers, which only the subresource `finalize` changes.
    prepare_update: |new, old| new["spec"] = old["spec"].clone(),
    selectable: &["status.phase"],
    columns: &[name_col(), col("Status"), col("Age")],
    row: |o| vec![o["metadata"]["name"].clone(), o["status"]["phase"].clone(), table::created(o)],
    ..Strategy::DEFAULT
};

fn label_with_name(o: &mut Value) {
    let name = meta_str(o, "name").to_owned();
    if name.is_empty() {
        return;
    }
    let labels = meta_mut(o).entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
}
