//! Grows the volumes of claims that ask for more, and leaves the node's part to the kubelet.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use skiff_api::quantity::Quantity;
use skiff_csi::v1;

use super::{Sidecar, patch};

pub(super) async fn look(sidecar: &Sidecar) -> anyhow::Result<()> {
    let volumes: BTreeMap<String, PersistentVolume> =
        sidecar.all::<PersistentVolume>().await?.into_iter().map(|v| (v.name_any(), v)).collect();
    for claim in sidecar.all::<PersistentVolumeClaim>().await? {
        let spec = claim.spec.clone().unwrap_or_default();
        let Some(volume) = spec.volume_name.as_ref().and_then(|v| volumes.get(v)) else { continue };
        let Some(csi) = volume.spec.as_ref().and_then(|s| s.csi.clone()) else { continue };
        let size = |q: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>| q?.0.parse::<Quantity>().ok();
        let asked = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
        let has = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
        let (Some(wanted), Some(has)) = (size(asked), size(has)) else { continue };
        if csi.driver != sidecar.driver || wanted <= has {
            continue;
        }
        let request = v1::ControllerExpandVolumeRequest {
            volume_id: csi.volume_handle,
            capacity_range: Some(v1::CapacityRange { required_bytes: wanted.units(), limit_bytes: 0 }),
            ..Default::default()
        };
        sidecar.controller.clone().controller_expand_volume(request).await?;
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(sidecar.client.clone(), &claim.namespace().unwrap_or_default());
        let status = json!({
            "allocatedResources": {"storage": asked},
            "allocatedResourceStatuses": {"storage": "NodeResizePending"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True",
                "message": "Waiting for user to (re-)start a pod to finish file system resize of volume on node."}],
        });
        patch(&api, &claim, true, json!({"status": status})).await?;
        // Last, since this is what says that it is done.
        let api: Api<PersistentVolume> = Api::all(sidecar.client.clone());
        patch(&api, volume, false, json!({"spec": {"capacity": {"storage": asked}}})).await?;
    }
    Ok(())
}
