//! Who owns which fields of an object.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::{
    merge::{Difference, check, compare, fields_of, merge, prune},
    schema::Schema,
    set::FieldSet,
};

/// Fields that belong to nobody but the server.
const OF_THE_SERVER: [&str; 9] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:clusterName",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

/// More managers that update than this become one, as upstream limits them.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// Owner of what was there before the first apply, if nobody was tracked.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Version of the object as it is compared.
    pub api_version: &'a str,
    /// Time of the write, as the API writes times.
    pub now: &'a str,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    applied: bool,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: FieldSet,
}

impl Entry {
    /// An applier stays itself in another version; an updater does not.
    fn is(&self, writer: &Writer<'_>, applied: bool) -> bool {
        self.manager == writer.manager
            && self.applied == applied
            && self.subresource == writer.subresource
            && (applied || self.api_version == writer.api_version)
    }

    /// The manager as messages name it.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if !self.applied {
            text += &format!(" using {}", self.api_version);
        }
        text
    }

    fn order(&self, other: &Entry) -> Ordering {
        let key =
            |e: &Entry| (!e.applied, e.time.clone(), e.manager.clone(), e.api_version.clone(), e.subresource.clone());
        key(self).cmp(&key(other))
    }
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The owner as messages name it.
    pub manager: String,
    pub path: String,
}

/// Why a configuration was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else owns what would be changed; the message is upstream's.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// Entries of lists that cannot be told apart.
    #[error("errors:\n{}", .0.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n"))]
    Malformed(Vec<String>),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path);
    }
    let mut text = format!("Apply failed with {} conflicts: ", conflicts.len());
    let mut last = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            text += &format!("{}conflicts with {}:", if last.is_some() { "\n" } else { "" }, conflict.manager);
            last = Some(&conflict.manager);
        }
        text += &format!("\n- {}", conflict.path);
    }
    text
}

/// `metadata.managedFields`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managed(Vec<Entry>);

impl Managed {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `metadata.managedFields`; `None` if it cannot be read. Nothing is nobody.
    pub fn parse(value: &Value) -> Option<Managed> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let entries = value.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|entry| {
            let applied = match entry["operation"].as_str()? {
                "Apply" => true,
                "Update" => false,
                _ => return None,
            };
            if !matches!(entry["fieldsType"].as_str(), Some("FieldsV1")) {
                return None;
            }
            let fields = match &entry["fieldsV1"] {
                Value::Null => FieldSet::default(),
                fields => FieldSet::parse(fields)?,
            };
            Some(Entry {
                manager: text(&entry["manager"]),
                applied,
                api_version: text(&entry["apiVersion"]),
                subresource: text(&entry["subresource"]),
                time: entry["time"].as_str().map(str::to_owned),
                fields,
            })
        });
        entries.collect::<Option<Vec<_>>>().map(Managed)
    }

    /// `[{}]`: a client wants nobody to own anything.
    pub fn is_reset(value: &Value) -> bool {
        value
            .as_array()
            .is_some_and(|list| matches!(list.as_slice(), [Value::Object(entry)] if entry.values().all(Value::is_null)))
    }

    pub fn to_value(&self) -> Value {
        let entries = self.0.iter().map(|e| {
            let mut map = Map::with_capacity(7);
            map.insert("manager".into(), e.manager.clone().into());
            map.insert("operation".into(), if e.applied { "Apply" } else { "Update" }.into());
            map.insert("apiVersion".into(), e.api_version.clone().into());
            if let Some(time) = &e.time {
                map.insert("time".into(), time.clone().into());
            }
            map.insert("fieldsType".into(), "FieldsV1".into());
            map.insert("fieldsV1".into(), e.fields.to_value());
            if !e.subresource.is_empty() {
                map.insert("subresource".into(), e.subresource.clone().into());
            }
            Value::Object(map)
        });
        Value::Array(entries.collect())
    }

    /// Takes down what a write changed. Who changed a field is its only owner.
    pub fn update(&mut self, difference: &Difference, writer: &Writer<'_>) {
        let mut changed = difference.changed.clone();
        strip(&mut changed);
        for entry in &mut self.0 {
            entry.fields.remove(&difference.removed);
            if !entry.is(writer, false) {
                entry.fields.remove(&changed);
            }
        }
        if !changed.is_empty() {
            let entry = self.entry(writer, false);
            entry.fields.add(&changed);
            entry.time = Some(writer.now.to_owned());
        }
        self.settle();
    }

    /// Applies a configuration to an object (without managedFields, both of them). The object is returned as it is
    /// then; on error nothing is changed.
    pub fn apply(
        &mut self,
        schema: Schema<'_>,
        live: &Value,
        config: &Value,
        writer: &Writer<'_>,
        force: bool,
    ) -> Result<Value, ApplyError> {
        let mut faults = Vec::new();
        check(schema, config, "", &mut faults);
        if !faults.is_empty() {
            return Err(ApplyError::Malformed(faults));
        }
        let mut managed = self.clone();
        if managed.is_empty() && live.as_object().is_some_and(|m| !m.is_empty()) {
            let first = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..*writer };
            managed.update(&compare(schema, &json!({}), live), &first);
        }
        let mut wanted = fields_of(schema, config);
        strip(&mut wanted);
        let before = managed.0.iter().find(|e| e.is(writer, true)).map(|e| e.fields.clone());
        let own = managed.entry(writer, true);
        own.fields = wanted;
        own.api_version = writer.api_version.to_owned();

        let mut new = live.clone();
        merge(schema, &mut new, config);
        if let Some(before) = &before {
            let mut owned = FieldSet::default();
            managed.0.iter().for_each(|e| owned.add(&e.fields));
            prune(schema, &mut new, before, &owned);
        }
        let difference = compare(schema, live, &new);
        let mut conflicts = Vec::new();
        for entry in managed.0.iter_mut().filter(|e| !e.is(writer, true)) {
            let common = entry.fields.common(&difference.changed);
            let manager = entry.shown();
            conflicts.extend(common.paths().into_iter().map(|path| Conflict { manager: manager.clone(), path }));
            entry.fields.remove(&common);
            entry.fields.remove(&difference.removed);
        }
        if !force {
            conflicts.sort();
            let allowed = allowed_by_last_applied(schema, live, writer);
            if let Some(allowed) = allowed {
                let allowed = allowed.paths();
                if conflicts.iter().all(|c| allowed.contains(&c.path)) {
                    conflicts.clear();
                }
            }
            if !conflicts.is_empty() {
                return Err(ApplyError::Conflicts(conflicts));
            }
        }
        let own = managed.entry(writer, true);
        if new != *live || before.as_ref() != Some(&own.fields) {
            own.time = Some(writer.now.to_owned());
        }
        managed.settle();
        *self = managed;
        Ok(new)
    }

    fn entry(&mut self, writer: &Writer<'_>, applied: bool) -> &mut Entry {
        let i = self.0.iter().position(|e| e.is(writer, applied)).unwrap_or_else(|| {
            self.0.push(Entry {
                manager: writer.manager.to_owned(),
                applied,
                api_version: writer.api_version.to_owned(),
                subresource: writer.subresource.to_owned(),
                time: None,
                fields: FieldSet::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[i]
    }

    /// Who owns nothing is not named; the oldest of many updaters are put together; all are in order.
    fn settle(&mut self) {
        self.0.retain(|e| !e.fields.is_empty());
        self.0.sort_by(Entry::order);
        while self.0.iter().filter(|e| !e.applied).count() > MAX_UPDATERS {
            let Some(first) = self.0.iter().position(|e| !e.applied) else { break };
            let oldest = self.0.remove(first);
            let bucket = Writer { manager: ANCIENT, subresource: "", api_version: &oldest.api_version, now: "" };
            if oldest.is(&bucket, false) {
                // The bucket was the oldest itself: the next one goes into it.
                let Some(next) = self.0.iter().position(|e| !e.applied) else { break };
                let next = self.0.remove(next);
                let mut fields = oldest.fields;
                fields.add(&next.fields);
                self.0.push(Entry { fields, time: next.time, ..oldest });
            } else {
                let time = oldest.time.clone();
                let entry = self.entry(&bucket, false);
                entry.fields.add(&oldest.fields);
                entry.time = time.max(entry.time.take());
            }
            self.0.sort_by(Entry::order);
        }
    }
}

/// Takes out what belongs to the server.
fn strip(set: &mut FieldSet) {
    set.below.remove("f:apiVersion");
    set.below.remove("f:kind");
    if let Some(meta) = set.below.get_mut("f:metadata") {
        meta.member = false;
        meta.below.retain(|element, _| !OF_THE_SERVER.contains(&element.as_str()));
        if meta.is_empty() {
            set.below.remove("f:metadata");
        }
    }
}

/// Annotation of kubectl's client-side apply.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What `kubectl` may take over without a conflict: fields that are as it applied them from its own side.
fn allowed_by_last_applied(schema: Schema<'_>, live: &Value, writer: &Writer<'_>) -> Option<FieldSet> {
    if writer.manager != "kubectl" {
        return None;
    }
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    let last: Value = serde_json::from_str(last).ok()?;
    if last["apiVersion"].as_str() != Some(writer.api_version) {
        return None;
    }
    let mut set = fields_of(schema, &last);
    let since = compare(schema, &last, live);
    set.remove(&since.changed);
    set.remove(&since.removed);
    Some(set)
}
