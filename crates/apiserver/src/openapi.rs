//! OpenAPI v3, made from the table of fields when first asked for; version 2 is made of the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use skiff_api::{
    Kind,
    fields::{self, ListKind, Scalar, Type, TypeDef},
    kinds::KINDS,
};
use skiff_descriptions::Descriptions;

use crate::{
    custom, discovery,
    http::{Body, JSON, respond},
    openapi_v2,
    registry::Registry,
};

/// The documents that were made, by path such as `apis/apps/v1`. They are kept as they are mostly sent, compressed: a
/// tenth of their size.
#[derive(Default)]
pub struct OpenApi {
    made: Mutex<BTreeMap<String, Bytes>>,
}

impl OpenApi {
    /// `/openapi/v3`: where the documents are.
    pub fn index(registry: &Registry, kinds: &[&'static Kind], aggregated: &[discovery::Aggregated]) -> Value {
        let mut paths = Map::new();
        for (group, version) in discovery::group_versions(kinds) {
            let path = document_path(group, version);
            // Documents change with the program, and with the definitions of custom kinds.
            let hash = match registry.definitions.revision_of(group, version) {
                0 => env!("CARGO_PKG_VERSION").to_owned(),
                revision => format!("{}-{revision}", env!("CARGO_PKG_VERSION")),
            };
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
        for of in aggregated {
            let path = document_path(&of.remote.group, &of.remote.version);
            match &of.document.openapi {
                Some(entry) => paths.insert(path, entry.clone()),
                None => paths.shift_remove(&path),
            };
        }
        json!({"paths": paths})
    }

    /// The answer to a request for a document; nothing if there is none at this path.
    pub fn answer(
        &self,
        registry: &Registry,
        kinds: &[&'static Kind],
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        let compressed = self.document(registry, kinds, path)?;
        let mut response = if accepts_gzip(headers) {
            let mut response = respond(200, JSON, compressed);
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        } else {
            respond(200, JSON, unpacked(&compressed))
        };
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        Some(response)
    }

    /// `/openapi/v2`: everything in one document.
    pub fn v2(registry: &Registry, kinds: &[&'static Kind], headers: &HeaderMap) -> Response<Body> {
        let mut needed = BTreeSet::new();
        for name in [DELETE_OPTIONS, STATUS, PATCH] {
            need(name, &mut needed);
        }
        for kind in kinds {
            need_kind(kind, &mut needed);
            add_paths(kind, &mut Map::new(), &mut needed);
        }
        // Made again one kind at a time: those of all kinds at once would be many megabytes.
        let paths = kinds.iter().flat_map(|kind| {
            let mut of_kind = Map::new();
            add_paths(kind, &mut of_kind, &mut BTreeSet::new());
            of_kind
        });
        let descriptions = Descriptions::load();
        let definitions = needed.into_iter().filter_map(fields::lookup);
        let definitions = definitions.map(|def| (format!("io.k8s.{}", def.name), schema(def, &descriptions)));
        let custom = published(registry, kinds).into_iter();
        openapi_v2::answer(headers, paths, custom.chain(definitions))
    }

    /// A document by its path, compressed with gzip.
    fn document(&self, registry: &Registry, kinds: &[&'static Kind], path: &str) -> Option<Bytes> {
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => (String::new(), (*version).to_owned()),
            ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
            _ => return None,
        };
        let kinds: Vec<&Kind> = kinds.iter().copied().filter(|k| k.group == group && k.version == version).collect();
        if kinds.is_empty() {
            return None;
        }
        if kinds.iter().any(|k| k.is_custom()) {
            return Some(packed(&document(registry, &kinds)));
        }
        let mut made = self.made.lock();
        Some(made.entry(path.to_owned()).or_insert_with(|| packed(&document(registry, &kinds))).clone())
    }
}

/// Whether the client takes answers compressed.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    accepted.flat_map(|v| v.split(',')).any(|e| e.trim().split(';').next() == Some("gzip"))
}

fn packed(document: &Value) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    serde_json::to_writer(&mut encoder, document).expect("writing JSON into memory cannot fail");
    encoder.finish().expect("writing into memory cannot fail").into()
}

fn unpacked(compressed: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(compressed).read_to_end(&mut out).expect("bytes that this server compressed");
    out
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

const DELETE_OPTIONS: &str = "apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "apimachinery.pkg.apis.meta.v1.Status";
const PATCH: &str = "apimachinery.pkg.apis.meta.v1.Patch";

/// The schemas of the custom ones among these kinds.
fn published(registry: &Registry, kinds: &[&'static Kind]) -> Vec<(String, Value)> {
    if !kinds.iter().any(|k| k.is_custom()) {
        return Vec::new();
    }
    let custom: Vec<&'static Kind> = kinds.iter().copied().filter(|k| k.is_custom()).collect();
    custom::published(&registry.builtin(custom::GROUP, custom::PLURAL).cache, &custom)
}

fn document(registry: &Registry, kinds: &[&'static Kind]) -> Value {
    let mut needed = BTreeSet::new();
    let mut paths = Map::new();
    for kind in kinds {
        need_kind(kind, &mut needed);
        add_paths(kind, &mut paths, &mut needed);
    }
    for name in [DELETE_OPTIONS, STATUS, PATCH] {
        need(name, &mut needed);
    }
    let mut schemas: Map<String, Value> = published(registry, kinds).into_iter().collect();
    let descriptions = Descriptions::load();
    for name in needed {
        if let Some(def) = fields::lookup(name) {
            schemas.insert(format!("io.k8s.{name}"), schema(def, &descriptions));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": format!("v{}", crate::KUBERNETES_VERSION)},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// The types of a kind and of its lists.
fn need_kind(kind: &Kind, needed: &mut BTreeSet<&'static str>) {
    if kind.is_custom() {
        for name in ["ObjectMeta", "ListMeta"] {
            need(&format!("apimachinery.pkg.apis.meta.v1.{name}"), needed);
        }
        return;
    }
    need(&kind.type_name(), needed);
    need(&format!("{}List", kind.type_name()), needed);
}

/// The type and all that it leads to.
fn need(name: &str, needed: &mut BTreeSet<&'static str>) {
    let Some(def) = fields::lookup(name) else { return };
    if !needed.insert(def.name) {
        return;
    }
    fn walk(ty: &Type, needed: &mut BTreeSet<&'static str>) {
        match ty {
            Type::Ref(name) => need(name, needed),
            Type::List(t) | Type::Map(t) => walk(t, needed),
            Type::Scalar(_) => {}
        }
    }
    for field in &def.fields {
        walk(&field.ty, needed);
    }
}

fn scalar(s: Scalar) -> Value {
    match s {
        Scalar::String => json!({"type": "string"}),
        Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
        Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
        Scalar::Double => json!({"type": "number", "format": "double"}),
        Scalar::Boolean => json!({"type": "boolean"}),
        Scalar::Bytes => json!({"type": "string", "format": "byte"}),
        Scalar::DateTime => json!({"type": "string", "format": "date-time"}),
        Scalar::IntOrString => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        Scalar::Object => json!({"type": "object"}),
        Scalar::Any => json!({}),
    }
}

fn reference(name: &str) -> Value {
    json!({"allOf": [{"$ref": format!("#/components/schemas/io.k8s.{name}")}]})
}

fn type_schema(ty: &Type) -> Value {
    match ty {
        Type::Scalar(s) => scalar(*s),
        Type::Ref(name) => reference(name),
        Type::List(item) => json!({"type": "array", "items": type_schema(item)}),
        Type::Map(item) => json!({"type": "object", "additionalProperties": type_schema(item)}),
    }
}

fn schema(def: &TypeDef, descriptions: &Descriptions) -> Value {
    let mut schema = match def.is {
        Some(s) => scalar(s),
        None => json!({"type": "object"}),
    };
    let described = descriptions.of(def.name);
    // What is said of the type itself is said of every object's and list's `kind` and `apiVersion` alike.
    let any_object = descriptions.of("api.core.v1.Pod");
    let of_field = |name: &str| match described {
        Some(described) => described.fields.get(name),
        None => any_object.filter(|_| ["kind", "apiVersion"].contains(&name)).and_then(|o| o.fields.get(name)),
    };
    if let Some(text) = described.map(|d| d.text.as_str()).filter(|t| !t.is_empty()) {
        schema["description"] = text.into();
    }
    if !def.fields.is_empty() {
        let mut properties = Map::new();
        for field in &def.fields {
            let mut value = type_schema(&field.ty);
            if let Some(text) = of_field(field.name) {
                value["description"] = text.as_str().into();
            }
            if let Some(kind) = field.list {
                value["x-kubernetes-list-type"] = match kind {
                    ListKind::Atomic => "atomic",
                    ListKind::Set => "set",
                    ListKind::Map => "map",
                }
                .into();
            }
            if !field.keys.is_empty() {
                value["x-kubernetes-list-map-keys"] = json!(field.keys);
            }
            for (name, text) in [
                ("x-kubernetes-map-type", field.map),
                ("x-kubernetes-patch-merge-key", field.merge_key),
                ("x-kubernetes-patch-strategy", field.strategy),
            ] {
                if let Some(text) = text {
                    value[name] = text.into();
                }
            }
            properties.insert(field.name.to_owned(), value);
        }
        schema["properties"] = Value::Object(properties);
        let required: Vec<&str> = def.fields.iter().filter(|f| f.required).map(|f| f.name).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
    }
    if let Some(map) = def.map {
        schema["x-kubernetes-map-type"] = map.into();
    }
    let kinds: Vec<Value> = KINDS
        .iter()
        .filter_map(|k| {
            let name = k.type_name();
            let kind = if def.name == name {
                k.kind.to_owned()
            } else if def.name.strip_suffix("List") == Some(&name) {
                format!("{}List", k.kind)
            } else {
                return None;
            };
            Some(json!({"group": k.group, "version": k.version, "kind": kind}))
        })
        .collect();
    if !kinds.is_empty() {
        schema["x-kubernetes-group-version-kind"] = kinds.into();
    }
    schema
}

fn parameter(name: &str, place: &str, ty: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": ty, "uniqueItems": true}})
}

/// The names of a kind's definition and of its lists'.
fn names_of(kind: &Kind) -> (String, String) {
    if kind.is_custom() {
        return (custom::definition_name(kind), custom::list_definition_name(kind));
    }
    let name = built_in(&kind.type_name());
    (name.clone(), format!("{name}List"))
}

/// The name of a built-in type's definition.
fn built_in(type_name: &str) -> String {
    format!("io.k8s.{type_name}")
}

fn add_paths(kind: &Kind, paths: &mut Map<String, Value>, needed: &mut BTreeSet<&'static str>) {
    let base = format!("/{}", document_path(kind.group, kind.version));
    let (type_name, list_name) = names_of(kind);
    let (delete_options, status, patch) = (built_in(DELETE_OPTIONS), built_in(STATUS), built_in(PATCH));
    let content =
        |name: &str| json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}});
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let operation = |action: &str, body: Option<(&str, &[&str])>, answer: &str, parameters: &[(&str, &str)]| -> Value {
        let mut op = json!({
            "responses": {"200": {"description": "OK", "content": content(answer)}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        if let Some((name, types)) = body {
            let mut media = Map::new();
            for ty in types {
                media.insert((*ty).to_owned(), json!({"schema": {"$ref": format!("#/components/schemas/{name}")}}));
            }
            op["requestBody"] = json!({"content": media});
        }
        if !parameters.is_empty() {
            op["parameters"] = parameters.iter().map(|(n, t)| parameter(n, "query", t)).collect::<Vec<_>>().into();
        }
        op
    };
    const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
    const LIST: &[(&str, &str)] = &[
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ];
    const DELETE: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("gracePeriodSeconds", "integer"),
        ("orphanDependents", "boolean"),
        ("propagationPolicy", "string"),
    ];
    const ANY: &[&str] = &["*/*"];
    const PATCHES: &[&str] = &[
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    let patches = if kind.is_custom() { &PATCHES[..3] } else { PATCHES };
    let verbs = kind.verbs();
    let has = |verb: &str| verbs.contains(&verb);
    let collection = if kind.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    let path_parameters = |object: bool| {
        let mut list = vec![];
        if object {
            list.push(parameter("name", "path", "string"));
        }
        if kind.namespaced {
            list.push(parameter("namespace", "path", "string"));
        }
        list.push(parameter("pretty", "query", "string"));
        Value::Array(list)
    };
    let mut item = json!({"parameters": path_parameters(false)});
    if has("list") {
        item["get"] = operation("list", None, &list_name, LIST);
    }
    if has("create") {
        item["post"] = operation("post", Some((type_name.as_str(), ANY)), &type_name, WRITE);
    }
    if has("deletecollection") {
        item["delete"] = operation("deletecollection", Some((delete_options.as_str(), ANY)), &status, LIST);
    }
    paths.insert(collection.clone(), item);
    if kind.namespaced && has("list") {
        paths.insert(format!("{base}/{}", kind.plural), json!({"get": operation("list", None, &list_name, LIST)}));
    }
    if !has("get") {
        return;
    }
    let object = format!("{collection}/{{name}}");
    let mut item = json!({"parameters": path_parameters(true), "get": operation("get", None, &type_name, &[])});
    if has("update") {
        item["put"] = operation("put", Some((type_name.as_str(), ANY)), &type_name, WRITE);
        item["patch"] = operation("patch", Some((patch.as_str(), patches)), &type_name, WRITE);
        item["delete"] = operation("delete", Some((delete_options.as_str(), ANY)), &status, DELETE);
    }
    paths.insert(object.clone(), item);
    for sub in kind.subresources {
        let name = match *sub {
            "scale" => {
                need("api.autoscaling.v1.Scale", needed);
                "io.k8s.api.autoscaling.v1.Scale"
            }
            "status" | "approval" | "finalize" | "ephemeralcontainers" | "resize" => type_name.as_str(),
            _ => continue,
        };
        let item = json!({
            "parameters": path_parameters(true),
            "get": operation("get", None, name, &[]),
            "put": operation("put", Some((name, ANY)), name, WRITE),
            "patch": operation("patch", Some((patch.as_str(), patches)), name, WRITE),
        });
        paths.insert(format!("{object}/{sub}"), item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_are_whole() {
        let store: std::sync::Arc<dyn skiff_store::Store> =
            std::sync::Arc::new(skiff_store::memory::MemoryStore::new());
        let (api, registry) = (OpenApi::default(), Registry::new(&store));
        let kinds: Vec<&Kind> = KINDS.iter().collect();
        let document = |path: &str| api.document(&registry, &kinds, path);
        let doc: Value = serde_json::from_slice(&unpacked(&document("apis/apps/v1").unwrap())).unwrap();
        let schemas = &doc["components"]["schemas"];
        let replicas = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
        assert!(replicas["description"].as_str().unwrap().starts_with("Number of desired pods."));
        assert!(schemas["io.k8s.api.apps.v1.Deployment"]["description"].is_string());
        // A field of another type's is described beside the reference.
        let spec = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
        assert!(spec["allOf"].is_array() && spec["description"].is_string(), "{spec}");
        let text = doc.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(doc["components"]["schemas"].get(name).is_some(), "{name}");
        }
        let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
        assert!(document("apis/nope/v1").is_none());
        for (g, v) in discovery::group_versions(&kinds) {
            assert!(document(&document_path(g, v)).is_some());
        }
    }
}
