//! Volumes that a pod has through a claim: `persistentVolumeClaim`, and `ephemeral`, whose claim is the pod's own.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::PathBuf,
};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::{Api, Client, ResourceExt as _};
use skiff_api::storage;

use super::{api_message, host_path};
use crate::{csi, pod::PodExt as _};

/// The claim behind a volume of a pod.
#[derive(Debug, PartialEq)]
pub(super) struct Source {
    claim: String,
    /// The pod must not write to it.
    read_only: bool,
    /// The claim must be the pod's own.
    owned: bool,
}

/// What a claim leads to on this node.
#[derive(Debug, PartialEq)]
pub(super) enum Claimed {
    /// A directory that is there.
    Directory {
        path: PathBuf,
        read_only: bool,
        /// Whether files may be given to the pod's group: not what belongs to the node itself.
        takes_group: bool,
    },
    /// A block device that is there.
    Device { path: PathBuf, read_only: bool },
    /// A volume that its driver has to make ready.
    Csi(Box<csi::Volume>),
}

impl Source {
    /// None for a volume of another kind.
    pub(super) fn of(pod: &Pod, volume: &Volume) -> Option<Source> {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => Some(Source {
                claim: source.claim_name.clone(),
                read_only: source.read_only == Some(true),
                owned: false,
            }),
            (_, Some(_)) => {
                Some(Source { claim: format!("{}-{}", pod.name(), volume.name), read_only: false, owned: true })
            }
            _ => None,
        }
    }

    /// Finds the volume bound to the claim and makes it ready.
    pub(super) async fn prepare(&self, client: &Client, pod: &Pod) -> Result<Claimed, String> {
        let namespace = kube::ResourceExt::namespace(pod).unwrap_or_default();
        let wrapped = |why: String| format!("error processing PVC {namespace}/{}: {why}", self.claim);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let claim = claims
            .get(&self.claim)
            .await
            .map_err(|e| wrapped(format!("failed to fetch PVC from API server: {}", api_message(&e))))?;
        let volume_name = self.bound_to(pod, &claim).map_err(wrapped)?;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let volume = volumes
            .get(&volume_name)
            .await
            .map_err(|e| wrapped(format!("failed to fetch PV {volume_name} from API server: {}", api_message(&e))))?;
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.clone());
        if reference != claim.metadata.uid {
            return Err(wrapped(format!("PV {volume_name} is bound to another PVC")));
        }
        self.ready(&volume, &namespace)
    }

    /// The name of the volume, if the claim can be used.
    fn bound_to(&self, pod: &Pod, claim: &PersistentVolumeClaim) -> Result<String, String> {
        if claim.metadata.deletion_timestamp.is_some() {
            return Err("PVC is being deleted".to_owned());
        }
        if self.owned && !claim.owner_references().iter().any(|o| Some(&o.uid) == pod.metadata.uid.as_ref()) {
            let namespace = kube::ResourceExt::namespace(pod).unwrap_or_default();
            return Err(format!(
                "PVC {namespace}/{} was not created for pod {namespace}/{} (pod is not owner)",
                self.claim,
                pod.name()
            ));
        }
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
        volume.filter(|v| bound && !v.is_empty()).ok_or_else(|| "PVC is not bound".to_owned())
    }

    fn ready(&self, volume: &PersistentVolume, namespace: &str) -> Result<Claimed, String> {
        let spec = volume.spec.clone().unwrap_or_default();
        let claim = (namespace, self.claim.as_str());
        if let Some(wanted) = csi::Volume::persistent(volume, claim, self.read_only) {
            return Ok(Claimed::Csi(Box::new(wanted?)));
        }
        let only_read = |modes: &[String]| !modes.is_empty() && modes.iter().all(|m| m == "ReadOnlyMany");
        let read_only = self.read_only || only_read(spec.access_modes.as_deref().unwrap_or_default());
        if spec.volume_mode.as_deref() == Some("Block") {
            let Some(source) = &spec.local else {
                return Err(format!("no block volume plugin matched for volume {:?}", volume.name_any()));
            };
            return match fs::metadata(&source.path) {
                Ok(found) if found.file_type().is_block_device() => {
                    Ok(Claimed::Device { path: PathBuf::from(&source.path), read_only })
                }
                Ok(_) => Err(format!("{} is not a block device", source.path)),
                Err(_) => Err(format!("path {:?} does not exist", source.path)),
            };
        }
        if let Some(source) = &spec.host_path {
            let ours = volume.annotations().get(storage::PROVISIONED_BY).is_some_and(|p| p == storage::PROVISIONER);
            let is_new = fs::symlink_metadata(&source.path).is_err();
            host_path::check(&source.path, source.type_.as_deref().unwrap_or_default())?;
            if ours && is_new {
                // For everybody: who writes depends on the containers' users.
                fs::set_permissions(&source.path, fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
            }
            return Ok(Claimed::Directory { path: PathBuf::from(&source.path), read_only, takes_group: ours });
        }
        if let Some(source) = &spec.local {
            return match fs::metadata(&source.path) {
                Ok(_) => Ok(Claimed::Directory { path: PathBuf::from(&source.path), read_only, takes_group: true }),
                Err(_) => Err(format!("path {:?} does not exist", source.path)),
            };
        }
        Err(format!("persistent volume {:?} is of a type that is not supported on this node", volume.name_any()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_that_cannot_be_used() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        let claim = |meta: serde_json::Value, phase: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": meta, "spec": {"volumeName": "v"}, "status": {"phase": phase}}))
                .unwrap()
        };
        let plain = Source { claim: "c".into(), read_only: false, owned: false };
        assert_eq!(plain.bound_to(&pod, &claim(json!({}), "Bound")), Ok("v".into()));
        assert_eq!(plain.bound_to(&pod, &claim(json!({}), "Pending")), Err("PVC is not bound".into()));
        let deleted = claim(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), "Bound");
        assert_eq!(plain.bound_to(&pod, &deleted), Err("PVC is being deleted".into()));
        let own = Source { owned: true, ..plain };
        assert!(own.bound_to(&pod, &claim(json!({}), "Bound")).unwrap_err().ends_with("(pod is not owner)"));
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]);
        assert!(own.bound_to(&pod, &claim(json!({"ownerReferences": owner}), "Bound")).is_ok());
    }

    #[test]
    fn a_local_volume_is_made_for_everybody() {
        let dir = std::env::temp_dir().join(format!("skiff-claims-{:x}", rand::random::<u64>()));
        let volume = |modes: serde_json::Value| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {"name": "v", "annotations": {storage::PROVISIONED_BY: storage::PROVISIONER}},
                "spec": {"accessModes": modes, "hostPath": {"path": dir, "type": "DirectoryOrCreate"}},
            }))
            .unwrap()
        };
        let source = Source { claim: "c".into(), read_only: false, owned: false };
        let ready = source.ready(&volume(json!(["ReadWriteOnce"])), "n").unwrap();
        assert_eq!(ready, Claimed::Directory { path: dir.clone(), read_only: false, takes_group: true });
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o777);
        let only_read = source.ready(&volume(json!(["ReadOnlyMany"])), "n").unwrap();
        assert!(matches!(only_read, Claimed::Directory { read_only: true, .. }));
        fs::remove_dir_all(dir).unwrap();
    }
}
