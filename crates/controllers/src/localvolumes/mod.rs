//! The provisioner of local volumes, the default class of every cluster: a directory on the node that the claim's
//! first pod was given.
//!
//! Watches claims, volumes, StorageClasses and Nodes; writes volumes, and the size of claims that grow. The directory
//! is made and removed by its node: the volume has a finalizer that the kubelet takes away once the directory is gone.
//! For a node that is gone for good this controller does it. See `docs/storage.md`.

mod reconcile;

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use skiff_api::{quantity::Quantity, storage};
use skiff_client::{Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, self_mapper};

use self::reconcile::Step;
use crate::{Result, While as _, is_conflict, is_not_found, volumebinder::matching::class_of_claim};

struct Provisioner {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Provisioner {
        claims: informers.informer(),
        volumes: informers.informer(),
        classes: informers.informer(),
        nodes: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), storage::PROVISIONER, None),
    });
    let (claims, volumes, classes, nodes) =
        (this.claims.clone(), this.volumes.clone(), this.classes.clone(), this.nodes.clone());
    let (of_class, of_node) = (claims.clone(), volumes.clone());
    // Keys of volumes have no namespace.
    Controller::new("localvolumes")
        .watch(&claims, self_mapper)
        .watch(&volumes, |change: &Change<PersistentVolume>| {
            let mut keys = vec![ObjectKey::of(&**change.object())];
            let reference = change.object().spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            keys.extend(reference.and_then(|r| Some(ObjectKey::new(r.namespace.as_deref()?, r.name.as_deref()?))));
            keys
        })
        .watch(&classes, move |_: &Change<StorageClass>| {
            of_class.list().iter().map(|c| ObjectKey::of(&**c)).collect::<Vec<_>>()
        })
        .watch(&nodes, move |change: &Change<Node>| {
            let Change::Deleted { old } = change else { return Vec::new() };
            let name = old.name_any();
            let on_node = of_node.list().into_iter().filter(|v| v.labels().get(storage::NODE_LABEL) == Some(&name));
            on_node.map(|v| ObjectKey::of(&*v)).collect()
        })
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move {
                match key.namespace.is_empty() {
                    true => this.volume(&key).await,
                    false => this.claim(&key).await,
                }
            }
        })
        .await;
}

impl Provisioner {
    async fn claim(&self, key: &ObjectKey) -> Result<Action> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Action::Done) };
        let class = class_of_claim(&claim).and_then(|name| self.classes.get("", &name));
        let bound_to = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        if let Some(volume) = self.volumes.get("", bound_to) {
            if let Some(size) = reconcile::growth(&claim, &volume, class.as_deref()) {
                self.grow(&claim, &volume, size).await?;
            }
            return Ok(Action::Done);
        }
        match (reconcile::claim(&claim, class.as_deref(), &self.nodes.list()), &class) {
            (Step::Provision(node), Some(class)) => {
                if let Some(node) = self.nodes.get("", &node) {
                    self.provision(&claim, class, &node).await?;
                }
            }
            (Step::Refuse(why), Some(class)) => {
                let message = format!("failed to provision volume with StorageClass {:?}: {why}", class.name_any());
                self.recorder.for_object(&*claim, EventType::Warning, "ProvisioningFailed", message);
            }
            (Step::Reschedule, _) => {
                let patch = json!({"metadata": {
                    "resourceVersion": claim.resource_version(), "annotations": {storage::SELECTED_NODE: null}}});
                let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
                match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                    patched => {
                        patched.during("giving a claim back to the scheduler")?;
                    }
                }
            }
            _ => {}
        }
        Ok(Action::Done)
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> Result<()> {
        let volume = reconcile::volume(claim, class, node);
        let name = volume["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.volumes.get("", &name).is_some() {
            // The binder has not come to it yet.
            return Ok(());
        }
        let claim_name = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
        let message = format!("External provisioner is provisioning volume for claim {claim_name:?}");
        self.recorder.for_object(claim, EventType::Normal, "Provisioning", message);
        let typed: PersistentVolume =
            serde_json::from_value(volume).map_err(|e| crate::Error::Object(format!("volume {name}: {e}")))?;
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &typed).await {
            Err(e) if is_conflict(&e) => return Ok(()),
            created => created.during("creating a volume")?,
        };
        let message = format!("Successfully provisioned volume {name}");
        self.recorder.for_object(claim, EventType::Normal, "ProvisioningSucceeded", message);
        Ok(())
    }

    /// A directory has no size of its own, so all that grows is what is said of it.
    async fn grow(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume, size: Quantity) -> Result<()> {
        let (name, size) = (claim.name_any(), size.to_string());
        let namespace = claim.namespace().unwrap_or_default();
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let version = json!({"resourceVersion": volume.resource_version()});
        let patch = json!({"metadata": version, "spec": {"capacity": {"storage": size}}});
        api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .during("growing a volume")?;
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({"metadata": {"uid": claim.uid()}, "status": {"capacity": {"storage": size}}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .during("writing the size of a claim")?;
        let message = format!("ExpandVolume succeeded for volume {namespace}/{name}");
        self.recorder.for_object(claim, EventType::Normal, "VolumeResizeSuccessful", message);
        Ok(())
    }

    async fn volume(&self, key: &ObjectKey) -> Result<Action> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(Action::Done) };
        let Some(node) = volume.labels().get(storage::NODE_LABEL) else { return Ok(Action::Done) };
        if !reconcile::is_abandoned(&volume, self.nodes.get("", node).is_some()) {
            return Ok(Action::Done);
        }
        let rest: Vec<_> = volume.finalizers().iter().filter(|f| *f != storage::DIRECTORY_FINALIZER).collect();
        let patch = json!({"metadata": {"resourceVersion": volume.resource_version(), "finalizers": rest}});
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => {}
            patched => {
                patched.during("giving up the directory of a node that is gone")?;
            }
        }
        Ok(Action::Done)
    }
}
