//! Who owns the fields of an object: `metadata.managedFields`, kept up to date by every write.
//!
//! While an object is written it has no managedFields in it: admission and validation need not see them, and comparing
//! an object with its old state costs no more than without. They are put in just before the object is stored. What the
//! server does on its own account is not tracked, as upstream leaves objects alone that nobody tracked before.

use serde_json::{Value, json};
use skiff_api::{
    Kind, Status,
    apply::{ApplyError, LAST_APPLIED, Managed, Schema, Writer, compare},
};

use crate::{
    custom::Version,
    object::{drop_nulls, meta_mut, take_revision},
    subresources::now,
};

/// How the owners of fields are to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
    /// Owners stay as they are.
    #[default]
    None,
    /// What a write changes belongs to this manager.
    Update(String),
    /// The new object brings its owners with it: it was made by [`Application`].
    Applied,
}

/// The types of a kind's objects.
fn schema_of<'a>(kind: &Kind, version: Option<&'a Version>) -> Schema<'a> {
    match version {
        Some(version) => Schema::CustomRoot(version.schema()),
        None => Schema::of_type(&kind.type_name()),
    }
}

/// Takes the managedFields out of an object; null if there are none.
pub fn take(value: &mut Value) -> Value {
    let meta = value.get_mut("metadata").and_then(Value::as_object_mut);
    meta.and_then(|m| m.shift_remove("managedFields")).unwrap_or_default()
}

/// Puts managedFields into an object that is about to be stored.
pub fn put(value: &mut Value, managed: Value) {
    if managed.as_array().is_some_and(|list| !list.is_empty()) {
        meta_mut(value).insert("managedFields".into(), managed);
    }
}

/// A write as its tracking sees it: both states are without managedFields.
pub struct Write<'a> {
    pub tracking: &'a Tracking,
    pub kind: &'a Kind,
    pub version: Option<&'a Version>,
    pub subresource: &'a str,
    /// managedFields that the client sent, and those that are stored.
    pub sent: Value,
    pub live: Value,
}

impl Write<'_> {
    /// managedFields after a write; `old` is null for a new object.
    pub fn managed(&mut self, old: &Value, new: &Value) -> Value {
        let (sent, live) = (std::mem::take(&mut self.sent), std::mem::take(&mut self.live));
        let manager = match self.tracking {
            Tracking::None => return live,
            Tracking::Applied => return sent,
            Tracking::Update(manager) => manager,
        };
        // Subresources cannot set owners; a client that does not know of them does not remove them.
        let base = if !self.subresource.is_empty() || sent == live {
            live
        } else if Managed::is_reset(&sent) {
            return Value::Null;
        } else {
            match Managed::parse(&sent) {
                Some(managed) if !managed.is_empty() => managed.to_value(),
                _ => live,
            }
        };
        let created = old.is_null();
        // An object that nobody tracked stays so until it is applied.
        if base.is_null() && !created {
            return base;
        }
        let nothing = json!({});
        let old = if created { &nothing } else { old };
        let mut difference = compare(schema_of(self.kind, self.version), old, new);
        if self.subresource.is_empty() && has_status(self.kind, self.version) {
            difference.changed.below.remove("f:status");
        }
        if difference.is_empty() {
            return base;
        }
        let mut managed = Managed::parse(&base).unwrap_or_default();
        let now = now();
        managed.update(
            &difference,
            &Writer {
                manager,
                subresource: self.subresource,
                api_version: new["apiVersion"].as_str().unwrap_or_default(),
                now: now.as_str().unwrap_or_default(),
            },
        );
        managed.to_value()
    }
}

fn has_status(kind: &Kind, version: Option<&Version>) -> bool {
    kind.has_subresource("status") && version.is_none_or(|v| v.has_status)
}

/// A configuration that somebody applies.
pub struct Application<'a> {
    pub kind: &'a Kind,
    pub version: Option<&'a Version>,
    pub manager: &'a str,
    pub subresource: &'a str,
    pub force: bool,
    /// In the stored version; see [`Application::new`].
    config: Value,
    /// resourceVersion that the configuration names.
    revision: Option<String>,
}

impl<'a> Application<'a> {
    /// `config` in the stored version. What the subresource cannot change is left out of it.
    pub fn new(
        kind: &'a Kind,
        version: Option<&'a Version>,
        manager: &'a str,
        subresource: &'a str,
        force: bool,
        mut config: Value,
    ) -> Result<Self, Status> {
        if !take(&mut config).is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let revision = take_revision(&mut config);
        if let Some(map) = config.as_object_mut() {
            if matches!(subresource, "status" | "approval") {
                map.retain(|k, _| ["apiVersion", "kind", "metadata", "status"].contains(&k.as_str()));
                meta_mut(&mut config).retain(|k, _| ["name", "namespace", "uid"].contains(&k.as_str()));
            } else if has_status(kind, version) {
                map.shift_remove("status");
            }
        }
        // A field without a value is not applied.
        drop_nulls(&mut config);
        Ok(Application { kind, version, manager, subresource, force, config, revision })
    }

    /// The object with the configuration in it, and its new managedFields. `live` is null if there is none.
    pub fn apply(&self, live: &Value) -> Result<Value, Status> {
        let mut live = if live.is_null() { json!({}) } else { live.clone() };
        let mut managed = Managed::parse(&take(&mut live)).unwrap_or_default();
        let based_on = take_revision(&mut live);
        let now = now();
        let writer = Writer {
            manager: self.manager,
            subresource: self.subresource,
            api_version: self.config["apiVersion"].as_str().unwrap_or_default(),
            now: now.as_str().unwrap_or_default(),
        };
        // The storage version of a custom object may be another one than that of the configuration.
        if live["apiVersion"].is_string() {
            live["apiVersion"] = writer.api_version.into();
        }
        let schema = schema_of(self.kind, self.version);
        let mut new = managed.apply(schema, &live, &self.config, &writer, self.force).map_err(|e| self.refusal(&e))?;
        // kubectl's own side goes by this annotation: it must not see old fields in it.
        if self.manager == "kubectl" && live["metadata"]["annotations"][LAST_APPLIED].is_string() {
            let mut config = self.config.clone();
            if let Some(annotations) = config["metadata"]["annotations"].as_object_mut() {
                annotations.shift_remove(LAST_APPLIED);
            }
            new["metadata"]["annotations"][LAST_APPLIED] = format!("{config}\n").into();
        }
        // Without one of its own it is based on what it was applied to, which kinds ask for that have no unconditional
        // updates.
        if let Some(revision) = self.revision.as_ref().or(based_on.as_ref()) {
            meta_mut(&mut new).insert("resourceVersion".into(), revision.as_str().into());
        }
        put(&mut new, managed.to_value());
        Ok(new)
    }

    fn refusal(&self, error: &ApplyError) -> Status {
        match error {
            ApplyError::Conflicts(conflicts) => {
                let causes: Vec<Value> = conflicts
                    .iter()
                    .map(|c| {
                        json!({
                            "reason": "FieldManagerConflict",
                            "message": format!("conflict with {}", c.manager),
                            "field": c.path,
                        })
                    })
                    .collect();
                let mut status = Status::new(409, "Conflict", error.to_string());
                status.details = json!({"causes": causes}).into();
                status
            }
            ApplyError::Malformed(_) => {
                let (kind, meta) = (self.kind, &self.config["metadata"]);
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                let what = format!(
                    "{}/{}; {}, Kind={}",
                    text(&meta["namespace"]),
                    text(&meta["name"]),
                    kind.api_version(),
                    kind.kind
                );
                Status::new(500, "", format!("failed to create typed patch object ({what}): {error}"))
            }
        }
    }
}
