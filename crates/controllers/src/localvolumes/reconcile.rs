//! What the provisioner does for a claim, and with a volume.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use skiff_api::{quantity::Quantity, storage};

use crate::volumebinder::matching::{capacity, wanted};

/// What a claim needs of the provisioner.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// A volume on the node of this name.
    Provision(String),
    /// It cannot be done like this.
    Refuse(&'static str),
    /// The chosen node is gone: the scheduler has to choose again.
    Reschedule,
}

/// Whether a claim waits for a volume of ours, and where that has to be.
pub(super) fn claim(claim: &PersistentVolumeClaim, class: Option<&StorageClass>, nodes: &[Arc<Node>]) -> Step {
    let annotations = claim.annotations();
    let is_ours = |a: &&str| annotations.get(*a).is_some_and(|p| p == storage::PROVISIONER);
    let ours = storage::STORAGE_PROVISIONER.iter().any(is_ours) && claim.metadata.deletion_timestamp.is_none();
    let Some(spec) = claim.spec.as_ref().filter(|_| ours) else { return Step::Nothing };
    let Some(class) = class.filter(|c| c.provisioner == storage::PROVISIONER) else { return Step::Nothing };
    if spec.volume_name.as_deref().is_some_and(|v| !v.is_empty()) {
        return Step::Nothing;
    }
    if spec.selector.is_some() {
        return Step::Refuse("claim.Spec.Selector is not supported");
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Step::Refuse("block volumes are not supported");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Step::Refuse("data sources are not supported");
    }
    match annotations.get(storage::SELECTED_NODE) {
        Some(node) if nodes.iter().any(|n| n.name_any() == *node) => Step::Provision(node.clone()),
        Some(_) => Step::Reschedule,
        None if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => Step::Nothing,
        // Nobody has chosen: any node that takes pods.
        None => {
            let usable = |n: &&Arc<Node>| n.spec.as_ref().is_none_or(|s| s.unschedulable != Some(true));
            let found = nodes.iter().find(usable);
            found.map_or(Step::Refuse("there is no node for the volume"), |node| Step::Provision(node.name_any()))
        }
    }
}

/// The volume for a claim on a node.
pub(super) fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> Value {
    let uid = claim.uid().unwrap_or_default();
    let name = format!("pvc-{uid}");
    let namespace = claim.namespace().unwrap_or_default();
    let spec = claim.spec.clone().unwrap_or_default();
    let size = spec.resources.and_then(|r| r.requests).and_then(|mut r| r.remove("storage"));
    let hostname = node.labels().get("kubernetes.io/hostname").cloned().unwrap_or_else(|| node.name_any());
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "labels": {storage::NODE_LABEL: node.name_any()},
            "annotations": {storage::PROVISIONED_BY: storage::PROVISIONER},
            "finalizers": [storage::DIRECTORY_FINALIZER],
        },
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": {"storage": size},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace,
                "name": claim.name_any(), "uid": uid, "resourceVersion": claim.resource_version(),
            },
            "hostPath": {
                "path": format!("{}/{name}_{namespace}_{}", storage::ROOT, claim.name_any()),
                "type": "DirectoryOrCreate",
            },
            "mountOptions": class.mount_options,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [hostname]}]}]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": class.name_any(),
            "volumeMode": "Filesystem",
        },
    })
}

/// The size that a bound claim of ours has to grow to, if it has.
pub(super) fn growth(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    class: Option<&StorageClass>,
) -> Option<Quantity> {
    let ours = volume.annotations().get(storage::PROVISIONED_BY).is_some_and(|p| p == storage::PROVISIONER);
    let allowed = class.is_some_and(|c| c.allow_volume_expansion == Some(true));
    let status = claim.status.as_ref()?;
    let shown = status.capacity.as_ref().and_then(|c| c.get("storage")?.0.parse::<Quantity>().ok());
    let wanted = wanted(claim)?;
    let bound = status.phase.as_deref() == Some("Bound");
    let grows = Some(wanted) > capacity(volume) || Some(wanted) > shown;
    (ours && allowed && bound && grows).then_some(wanted)
}

/// Whether a volume is to be deleted and waits for a node that is gone for good.
pub(super) fn is_abandoned(volume: &PersistentVolume, node_exists: bool) -> bool {
    volume.metadata.deletion_timestamp.is_some()
        && !node_exists
        && volume.finalizers().iter().any(|f| f == storage::DIRECTORY_FINALIZER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(mode: &str) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "standard"}, "provisioner": storage::PROVISIONER,
            "volumeBindingMode": mode, "reclaimPolicy": "Delete", "allowVolumeExpansion": true}))
        .unwrap()
    }

    fn pvc(annotations: Value, size: &str) -> PersistentVolumeClaim {
        let mut annotations = annotations;
        annotations[storage::STORAGE_PROVISIONER[1]] = storage::PROVISIONER.into();
        let meta = json!({"name": "c", "namespace": "n", "uid": "u", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta,
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}))
        .unwrap()
    }

    fn nodes() -> Vec<Arc<Node>> {
        let n = json!({"metadata": {"name": "node", "labels": {"kubernetes.io/hostname": "host"}}});
        vec![Arc::new(serde_json::from_value(n).unwrap())]
    }

    #[test]
    fn the_chosen_node_gets_the_volume() {
        let late = class("WaitForFirstConsumer");
        assert_eq!(claim(&pvc(json!({}), "1Gi"), Some(&late), &nodes()), Step::Nothing);
        let chosen = pvc(json!({storage::SELECTED_NODE: "node"}), "1Gi");
        assert_eq!(claim(&chosen, Some(&late), &nodes()), Step::Provision("node".into()));
        assert_eq!(claim(&chosen, Some(&late), &[]), Step::Reschedule);
        let soon = class("Immediate");
        assert_eq!(claim(&pvc(json!({}), "1Gi"), Some(&soon), &nodes()), Step::Provision("node".into()));
        let made: PersistentVolume = serde_json::from_value(volume(&chosen, &late, &nodes()[0])).unwrap();
        let spec = made.spec.unwrap();
        assert_eq!(spec.host_path.unwrap().path, format!("{}/pvc-u_n_c", storage::ROOT));
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    }

    #[test]
    fn claims_grow() {
        let soon = class("Immediate");
        let made = volume(&pvc(json!({}), "1Gi"), &soon, &nodes()[0]);
        let made: PersistentVolume = serde_json::from_value(made).unwrap();
        assert_eq!(growth(&pvc(json!({}), "1Gi"), &made, Some(&soon)), None);
        assert_eq!(growth(&pvc(json!({}), "2Gi"), &made, Some(&soon)).unwrap().to_string(), "2Gi");
        assert_eq!(growth(&pvc(json!({}), "2Gi"), &made, None), None);
    }
}
