//! What is written once a node is chosen: claims that wait for it first, then the binding of the pod.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_api::storage;
use skiff_client::{Informer, ObjectKey};

use crate::plugins::volume_binding::{Binding, is_bound};

/// How long volumes may take, upstream's.
const VOLUMES_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a pod was not bound after all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The claims did not get their volumes.
    #[error("binding volumes: {0}")]
    Volumes(&'static str),
}

/// Writes what the claims get and waits until they have it.
pub(crate) async fn volumes(
    client: &Client,
    claims: &Informer<PersistentVolumeClaim>,
    bindings: &[Binding],
    node: &str,
) -> Result<(), BindError> {
    let mut waiting = Vec::new();
    for binding in bindings {
        let claim = match binding {
            Binding::Volume(claim, volume) => {
                give(client, claim, volume).await?;
                claim
            }
            Binding::Provision(claim) => {
                select_node(client, claim, node).await?;
                claim
            }
        };
        waiting.push(ObjectKey::of(&**claim));
    }
    if waiting.is_empty() {
        return Ok(());
    }
    let selected: Vec<ObjectKey> = bindings
        .iter()
        .filter_map(|b| match b {
            Binding::Provision(claim) => Some(ObjectKey::of(&**claim)),
            Binding::Volume(..) => None,
        })
        .collect();
    let mut seen = vec![false; selected.len()];
    let bound = async {
        let mut changes = claims.subscribe();
        loop {
            waiting.retain(|key| {
                let phase = |c: &PersistentVolumeClaim| c.status.as_ref().and_then(|s| s.phase.clone());
                claims.get_key(key).is_none_or(|c| !(is_bound(&c) && phase(&c).as_deref() == Some("Bound")))
            });
            if waiting.is_empty() {
                return Ok(());
            }
            // A provisioner that cannot make a volume for the node gives the claim back.
            for (key, seen) in selected.iter().zip(&mut seen) {
                let claim = claims.get_key(key);
                let chosen = claim.as_ref().and_then(|c| c.annotations().get(storage::SELECTED_NODE));
                if *seen && waiting.contains(key) && chosen.is_none_or(|n| n != node) {
                    return Err(BindError::Volumes("provisioning failed for PVC"));
                }
                *seen |= chosen.is_some_and(|n| n == node);
            }
            match changes.recv().await {
                Some(skiff_client::Change::Deleted { old }) if waiting.contains(&ObjectKey::of(&*old)) => {
                    return Err(BindError::Volumes("a claim was deleted"));
                }
                Some(_) => {}
                None => return Err(BindError::Volumes("the scheduler ends")),
            }
        }
    };
    match tokio::time::timeout(VOLUMES_TIMEOUT, bound).await {
        Ok(outcome) => outcome,
        Err(_) => Err(BindError::Volumes("context deadline exceeded")),
    }
}

/// Keeps a free volume for a claim; the binder does the rest. Refused if somebody else was faster.
async fn give(client: &Client, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> kube::Result<()> {
    let mut patch = json!({
        "metadata": {"resourceVersion": volume.resource_version()},
        "spec": {"claimRef": {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": claim.name_any(),
            "uid": claim.uid(), "resourceVersion": claim.resource_version(),
        }},
    });
    if volume.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) {
        patch["metadata"]["annotations"] = json!({storage::BOUND_BY_CONTROLLER: "yes"});
    }
    let api: Api<PersistentVolume> = Api::all(client.clone());
    api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
}

/// Tells the provisioner where the volume has to be.
async fn select_node(client: &Client, claim: &PersistentVolumeClaim, node: &str) -> kube::Result<()> {
    if claim.annotations().get(storage::SELECTED_NODE).is_some_and(|n| n == node) {
        return Ok(());
    }
    let patch = json!({"metadata": {
        "uid": claim.uid(), "annotations": {storage::SELECTED_NODE: node}}});
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
    api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
}

/// Binds the pod.
pub(crate) async fn pod(client: &Client, pod: &Arc<Pod>, node: &str) -> Result<(), BindError> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace, "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let created = api.create_subresource("binding", &name, &Default::default(), &binding).await;
    created.map(|_: serde_json::Value| ()).map_err(BindError::Api)
}
