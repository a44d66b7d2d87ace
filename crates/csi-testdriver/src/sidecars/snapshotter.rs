//! VolumeSnapshots, whose kinds come from CustomResourceDefinitions: what the snapshot controller and its sidecar do.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::json;
use skiff_csi::v1;

use super::{Sidecar, patch};

fn kind(name: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", name))
}

pub(super) async fn look(sidecar: &Sidecar) -> anyhow::Result<()> {
    let snapshots: Api<DynamicObject> = Api::all_with(sidecar.client.clone(), &kind("VolumeSnapshot"));
    let listed = match snapshots.list(&ListParams::default()).await {
        // Nobody has defined them.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        listed => listed?,
    };
    for snapshot in listed.items {
        if snapshot.data["status"]["readyToUse"] != true {
            take(sidecar, &snapshot).await.with_context(|| format!("snapshot {}", snapshot.name_any()))?;
        }
    }
    Ok(())
}

async fn take(sidecar: &Sidecar, snapshot: &DynamicObject) -> anyhow::Result<()> {
    let namespace = snapshot.namespace().unwrap_or_default();
    let claim = snapshot.data["spec"]["source"]["persistentVolumeClaimName"].as_str().context("no source")?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(sidecar.client.clone(), &namespace);
    let volume = claims.get(claim).await?.spec.and_then(|s| s.volume_name).context("the claim is not bound")?;
    let volumes: Api<PersistentVolume> = Api::all(sidecar.client.clone());
    let csi = volumes.get(&volume).await?.spec.and_then(|s| s.csi).context("not of CSI")?;
    if csi.driver != sidecar.driver {
        return Ok(());
    }
    let name = format!("snapshot-{}", snapshot.uid().unwrap_or_default());
    let request =
        v1::CreateSnapshotRequest { source_volume_id: csi.volume_handle, name: name.clone(), ..Default::default() };
    let made = sidecar.controller.clone().create_snapshot(request).await?.into_inner().snapshot.context("none")?;
    let content = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": name},
        "spec": {"driver": sidecar.driver, "deletionPolicy": "Delete", "source": {"volumeHandle": made.source_volume_id},
            "volumeSnapshotRef": {"kind": "VolumeSnapshot", "namespace": namespace, "name": snapshot.name_any(),
                "uid": snapshot.uid()}},
    });
    let contents: Api<DynamicObject> = Api::all_with(sidecar.client.clone(), &kind("VolumeSnapshotContent"));
    match contents.create(&PostParams::default(), &serde_json::from_value(content)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        created => drop(created?),
    }
    let content = contents.get(&name).await?;
    let status = json!({"snapshotHandle": made.snapshot_id, "readyToUse": true, "restoreSize": made.size_bytes});
    patch(&contents, &content, true, json!({"status": status})).await?;
    let api: Api<DynamicObject> = Api::namespaced_with(sidecar.client.clone(), &namespace, &kind("VolumeSnapshot"));
    let status = json!({"boundVolumeSnapshotContentName": name, "readyToUse": made.ready_to_use,
        "restoreSize": made.size_bytes.to_string()});
    patch(&api, snapshot, true, json!({"status": status})).await?;
    Ok(())
}

/// The driver's name of a snapshot that is ready.
pub(super) async fn handle(sidecar: &Sidecar, namespace: &str, name: &str) -> anyhow::Result<Option<String>> {
    let api: Api<DynamicObject> = Api::namespaced_with(sidecar.client.clone(), namespace, &kind("VolumeSnapshot"));
    let snapshot = api.get(name).await?;
    if snapshot.data["status"]["readyToUse"] != true {
        return Ok(None);
    }
    let content = snapshot.data["status"]["boundVolumeSnapshotContentName"].as_str().context("no content")?;
    let contents: Api<DynamicObject> = Api::all_with(sidecar.client.clone(), &kind("VolumeSnapshotContent"));
    Ok(contents.get(content).await?.data["status"]["snapshotHandle"].as_str().map(str::to_owned))
}
