//! What all owners of pods do with them: create, delete, adopt, release, and the events that tell of it.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use skiff_api::selector::LabelSelector;
use skiff_client::{Change, EventRecorder, EventType, Informer, ObjectKey, owner_mapper};

use crate::{Result, While as _, expectations::Expectations, is_conflict, is_not_found, pods};

/// Writes pods for the owners of one controller.
pub(crate) struct PodControl {
    pub(crate) client: kube::Client,
    pub(crate) recorder: EventRecorder,
    pub(crate) expectations: Expectations,
    /// A finalizer that owned pods have: adopted ones get it, released ones lose it.
    pub(crate) finalizer: Option<&'static str>,
}

impl PodControl {
    /// `component` is the controller's name in events.
    pub(crate) fn new(client: kube::Client, component: &str) -> Self {
        let recorder = EventRecorder::new(client.clone(), component, None);
        PodControl { client, recorder, expectations: Expectations::default(), finalizer: None }
    }

    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates a pod of a generated name for `owner`, and says so in an event.
    pub(crate) async fn create<K>(&self, owner: &K, pod: &Pod) -> Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let key = ObjectKey::of(owner);
        match self.api(&key.namespace).create(&PostParams::default(), pod).await {
            Ok(pod) => {
                self.expectations.created(&key, pod.metadata.uid.clone().unwrap_or_default());
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder.for_object(owner, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            // The namespace is going; so is the owner.
            Err(error) if is_terminating(&error) => Ok(()),
            Err(error) => {
                let message = format!("Error creating: {}", api_message(&error));
                self.recorder.for_object(owner, EventType::Warning, "FailedCreate", message);
                Err(error).during("creating a pod")
            }
        }
    }

    /// Creates pods, one, two, four at a time, so that what is refused for all is not asked for all.
    pub(crate) async fn create_all<K>(&self, owner: &K, pods: &[Pod]) -> Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let (mut left, mut batch) = (pods, 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let created = futures::future::join_all(now.iter().map(|pod| self.create(owner, pod))).await;
            created.into_iter().collect::<Result<Vec<()>>>()?;
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes a pod of `owner`, and says so in an event.
    pub(crate) async fn delete<K>(&self, owner: &K, pod: &Pod) -> Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let key = ObjectKey::of(owner);
        match self.delete_quietly(pod).await {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.expectations.deleted(&key, pod.metadata.uid.clone().unwrap_or_default());
                let message = format!("Deleted pod: {}", pod.name_any());
                self.recorder.for_object(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {}", api_message(&error));
                self.recorder.for_object(owner, EventType::Warning, "FailedDelete", message);
                Err(error).during("deleting a pod")
            }
        }
    }

    /// Deletes pods at once.
    pub(crate) async fn delete_all<K>(&self, owner: &K, pods: &[Arc<Pod>]) -> Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let deletions = pods.iter().map(|pod| self.delete(owner, pod));
        futures::future::join_all(deletions).await.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(())
    }

    /// Deletes this very pod without an event; whether it was still there.
    pub(crate) async fn delete_quietly(&self, pod: &Pod) -> kube::Result<bool> {
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.api(&pod.namespace().unwrap_or_default()).delete(&pod.name_any(), &params).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(false),
            deleted => deleted.map(|_| true),
        }
    }

    /// The pods that `owner` controls and its selector selects. Those that nobody controls are adopted, those
    /// that it no longer selects are released. Adopted pods are there once the cache shows them so.
    pub(crate) async fn claim<K>(
        &self,
        owner: &K,
        selector: &LabelSelector,
        all: &Informer<Pod>,
        may_adopt: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Arc<Pod>>>
    where
        K: Resource<DynamicType = ()>,
    {
        let uid = owner.meta().uid.clone().unwrap_or_default();
        let alive = owner.meta().deletion_timestamp.is_none();
        let mut owned = Vec::new();
        for pod in all.by_owner(&uid) {
            if pods::selects(selector, &*pod) {
                owned.push(pod);
            } else if pod.metadata.deletion_timestamp.is_none() && alive {
                self.release(&pod, &uid).await?;
            }
        }
        if alive {
            for pod in all.list_namespace(&owner.namespace().unwrap_or_default()) {
                let orphan = pods::controller_of(&*pod).is_none() && pods::is_active(&pod);
                if orphan && may_adopt(&pod) && pods::selects(selector, &*pod) {
                    self.adopt(&pod, owner).await?;
                }
            }
        }
        Ok(owned)
    }

    async fn adopt<K>(&self, pod: &Pod, owner: &K) -> Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let mut patch =
            json!({"metadata": {"uid": pod.metadata.uid, "ownerReferences": [pods::owner_reference(owner)]}});
        if let Some(finalizer) = self.finalizer {
            patch["metadata"]["finalizers"] = json!([finalizer]);
        }
        self.patch(pod, &Patch::Strategic(&patch), "adopting a pod").await
    }

    async fn release(&self, pod: &Pod, owner_uid: &str) -> Result<()> {
        let mut patch =
            json!({"metadata": {"uid": pod.metadata.uid, "ownerReferences": [{"$patch": "delete", "uid": owner_uid}]}});
        if let Some(finalizer) = self.finalizer {
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
        }
        self.patch(pod, &Patch::Strategic(&patch), "releasing a pod").await
    }

    /// Changes a pod, unless it is gone or another writer was first.
    pub(crate) async fn patch(&self, pod: &Pod, patch: &Patch<&serde_json::Value>, what: &str) -> Result<()> {
        let api = self.api(&pod.namespace().unwrap_or_default());
        match api.patch(&pod.name_any(), &PatchParams::default(), patch).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            patched => patched.during(what).map(|_| ()),
        }
    }

    /// Writes a status if it differs from the one that the object has.
    pub(crate) async fn write_status<K, S>(&self, object: &K, old: Option<&S>, status: &S) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        S: Serialize + PartialEq,
    {
        if old == Some(status) {
            return Ok(());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": object.uid()}, "status": crate::replacement(&old, status)});
        match api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            patched => patched.during("writing the status").map(|_| ()),
        }
    }
}

/// Maps a change of a pod to its controller, if that is of this kind, and a change of nobody's pod to the owners
/// that select it and may adopt it. Deleted pods are no longer awaited.
pub(crate) fn pod_mapper<K>(
    control: Arc<PodControl>,
    owners: Informer<K>,
    group: &'static str,
    kind: &'static str,
    selector: fn(&K) -> Option<LabelSelector>,
) -> impl Fn(&Change<Pod>) -> Vec<ObjectKey> + Send + 'static
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let by_owner = owner_mapper::<Pod>(group, kind);
    move |change| {
        if let Change::Deleted { old } = change {
            control.expectations.gone(old.metadata.uid.as_deref().unwrap_or_default());
        }
        let owned = by_owner(change);
        if !owned.is_empty() || pods::controller_of(&**change.object()).is_some() {
            return owned;
        }
        let namespace = change.object().namespace().unwrap_or_default();
        let selecting = owners.list_namespace(&namespace).into_iter();
        let selecting = selecting.filter(|o| selector(o).is_some_and(|s| pods::selects(&s, &**change.object())));
        selecting.map(|owner| ObjectKey::of(&*owner)).collect()
    }
}

/// Whether the server refused because the namespace is being deleted.
pub(crate) fn is_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains("because it is being terminated"))
}

/// What the API server said.
pub(crate) fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
