//! What a claim or a volume needs next.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use skiff_api::storage;

use super::matching::{best, capacity, class_of_claim, is_for, suits, wanted};

/// What a claim needs next.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// It and this volume belong together; whatever is missing for that is written.
    Bind(String),
    /// It stays `Pending`; the event says why: whether it is a warning, reason and message.
    Pending(Option<(bool, &'static str, String)>),
    /// It stays `Pending` until this provisioner has made its volume.
    Provision(String),
    /// It gets this class, the cluster's default.
    SetClass(String),
    /// Its data is gone.
    Lost(&'static str, &'static str),
}

/// What is known when a claim is looked at.
pub(super) struct ClaimWorld<'a> {
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    pub(super) classes: &'a [Arc<StorageClass>],
    /// The pods that use the claim.
    pub(super) users: &'a [Arc<Pod>],
}

fn annotation<'a>(claim: &'a PersistentVolumeClaim, name: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The class that claims without one get: the newest of those that say so.
fn default_class(classes: &[Arc<StorageClass>]) -> Option<String> {
    let defaults = classes.iter().filter(|c| {
        let annotations = c.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get("storageclass.kubernetes.io/is-default-class")).is_some_and(|v| v == "true")
    });
    let newest =
        defaults.max_by_key(|c| (c.metadata.creation_timestamp.clone(), std::cmp::Reverse(c.metadata.name.clone())))?;
    newest.metadata.name.clone()
}

pub(super) fn claim(claim: &PersistentVolumeClaim, world: &ClaimWorld<'_>) -> ClaimStep {
    let volume_name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let named = world.volumes.iter().find(|v| v.metadata.name.as_deref() == Some(volume_name));
    if annotation(claim, storage::BIND_COMPLETED).is_some() {
        return bound(claim, volume_name, named.map(|v| &**v));
    }
    if volume_name.is_empty() {
        return unbound(claim, world);
    }
    let Some(volume) = named else { return ClaimStep::Pending(None) };
    let claimed = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    if is_for(volume, claim) {
        return ClaimStep::Bind(volume_name.to_owned());
    }
    if claimed {
        let message = format!("volume {volume_name:?} already bound to a different claim.");
        return ClaimStep::Pending(Some((true, "FailedBinding", message)));
    }
    match suits(volume, claim) {
        Ok(()) => ClaimStep::Bind(volume_name.to_owned()),
        Err(why) => {
            let message = format!("Cannot bind to requested volume {volume_name:?}: {why}");
            ClaimStep::Pending(Some((true, "VolumeMismatch", message)))
        }
    }
}

fn bound(claim: &PersistentVolumeClaim, volume_name: &str, volume: Option<&PersistentVolume>) -> ClaimStep {
    if volume_name.is_empty() {
        let why = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lost("ClaimLost", why);
    }
    let Some(volume) = volume else {
        return ClaimStep::Lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let claimed = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    if claimed && !is_for(volume, claim) {
        let why = "Two claims are bound to the same volume, this one is bound incorrectly";
        return ClaimStep::Lost("ClaimMisbound", why);
    }
    ClaimStep::Bind(volume_name.to_owned())
}

fn unbound(claim: &PersistentVolumeClaim, world: &ClaimWorld<'_>) -> ClaimStep {
    let class_name = class_of_claim(claim);
    let class = world.classes.iter().find(|c| c.metadata.name == class_name);
    let waits = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
        && annotation(claim, storage::SELECTED_NODE).is_none();
    if let Some(volume) = best(world.volumes, claim, waits) {
        return ClaimStep::Bind(volume.metadata.name.clone().unwrap_or_default());
    }
    if waits {
        let unscheduled = world.users.iter().find(|p| p.metadata.deletion_timestamp.is_none());
        return ClaimStep::Pending(Some(match unscheduled {
            Some(pod) => {
                let pod = pod.metadata.name.as_deref().unwrap_or_default();
                (false, "WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled"))
            }
            None => {
                let message = "waiting for first consumer to be created before binding".to_owned();
                (false, "WaitForFirstConsumer", message)
            }
        }));
    }
    let name = class_name.clone().unwrap_or_default();
    match (class, class_name, default_class(world.classes)) {
        (None, None, Some(default)) => ClaimStep::SetClass(default),
        (Some(class), ..) if class.provisioner.starts_with("kubernetes.io/") => {
            let message = format!("no volume plugin matched name: {}", class.provisioner);
            ClaimStep::Pending(Some((true, "ProvisioningFailed", message)))
        }
        (Some(class), ..) => ClaimStep::Provision(class.provisioner.clone()),
        (None, ..) if name.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set".to_owned();
            ClaimStep::Pending(Some((false, "FailedBinding", message)))
        }
        (None, ..) => {
            let message = format!("storageclass.storage.k8s.io {name:?} not found");
            ClaimStep::Pending(Some((true, "ProvisioningFailed", message)))
        }
    }
}

/// Whether a claim asks for more than its volume, of a CSI driver, has.
pub(super) fn wants_growth(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let is_csi = volume.spec.as_ref().is_some_and(|s| s.csi.is_some());
    is_csi && claim.metadata.deletion_timestamp.is_none() && wanted(claim) > capacity(volume)
}

/// What a volume needs next.
#[derive(Debug, PartialEq)]
pub(super) enum VolumeStep {
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim is gone, and by its policy it stays.
    Keep,
    /// Its claim is gone, and so it goes.
    Delete,
    /// Its claim is gone, and what its policy wants is not possible: reason and message.
    Failed(&'static str, String),
    /// It was kept for a claim that has got another one; the flag says that a user had kept it.
    Release { keep_reference: bool },
    /// Its claim has not been looked at yet.
    Nothing,
}

pub(super) fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(spec) = volume.spec.as_ref() else { return VolumeStep::Nothing };
    let Some(reference) = &spec.claim_ref else { return VolumeStep::Phase("Available") };
    let uid = reference.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        return VolumeStep::Phase("Available");
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let has = |annotation: &str| volume.metadata.annotations.as_ref().and_then(|a| a.get(annotation));
    let Some(claim) = claim.filter(|c| c.metadata.uid.as_deref() == Some(uid)) else {
        return reclaim(volume);
    };
    match claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default() {
        "" => VolumeStep::Nothing,
        bound_to if bound_to == name => VolumeStep::Phase("Bound"),
        _ if has(storage::PROVISIONED_BY).is_some() => reclaim(volume),
        _ => VolumeStep::Release { keep_reference: has(storage::BOUND_BY_CONTROLLER).is_none() },
    }
}

fn reclaim(volume: &PersistentVolume) -> VolumeStep {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let provisioner = volume.metadata.annotations.as_ref().and_then(|a| a.get(storage::PROVISIONED_BY));
    match (policy, provisioner.map(String::as_str)) {
        (Some("Delete"), Some(storage::PROVISIONER)) => VolumeStep::Delete,
        // The one who has made it removes it.
        (Some("Delete"), Some(_)) => VolumeStep::Keep,
        (Some("Delete"), None) => {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let why =
                format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched");
            VolumeStep::Failed("VolumeFailedDelete", why)
        }
        // Deprecated upstream, and not offered by anything here.
        (Some("Recycle"), _) => {
            VolumeStep::Failed("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned())
        }
        _ => VolumeStep::Keep,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pvc(spec: Value, annotations: Value) -> PersistentVolumeClaim {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": annotations}, "spec": all}),
        )
        .unwrap()
    }

    fn pv(spec: Value, annotations: Value) -> Arc<PersistentVolume> {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Delete"});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        let v = json!({"metadata": {"name": "v", "annotations": annotations}, "spec": all, "status": {"phase": "Available"}});
        Arc::new(serde_json::from_value(v).unwrap())
    }

    fn class(name: &str, mode: &str, default: bool) -> Arc<StorageClass> {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": default.to_string()});
        let c = json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "x/y", "volumeBindingMode": mode});
        Arc::new(serde_json::from_value(c).unwrap())
    }

    fn step(c: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], classes: &[Arc<StorageClass>]) -> ClaimStep {
        claim(c, &ClaimWorld { volumes, classes, users: &[] })
    }

    fn reason(step: &ClaimStep) -> &'static str {
        match step {
            ClaimStep::Pending(Some((_, reason, _))) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn claims_wait_or_are_bound() {
        let plain = pvc(json!({"storageClassName": ""}), json!({}));
        assert_eq!(step(&plain, &[pv(json!({}), json!({}))], &[]), ClaimStep::Bind("v".into()));
        assert_eq!(reason(&step(&plain, &[], &[])), "FailedBinding");
        let late = class("late", "WaitForFirstConsumer", false);
        let c = pvc(json!({"storageClassName": "late"}), json!({}));
        assert_eq!(reason(&step(&c, &[], std::slice::from_ref(&late))), "WaitForFirstConsumer");
        let chosen = pvc(json!({"storageClassName": "late"}), json!({storage::SELECTED_NODE: "node"}));
        assert_eq!(step(&chosen, &[], &[late]), ClaimStep::Provision("x/y".into()));
        assert_eq!(reason(&step(&c, &[], &[])), "ProvisioningFailed");
    }

    #[test]
    fn the_default_class_is_given_later_too() {
        let default = class("standard", "Immediate", true);
        assert_eq!(step(&pvc(json!({}), json!({})), &[], &[default]), ClaimStep::SetClass("standard".into()));
    }

    #[test]
    fn a_claim_that_names_its_volume() {
        let c = pvc(json!({"volumeName": "v", "storageClassName": ""}), json!({}));
        assert_eq!(step(&c, &[], &[]), ClaimStep::Pending(None));
        assert_eq!(step(&c, &[pv(json!({}), json!({}))], &[]), ClaimStep::Bind("v".into()));
        let small = pv(json!({"capacity": {"storage": "1Mi"}}), json!({}));
        assert_eq!(reason(&step(&c, &[small], &[])), "VolumeMismatch");
        let others = pv(json!({"claimRef": {"namespace": "n", "name": "d", "uid": "w"}}), json!({}));
        assert_eq!(reason(&step(&c, std::slice::from_ref(&others), &[])), "FailedBinding");
        let done = pvc(json!({"volumeName": "v"}), json!({storage::BIND_COMPLETED: "yes"}));
        assert!(matches!(step(&done, &[], &[]), ClaimStep::Lost("ClaimLost", _)));
        assert!(matches!(step(&done, &[others], &[]), ClaimStep::Lost("ClaimMisbound", _)));
    }

    #[test]
    fn what_becomes_of_a_volume_without_its_claim() {
        let reference = json!({"namespace": "n", "name": "c", "uid": "u"});
        let with = |policy: &str, annotations: Value| {
            pv(json!({"claimRef": reference, "persistentVolumeReclaimPolicy": policy}), annotations)
        };
        assert_eq!(volume(&pv(json!({}), json!({})), None), VolumeStep::Phase("Available"));
        assert_eq!(volume(&with("Retain", json!({})), None), VolumeStep::Keep);
        assert!(matches!(volume(&with("Delete", json!({})), None), VolumeStep::Failed("VolumeFailedDelete", _)));
        assert!(matches!(volume(&with("Recycle", json!({})), None), VolumeStep::Failed("VolumeFailedRecycle", _)));
        let ours = with("Delete", json!({storage::PROVISIONED_BY: storage::PROVISIONER}));
        assert_eq!(volume(&ours, None), VolumeStep::Delete);
        let c = pvc(json!({"volumeName": "v"}), json!({}));
        assert_eq!(volume(&ours, Some(&c)), VolumeStep::Phase("Bound"));
        let elsewhere = pvc(json!({"volumeName": "w"}), json!({}));
        assert_eq!(volume(&with("Retain", json!({})), Some(&elsewhere)), VolumeStep::Release { keep_reference: true });
    }
}
