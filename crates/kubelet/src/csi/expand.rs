//! Volumes that have grown: the driver makes the file system as large as the volume, and the claim says so.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_api::quantity::Quantity;
use skiff_client::EventType;
use skiff_csi::v1;

use super::{Volume, paths::GLOBAL_MOUNT};
use crate::{kubelet::Kubelet, pod::PodExt, volumes::api_message};

/// What a resizer says when the node's part is left.
const PENDING: &str = "FileSystemResizePending";
const NODE_STATES: [&str; 2] = ["NodeResizePending", "NodeResizeInProgress"];

/// Whether the node has to do its part.
pub(super) fn is_due(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = &claim.status else { return false };
    let waits = status.conditions.iter().flatten().any(|c| c.type_ == PENDING && c.status == "True");
    match status.allocated_resource_statuses.as_ref().and_then(|s| s.get("storage")) {
        Some(state) => NODE_STATES.contains(&state.as_str()),
        None => waits,
    }
}

fn size(of: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Option<Quantity> {
    of?.0.parse().ok()
}

/// Before a driver that has failed is asked again: doubled from the first to the last.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// Has the driver grow a volume that is mounted at `path`, and writes the claim's new size; again until it is done.
pub(super) async fn run(kubelet: Arc<Kubelet>, pod: Arc<Pod>, volume: Volume, path: PathBuf) {
    let mut delay = RETRY;
    while let Err(error) = expand(&kubelet, &pod, &volume, &path).await {
        tracing::warn!(volume = volume.name, error, "cannot expand a volume");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_MAX);
    }
}

async fn expand(kubelet: &Kubelet, pod: &Pod, volume: &Volume, path: &Path) -> Result<(), String> {
    let Some((namespace, name)) = volume.claim.clone() else { return Ok(()) };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(kubelet.client.clone(), &namespace);
    let volumes: Api<PersistentVolume> = Api::all(kubelet.client.clone());
    let claim = claims.get(&name).await.map_err(|e| api_message(&e))?;
    let current = volumes.get(&volume.name).await.map_err(|e| api_message(&e))?;
    let capacity = current.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    let has = claim.status.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    let (Some(wanted), true) = (size(capacity), is_due(&claim)) else { return Ok(()) };
    if size(has).is_some_and(|has| has >= wanted) {
        return Ok(());
    }
    let driver = kubelet.csi.driver(&volume.driver)?;
    let can = driver.capabilities().await.map_err(|e| e.to_string())?;
    let tell = |kind, reason: &str, message: String| {
        kubelet.recorder.for_object(pod, kind, reason, message.clone());
        kubelet.recorder.for_object(&claim, kind, reason, message);
    };
    if can.expands {
        let staging = match volume.block {
            true => kubelet.csi.paths.device_staging(&volume.name),
            false => kubelet.csi.paths.staging(&volume.driver, &volume.handle).join(GLOBAL_MOUNT),
        };
        let request = v1::NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            capacity_range: Some(v1::CapacityRange { required_bytes: wanted.units(), limit_bytes: 0 }),
            staging_target_path: if can.stages { staging.to_string_lossy().into_owned() } else { String::new() },
            volume_capability: Some(volume.capability(can.single_node_multi_writer, None)),
            secrets: super::mount::secret(kubelet, &PodExt::uid(pod), volume.expand_secret.as_ref()).await?,
        };
        if let Err(error) = driver.expand(request).await {
            let message = format!("MountVolume.NodeExpandVolume failed for volume {:?} : {error}", volume.name);
            tell(EventType::Warning, "VolumeResizeFailed", message);
            return Err(error.to_string());
        }
    }
    let conditions: Vec<_> = claim
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .filter(|c| c.type_ != PENDING && c.type_ != "Resizing")
        .collect();
    let mut states = claim.status.as_ref().and_then(|s| s.allocated_resource_statuses.clone()).unwrap_or_default();
    states.remove("storage");
    // What is empty is not there.
    let status = json!({
        "capacity": {"storage": capacity},
        "conditions": if conditions.is_empty() { json!(null) } else { json!(conditions) },
        "allocatedResourceStatuses": if states.is_empty() { json!(null) } else { json!({"storage": null}) },
    });
    let patch = json!({"metadata": {"resourceVersion": claim.resource_version()}, "status": status});
    claims.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(|e| api_message(&e))?;
    let node = &kubelet.config.node_name;
    let message = format!("MountVolume.NodeExpandVolume succeeded for volume {:?} {node}", volume.name);
    tell(EventType::Normal, "FileSystemResizeSuccessful", message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_due() {
        let claim = |status: serde_json::Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"status": status})).unwrap()
        };
        let pending = json!([{"type": PENDING, "status": "True"}]);
        assert!(!is_due(&claim(json!({}))));
        assert!(is_due(&claim(json!({"conditions": pending}))));
        let state = |s: &str| json!({"conditions": pending, "allocatedResourceStatuses": {"storage": s}});
        assert!(is_due(&claim(state("NodeResizePending"))));
        assert!(!is_due(&claim(state("NodeResizeInfeasible"))));
    }
}
