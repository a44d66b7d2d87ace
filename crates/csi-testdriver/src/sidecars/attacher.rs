//! Attaches and detaches what VolumeAttachments say.

use anyhow::Context as _;
use k8s_openapi::api::{
    core::v1::PersistentVolume,
    storage::v1::{CSINode, VolumeAttachment},
};
use kube::Api;
use serde_json::json;
use skiff_csi::{status_text, v1};

use super::{Sidecar, finalizers, patch};

pub(super) async fn look(sidecar: &Sidecar) -> anyhow::Result<()> {
    let api: Api<VolumeAttachment> = Api::all(sidecar.client.clone());
    for attachment in sidecar.all::<VolumeAttachment>().await? {
        if attachment.spec.attacher == sidecar.driver {
            Box::pin(one(sidecar, &api, attachment)).await?;
        }
    }
    Ok(())
}

async fn one(sidecar: &Sidecar, api: &Api<VolumeAttachment>, attachment: VolumeAttachment) -> anyhow::Result<()> {
    let finalizer = format!("external-attacher/{}", sidecar.driver);
    let volumes: Api<PersistentVolume> = Api::all(sidecar.client.clone());
    let name = attachment.spec.source.persistent_volume_name.as_deref().context("no volume")?;
    let volume = volumes.get(name).await?;
    let volume_id = volume.spec.and_then(|s| s.csi).context("not of CSI")?.volume_handle;
    let nodes: Api<CSINode> = Api::all(sidecar.client.clone());
    let node = nodes.get_opt(&attachment.spec.node_name).await?;
    let of_node = node.and_then(|n| n.spec.drivers.into_iter().find(|d| d.name == sidecar.driver));
    // The identity of a node that is gone was its name.
    let node_id = of_node.map_or(attachment.spec.node_name.clone(), |d| d.node_id);
    let mut controller = sidecar.controller.clone();
    if attachment.metadata.deletion_timestamp.is_some() {
        if let Some(rest) = finalizers(&attachment, &finalizer, false) {
            let request = v1::ControllerUnpublishVolumeRequest { volume_id, node_id, ..Default::default() };
            controller.controller_unpublish_volume(request).await?;
            patch(api, &attachment, false, json!({"metadata": {"finalizers": rest}})).await?;
        }
        return Ok(());
    }
    if attachment.status.as_ref().is_some_and(|s| s.attached) {
        return Ok(());
    }
    let attachment = match finalizers(&attachment, &finalizer, true) {
        Some(all) => patch(api, &attachment, false, json!({"metadata": {"finalizers": all}})).await?,
        None => attachment,
    };
    let request = v1::ControllerPublishVolumeRequest { volume_id, node_id, ..Default::default() };
    let status = match controller.controller_publish_volume(request).await {
        Ok(answer) => json!({"attached": true, "attachError": null,
            "attachmentMetadata": answer.into_inner().publish_context}),
        Err(error) => json!({"attached": false, "attachError": {"message": status_text(&error),
            "time": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}}),
    };
    patch(api, &attachment, true, json!({"status": status})).await?;
    Ok(())
}
