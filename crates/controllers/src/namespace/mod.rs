//! Namespace: what is in a deleted namespace goes, and then the namespace itself.
//!
//! Watches Namespaces; deletes everything in one that is being deleted and takes away its finalizer when nothing is
//! left.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams},
    core::ApiResource,
};
use skiff_api::{
    Kind,
    kinds::{KINDS, Storage},
};
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};

use crate::{
    Result, While as _,
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
        // Pods last of all would keep their controllers making new ones; those cannot, in a namespace that is going.
        let custom = custom::kinds(&self.definitions.list()).into_iter().filter(|k| k.namespaced).map(|k| k.resource);
        let deletions = contents().chain(custom).map(|kind| self.empty(name, kind));
        let left = futures::future::join_all(deletions).await.into_iter().collect::<Result<Vec<usize>>>()?;
        if left.iter().sum::<usize>() > 0 {
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

    /// Deletes all objects of a kind; how many are still there.
    async fn empty(&self, namespace: &str, kind: ApiResource) -> Result<usize> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        let what = || format!("emptying the namespace of {}", kind.plural);
        let there = match api.list_metadata(&ListParams::default()).await {
            // A custom kind whose definition has gone meanwhile.
            Err(e) if is_not_found(&e) => return Ok(0),
            listed => listed.during(what())?.items,
        };
        if there.is_empty() {
            return Ok(0);
        }
        // What is being deleted already needs no second word.
        if there.iter().any(|o| o.metadata.deletion_timestamp.is_none()) {
            api.delete_collection(&DeleteParams::background(), &ListParams::default()).await.during(what())?;
        }
        let left = api.list_metadata(&ListParams::default()).await.during(what())?;
        Ok(left.items.len())
    }
}
