//! The tables of fields and kinds beside the published description of the API, where that lies beside the repository
//! (`../shared/upstream`). The description itself is not part of the repository, so elsewhere there is nothing to compare.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Map, Value};
use skiff_api::{
    fields::{self, ListKind, Scalar, Type},
    kinds::{self, KINDS},
};

#[allow(clippy::print_stderr, reason = "whoever runs the test has to learn that it compared nothing")]
fn description() -> Option<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/upstream/swagger-v1.36.0.json");
    match std::fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).expect("the published description is JSON")),
        Err(e) => {
            eprintln!("skipped: {} cannot be read: {e}", path.display());
            None
        }
    }
}

/// A type of the description in the words of the table.
fn published_type(schema: &Value) -> Type {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/definitions/io.k8s.").expect("all definitions are io.k8s");
        return Type::Ref(fields::lookup(name).unwrap_or_else(|| panic!("{name} is not in the table")).name);
    }
    let text = |key: &str| schema[key].as_str().unwrap_or_default();
    match (text("type"), text("format")) {
        ("array", _) => Type::List(Box::new(published_type(&schema["items"]))),
        ("object", _) if schema["additionalProperties"].is_object() => {
            Type::Map(Box::new(published_type(&schema["additionalProperties"])))
        }
        ("object", _) => Type::Scalar(Scalar::Object),
        ("string", "int-or-string") => Type::Scalar(Scalar::IntOrString),
        ("string", "byte") => Type::Scalar(Scalar::Bytes),
        ("string", "date-time") => Type::Scalar(Scalar::DateTime),
        ("string", "") => Type::Scalar(Scalar::String),
        ("boolean", _) => Type::Scalar(Scalar::Boolean),
        ("integer", "int32") => Type::Scalar(Scalar::Int32),
        ("integer", "int64") => Type::Scalar(Scalar::Int64),
        ("number", _) => Type::Scalar(Scalar::Double),
        ("", "") => Type::Scalar(Scalar::Any),
        other => panic!("the table has no word for {other:?}"),
    }
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn every_field_is_as_published() {
    let Some(description) = description() else { return };
    let published: BTreeMap<&str, &Value> = description["definitions"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, schema)| (name.strip_prefix("io.k8s.").unwrap(), schema))
        .collect();
    // The group of metrics has a description of its own.
    let types = || fields::types().filter(|t| !t.name.starts_with("metrics."));
    let ours: BTreeSet<&str> = types().map(|t| t.name).collect();
    assert_eq!(ours, published.keys().copied().collect());

    let none = Map::new();
    for def in types() {
        let schema = published[def.name];
        let properties = schema["properties"].as_object().unwrap_or(&none);
        assert_eq!(def.map, schema["x-kubernetes-map-type"].as_str(), "{}", def.name);
        match def.is {
            Some(scalar) => assert_eq!(Type::Scalar(scalar), published_type(schema), "{}", def.name),
            None => assert_eq!(schema["type"], "object", "{}", def.name),
        }
        let names: BTreeSet<&str> = def.fields.iter().map(|f| f.name).collect();
        assert_eq!(names, properties.keys().map(String::as_str).collect(), "{}", def.name);
        let required = words(&schema["required"]);
        for field in &def.fields {
            let at = format!("{}.{}", def.name, field.name);
            let property = &properties[field.name];
            assert_eq!(field.ty, published_type(property), "{at}");
            assert_eq!(field.required, required.contains(&field.name), "{at}");
            let list = match property["x-kubernetes-list-type"].as_str() {
                Some("atomic") => Some(ListKind::Atomic),
                Some("set") => Some(ListKind::Set),
                Some("map") => Some(ListKind::Map),
                _ => None,
            };
            assert_eq!(field.list, list, "{at}");
            assert_eq!(field.keys, words(&property["x-kubernetes-list-map-keys"]), "{at}");
            assert_eq!(field.map, property["x-kubernetes-map-type"].as_str(), "{at}");
            assert_eq!(field.merge_key, property["x-kubernetes-patch-merge-key"].as_str(), "{at}");
            assert_eq!(field.strategy, property["x-kubernetes-patch-strategy"].as_str(), "{at}");
        }
    }
}

/// What the description says of one resource.
#[derive(Debug, Default)]
struct Published {
    kind: String,
    namespaced: bool,
    verbs: BTreeSet<String>,
    subresources: BTreeSet<String>,
}

fn resources(description: &Value) -> BTreeMap<(String, String, String), Published> {
    let mut all: BTreeMap<_, Published> = BTreeMap::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, mut rest) = match parts.as_mut_slice() {
            ["api", version, rest @ ..] => ("", *version, rest.to_vec()),
            ["apis", group, version, rest @ ..] => (*group, *version, rest.to_vec()),
            _ => continue,
        };
        if !["v1", "v2"].contains(&version) || rest.is_empty() {
            continue;
        }
        let watch = rest[0] == "watch";
        if watch {
            rest.remove(0);
        }
        let namespaced = rest.starts_with(&["namespaces", "{namespace}"]) && rest.len() > 2;
        if namespaced {
            rest.drain(..2);
        }
        let resource = all.entry((group.to_owned(), version.to_owned(), rest[0].to_owned())).or_default();
        resource.namespaced |= namespaced;
        if watch {
            resource.verbs.insert("watch".into());
            continue;
        }
        if let Some(subresource) = rest.get(2) {
            resource.subresources.insert((*subresource).to_owned());
            continue;
        }
        for operation in item.as_object().unwrap().values() {
            let verb = match operation["x-kubernetes-action"].as_str() {
                Some("post") => "create",
                Some("put") => "update",
                Some(verb) => verb,
                None => continue,
            };
            resource.verbs.insert(verb.to_owned());
            resource.kind = operation["x-kubernetes-group-version-kind"]["kind"].as_str().unwrap().to_owned();
        }
    }
    all
}

#[test]
fn every_stable_resource_is_served_as_published() {
    let Some(description) = description() else { return };
    let published = resources(&description);
    for ((group, version, plural), want) in &published {
        let kind = kinds::by_resource(group, version, plural)
            .unwrap_or_else(|| panic!("{plural} of {group}/{version} is not in the table"));
        assert_eq!(kind.kind, want.kind);
        assert_eq!(kind.namespaced, want.namespaced, "{}", kind.kind);
        assert_eq!(kind.verbs().iter().map(|v| (*v).to_owned()).collect::<BTreeSet<_>>(), want.verbs, "{}", kind.kind);
        let subresources: BTreeSet<String> = kind.subresources.iter().map(|s| (*s).to_owned()).collect();
        assert_eq!(subresources, want.subresources, "{}", kind.kind);
    }
    assert_eq!(KINDS.iter().filter(|k| k.group != kinds::METRICS).count(), published.len());
}
