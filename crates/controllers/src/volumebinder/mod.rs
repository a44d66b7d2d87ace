//! The binder of PersistentVolumes and PersistentVolumeClaims (upstream's `persistentvolume-binder`).
//!
//! Watches both, StorageClasses and the pods that use claims; writes which volume and which claim belong together,
//! their phases, and deletes local volumes whose claim is gone. It makes no volumes: a claim that needs a new one gets
//! the annotation that tells its provisioner. One worker, and every write names the version that it was decided on, so
//! that no volume is given twice.

pub(crate) mod matching;
mod reconcile;

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use skiff_api::storage;
use skiff_client::{Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey};

use self::reconcile::{ClaimStep, ClaimWorld, VolumeStep};
use crate::{Result, While as _, is_conflict, is_not_found};

struct Binder {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
}

/// The claims that a pod uses, also those that are made for it.
pub(crate) fn claims_of(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let name = |v: &k8s_openapi::api::core::v1::Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (_, Some(_)) => Some(format!("{}-{}", pod.name_any(), v.name)),
        _ => None,
    };
    volumes.filter_map(name).collect()
}

/// Index of pods: `namespace/claim`.
pub(crate) const BY_CLAIM: &str = "claim";

pub(crate) fn index_by_claim(pods: &Informer<Pod>) {
    pods.add_index(BY_CLAIM, |pod| {
        let namespace = pod.namespace().unwrap_or_default();
        claims_of(pod).into_iter().map(|claim| format!("{namespace}/{claim}")).collect()
    });
}

pub(crate) fn claims_of_pod(change: &Change<Pod>) -> Vec<ObjectKey> {
    let pod = change.object();
    let namespace = pod.namespace().unwrap_or_default();
    claims_of(pod).iter().map(|claim| ObjectKey::new(&namespace, claim)).collect()
}

fn is_unbound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound")
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Binder {
        claims: informers.informer(),
        volumes: informers.informer(),
        classes: informers.informer(),
        pods: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "persistentvolume-controller", None),
    });
    index_by_claim(&this.pods);
    let unbound = |claims: &Informer<PersistentVolumeClaim>| -> Vec<ObjectKey> {
        claims.list().iter().filter(|c| is_unbound(c)).map(|c| ObjectKey::of(&**c)).collect()
    };
    let (claims, volumes, classes, pods) =
        (this.claims.clone(), this.volumes.clone(), this.classes.clone(), this.pods.clone());
    let (of_volume, of_class) = (claims.clone(), claims.clone());
    // Keys of volumes have no namespace.
    Controller::new("volumebinder")
        .watch(&claims, |change: &Change<PersistentVolumeClaim>| {
            let claim = change.object();
            let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty());
            let mut keys = vec![ObjectKey::of(&**claim)];
            keys.extend(volume.map(|v| ObjectKey::new("", &v)));
            keys
        })
        .watch(&volumes, move |change: &Change<PersistentVolume>| {
            let volume = change.object();
            let mut keys = vec![ObjectKey::of(&**volume)];
            let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
            match reference {
                Some(r) => keys.push(ObjectKey::new(
                    r.namespace.as_deref().unwrap_or_default(),
                    r.name.as_deref().unwrap_or_default(),
                )),
                // It may be what one of them waits for.
                None => keys.extend(unbound(&of_volume)),
            }
            keys
        })
        .watch(&classes, move |_: &Change<StorageClass>| unbound(&of_class))
        .watch(&pods, claims_of_pod)
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

/// A merge patch that is refused if the object has changed.
fn at_version<K: Resource>(object: &K, mut patch: Value) -> Value {
    patch["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
    patch
}

impl Binder {
    fn event<K: Resource<DynamicType = ()>>(&self, object: &K, warning: bool, reason: &str, message: String) {
        let kind = if warning { EventType::Warning } else { EventType::Normal };
        self.recorder.for_object(object, kind, reason, message);
    }

    async fn claim(&self, key: &ObjectKey) -> Result<Action> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Action::Done) };
        let volumes = self.volumes.list();
        let users = self.pods.by_index(BY_CLAIM, &format!("{}/{}", key.namespace, key.name));
        let world = ClaimWorld { volumes: &volumes, classes: &self.classes.list(), users: &users };
        match reconcile::claim(&claim, &world) {
            ClaimStep::Bind(name) => {
                let volume = volumes.iter().find(|v| v.metadata.name.as_deref() == Some(&name));
                if let Some(volume) = volume {
                    self.bind(volume, &claim).await?;
                }
            }
            ClaimStep::Pending(event) => {
                if let Some((warning, reason, message)) = event {
                    self.event(&*claim, warning, reason, message);
                }
                self.phase(&claim, "Pending").await?;
            }
            ClaimStep::SetClass(class) => {
                self.patch_claim(&claim, json!({"spec": {"storageClassName": class}})).await?;
            }
            ClaimStep::Provision(provisioner) => {
                let annotations = claim.annotations();
                if storage::STORAGE_PROVISIONER.iter().any(|a| annotations.get(*a) != Some(&provisioner)) {
                    let wanted: Value =
                        storage::STORAGE_PROVISIONER.iter().map(|a| ((*a).to_owned(), json!(provisioner))).collect();
                    self.patch_claim(&claim, json!({"metadata": {"annotations": wanted}})).await?;
                }
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
                );
                self.event(&*claim, false, "ExternalProvisioning", message);
                self.phase(&claim, "Pending").await?;
            }
            ClaimStep::Lost(reason, message) => {
                if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Lost") {
                    self.event(&*claim, true, reason, message.to_owned());
                }
                self.phase(&claim, "Lost").await?;
            }
        }
        Ok(Action::Done)
    }

    /// Writes what is missing: first the volume says whose it is, last the claim that it is bound. Whoever comes after
    /// an end in between goes on from there.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<()> {
        let name = volume.name_any();
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if reference.is_none_or(|r| r.uid != claim.metadata.uid) {
            let mut patch = json!({"spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": claim.name_any(),
                "uid": claim.uid(), "resourceVersion": claim.resource_version(),
            }}});
            if reference.is_none() {
                patch["metadata"]["annotations"] = json!({storage::BOUND_BY_CONTROLLER: "yes"});
            }
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&at_version(volume, patch)))
                .await
                .during("giving a volume to its claim")?;
        }
        self.volume_phase(volume, "Bound", None).await?;
        let has = |annotation: &str| claim.annotations().contains_key(annotation);
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) == Some(&*name);
        let mut annotations = json!({});
        if !named {
            annotations[storage::BOUND_BY_CONTROLLER] = "yes".into();
        }
        if !has(storage::BIND_COMPLETED) {
            annotations[storage::BIND_COMPLETED] = "yes".into();
        }
        if annotations != json!({}) {
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": name}});
            self.patch_claim(claim, patch).await?;
        }
        // Somebody has to make it larger: upstream's expand controller says who.
        if !is_unbound(claim) && reconcile::wants_growth(claim, volume) {
            let message = "waiting for an external controller to expand this PVC".to_owned();
            self.event(claim, false, "ExternalExpanding", message);
        }
        if is_unbound(claim) {
            let spec = volume.spec.clone().unwrap_or_default();
            let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
            self.claim_status(claim, status).await?;
        }
        Ok(())
    }

    async fn patch_claim(&self, claim: &PersistentVolumeClaim, patch: Value) -> Result<()> {
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let patch = at_version(claim, patch);
        api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .during("writing a claim")
            .map(|_| ())
    }

    async fn claim_status(&self, claim: &PersistentVolumeClaim, status: Value) -> Result<()> {
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        // The claim itself was written just before, so there is no version to name; its identity is enough.
        let patch = json!({"metadata": {"uid": claim.uid()}, "status": status});
        match api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) => Ok(()),
            patched => patched.during("writing a claim's status").map(|_| ()),
        }
    }

    async fn phase(&self, claim: &PersistentVolumeClaim, phase: &str) -> Result<()> {
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
            return Ok(());
        }
        self.claim_status(claim, json!({"phase": phase})).await
    }

    async fn volume_phase(&self, volume: &PersistentVolume, phase: &str, failure: Option<(&str, &str)>) -> Result<()> {
        if volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
            return Ok(());
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let (reason, message) = failure.unzip();
        let patch = json!({"metadata": {"uid": volume.uid()}, "status": {
            "phase": phase, "reason": reason, "message": message, "lastPhaseTransitionTime": now,
        }});
        match api.patch_status(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) => Ok(()),
            patched => patched.during("writing a volume's status").map(|_| ()),
        }
    }

    async fn volume(&self, key: &ObjectKey) -> Result<Action> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(Action::Done) };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
        let mut claim = None;
        if let Some(r) = reference.filter(|r| r.uid.as_deref().is_some_and(|uid| !uid.is_empty())) {
            let (namespace, name) = (r.namespace.unwrap_or_default(), r.name.unwrap_or_default());
            claim = self.claims.get(&namespace, &name).map(|c| (*c).clone());
            if claim.as_ref().is_none_or(|c| c.uid() != r.uid) {
                // Nothing is given up because the cache is behind.
                let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
                claim = api.get_opt(&name).await.during("looking for a volume's claim")?;
            }
        }
        match reconcile::volume(&volume, claim.as_ref()) {
            VolumeStep::Phase(phase) => self.volume_phase(&volume, phase, None).await?,
            VolumeStep::Keep => self.volume_phase(&volume, "Released", None).await?,
            VolumeStep::Delete => {
                self.volume_phase(&volume, "Released", None).await?;
                self.delete(&volume).await?;
            }
            VolumeStep::Failed(reason, message) => {
                if volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Failed") {
                    self.event(&*volume, true, reason, message.clone());
                }
                self.volume_phase(&volume, "Failed", Some((reason, &message))).await?;
            }
            VolumeStep::Release { keep_reference } => {
                let reference =
                    if keep_reference { json!({"uid": null, "resourceVersion": null}) } else { Value::Null };
                let patch = json!({
                    "metadata": {"annotations": {storage::BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": reference},
                });
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&at_version(&*volume, patch)))
                    .await
                    .during("releasing a volume")?;
            }
            VolumeStep::Nothing => {}
        }
        Ok(Action::Done)
    }

    /// Its directory is removed by its node, before the object is gone: see the finalizer.
    async fn delete(&self, volume: &PersistentVolume) -> Result<()> {
        if volume.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: volume.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&volume.name_any(), &params).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            deleted => deleted.during("deleting a volume whose claim is gone").map(|_| ()),
        }
    }
}
