//! Discovery: which groups, versions and resources there are, in the old form and the aggregated one.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};
use skiff_api::Kind;

use crate::{
    aggregator::{Document, Remote, group_priority, version_priority},
    http::{Body, JSON, json as json_response, respond},
};

/// An API that another server serves, as discovery shows it.
pub struct Aggregated {
    pub remote: Arc<Remote>,
    pub document: Document,
}

/// Groups in the order in which clients prefer them, upstream's.
fn groups(kinds: &[&'static Kind]) -> Vec<&'static str> {
    let mut groups: Vec<&str> = Vec::new();
    for kind in kinds.iter().filter(|k| !k.group.is_empty()) {
        if !groups.contains(&kind.group) {
            groups.push(kind.group);
        }
    }
    groups
}

/// Versions of a group, the preferred one first.
fn versions(kinds: &[&'static Kind], group: &str) -> Vec<&'static str> {
    let mut versions: Vec<&str> = Vec::new();
    for kind in kinds.iter().filter(|k| k.group == group) {
        if !versions.contains(&kind.version) {
            versions.push(kind.version);
        }
    }
    versions
}

fn of_version(kinds: &[&'static Kind], group: &str, version: &str) -> Vec<&'static Kind> {
    let mut of: Vec<&Kind> = kinds.iter().copied().filter(|k| k.group == group && k.version == version).collect();
    of.sort_by_key(|k| k.plural);
    of
}

/// Kind, group, version and verbs of a subresource.
pub fn subresource(kind: &Kind, name: &str) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
    const READ_WRITE: &[&str] = &["get", "patch", "update"];
    match name {
        "scale" => ("Scale", "autoscaling", "v1", READ_WRITE),
        "binding" => ("Binding", "", "v1", &["create"]),
        "eviction" => ("Eviction", "policy", "v1", &["create"]),
        "token" => ("TokenRequest", "authentication.k8s.io", "v1", &["create"]),
        "exec" => ("PodExecOptions", "", "v1", &["create", "get"]),
        "attach" => ("PodAttachOptions", "", "v1", &["create", "get"]),
        "portforward" => ("PodPortForwardOptions", "", "v1", &["create", "get"]),
        "proxy" => {
            let options = match kind.kind {
                "Node" => "NodeProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            };
            (options, "", "v1", &["create", "delete", "get", "patch", "update"])
        }
        "log" => (kind.kind, kind.group, kind.version, &["get"]),
        "finalize" => (kind.kind, kind.group, kind.version, &["update"]),
        _ => (kind.kind, kind.group, kind.version, READ_WRITE),
    }
}

/// `/api/v1`, `/apis/apps/v1`; nothing if there is no such version.
pub fn resource_list(kinds: &[&'static Kind], group: &str, version: &str) -> Option<Value> {
    let kinds = of_version(kinds, group, version);
    if kinds.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for kind in kinds {
        let mut resource = json!({
            "name": kind.plural,
            "singularName": kind.singular(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs(),
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        if kind.is_stored() {
            resource["storageVersionHash"] = storage_hash(kind).into();
        }
        resources.push(resource);
        for sub in kind.subresources {
            let (sub_kind, sub_group, sub_version, verbs) = subresource(kind, sub);
            let mut resource = json!({
                "name": format!("{}/{sub}", kind.plural),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub_kind,
                "verbs": verbs,
            });
            if (sub_group, sub_version) != (kind.group, kind.version) {
                if !sub_group.is_empty() {
                    resource["group"] = sub_group.into();
                }
                resource["version"] = sub_version.into();
            }
            resources.push(resource);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

/// A hash of what is stored; it tells clients whether two resources are the same storage.
fn storage_hash(kind: &Kind) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let text = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
    base64::engine::general_purpose::STANDARD.encode(&sha2::Sha256::digest(text)[..8])
}

/// Groups with their versions, those of other servers among this one's, by the priorities of their APIServices.
fn ordered<'a>(kinds: &[&'static Kind], aggregated: &'a [Aggregated]) -> Vec<(&'a str, Vec<&'a str>)> {
    let own = groups(kinds);
    let mut all: Vec<(i64, &str)> = own
        .iter()
        .filter_map(|group| kinds.iter().find(|k| k.group == *group).map(|k| (group_priority(k), *group)))
        .collect();
    for of in aggregated {
        if !all.iter().any(|(_, group)| *group == of.remote.group) {
            all.push((of.remote.group_priority, of.remote.group.as_str()));
        }
    }
    all.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    all.into_iter().map(|(_, group)| (group, versions_of(kinds, aggregated, group))).collect()
}

/// Versions of a group, also those that others serve, the preferred one first.
fn versions_of<'a>(kinds: &[&'static Kind], aggregated: &'a [Aggregated], group: &str) -> Vec<&'a str> {
    let mut all: Vec<(i64, &str)> = Vec::new();
    for version in versions(kinds, group) {
        let kind = kinds.iter().find(|k| k.group == group && k.version == version);
        all.push((kind.map_or(0, |k| version_priority(k)), version));
    }
    for of in aggregated.iter().filter(|of| of.remote.group == group) {
        all.retain(|(_, version)| *version != of.remote.version);
        all.push((of.remote.version_priority, of.remote.version.as_str()));
    }
    all.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    all.into_iter().map(|(_, version)| version).collect()
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v})).collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// `/apis/apps`; nothing if there is no such group.
pub fn api_group(kinds: &[&'static Kind], aggregated: &[Aggregated], group: &str) -> Option<Value> {
    let versions = versions_of(kinds, aggregated, group);
    if versions.is_empty() || group.is_empty() {
        return None;
    }
    let mut value = group_value(group, &versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn aggregated_group(kinds: &[&'static Kind], aggregated: &[Aggregated], group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            if let Some(of) = aggregated.iter().find(|of| of.remote.group == group && of.remote.version == *version) {
                let freshness = if of.document.fresh { "Current" } else { "Stale" };
                return json!({"version": version, "resources": of.document.resources, "freshness": freshness});
            }
            let resources: Vec<Value> = of_version(kinds, group, version)
                .into_iter()
                .map(|kind| {
                    let kind_of = |g: &str, v: &str, k: &str| json!({"group": g, "version": v, "kind": k});
                    let subresources: Vec<Value> = kind
                        .subresources
                        .iter()
                        .map(|sub| {
                            let (k, g, v, verbs) = subresource(kind, sub);
                            json!({"subresource": sub, "responseKind": kind_of(g, v, k), "verbs": verbs})
                        })
                        .collect();
                    let mut resource = json!({
                        "resource": kind.plural,
                        "responseKind": kind_of(kind.group, kind.version, kind.kind),
                        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                        "singularResource": kind.singular(),
                        "verbs": kind.verbs(),
                    });
                    if !kind.short_names.is_empty() {
                        resource["shortNames"] = json!(kind.short_names);
                    }
                    if !kind.categories.is_empty() {
                        resource["categories"] = json!(kind.categories);
                    }
                    if !subresources.is_empty() {
                        resource["subresources"] = subresources.into();
                    }
                    resource
                })
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}

/// The aggregated form that the client accepts, if it does.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    accept.split(',').find_map(|entry| {
        let has = |text: &str| entry.split(';').any(|p| p.trim() == text);
        if !has("g=apidiscovery.k8s.io")
            || !has("as=APIGroupDiscoveryList")
            || !entry.trim().starts_with("application/json")
        {
            return None;
        }
        ["v2", "v2beta1"].into_iter().find(|v| has(&format!("v={v}")))
    })
}

fn aggregated(version: &str, groups: Vec<Value>) -> Response<Body> {
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": groups,
    });
    let mut response = respond(200, JSON, list.to_string());
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(value) = HeaderValue::from_str(&content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

/// `/api`.
pub fn core(kinds: &[&'static Kind], headers: &HeaderMap, server_address: &str) -> Response<Body> {
    if let Some(version) = aggregated_version(headers) {
        return aggregated(version, vec![aggregated_group(kinds, &[], "", &versions(kinds, ""))]);
    }
    json_response(
        200,
        &json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
        }),
    )
}

/// `/apis`.
pub fn all(kinds: &[&'static Kind], others: &[Aggregated], headers: &HeaderMap) -> Response<Body> {
    let ordered = ordered(kinds, others);
    if let Some(version) = aggregated_version(headers) {
        return aggregated(version, ordered.iter().map(|(g, v)| aggregated_group(kinds, others, g, v)).collect());
    }
    let groups: Vec<Value> = ordered.iter().map(|(group, versions)| group_value(group, versions)).collect();
    json_response(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

/// Group and version of every version that is served.
pub fn group_versions(kinds: &[&'static Kind]) -> Vec<(&'static str, &'static str)> {
    std::iter::once("").chain(groups(kinds)).flat_map(|g| versions(kinds, g).into_iter().map(move |v| (g, v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_discovered() {
        let kinds: Vec<&Kind> = skiff_api::kinds::KINDS.iter().collect();
        for (group, version) in group_versions(&kinds) {
            assert!(resource_list(&kinds, group, version).is_some(), "{group}/{version}");
        }
        assert!(resource_list(&kinds, "nope", "v1").is_none());
        let core = resource_list(&kinds, "", "v1").unwrap();
        let pods = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
        assert_eq!(pods["shortNames"][0], "po");
        assert_eq!(api_group(&kinds, &[], "autoscaling").unwrap()["preferredVersion"]["version"], "v2");
    }
}
