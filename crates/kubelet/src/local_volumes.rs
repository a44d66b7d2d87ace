//! Directories of this node's local volumes: those of volumes that are deleted are removed.
//!
//! The provisioner gives each volume that it makes a label that names the node, and a finalizer. Once nothing is bound
//! to a deleted volume any more, its node removes the directory and takes the finalizer away. A volume that by its
//! policy is retained keeps its directory.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_api::storage;
use skiff_client::{EventType, Informer};

use crate::{kubelet::Kubelet, volumes::mounts};

/// Before a directory that could not be removed is tried again.
const RETRY: Duration = Duration::from_secs(15);

/// Whether it is this node's turn.
fn is_due(volume: &PersistentVolume) -> bool {
    let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let has = |finalizer: &str| volume.finalizers().iter().any(|f| f == finalizer);
    volume.metadata.deletion_timestamp.is_some()
        && !bound
        && has(storage::DIRECTORY_FINALIZER)
        && !has("kubernetes.io/pv-protection")
}

/// The directory that goes with a volume. Only one right below `root` is ever removed.
fn directory(volume: &PersistentVolume, root: &Path) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    let ours = volume.annotations().get(storage::PROVISIONED_BY).is_some_and(|p| p == storage::PROVISIONER);
    let goes = ours && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    let path = PathBuf::from(&spec.host_path.as_ref().filter(|_| goes)?.path);
    let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    (plain && path.file_name().is_some() && path.parent() == Some(root)).then_some(path)
}

/// Removes directories until the informer ends.
pub(crate) async fn run(kubelet: Arc<Kubelet>, volumes: Informer<PersistentVolume>) {
    let mut changes = volumes.subscribe();
    let mut failed: BTreeSet<String> = BTreeSet::new();
    loop {
        let again = tokio::time::sleep(RETRY);
        let volumes_due: Vec<Arc<PersistentVolume>> = tokio::select! {
            change = changes.recv() => match change {
                Some(change) => vec![change.object().clone()],
                None => return,
            },
            () = again, if !failed.is_empty() => {
                std::mem::take(&mut failed).iter().filter_map(|name| volumes.get("", name)).collect()
            }
        };
        for volume in volumes_due.iter().filter(|v| is_due(v)) {
            if let Err(message) = remove(&kubelet, volume).await {
                let warning = EventType::Warning;
                kubelet.recorder.for_object(&**volume, warning, "VolumeFailedDelete", message.clone());
                tracing::warn!(volume = volume.name_any(), message, "cannot remove a volume's directory");
                failed.insert(volume.name_any());
            }
        }
    }
}

async fn remove(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<(), String> {
    if let Some(path) = directory(volume, Path::new(storage::ROOT)) {
        // There may be much in it.
        let removed = tokio::task::spawn_blocking(move || mounts::remove_tree(&path)).await;
        removed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    }
    let rest: Vec<_> = volume.finalizers().iter().filter(|f| *f != storage::DIRECTORY_FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": volume.resource_version(), "finalizers": rest}});
    let api: Api<PersistentVolume> = Api::all(kubelet.client.clone());
    match api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        // It is gone, or it changed and is seen again.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        patched => patched.map(|_| ()).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(path: &str, policy: &str, finalizers: &[&str]) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers,
                "annotations": {storage::PROVISIONED_BY: storage::PROVISIONER}},
            "spec": {"persistentVolumeReclaimPolicy": policy, "hostPath": {"path": path}},
            "status": {"phase": "Released"},
        }))
        .unwrap()
    }

    #[test]
    fn protected_volumes_wait() {
        assert!(is_due(&volume("/r/v", "Delete", &[storage::DIRECTORY_FINALIZER])));
        let protected = [storage::DIRECTORY_FINALIZER, "kubernetes.io/pv-protection"];
        assert!(!is_due(&volume("/r/v", "Delete", &protected)));
        assert!(!is_due(&volume("/r/v", "Delete", &[])));
    }

    #[test]
    fn nothing_outside_is_removed() {
        let dir = |path: &str, policy: &str| directory(&volume(path, policy, &[]), Path::new("/r"));
        assert_eq!(dir("/r/v", "Delete"), Some(PathBuf::from("/r/v")));
        assert_eq!(dir("/r/v", "Retain"), None);
        for bad in ["/r", "/r/..", "/r/a/b", "/etc", "/r/../etc", ""] {
            assert_eq!(dir(bad, "Delete"), None, "{bad}");
        }
    }
}
