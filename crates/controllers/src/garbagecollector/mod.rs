//! Garbage collector: objects go with their owners.
//!
//! Watches the metadata of all kinds that own or are owned. An object whose owners are all gone is deleted. An owner
//! that is deleted in the foreground stays until those that block it are gone; one that is deleted with `orphan` lets
//! its dependents go first.

mod reconcile;

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions},
    core::{ApiResource, PartialObjectMeta},
};
use serde_json::json;
use skiff_api::{
    Kind,
    kinds::{KINDS, Storage},
};
use skiff_client::{Action, Change, Controller, Informer, Informers, Selector};

use self::reconcile::{FOREGROUND, ORPHAN, OwnerState, Verdict};
use crate::{
    Result, While as _,
    custom::{self, CustomKind},
    is_conflict, is_not_found,
    namespace::resource_of,
};

const WORKERS: usize = 8;

type Meta = PartialObjectMeta<DynamicObject>;

/// Kinds that own nothing and are owned by nobody.
const IGNORED: [&str; 2] = ["Event", "Lease"];

struct Watched {
    resource: ApiResource,
    namespaced: bool,
    objects: Informer<Meta>,
}

struct Collector {
    kinds: Vec<Watched>,
    client: kube::Client,
}

/// An object of one of the kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: usize,
    namespace: String,
    name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

fn collected() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|k| matches!(k.storage, Storage::Stored(_)) && !IGNORED.contains(&k.kind))
}

pub(crate) async fn run(informers: Informers) {
    let definitions = custom::definitions(&informers);
    let mut changes = definitions.subscribe();
    definitions.wait_synced().await;
    loop {
        let custom = custom::kinds(&definitions.list());
        let changed = async {
            while changes.recv().await.is_some() {
                if custom::kinds(&definitions.list()) != custom {
                    return;
                }
            }
            // Definitions that nobody tells of any more do not change.
            std::future::pending::<()>().await;
        };
        // With other kinds the collector begins anew: it decides by what is there alone.
        tokio::select! {
            () = collect(&informers, &custom) => return,
            () = changed => {}
        }
    }
}

async fn collect(informers: &Informers, custom: &[CustomKind]) {
    let watched = |informers: &Informers, resource: ApiResource, namespaced: bool| {
        let objects = informers.select::<Meta>(&resource, Selector::all());
        Watched { resource, namespaced, objects }
    };
    // Those of custom kinds end with this collector.
    let own = Informers::new(informers.client().clone());
    let kinds = collected()
        .map(|kind| watched(informers, resource_of(kind), kind.namespaced))
        .chain(custom.iter().map(|kind| watched(&own, kind.resource.clone(), kind.namespaced)))
        .collect();
    let this = Arc::new(Collector { kinds, client: informers.client().clone() });
    let mut controller: Controller<Key> = Controller::new("garbagecollector").workers(WORKERS);
    for (i, kind) in this.kinds.iter().enumerate() {
        let collector = this.clone();
        controller = controller.watch(&kind.objects, move |change| collector.concerned(i, change));
    }
    controller
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Collector {
    /// Whom a change concerns: the object itself, its owners that may wait for it, and, when it goes, its dependents.
    fn concerned(&self, kind: usize, change: &Change<Meta>) -> Vec<Key> {
        let object = change.object();
        let mut keys = Vec::new();
        let key = Key { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
        let owned = !object.owner_references().is_empty();
        let deleted = matches!(change, Change::Deleted { .. });
        if !deleted && (owned || object.metadata.deletion_timestamp.is_some()) {
            keys.push(key.clone());
        }
        if deleted || object.metadata.deletion_timestamp.is_some() {
            keys.extend(self.dependents(object.metadata.uid.as_deref().unwrap_or_default()).map(|(k, o)| Key {
                kind: k,
                namespace: o.namespace().unwrap_or_default(),
                name: o.name_any(),
            }));
        }
        // Owners that wait for this one look again when it goes or no longer blocks.
        let refs = object.owner_references().iter().chain(change.old().into_iter().flat_map(|o| o.owner_references()));
        for owner in refs {
            if let Some((k, o)) = self.find(owner, &key.namespace)
                && o.metadata.deletion_timestamp.is_some()
            {
                keys.push(Key { kind: k, namespace: o.namespace().unwrap_or_default(), name: o.name_any() });
            }
        }
        keys
    }

    fn dependents(&self, uid: &str) -> impl Iterator<Item = (usize, Arc<Meta>)> + use<'_> {
        let uid = uid.to_owned();
        self.kinds.iter().enumerate().flat_map(move |(i, k)| k.objects.by_owner(&uid).into_iter().map(move |o| (i, o)))
    }

    fn kind_of(&self, owner: &OwnerReference) -> Option<usize> {
        let (group, _) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        self.kinds.iter().position(|k| k.resource.group == group && k.resource.kind == owner.kind)
    }

    /// The owner as the cache has it.
    fn find(&self, owner: &OwnerReference, namespace: &str) -> Option<(usize, Arc<Meta>)> {
        let kind = self.kind_of(owner)?;
        let watched = &self.kinds[kind];
        let found = watched.objects.get(if watched.namespaced { namespace } else { "" }, &owner.name)?;
        (found.metadata.uid.as_deref() == Some(&owner.uid)).then_some((kind, found))
    }

    fn api(&self, kind: usize, namespace: &str) -> Api<DynamicObject> {
        let watched = &self.kinds[kind];
        if watched.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &watched.resource)
        } else {
            Api::all_with(self.client.clone(), &watched.resource)
        }
    }

    /// What has become of an owner. What the cache does not have is asked for, so that nothing is deleted by mistake.
    async fn state_of(&self, owner: &OwnerReference, namespace: &str) -> Result<OwnerState> {
        let of = |meta: &kube::api::ObjectMeta| {
            let foreground = meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
            match meta.deletion_timestamp.is_some() && foreground {
                true => OwnerState::WaitsForDependents,
                false => OwnerState::There,
            }
        };
        if let Some((_, found)) = self.find(owner, namespace) {
            return Ok(of(&found.metadata));
        }
        // Of a kind that is not known nothing can be said.
        let Some(kind) = self.kind_of(owner) else { return Ok(OwnerState::There) };
        match self.api(kind, namespace).get_metadata_opt(&owner.name).await.during("looking for an owner")? {
            Some(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => Ok(of(&found.metadata)),
            _ => Ok(OwnerState::Gone),
        }
    }

    async fn reconcile(&self, key: Key) -> Result<Action> {
        let Some(object) = self.kinds[key.kind].objects.get(&key.namespace, &key.name) else { return Ok(Action::Done) };
        let api = self.api(key.kind, &key.namespace);
        if object.metadata.deletion_timestamp.is_some() {
            return self.finish(&api, &object).await;
        }
        let mut owners = Vec::new();
        for owner in object.owner_references() {
            owners.push((owner.clone(), self.state_of(owner, &key.namespace).await?));
        }
        let uid = object.metadata.uid.clone();
        let has_dependents = self.dependents(uid.as_deref().unwrap_or_default()).next().is_some();
        match reconcile::judge(&owners, has_dependents) {
            Verdict::Keep => {}
            Verdict::Drop(gone) => {
                let patch = json!({"metadata": {"uid": uid, "ownerReferences": reconcile::without(object.owner_references(), &gone)}});
                self.patch(&api, &key.name, &patch).await?;
            }
            Verdict::Delete(policy) => {
                let params = DeleteParams {
                    propagation_policy: Some(policy),
                    preconditions: Some(Preconditions { uid, resource_version: None }),
                    ..DeleteParams::default()
                };
                match api.delete(&key.name, &params).await {
                    Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                    deleted => {
                        deleted.during("deleting what has no owner")?;
                    }
                }
            }
        }
        Ok(Action::Done)
    }

    /// An object that waits for the collector before it may go.
    async fn finish(&self, api: &Api<DynamicObject>, object: &Meta) -> Result<Action> {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        let has = |f: &str| finalizers.iter().any(|x| x == f);
        if has(ORPHAN) {
            let dependents: Vec<_> = self.dependents(&uid).collect();
            for (kind, dependent) in dependents {
                let namespace = dependent.namespace().unwrap_or_default();
                let refs = reconcile::without(dependent.owner_references(), std::slice::from_ref(&uid));
                let patch = json!({"metadata": {"uid": dependent.metadata.uid, "ownerReferences": refs}});
                self.patch(&self.api(kind, &namespace), &dependent.name_any(), &patch).await?;
            }
            return self.remove_finalizer(api, object, ORPHAN).await;
        }
        if !has(FOREGROUND) {
            return Ok(Action::Done);
        }
        let mut blocked = false;
        for (kind, dependent) in self.dependents(&uid) {
            let blocks =
                dependent.owner_references().iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true));
            blocked |= blocks;
            if dependent.metadata.deletion_timestamp.is_some() {
                continue;
            }
            // Only what nobody else holds goes with it; the dependent's own turn decides.
            let key = Key { kind, namespace: dependent.namespace().unwrap_or_default(), name: dependent.name_any() };
            Box::pin(self.reconcile(key)).await?;
        }
        if blocked {
            // The last dependent's end brings this object back.
            return Ok(Action::Done);
        }
        self.remove_finalizer(api, object, FOREGROUND).await
    }

    async fn remove_finalizer(&self, api: &Api<DynamicObject>, object: &Meta, finalizer: &str) -> Result<Action> {
        let mut left = object.metadata.finalizers.clone().unwrap_or_default();
        left.retain(|f| f != finalizer);
        let patch = json!({"metadata": {
            "uid": object.metadata.uid, "resourceVersion": object.metadata.resource_version, "finalizers": left,
        }});
        match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) => Ok(Action::Done),
            patched => patched.during("taking away a finalizer").map(|_| Action::Done),
        }
    }

    async fn patch(&self, api: &Api<DynamicObject>, name: &str, patch: &serde_json::Value) -> Result<()> {
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            patched => patched.during("changing owner references").map(|_| ()),
        }
    }
}
