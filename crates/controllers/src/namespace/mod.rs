//! Namespace: what is in a deleted namespace goes, and then the namespace itself.
//!
//! Watches Namespaces; deletes everything in one that is being deleted and takes away its finalizer when nothing is
//! left. Its pods go first, so that what guards them, as network policies do, is there as long as they are; what is left
//! meanwhile, and why, is in the namespace's conditions.

mod reconcile;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::json;
use skiff_api::{
    Kind,
    kinds::{KINDS, Storage},
};
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};

use self::reconcile::{Left, conditions};
use crate::{
    Error, Result, While as _,
    custom::{self, Definition},
    is_conflict, is_not_found,
};

const FINALIZER: &str = "kubernetes";
/// How soon a namespace is looked at again while its pods end.
const AGAIN: Duration = Duration::from_millis(300);

struct Namespaces {
    namespaces: Informer<Namespace>,
    definitions: Informer<Definition>,
    client: kube::Client,
}

pub(crate) async fn run(informers: Informers) {
    let definitions = custom::definitions(&informers);
    definitions.wait_synced().await;
    let client = informers.client().clone();
    let this = Arc::new(Namespaces { namespaces: informers.informer(), definitions, client });
    let namespaces = this.namespaces.clone();
    Controller::new("namespace")
        .workers(4)
        .watch(&namespaces, self_mapper)
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move { this.reconcile(&key.name).await }
        })
        .await;
}

/// How the API names a kind.
pub(crate) fn resource_of(kind: &Kind) -> ApiResource {
    ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

/// Built-in kinds whose objects are in namespaces, each once.
fn contents() -> impl Iterator<Item = ApiResource> {
    KINDS.iter().filter(|k| k.namespaced && matches!(k.storage, Storage::Stored(_))).map(resource_of)
}

impl Namespaces {
    async fn reconcile(&self, name: &str) -> Result<Action> {
        let Some(namespace) = self.namespaces.get("", name) else { return Ok(Action::Done) };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(Action::Done);
        }
        let mut finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(Action::Done);
        }
        let since = namespace.metadata.deletion_timestamp.as_ref().map_or(Timestamp::now(), |time| time.0);
        let custom = custom::kinds(&self.definitions.list()).into_iter().filter(|k| k.namespaced).map(|k| k.resource);
        let is_pods = |kind: &ApiResource| kind.group.is_empty() && kind.plural == "pods";
        let (pods, others): (Vec<_>, Vec<_>) = contents().chain(custom).partition(is_pods);
        let (pods, mut errors) = self.empty_all(name, pods, since).await;
        let pods_are_left = pods.iter().any(|left| left.count > 0);
        let mut faults: Vec<_> = pods.iter().filter_map(|left| left.fault(name)).collect();
        let mut left = Vec::new();
        if !pods_are_left {
            let (others, more) = self.empty_all(name, others, since).await;
            faults.extend(others.iter().filter_map(|left| left.fault(name)));
            errors.extend(more);
            left = others;
        }
        faults.extend(errors.iter().map(ToString::to_string));
        self.tell(&namespace, &left, &faults).await?;
        if let Some(error) = errors.into_iter().next() {
            return Err(error);
        }
        if pods_are_left || left.iter().any(|left| left.count > 0) {
            return Ok(Action::RequeueAfter(AGAIN));
        }
        finalizers.retain(|f| f != FINALIZER);
        let mut object = Namespace::clone(&namespace);
        object.metadata.resource_version = None;
        object.spec = Some(NamespaceSpec { finalizers: Some(finalizers) });
        let api: Api<Namespace> = Api::all(self.client.clone());
        let finalized = api
            .replace_subresource("finalize", &namespace.name_any(), &Default::default(), &object)
            .await
            .map(|_: Namespace| ());
        match finalized {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(Action::Done),
            done => done.during("finalizing the namespace").map(|()| Action::Done),
        }
    }

    /// Deletes all objects of these kinds: what is left, and what failed.
    async fn empty_all(&self, namespace: &str, kinds: Vec<ApiResource>, since: Timestamp) -> (Vec<Left>, Vec<Error>) {
        let deletions = kinds.into_iter().map(|kind| self.empty(namespace, kind, since));
        let (mut left, mut errors) = (Vec::new(), Vec::new());
        for deleted in futures::future::join_all(deletions).await {
            match deleted {
                Ok(this) => left.push(this),
                Err(error) => errors.push(error),
            }
        }
        (left, errors)
    }

    /// Deletes all objects of a kind; which are still there.
    async fn empty(&self, namespace: &str, kind: ApiResource, since: Timestamp) -> Result<Left> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        let what = || format!("emptying the namespace of {}", kind.plural);
        let mut there = match api.list_metadata(&ListParams::default()).await {
            // A custom kind whose definition has gone meanwhile.
            Err(e) if is_not_found(&e) => Vec::new(),
            listed => listed.during(what())?.items,
        };
        // What is being deleted already needs no second word.
        if there.iter().any(|o| o.metadata.deletion_timestamp.is_none()) {
            api.delete_collection(&DeleteParams::background(), &ListParams::default()).await.during(what())?;
            there = api.list_metadata(&ListParams::default()).await.during(what())?.items;
        }
        let objects: Vec<_> = there.iter().map(|object| &object.metadata).collect();
        Ok(Left::of(kind.clone(), &objects, since, Timestamp::now()))
    }

    /// Writes the conditions if they tell something else than before.
    async fn tell(&self, namespace: &Namespace, left: &[Left], faults: &[String]) -> Result<()> {
        let old = namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let Some(conditions) = conditions(old, left, faults, Timestamp::now()) else { return Ok(()) };
        let patch = json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"conditions": conditions}});
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.patch_status(&namespace.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            written => written.during("telling what is left").map(drop),
        }
    }
}
