//! Custom kinds: what CustomResourceDefinitions add to the table of kinds.
//!
//! A definition that is established becomes a [`Resource`] like any built-in one, served by the same journey and the
//! same engine; what its schema asks for is its [`Version`]s. Nothing is resident for a cluster without definitions.

pub(crate) mod columns;
pub(crate) mod controller;
pub(crate) mod conversion;
mod formats;
mod rules;
pub(crate) mod schema;
mod validate;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::{
    Status, decode,
    kinds::{CustomNames, Kind, Storage, interned, interned_list},
    validation::Faults,
};
use skiff_store::Store;
use tokio::task::AbortHandle;

use self::columns::Column;
use crate::{
    cache::Cache,
    object::{Indexing, kind_prefix, plain_field},
    registry::{Resource, strategy::Strategy},
};

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";

/// The rules of all custom kinds; those of a schema are in its [`Version`].
static STRATEGY: Strategy = Strategy { generation: true, unconditional_update: false, ..Strategy::DEFAULT };

/// One version of a custom kind.
pub struct Version {
    name: String,
    /// Without descriptions.
    schema: Value,
    has_defaults: bool,
    has_rules: bool,
    pub(crate) columns: Vec<Column>,
    pub(crate) has_status: bool,
    pub(crate) scale: Option<Scale>,
    warning: Option<String>,
}

/// Where a custom kind keeps what its `scale` shows.
pub(crate) struct Scale {
    pub(crate) spec_replicas: String,
    pub(crate) status_replicas: String,
    pub(crate) selector: Option<String>,
}

impl Version {
    fn read(definition: &Value, version: &Value) -> Version {
        let schema = schema::bare(&version["schema"]["openAPIV3Schema"]);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let scale = &version["subresources"]["scale"];
        let warning = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
            Some(own) => own.to_owned(),
            None => {
                let (group, name) = (text(&definition["spec"]["group"]), text(&version["name"]));
                format!("{group}/{name} {} is deprecated", text(&definition["spec"]["names"]["kind"]))
            }
        });
        Version {
            name: text(&version["name"]),
            has_defaults: schema::has_defaults(&schema),
            has_rules: schema::has_rules(&schema),
            columns: columns::of_version(version),
            has_status: version["subresources"]["status"].is_object(),
            scale: scale.is_object().then(|| Scale {
                spec_replicas: text(&scale["specReplicasPath"]),
                status_replicas: text(&scale["statusReplicasPath"]),
                selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
            }),
            warning,
            schema,
        }
    }

    /// Brings a value into form: what the schema does not know is removed and returned by path; nulls that mean nothing
    /// are removed.
    pub(crate) fn conform(&self, value: &mut Value) -> Result<Vec<String>, decode::DecodeError> {
        let mut unknown = Vec::new();
        if value["metadata"].is_null()
            && let Some(map) = value.as_object_mut()
        {
            map.insert("metadata".into(), json!({}));
        }
        let of_meta = decode::conform(&mut value["metadata"], "apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
        unknown.extend(of_meta.into_iter().map(|path| format!("metadata.{path}")));
        schema::prune(&self.schema, value, &mut unknown);
        schema::prune_nulls(&self.schema, value);
        Ok(unknown)
    }

    pub(crate) fn schema(&self) -> &Value {
        &self.schema
    }

    /// Whether a stored object may lack what this version shows.
    pub(crate) fn completes(&self) -> bool {
        self.has_defaults
    }

    /// Fills in what is missing: in what clients send, and in what was stored before there was a default.
    pub(crate) fn defaults(&self, value: &mut Value) {
        if self.has_defaults {
            schema::default(&self.schema, value);
        }
    }

    pub(crate) fn validate(&self, value: &Value, old: Option<&Value>, faults: &mut Faults) {
        validate::validate(&self.schema, value, old, self.has_rules, faults);
        if let Some(scale) = &self.scale
            && let Some(n) = columns::at(&scale.spec_replicas, value).and_then(Value::as_i64)
            && n < 0
        {
            faults.invalid(scale.spec_replicas.trim_start_matches('.'), n, "should be a non-negative integer");
        }
    }

    /// Warnings for whoever uses this version.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warning.iter().cloned().collect()
    }
}

/// What makes a [`Resource`] a custom one.
pub struct Custom {
    versions: Vec<Arc<Version>>,
    /// Whether its definition is being deleted; nothing new is made then.
    pub(crate) terminating: bool,
    /// Who knows how versions become one another; `None` if they differ in nothing but their name.
    converter: Option<Arc<conversion::Converter>>,
}

impl Custom {
    pub(crate) fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|v| v.name == name)
    }
}

/// A definition as it is served.
struct Entry {
    /// The definition's revision.
    revision: u64,
    kinds: Vec<&'static Kind>,
    resource: Arc<Resource>,
    following: Arc<Following>,
}

/// The task that keeps a cache up to date, as long as anybody needs it.
struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Table {
    /// State of the definitions' cache that this table was made of.
    made_of: Option<(u64, usize)>,
    entries: Vec<Entry>,
}

/// All definitions that are served. See the [module](self).
pub struct Definitions {
    store: Arc<dyn Store>,
    table: ArcSwap<Table>,
    making: Mutex<()>,
}

impl Definitions {
    pub(crate) fn new(store: Arc<dyn Store>) -> Definitions {
        Definitions { store, table: ArcSwap::default(), making: Mutex::new(()) }
    }

    /// Takes in every definition that was acknowledged before this call.
    pub(crate) async fn settle(&self, definitions: &Cache) -> Result<(), Status> {
        definitions.fresh().await.map_err(|e| crate::registry::engine::cache_status(&e))?;
        self.take_in(definitions);
        Ok(())
    }

    fn take_in(&self, definitions: &Cache) {
        if self.table.load().made_of == Some(definitions.version()) {
            return;
        }
        let _making = self.making.lock();
        let version = definitions.version();
        let before = self.table.load_full();
        if before.made_of == Some(version) {
            return;
        }
        let mut entries = Vec::new();
        for object in definitions.peek_all() {
            let known = before.entries.iter().find(|e| e.revision == object.revision.0);
            match known {
                Some(e) => entries.push(Entry {
                    revision: e.revision,
                    kinds: e.kinds.clone(),
                    resource: e.resource.clone(),
                    following: e.following.clone(),
                }),
                None => entries.extend(self.entry(object.revision.0, &object.value(), &before)),
            }
        }
        self.table.store(Arc::new(Table { made_of: Some(version), entries }));
    }

    /// A definition as it is served; nothing if it is not established.
    fn entry(&self, revision: u64, definition: &Value, before: &Table) -> Option<Entry> {
        if !controller::is_true(definition, "Established") {
            return None;
        }
        let (stored, kinds) = kinds_of(definition)?;
        let versions = definition["spec"]["versions"].as_array()?;
        let custom = Custom {
            versions: versions.iter().map(|v| Arc::new(Version::read(definition, v))).collect(),
            terminating: definition["metadata"]["deletionTimestamp"].is_string(),
            converter: conversion::Converter::of(definition).map(Arc::new),
        };
        let selectable: Vec<String> = versions
            .iter()
            .filter(|v| v["storage"] == true)
            .flat_map(|v| v["selectableFields"].as_array().into_iter().flatten())
            .filter_map(|f| Some(f["jsonPath"].as_str()?.trim_start_matches('.').to_owned()))
            .collect();
        let selectable = interned_list(&selectable.iter().map(String::as_str).collect::<Vec<_>>());
        let prefix = kind_prefix(stored);
        let known = before
            .entries
            .iter()
            .find(|e| e.resource.cache.prefix() == prefix && e.resource.cache.selectable() == selectable);
        let (cache, following) = match known {
            Some(e) => (e.resource.cache.clone(), e.following.clone()),
            None => {
                let indexing = Indexing { selectable, field: plain_field };
                let cache = Cache::new(prefix, indexing, self.store.clone());
                let task = tokio::spawn(cache.clone().run());
                (cache, Arc::new(Following(task.abort_handle())))
            }
        };
        let resource = Resource {
            kind: stored,
            strategy: &STRATEGY,
            cache,
            type_name: stored.type_name(),
            custom: Some(Arc::new(custom)),
        };
        Some(Entry { revision, kinds, resource: Arc::new(resource), following })
    }

    /// The kinds of all served versions.
    pub(crate) fn kinds(&self) -> Vec<&'static Kind> {
        let mut kinds: Vec<&'static Kind> =
            self.table.load().entries.iter().flat_map(|e| e.kinds.iter().copied()).collect();
        kinds.sort_by_key(|k| (k.group, version_order(k.version)));
        kinds
    }

    pub(crate) fn kind(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        let table = self.table.load();
        let mut kinds = table.entries.iter().flat_map(|e| &e.kinds);
        kinds.find(|k| k.group == group && k.version == version && k.plural == plural).copied()
    }

    pub(crate) fn resource(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        let table = self.table.load();
        let found = table.entries.iter().find(|e| e.resource.kind.group == group && e.resource.kind.plural == plural);
        found.map(|e| e.resource.clone())
    }

    /// What tells one state of a group's version from another.
    pub(crate) fn revision_of(&self, group: &str, version: &str) -> u64 {
        let table = self.table.load();
        let of = table.entries.iter().filter(|e| e.kinds.iter().any(|k| k.group == group && k.version == version));
        // A definition that goes makes the sum another one too.
        of.map(|e| e.revision).fold(0, u64::wrapping_add)
    }
}

/// Versions in the order of preference: stable before beta before alpha, the higher number first.
pub(crate) fn version_order(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>, String) {
    let number = |text: &str| text.parse::<u32>().ok();
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = number(&rest[..digits])?;
        let (rank, minor) = match &rest[digits..] {
            "" => (0, 0),
            more => match (more.strip_prefix("beta"), more.strip_prefix("alpha")) {
                (Some(n), _) => (1, number(n)?),
                (_, Some(n)) => (2, number(n)?),
                _ => return None,
            },
        };
        Some((rank, major, minor))
    });
    let (rank, major, minor) = parsed.unwrap_or((3, 0, 0));
    (rank, std::cmp::Reverse(major), std::cmp::Reverse(minor), version.to_owned())
}

/// The stored kind of a definition and the kinds of its served versions.
fn kinds_of(definition: &Value) -> Option<(&'static Kind, Vec<&'static Kind>)> {
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let text = |v: &Value| interned(v.as_str().unwrap_or_default());
    let list =
        |v: &Value| interned_list(&v.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>());
    let versions = spec["versions"].as_array()?;
    let storage_version = text(&versions.iter().find(|v| v["storage"] == true)?["name"]);
    let (group, plural) = (text(&spec["group"]), text(&names["plural"]));
    let stored_at = interned(&format!("{group}/{plural}"));
    let kind = |version: &Value, storage: Storage| {
        let mut subresources = Vec::new();
        for name in ["scale", "status"] {
            if version["subresources"][name].is_object() {
                subresources.push(name);
            }
        }
        let kind = Kind {
            group,
            version: text(&version["name"]),
            kind: text(&names["kind"]),
            plural,
            namespaced: spec["scope"] == "Namespaced",
            short_names: list(&names["shortNames"]),
            categories: list(&names["categories"]),
            subresources: interned_list(&subresources),
            storage,
            custom: Some(CustomNames { singular: text(&names["singular"]), list_kind: text(&names["listKind"]) }),
        };
        kind.interned()
    };
    let stored = kind(versions.iter().find(|v| v["storage"] == true)?, Storage::Stored(stored_at));
    let single = versions.len() == 1;
    let served = versions.iter().filter(|v| v["served"] == true);
    let kinds = served
        .map(|v| match single {
            true => stored,
            // Also the stored version: what was stored in another one has to be brought into it.
            false => kind(v, Storage::Version { group, version: storage_version }),
        })
        .collect();
    Some((stored, kinds))
}

/// Name of a kind's definition in OpenAPI, such as `com.example.database.v1.PostgreSQL`.
pub(crate) fn definition_name(kind: &Kind) -> String {
    let mut parts: Vec<&str> = kind.group.split('.').rev().collect();
    parts.extend([kind.version, kind.kind]);
    parts.join(".")
}

/// The definitions of OpenAPI for custom kinds, by name, with those of their lists.
pub(crate) fn published(definitions: &Cache, kinds: &[&'static Kind]) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for object in definitions.peek_all() {
        let of: Vec<_> = kinds.iter().filter(|k| *object.name == *format!("{}.{}", k.plural, k.group)).collect();
        if of.is_empty() {
            continue;
        }
        let definition = object.value();
        for kind in of {
            let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
            let Some(version) = versions.into_iter().find(|v| v["name"] == kind.version) else { continue };
            let name = definition_name(kind);
            let gvk = |kind_name: &str| json!({"group": kind.group, "version": kind.version, "kind": kind_name});
            let list = json!({
                "type": "object",
                "description": format!("{} is a list of {}", kind.list_kind(), kind.kind),
                "required": ["items"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"}]},
                    "items": {"type": "array", "items": {"allOf": [{"$ref": format!("#/components/schemas/{name}")}]}},
                },
                "x-kubernetes-group-version-kind": [gvk(&kind.list_kind())],
            });
            all.push((list_definition_name(kind), list));
            all.push((name, schema::published(&version["schema"]["openAPIV3Schema"], &gvk(kind.kind))));
        }
    }
    all
}

/// Name of the definition of a kind's lists.
pub(crate) fn list_definition_name(kind: &Kind) -> String {
    let mut parts: Vec<&str> = kind.group.split('.').rev().collect();
    let list = kind.list_kind();
    parts.extend([kind.version, &list]);
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        let mut all = ["v1alpha1", "foo", "v2", "v1beta2", "v10", "v1", "v1beta10"];
        all.sort_by_key(|v| version_order(v));
        assert_eq!(all, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]);
    }
}
