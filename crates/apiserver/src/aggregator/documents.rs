//! What servers of aggregated APIs say of themselves: their resources, and where their OpenAPI documents are.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde_json::{Value, json};

/// What was last said of one version.
#[derive(Clone, Default)]
pub(crate) struct Document {
    /// Its resources in the form of aggregated discovery.
    pub(crate) resources: Vec<Value>,
    /// Whether the last time its server was asked, it answered.
    pub(crate) fresh: bool,
    /// Its entry in the index of OpenAPI v3, if its server has one.
    pub(crate) openapi: Option<Value>,
}

/// By the name of the APIService.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<String, Document>>);

impl Documents {
    pub(crate) fn get(&self, name: &str) -> Document {
        self.0.lock().get(name).cloned().unwrap_or_default()
    }

    /// Keeps what a server has answered.
    pub(super) fn keep(&self, name: &str, list: &Value, openapi: Option<Value>) {
        let document = Document { resources: resources(list), fresh: true, openapi };
        self.0.lock().insert(name.to_owned(), document);
    }

    /// The server does not answer: what it said before is old.
    pub(super) fn age(&self, name: &str) {
        self.0.lock().entry(name.to_owned()).or_default().fresh = false;
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, names: &[&str]) {
        self.0.lock().retain(|name, _| names.contains(&name.as_str()));
    }
}

/// The resources of an `APIResourceList` as aggregated discovery shows them.
fn resources(list: &Value) -> Vec<Value> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let group_version = text(&list["groupVersion"]);
    let (group, version) = group_version.split_once('/').unwrap_or(("", &group_version));
    let kind = |r: &Value| {
        let or = |field: &str, default: &str| match text(&r[field]) {
            own if own.is_empty() => default.to_owned(),
            own => own,
        };
        // A resource of another version says so, in both or in the version alone.
        let of = if text(&r["version"]).is_empty() { group.to_owned() } else { or("group", "") };
        json!({"group": of, "version": or("version", version), "kind": r["kind"]})
    };
    let mut found: Vec<Value> = Vec::new();
    for resource in list["resources"].as_array().into_iter().flatten() {
        let name = text(&resource["name"]);
        match name.split_once('/') {
            None => {
                let mut shown = json!({
                    "resource": name, "responseKind": kind(resource),
                    "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
                    "singularResource": resource["singularName"], "verbs": resource["verbs"],
                });
                for field in ["shortNames", "categories"] {
                    if resource[field].is_array() {
                        shown[field] = resource[field].clone();
                    }
                }
                found.push(shown);
            }
            Some((of, sub)) => {
                let shown = json!({"subresource": sub, "responseKind": kind(resource), "verbs": resource["verbs"]});
                let parent = match found.iter_mut().position(|r| r["resource"] == of) {
                    Some(i) => i,
                    // A subresource of what is no resource itself, as custom metrics are.
                    None => {
                        let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
                        let nothing = json!({"group": "", "version": "", "kind": ""});
                        found.push(json!({"resource": of, "responseKind": nothing, "scope": scope,
                            "singularResource": "", "verbs": []}));
                        found.len() - 1
                    }
                };
                match found[parent]["subresources"].as_array_mut() {
                    Some(list) => list.push(shown),
                    None => found[parent]["subresources"] = json!([shown]),
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_shown_as_aggregated_discovery() {
        let list = json!({"groupVersion": "a.b/v1", "resources": [
            {"name": "xs", "singularName": "x", "namespaced": true, "kind": "X", "verbs": ["get"], "shortNames": ["x"]},
            {"name": "xs/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]},
            {"name": "pods/rate", "singularName": "", "namespaced": true, "kind": "MetricValueList", "verbs": ["get"]},
        ]});
        let found = resources(&list);
        assert_eq!(found[0]["responseKind"], json!({"group": "a.b", "version": "v1", "kind": "X"}));
        assert_eq!(found[0]["subresources"][0]["responseKind"]["group"], "autoscaling");
        assert_eq!(
            (&found[1]["resource"], &found[1]["subresources"][0]["subresource"]),
            (&json!("pods"), &json!("rate"))
        );
    }
}
