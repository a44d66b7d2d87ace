//! Protection of claims and volumes that are in use (upstream's `pvc-protection` and `pv-protection`).
//!
//! Admission gives every claim and volume a finalizer. This controller watches both and pods, and takes the finalizer
//! away from what is to be deleted once no pod on a node uses the claim, or no claim is bound to the volume.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};

use crate::{
    Result, While as _, is_conflict, is_not_found,
    volumebinder::{BY_CLAIM, claims_of_pod, index_by_claim},
};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

struct Protection {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    pods: Informer<Pod>,
    client: kube::Client,
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Protection {
        claims: informers.informer(),
        volumes: informers.informer(),
        pods: informers.informer(),
        client: informers.client().clone(),
    });
    index_by_claim(&this.pods);
    let (claims, volumes, pods) = (this.claims.clone(), this.volumes.clone(), this.pods.clone());
    // Keys of volumes have no namespace.
    Controller::new("volumeprotection")
        .watch(&claims, self_mapper)
        .watch(&volumes, self_mapper)
        .watch(&pods, claims_of_pod)
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move { this.reconcile(&key).await }
        })
        .await;
}

/// The finalizers without this one, if the object is to be deleted and has it.
fn without<K: Resource>(object: &K, finalizer: &str) -> Option<Vec<String>> {
    let has = object.finalizers().iter().any(|f| f == finalizer);
    (object.meta().deletion_timestamp.is_some() && has)
        .then(|| object.finalizers().iter().filter(|f| *f != finalizer).cloned().collect())
}

/// A pod that no kubelet has seen will not be started with a claim that is going.
fn uses(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty())
}

impl Protection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action> {
        if key.namespace.is_empty() {
            let Some(volume) = self.volumes.get_key(key) else { return Ok(Action::Done) };
            let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            if let Some(finalizers) = without(&*volume, VOLUME).filter(|_| !bound) {
                return self.write(&Api::all(self.client.clone()), &*volume, finalizers).await;
            }
            return Ok(Action::Done);
        }
        let Some(claim) = self.claims.get_key(key) else { return Ok(Action::Done) };
        let Some(finalizers) = without(&*claim, CLAIM) else { return Ok(Action::Done) };
        let users = self.pods.by_index(BY_CLAIM, &format!("{}/{}", key.namespace, key.name));
        if users.iter().any(|pod| uses(pod)) {
            return Ok(Action::Done);
        }
        // The cache may be behind a pod that was bound just now.
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let pods = api.list(&Default::default()).await.during("looking for pods that use a claim")?;
        if pods.items.iter().any(|p| uses(p) && crate::volumebinder::claims_of(p).contains(&*key.name)) {
            return Ok(Action::RequeueAfter(std::time::Duration::from_secs(1)));
        }
        self.write(&Api::namespaced(self.client.clone(), &key.namespace), &*claim, finalizers).await
    }

    async fn write<K>(&self, api: &Api<K>, object: &K, finalizers: Vec<String>) -> Result<Action>
    where
        K: Resource + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
    {
        let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
        match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) => Ok(Action::Done),
            // It changed, and so it will be looked at again.
            Err(e) if is_conflict(&e) => Ok(Action::Done),
            patched => patched.during("taking a finalizer away").map(|_| Action::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_be_deleted() {
        let claim = |deleted: bool| -> PersistentVolumeClaim {
            let mut meta = json!({"name": "c", "finalizers": ["other", CLAIM]});
            if deleted {
                meta["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            serde_json::from_value(json!({"metadata": meta})).unwrap()
        };
        assert_eq!(without(&claim(false), CLAIM), None);
        assert_eq!(without(&claim(true), CLAIM), Some(vec!["other".to_owned()]));
        assert_eq!(without(&claim(true), VOLUME), None);
    }
}
