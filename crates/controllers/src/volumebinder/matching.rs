//! Which volume suits a claim.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::quantity::Quantity;

use crate::pods;

/// The old way to name a class, for claims and volumes.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The class of a claim; `None` if it may still get the default one.
pub(crate) fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<String> {
    let annotation = claim.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
    annotation.cloned().or_else(|| claim.spec.as_ref()?.storage_class_name.clone())
}

/// The class of a volume; empty for none.
pub(crate) fn class_of_volume(volume: &PersistentVolume) -> String {
    let annotation = volume.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
    annotation.cloned().or_else(|| volume.spec.as_ref()?.storage_class_name.clone()).unwrap_or_default()
}

/// How much a claim asks for.
pub(crate) fn wanted(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.parse().ok()
}

/// How much a volume has.
pub(crate) fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?.0.parse().ok()
}

fn mode(mode: Option<&str>) -> &str {
    mode.filter(|m| !m.is_empty()).unwrap_or("Filesystem")
}

/// Whether a volume can be what a claim wants, whoever else wants it; otherwise why not, in upstream's words.
pub(crate) fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    let (Some(has), Some(asks)) = (volume.spec.as_ref(), claim.spec.as_ref()) else { return Err("no spec") };
    if capacity(volume) < wanted(claim) {
        return Err("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim).unwrap_or_default() {
        return Err("storageClassName does not match");
    }
    if mode(has.volume_mode.as_deref()) != mode(asks.volume_mode.as_deref()) {
        return Err("incompatible volumeMode");
    }
    let modes = has.access_modes.as_deref().unwrap_or_default();
    if !asks.access_modes.iter().flatten().all(|m| modes.contains(m)) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

/// Whether a volume is kept for this claim.
pub(crate) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    let meta = &claim.metadata;
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == meta.name
        && reference.namespace == meta.namespace
        && (uid.is_empty() || meta.uid.as_deref() == Some(uid))
}

/// The volume that a claim gets: one that is kept for it, else the smallest that suits. With `only_kept` no other.
pub(crate) fn best<'a>(
    volumes: &'a [std::sync::Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    only_kept: bool,
) -> Option<&'a PersistentVolume> {
    let selector = match claim.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        Some(selector) => Some(pods::compile(selector)?),
        None => None,
    };
    let suitable = || {
        let usable = volumes.iter().filter(|v| v.metadata.deletion_timestamp.is_none());
        usable.map(|v| &**v).filter(|v| suits(v, claim).is_ok())
    };
    if let Some(kept) = suitable().find(|v| is_for(v, claim)) {
        return Some(kept);
    }
    let free = suitable().filter(|v| {
        let claimed = v.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
        let phase = v.status.as_ref().and_then(|s| s.phase.as_deref());
        // Another phase is about to be written, or the volume is not to be used again.
        !claimed && phase == Some("Available") && selector.as_ref().is_none_or(|s| pods::selects(s, *v))
    });
    if only_kept { None } else { free.min_by_key(|v| (capacity(v), v.metadata.name.clone())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn volume(name: &str, size: &str, more: serde_json::Value) -> Arc<PersistentVolume> {
        let mut v = json!({"metadata": {"name": name, "labels": {"name": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "fast"},
            "status": {"phase": "Available"}});
        for (key, value) in more.as_object().unwrap() {
            v["spec"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(v).unwrap())
    }

    fn claim(more: serde_json::Value) -> PersistentVolumeClaim {
        let mut c = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        for (key, value) in more.as_object().unwrap() {
            c["spec"][key] = value.clone();
        }
        serde_json::from_value(c).unwrap()
    }

    fn name(volume: Option<&PersistentVolume>) -> Option<&str> {
        volume?.metadata.name.as_deref()
    }

    #[test]
    fn the_smallest_that_suits() {
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("big", "10Gi", json!({})),
            volume("right", "3Gi", json!({})),
            volume("other", "2Gi", json!({"storageClassName": ""})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
            volume("taken", "2Gi", json!({"claimRef": {"namespace": "n", "name": "d", "uid": "x"}})),
        ];
        assert_eq!(name(best(&volumes, &claim(json!({})), false)), Some("right"));
        assert_eq!(name(best(&volumes, &claim(json!({})), true)), None);
        assert_eq!(name(best(&volumes, &claim(json!({"accessModes": ["ReadWriteMany"]})), false)), None);
        let selector = json!({"selector": {"matchLabels": {"name": "big"}}});
        assert_eq!(name(best(&volumes, &claim(selector), false)), Some("big"));
        assert_eq!(suits(&volumes[0], &claim(json!({}))), Err("requested PV is too small"));
        assert_eq!(suits(&volumes[3], &claim(json!({}))), Err("storageClassName does not match"));
    }

    #[test]
    fn what_is_kept_for_a_claim_comes_first() {
        let kept = json!({"claimRef": {"namespace": "n", "name": "c"}});
        let volumes = [volume("right", "2Gi", json!({})), volume("kept", "10Gi", kept)];
        assert_eq!(name(best(&volumes, &claim(json!({})), true)), Some("kept"));
        // One of its namesake that is gone is not.
        let old = json!({"claimRef": {"namespace": "n", "name": "c", "uid": "old"}});
        assert_eq!(name(best(&[volume("old", "2Gi", old)], &claim(json!({})), false)), None);
    }
}
