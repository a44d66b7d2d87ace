//! Makes volumes for claims, and deletes those that nobody claims any more.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::{StorageClass, VolumeAttachment},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};
use skiff_api::{quantity::Quantity, storage};
use skiff_csi::v1;

use super::{Sidecar, snapshotter};

/// Parameters of classes that are for the provisioner and not for the driver.
const OWN: &str = "csi.storage.k8s.io/";

pub(super) async fn look(sidecar: &Sidecar) -> anyhow::Result<()> {
    let classes: BTreeMap<String, StorageClass> =
        sidecar.all::<StorageClass>().await?.into_iter().map(|c| (c.name_any(), c)).collect();
    for claim in sidecar.all::<PersistentVolumeClaim>().await? {
        let provisioner = claim.annotations().get(storage::STORAGE_PROVISIONER[1]);
        let spec = claim.spec.clone().unwrap_or_default();
        if provisioner != Some(&sidecar.driver)
            || spec.volume_name.is_some()
            || claim.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        let Some(class) = spec.storage_class_name.as_ref().and_then(|c| classes.get(c)) else { continue };
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if waits && !claim.annotations().contains_key(storage::SELECTED_NODE) {
            continue;
        }
        provision(sidecar, &claim, class).await.with_context(|| format!("claim {}", claim.name_any()))?;
    }
    let attached: Vec<VolumeAttachment> = sidecar.all().await?;
    for volume in sidecar.all::<PersistentVolume>().await? {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        let ours = volume.annotations().get(storage::PROVISIONED_BY) == Some(&sidecar.driver);
        let spec = volume.spec.clone().unwrap_or_default();
        let goes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
        let name = volume.name_any();
        let is_attached = attached.iter().any(|a| a.spec.source.persistent_volume_name.as_ref() == Some(&name));
        if phase != Some("Released") || !ours || !goes || is_attached || volume.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let volume_id = spec.csi.map(|c| c.volume_handle).unwrap_or_default();
        let request = v1::DeleteVolumeRequest { volume_id, secrets: BTreeMap::new() };
        sidecar.controller.clone().delete_volume(request).await.with_context(|| format!("deleting {name}"))?;
        let api: Api<PersistentVolume> = Api::all(sidecar.client.clone());
        api.delete(&name, &DeleteParams::default()).await?;
    }
    Ok(())
}

async fn provision(sidecar: &Sidecar, claim: &PersistentVolumeClaim, class: &StorageClass) -> anyhow::Result<()> {
    let spec = claim.spec.clone().unwrap_or_default();
    let all = class.parameters.clone().unwrap_or_default();
    let own = |name: &str| all.get(&format!("{OWN}{name}")).cloned();
    let asked = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let size: Quantity = asked.context("no size")?.0.parse()?;
    let source = match &spec.data_source {
        None => None,
        Some(source) if source.kind == "VolumeSnapshot" => {
            let namespace = claim.namespace().unwrap_or_default();
            let Some(handle) = snapshotter::handle(sidecar, &namespace, &source.name).await? else {
                // Until the snapshot is ready.
                return Ok(());
            };
            Some(v1::Source::Snapshot(v1::SnapshotSource { snapshot_id: handle }))
        }
        Some(source) => bail!("cannot begin with a {}", source.kind),
    };
    let request = v1::CreateVolumeRequest {
        name: format!("pvc-{}", claim.uid().unwrap_or_default()),
        capacity_range: Some(v1::CapacityRange { required_bytes: size.units(), limit_bytes: 0 }),
        parameters: all.iter().filter(|(k, _)| !k.starts_with(OWN)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        volume_content_source: source.map(|s| v1::VolumeContentSource { r#type: Some(s) }),
        ..Default::default()
    };
    let name = request.name.clone();
    let made = sidecar.controller.clone().create_volume(request).await?.into_inner().volume.context("no volume")?;
    let secret = |kind: &str| -> Option<Value> {
        let (name, namespace) = (own(&format!("{kind}-secret-name"))?, own(&format!("{kind}-secret-namespace"))?);
        Some(json!({"name": name, "namespace": namespace}))
    };
    let volume = json!({
        "metadata": {"name": name, "annotations": {storage::PROVISIONED_BY: sidecar.driver}},
        "spec": {
            "capacity": {"storage": made.capacity_bytes.to_string()},
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": class.name_any(),
            "volumeMode": spec.volume_mode,
            "mountOptions": class.mount_options,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(),
                "name": claim.name_any(), "uid": claim.uid(), "resourceVersion": claim.resource_version()},
            "csi": {"driver": sidecar.driver, "volumeHandle": made.volume_id, "volumeAttributes": made.volume_context,
                "fsType": own("fstype"), "nodeStageSecretRef": secret("node-stage"),
                "nodePublishSecretRef": secret("node-publish")},
        },
    });
    let api: Api<PersistentVolume> = Api::all(sidecar.client.clone());
    match api.create(&PostParams::default(), &serde_json::from_value(volume)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => Ok(created.map(drop)?),
    }
}
