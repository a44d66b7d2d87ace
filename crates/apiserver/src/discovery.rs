//! Discovery: which groups, versions and resources there are, in the old form and the aggregated one.

use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};
use skiff_api::Kind;

use crate::http::{Body, JSON, json as json_response, respond};

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

fn group_value(kinds: &[&'static Kind], group: &str) -> Value {
    let versions: Vec<Value> =
        versions(kinds, group).iter().map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v})).collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// `/apis/apps`; nothing if there is no such group.
pub fn api_group(kinds: &[&'static Kind], group: &str) -> Option<Value> {
    if versions(kinds, group).is_empty() || group.is_empty() {
        return None;
    }
    let mut value = group_value(kinds, group);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn aggregated_group(kinds: &[&'static Kind], group: &str) -> Value {
    let versions: Vec<Value> = versions(kinds, group)
        .iter()
        .map(|version| {
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
        return aggregated(version, vec![aggregated_group(kinds, "")]);
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
pub fn all(kinds: &[&'static Kind], headers: &HeaderMap) -> Response<Body> {
    if let Some(version) = aggregated_version(headers) {
        return aggregated(version, groups(kinds).into_iter().map(|g| aggregated_group(kinds, g)).collect());
    }
    let groups: Vec<Value> = groups(kinds).into_iter().map(|g| group_value(kinds, g)).collect();
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
        assert_eq!(api_group(&kinds, "autoscaling").unwrap()["preferredVersion"]["version"], "v2");
    }
}
