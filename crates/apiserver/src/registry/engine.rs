//! The one engine behind every kind: create, update, patch, delete and their collections.
//!
//! A write's path is written here once: prepare, default, admit, validate, admit again, compare and swap. What a
//! kind adds is its [`Strategy`](super::Strategy).

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::{Status, status::success, validation::Faults};
use skiff_store::{Code, Revision, Store, Txn, TxnOutcome};

use super::{Registry, Resource, meta};
use crate::{
    admission::{Admission, Attributes, Operation},
    auth::User,
    cache::CacheError,
    custom::conversion,
    object::{Object, drop_nulls, encode, meta_mut, meta_str, take_revision, with_revision},
    owners,
    quota::{self, Charge, Quotas},
    request::{ListOptions, WriteOptions},
    services::{Reservation, ServiceAddresses},
};

/// How often a write is tried against an object that others keep changing.
const MAX_ATTEMPTS: usize = 50;

/// Who asks, and how.
pub struct Context<'a> {
    pub user: &'a User,
    pub options: &'a WriteOptions,
}

/// What an update touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All but the status.
    Main,
    /// The status alone.
    Status,
    /// What the caller changed and nothing else is reset, such as a binding.
    Whole,
}

/// A written object.
pub struct Written {
    pub bytes: Bytes,
}

/// What a deletion did.
pub enum Deleted {
    /// The object is gone: a `Status`.
    Gone(Value),
    /// The object is gone, and this kind shows its last state.
    Last(Bytes),
    /// The object waits for its grace period or its finalizers.
    Pending(Bytes),
}

/// Options of a deletion (`DeleteOptions`).
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_s: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

/// What becomes of the objects that an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// See the [module](self).
pub struct Engine {
    pub registry: Arc<Registry>,
    pub store: Arc<dyn Store>,
    pub admission: Admission,
    pub services: ServiceAddresses,
    pub quotas: Arc<Quotas>,
    /// Whether other API servers write to the store too.
    pub shared: bool,
}

/// A store's failure as clients see it.
pub fn store_status(error: &skiff_store::Error) -> Status {
    match error.code() {
        Code::Compacted => Status::expired("The resourceVersion for the provided list is too old."),
        Code::TooLarge => Status::too_large(format!("etcdserver: {error}")),
        Code::NoSpace => Status::internal(format!("etcdserver: mvcc: database space exceeded: {error}")),
        Code::Unavailable => Status::unavailable(error.to_string()),
        _ => Status::internal(error),
    }
}

/// A cache's failure as clients see it.
pub fn cache_status(error: &CacheError) -> Status {
    match error {
        CacheError::TooOld { .. } => Status::expired(error.to_string()),
        CacheError::TooNew { .. } => {
            let mut s = Status::timeout(error.to_string());
            s.details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1})
                .into();
            s
        }
        CacheError::Store(e) => store_status(e),
        CacheError::NotReady => Status::too_many_requests(error.to_string(), 1),
    }
}

impl Engine {
    /// The object, or 404.
    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        let key = resource.key(namespace, name);
        resource.cache.get(&key).await.map_err(|e| cache_status(&e))?.ok_or_else(|| not_found(resource, name))
    }

    /// Creates an object. `value` has been decoded and conforms to its type.
    pub async fn create(
        &self,
        cx: &Context<'_>,
        resource: &Resource,
        namespace: &str,
        mut value: Value,
    ) -> Result<Written, Status> {
        let kind = resource.kind;
        let given = meta_str(&value, "namespace");
        if kind.namespaced && !given.is_empty() && given != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let sent = owners::take(&mut value);
        let rv = take_revision(&mut value);
        if rv.is_some_and(|rv| rv != "0") {
            return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        let generated = meta_str(&value, "name").is_empty() && !meta_str(&value, "generateName").is_empty();
        if resource.custom.as_ref().is_some_and(|c| c.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::new(405, "MethodNotAllowed", why));
        }
        let version = resource.version_of(&value);
        (resource.strategy.defaults)(&mut value);
        if let Some(version) = &version {
            version.defaults(&mut value);
        }
        let managed = owners::Write {
            tracking: &cx.options.tracking,
            kind,
            version: version.as_deref(),
            subresource: "",
            sent,
            live: Value::Null,
        }
        .managed(&Value::Null, &value);
        let attributes = Attributes {
            namespace: namespace.to_owned(),
            name: meta_str(&value, "name").to_owned(),
            ..Attributes::new(cx.user, Operation::Create, kind, "", cx.options)
        };
        self.admission.mutate(&attributes, &mut value, &Value::Null).await?;
        if kind.has_subresource("status") && version.as_ref().is_none_or(|v| v.has_status) {
            reset_status(kind, &mut value);
        }
        meta::prepare_create(&mut value, if kind.namespaced { namespace } else { "" });
        (resource.strategy.prepare_create)(&mut value);
        if resource.strategy.generation {
            meta_mut(&mut value).insert("generation".into(), 1.into());
        }
        self.services.init_families(kind, &mut value, None)?;
        tidy(kind, &mut value);
        let mut faults = Faults::default();
        meta::validate(kind, &value, resource.strategy.names, &mut faults);
        (resource.strategy.validate)(&value, &mut faults);
        if let Some(version) = &version {
            version.validate(&value, None, &mut faults);
        }
        (resource.strategy.validate_create)(&value, &mut faults);
        if !self.shared || kind.kind != "Service" {
            let written = self.create_valid(cx, resource, namespace, value, managed, generated, faults).await?;
            return written.ok_or_else(|| Status::internal("another server has taken what only this one gives away"));
        }
        // Another server may give away the same address at the same time.
        for _ in 0..MAX_ATTEMPTS {
            let (value, managed, faults) = (value.clone(), managed.clone(), Faults(faults.0.clone()));
            let written = self.create_valid(cx, resource, namespace, value, managed, generated, faults).await?;
            if let Some(written) = written {
                return Ok(written);
            }
        }
        Err(Status::modified(kind.group, kind.plural, meta_str(&value, "name")))
    }

    /// The rest of a creation. `None`: another server came first with an address or a port.
    async fn create_valid(
        &self,
        cx: &Context<'_>,
        resource: &Resource,
        namespace: &str,
        mut value: Value,
        managed: Value,
        generated: bool,
        mut faults: Faults,
    ) -> Result<Option<Written>, Status> {
        let kind = resource.kind;
        let reservation = self.assign(kind, &mut value, None, &mut faults).await?;
        let name = meta_str(&value, "name").to_owned();
        if !faults.0.is_empty() {
            return Err(Status::invalid_object(kind, &name, &faults.0));
        }
        let attributes = Attributes {
            namespace: namespace.to_owned(),
            name: name.clone(),
            ..Attributes::new(cx.user, Operation::Create, kind, "", cx.options)
        };
        self.admission.validate(&attributes, &value, None).await?;
        let charge = quota::charge(self, &attributes, &value, None).await?;

        let key = resource.key(namespace, &name);
        let mut value = self.in_stored_version(resource, value).await?;
        owners::put(&mut value, managed);
        let stored: Bytes = encode(&value).into();
        if cx.options.dry_run {
            if self.get(resource, namespace, &name).await.is_ok() {
                return Err(Status::already_exists(kind.group, kind.plural, &name));
            }
            return written(&stored, Revision::ZERO).map(Some);
        }
        let mut txn = Txn::create(key, stored.clone());
        if self.shared {
            reservation.claim(&mut txn);
        }
        let response = self.store.txn(txn).await.map_err(|e| store_status(&e))?;
        if let TxnOutcome::Failed(found) = response.outcome {
            let lost = reservation.lost(Revision::ZERO, &found);
            if !lost.is_empty() {
                drop(reservation);
                self.services.learn(&lost);
                return Ok(None);
            }
            let mut status = Status::already_exists(kind.group, kind.plural, &name);
            if generated {
                status = Status::new(409, "AlreadyExists", status.message);
            }
            return Err(status);
        }
        reservation.keep();
        keep(charge);
        self.quotas.wrote(self, kind, namespace, &Value::Null, &value);
        written(&stored, response.revision).map(Some)
    }

    /// Gives a Service its addresses and node ports, or checks those that it asks for.
    async fn assign(
        &self,
        kind: &'static skiff_api::Kind,
        value: &mut Value,
        old: Option<&Value>,
        faults: &mut Faults,
    ) -> Result<Reservation, Status> {
        let valid = faults.0.is_empty();
        let reservation = self.services.assign(kind, value, old, faults);
        if !self.shared || !valid || faults.0.is_empty() {
            return Ok(reservation);
        }
        // Another server may have given back what was not to be had.
        drop(reservation);
        self.services.look_again(&*self.store).await.map_err(|e| store_status(&e))?;
        faults.0.clear();
        Ok(self.services.assign(kind, value, old, faults))
    }

    /// Updates an object: `change` makes the new value from the old one, and is called again when another writer
    /// came first, unless the new value names the resourceVersion that it is based on.
    pub async fn update(
        &self,
        cx: &Context<'_>,
        resource: &Resource,
        namespace: &str,
        name: &str,
        part: Part,
        subresource: &str,
        change: &(dyn Fn(&Value) -> Result<Value, Status> + Sync),
    ) -> Result<Written, Status> {
        let kind = resource.kind;
        let mut old = self.get(resource, namespace, name).await?;
        for _ in 0..MAX_ATTEMPTS {
            // As the client sees it; what is stored may be another version.
            let asked = cx.options.requested.unwrap_or(kind);
            let mut old_value = conversion::value_of(&self.registry, resource, asked, &old).await?;
            let mut new = change(&old_value)?;
            take_revision(&mut old_value);
            let owned = owners::take(&mut old_value);
            let sent = owners::take(&mut new);
            let based_on = take_revision(&mut new);
            match &based_on {
                Some(rv) if *rv != old.revision.0.to_string() => {
                    return Err(Status::modified(kind.group, kind.plural, name));
                }
                None if part == Part::Main && !resource.strategy.unconditional_update => {
                    let e = skiff_api::validation::FieldError::invalid(
                        "metadata.resourceVersion",
                        0,
                        "must be specified for an update",
                    );
                    return Err(Status::invalid_object(kind, name, &[e]));
                }
                _ => {}
            }
            let uid = meta_str(&new, "uid");
            if !uid.is_empty() && uid != &*old.uid {
                return Err(Status::conflict(
                    kind.group,
                    kind.plural,
                    name,
                    invalid_uid(&old.key, old.revision, uid, &old.uid),
                ));
            }
            let owners = (owned.clone(), sent);
            let (reservation, charge, managed) = self
                .prepare_update(
                    cx,
                    resource,
                    namespace,
                    name,
                    part,
                    subresource,
                    &mut new,
                    (&old_value, old.revision),
                    owners,
                )
                .await?;
            let converted = conversion::needs_webhook(resource);
            let unchanged = converted && new == old_value && managed == owned;
            new = self.in_stored_version(resource, new).await?;
            if unchanged || (!converted && new == old_value && managed == owned) {
                return Ok(Written { bytes: old.bytes.clone() });
            }
            let gone = !new["metadata"]["deletionTimestamp"].is_null()
                && !has_finalizers(&new)
                && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0;
            owners::put(&mut new, managed);
            let stored: Bytes = encode(&new).into();
            if cx.options.dry_run {
                return written(&stored, old.revision);
            }
            let mut txn = if gone {
                Txn::delete_if(old.key.clone(), old.revision)
            } else {
                Txn::put_if(old.key.clone(), old.revision, stored.clone(), None)
            };
            match (self.shared, gone) {
                (true, true) => self.services.unclaim(kind, &old_value, &mut txn),
                (true, false) => reservation.claim(&mut txn),
                (false, _) => {}
            }
            let response = self.store.txn(txn).await.map_err(|e| store_status(&e))?;
            match response.outcome {
                TxnOutcome::Succeeded(_) => {
                    reservation.keep();
                    keep(charge);
                    if gone {
                        self.services.release(kind, &old_value);
                    }
                    let now = if gone { &Value::Null } else { &new };
                    self.quotas.wrote(self, kind, namespace, &old_value, now);
                    return written(&stored, response.revision);
                }
                TxnOutcome::Failed(current) => {
                    let lost = reservation.lost(old.revision, &current);
                    if !lost.is_empty() {
                        drop(reservation);
                        self.services.learn(&lost);
                        continue;
                    }
                    // The change is made anew on what is there now; one that names the old
                    // resourceVersion is refused above.
                    old = self.current(resource, name, current)?;
                }
            }
        }
        Err(Status::modified(kind.group, kind.plural, name))
    }

    /// Custom objects are written in the version of their client and stored in one.
    async fn in_stored_version(&self, resource: &Resource, value: Value) -> Result<Value, Status> {
        if !resource.kind.is_custom() {
            return Ok(value);
        }
        conversion::convert(&self.registry, resource, value, resource.kind.version).await
    }

    fn current(
        &self,
        resource: &Resource,
        name: &str,
        current: Vec<Option<skiff_store::KeyValue>>,
    ) -> Result<Arc<Object>, Status> {
        let kv = current.into_iter().next().flatten().ok_or_else(|| not_found(resource, name))?;
        Object::from_kv(&kv, resource.cache.indexing()).map(Arc::new).map_err(Status::internal)
    }

    async fn prepare_update(
        &self,
        cx: &Context<'_>,
        resource: &Resource,
        namespace: &str,
        name: &str,
        part: Part,
        subresource: &str,
        new: &mut Value,
        (old, revision): (&Value, Revision),
        (live, sent): (Value, Value),
    ) -> Result<(Reservation, Option<Charge>, Value), Status> {
        let (kind, strategy) = (resource.kind, resource.strategy);
        let version = resource.version_of(new);
        let own_status = version.as_ref().is_none_or(|v| v.has_status);
        match part {
            Part::Main if kind.has_subresource("status") && own_status => copy_field(new, old, "status"),
            Part::Status => {
                let fields: Vec<String> = old
                    .as_object()
                    .into_iter()
                    .chain(new.as_object())
                    .flat_map(|m| m.keys())
                    .filter(|k| !["kind", "apiVersion", "metadata", "status"].contains(&k.as_str()))
                    .cloned()
                    .collect();
                for field in fields {
                    copy_field(new, old, &field);
                }
                // Nodes report labels with their status; elsewhere labels belong to the spec's writers.
                if kind.is_custom() {
                    let revision = new["metadata"]["resourceVersion"].clone();
                    copy_field(new, old, "metadata");
                    if !revision.is_null() {
                        meta_mut(new).insert("resourceVersion".into(), revision);
                    }
                } else if kind.kind != "Node" {
                    copy_meta(new, old, &["labels", "ownerReferences"]);
                }
            }
            _ => {}
        }
        meta::prepare_update(new, old);
        (strategy.defaults)(new);
        if let Some(version) = &version {
            version.defaults(new);
        }
        let managed = owners::Write {
            tracking: &cx.options.tracking,
            kind,
            version: version.as_deref(),
            subresource,
            sent,
            live,
        }
        .managed(old, new);
        let attributes = Attributes {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            revision: Some(revision),
            ..Attributes::new(cx.user, Operation::Update, kind, subresource, cx.options)
        };
        self.admission.mutate(&attributes, new, old).await?;
        if part == Part::Main {
            (strategy.prepare_update)(new, old);
            self.services.init_families(kind, new, Some(old))?;
        }
        // A binding is no change of what was wanted.
        if strategy.generation && part != Part::Status && subresource != "binding" && spec_differs(new, old) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            meta_mut(new).insert("generation".into(), generation.into());
        }
        tidy(kind, new);
        let mut faults = Faults::default();
        meta::validate(kind, new, |_| Vec::new(), &mut faults);
        meta::validate_update(new, old, &mut faults);
        match part {
            Part::Status => (strategy.validate_status)(new, old, &mut faults),
            Part::Main => {
                (strategy.validate)(new, &mut faults);
                (strategy.validate_update)(new, old, &mut faults);
            }
            Part::Whole => (strategy.validate)(new, &mut faults),
        }
        if let Some(version) = &version {
            version.validate(new, Some(old), &mut faults);
        }
        let reservation = if part == Part::Status {
            Reservation::none()
        } else {
            self.assign(kind, new, Some(old), &mut faults).await?
        };
        if !faults.0.is_empty() {
            return Err(Status::invalid_object(kind, name, &faults.0));
        }
        self.admission.validate(&attributes, new, Some(old)).await?;
        let charge = quota::charge(self, &attributes, new, Some(old)).await?;
        Ok((reservation, charge, managed))
    }

    /// Deletes an object, or marks it as to be deleted.
    pub async fn delete(
        &self,
        cx: &Context<'_>,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let kind = resource.kind;
        let mut old = self.get(resource, namespace, name).await?;
        let mut attributes = Attributes {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            dry_run: options.dry_run || cx.options.dry_run,
            deletion: Some(options),
            ..Attributes::new(cx.user, Operation::Delete, kind, "", cx.options)
        };
        for _ in 0..MAX_ATTEMPTS {
            let mut old_value = old.value();
            take_revision(&mut old_value);
            check_preconditions(resource, name, &old, options)?;
            attributes.revision = Some(old.revision);
            self.admission.validate(&attributes, &Value::Null, Some(&old_value)).await?;
            let mut new = old_value.clone();
            set_propagation_finalizers(&mut new, options.propagation);
            (resource.strategy.prepare_delete)(&mut new);
            let grace = resource.strategy.grace.map_or(0, |f| f(&old_value, options.grace_s).max(0));
            let pending_before = old_value["metadata"]["deletionTimestamp"].is_string();
            let grace = if pending_before {
                // A deletion under way can only be made shorter.
                let left = old_value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
                if options.grace_s.is_some() { grace.min(left) } else { left }
            } else {
                grace
            };
            let stays = grace > 0 || has_finalizers(&new);
            let stored: Bytes;
            let mut txn = if stays {
                if !pending_before || grace < old_value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0)
                {
                    mark_deleted(&mut new, grace, kind.kind == "Namespace");
                }
                if new == old_value {
                    return Ok(Deleted::Pending(old.bytes.clone()));
                }
                stored = encode(&new).into();
                Txn::put_if(old.key.clone(), old.revision, stored.clone(), None)
            } else {
                stored = encode(&new).into();
                Txn::delete_if(old.key.clone(), old.revision)
            };
            if attributes.dry_run {
                return Ok(Deleted::Pending(old.bytes.clone()));
            }
            if self.shared && !stays {
                self.services.unclaim(kind, &old_value, &mut txn);
            }
            let response = self.store.txn(txn).await.map_err(|e| store_status(&e))?;
            match response.outcome {
                TxnOutcome::Succeeded(_) if stays => {
                    return Ok(Deleted::Pending(written(&stored, response.revision)?.bytes));
                }
                TxnOutcome::Succeeded(_) => {
                    self.services.release(kind, &old_value);
                    self.quotas.wrote(self, kind, namespace, &old_value, &Value::Null);
                    if shows_last_state(kind.kind) {
                        return Ok(Deleted::Last(written(&stored, response.revision)?.bytes));
                    }
                    return Ok(Deleted::Gone(success(name, kind.group, kind.plural, &old.uid)));
                }
                TxnOutcome::Failed(current) => old = self.current(resource, name, current)?,
            }
        }
        Err(Status::modified(kind.group, kind.plural, name))
    }

    /// Deletes all selected objects. Objects that others delete meanwhile are no error.
    pub async fn delete_collection(
        &self,
        cx: &Context<'_>,
        resource: &Resource,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let listed = resource.cache.list(&list.filter, 0, None).await.map_err(|e| cache_status(&e))?;
        for object in &listed.objects {
            match self.delete(cx, resource, &object.namespace, &object.name, options).await {
                Err(e) if e.code != 404 => return Err(e),
                _ => {}
            }
        }
        Ok(listed.objects)
    }
}

fn written(stored: &Bytes, revision: Revision) -> Result<Written, Status> {
    let bytes = if revision == Revision::ZERO {
        // A dry run's object has no resourceVersion yet.
        stored.clone()
    } else {
        with_revision(stored, revision).ok_or_else(|| Status::internal("object without metadata"))?
    };
    Ok(Written { bytes })
}

/// The write came about that was charged.
fn keep(charge: Option<Charge>) {
    if let Some(charge) = charge {
        charge.keep();
    }
}

/// 404 for an object of this resource.
pub fn not_found(resource: &Resource, name: &str) -> Status {
    Status::not_found(resource.kind.group, resource.kind.plural, name)
}

fn copy_field(new: &mut Value, old: &Value, field: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(field) {
        Some(v) => {
            map.insert(field.to_owned(), v.clone());
        }
        None => {
            map.shift_remove(field);
        }
    }
}

fn copy_meta(new: &mut Value, old: &Value, fields: &[&str]) {
    let meta = meta_mut(new);
    for field in fields {
        match old["metadata"].get(*field) {
            Some(v) => {
                meta.insert((*field).to_owned(), v.clone());
            }
            None => {
                meta.shift_remove(*field);
            }
        }
    }
}

/// A client cannot set the status of a new object.
fn reset_status(kind: &skiff_api::Kind, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    if kind.is_custom() {
        map.shift_remove("status");
    } else {
        map.insert("status".into(), json!({}));
    }
}

/// Whether anything but metadata and status differs.
fn spec_differs(new: &Value, old: &Value) -> bool {
    let differs = |a: &Value, b: &Value| {
        a.as_object()
            .into_iter()
            .flatten()
            .any(|(k, v)| !["metadata", "status", "kind", "apiVersion"].contains(&k.as_str()) && b.get(k) != Some(v))
    };
    differs(new, old) || differs(old, new)
}

/// Whether something still has to happen before the object may go.
fn has_finalizers(value: &Value) -> bool {
    let some = |v: &Value| v.as_array().is_some_and(|a| !a.is_empty());
    // A namespace has finalizers of its own, in its spec.
    some(&value["metadata"]["finalizers"]) || (value["kind"] == "Namespace" && some(&value["spec"]["finalizers"]))
}

fn mark_deleted(value: &mut Value, grace_s: i64, is_namespace: bool) {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace_s);
    let meta = meta_mut(value);
    meta.insert("deletionTimestamp".into(), meta::timestamp(at).into());
    meta.insert("deletionGracePeriodSeconds".into(), grace_s.into());
    if let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
        meta.insert("generation".into(), (generation + 1).into());
    }
    if is_namespace {
        value["status"]["phase"] = "Terminating".into();
    }
}

fn set_propagation_finalizers(value: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let wanted = match propagation {
        Propagation::Orphan => Some("orphan"),
        Propagation::Foreground => Some("foregroundDeletion"),
        Propagation::Background => None,
    };
    let meta = meta_mut(value);
    let mut finalizers: Vec<Value> = meta.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    finalizers.retain(|f| f != "orphan" && f != "foregroundDeletion");
    finalizers.extend(wanted.map(Value::from));
    if finalizers.is_empty() {
        meta.shift_remove("finalizers");
    } else {
        meta.insert("finalizers".into(), finalizers.into());
    }
}

fn check_preconditions(resource: &Resource, name: &str, old: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let (kind, revision) = (resource.kind, old.revision.0.to_string());
    let fault = match (&options.uid, &options.resource_version) {
        (Some(uid), _) if **uid != *old.uid => format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            old.uid
        ),
        (_, Some(rv)) if *rv != revision => format!(
            "the ResourceVersion in the precondition ({rv}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
        ),
        _ => return Ok(()),
    };
    // Upstream names the kind here, not the resource.
    Err(Status::conflict(kind.group, kind.kind, name, fault))
}

/// Why a write of an object that was made anew meanwhile is refused, in the words of upstream's storage.
fn invalid_uid(key: &str, revision: Revision, given: &str, uid: &str) -> String {
    format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: {}, AdditionalErrorMsg: Precondition failed: UID in precondition: {given}, UID in object meta: {uid}",
        revision.0
    )
}

/// Removes what indexing for writing left behind. Fields of any content keep their nulls.
fn tidy(kind: &skiff_api::Kind, value: &mut Value) {
    let any_content = ["ControllerRevision", "CustomResourceDefinition"].contains(&kind.kind) || kind.is_custom();
    if !any_content && kind.group != "resource.k8s.io" {
        drop_nulls(value);
    }
}

/// Kinds whose deletion answers with the object instead of a `Status`.
fn shows_last_state(kind: &str) -> bool {
    ["Pod", "Service", "ServiceAccount", "PersistentVolume", "PersistentVolumeClaim", "PodTemplate", "ResourceQuota"]
        .contains(&kind)
}

/// A name that begins with `base` and ends in random letters.
pub fn generated_name(base: &str) -> String {
    meta::generate_name(base)
}
