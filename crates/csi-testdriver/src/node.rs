//! Volumes on a node: bind mounts of their directories; and the driver's registration.

use std::{fs, io, path::Path, sync::Arc};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skiff_csi::{Node as Service, Registration, Request, Response, Status, registration, v1};

use crate::disk::{Disk, checked, internal, used};

pub(crate) struct Node {
    pub(crate) disk: Arc<Disk>,
    pub(crate) id: String,
    pub(crate) max_volumes: i64,
}

type Answer<T> = Result<Response<T>, Status>;

fn is_mounted(path: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.to_string_lossy();
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(&path)))
}

/// Mounts a directory on another one, once.
fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
    fs::create_dir_all(to).map_err(internal)?;
    if is_mounted(to).map_err(internal)? {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(internal)?;
    if read_only {
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, to, none, again, none).map_err(internal)?;
    }
    Ok(())
}

fn unbind(path: &Path, remove: bool) -> Result<(), Status> {
    if is_mounted(path).map_err(internal)? {
        umount2(path, MntFlags::empty()).map_err(internal)?;
    }
    // A device is on a file.
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if remove && error.kind() != io::ErrorKind::NotFound => Err(internal(error)),
        _ => Ok(()),
    }
}

fn is_device(capability: Option<&v1::VolumeCapability>) -> bool {
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(v1::AccessType::Block(_)))
}

/// Mounts the device that the volume's class names on a file.
fn bind_device(context: &std::collections::BTreeMap<String, String>, target: &Path) -> Result<(), Status> {
    let device = context.get("device").ok_or_else(|| Status::invalid_argument("the class names no device"))?;
    fs::OpenOptions::new().create(true).append(true).open(target).map_err(internal)?;
    if is_mounted(target).map_err(internal)? {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(device.as_str()), target, none, MsFlags::MS_BIND, none).map_err(internal)
}

/// Keys and values, for the notes.
fn text(map: &std::collections::BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

#[tonic::async_trait]
impl Service for Node {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Answer<v1::NodeStageVolumeResponse> {
        let request = request.into_inner();
        self.disk.known(&request.volume_id)?;
        let more = format!("{} [{}] [{}]", self.id, text(&request.publish_context), text(&request.secrets));
        self.disk.note("NodeStageVolume", &request.volume_id, &more);
        if !is_device(request.volume_capability.as_ref()) {
            bind(&self.disk.volume(&request.volume_id), Path::new(&request.staging_target_path), false)?;
        }
        Ok(Response::new(v1::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Answer<v1::NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        self.disk.note("NodeUnstageVolume", &request.volume_id, &self.id);
        // The directory is the kubelet's.
        if is_mounted(Path::new(&request.staging_target_path)).map_err(internal)? {
            umount2(Path::new(&request.staging_target_path), MntFlags::empty()).map_err(internal)?;
        }
        Ok(Response::new(v1::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Answer<v1::NodePublishVolumeResponse> {
        let request = request.into_inner();
        let more = format!("{} [{}] [{}]", self.id, text(&request.volume_context), text(&request.secrets));
        self.disk.note("NodePublishVolume", &request.volume_id, &more);
        let target = Path::new(&request.target_path);
        if request.volume_context.get("csi.storage.k8s.io/ephemeral").is_some_and(|e| e == "true") {
            let dir = self.disk.ephemeral(checked(&request.volume_id)?);
            fs::create_dir_all(&dir).map_err(internal)?;
            let pod = request.volume_context.get("csi.storage.k8s.io/pod.name").cloned().unwrap_or_default();
            fs::write(dir.join("pod"), pod).map_err(internal)?;
            bind(&dir, target, request.readonly)?;
        } else if is_device(request.volume_capability.as_ref()) {
            bind_device(&request.volume_context, target)?;
        } else if !is_mounted(Path::new(&request.staging_target_path)).map_err(internal)? {
            return Err(Status::failed_precondition(format!("volume {} is not staged", request.volume_id)));
        } else {
            bind(Path::new(&request.staging_target_path), target, request.readonly)?;
        }
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Answer<v1::NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        self.disk.note("NodeUnpublishVolume", &request.volume_id, &self.id);
        unbind(Path::new(&request.target_path), true)?;
        let ephemeral = self.disk.ephemeral(checked(&request.volume_id)?);
        match fs::remove_dir_all(ephemeral) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(Response::new(v1::NodeUnpublishVolumeResponse {})),
        }
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Answer<v1::NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let total = self.disk.known(&request.volume_id)?.bytes;
        let used = used(Path::new(&request.volume_path)).map_err(internal)?;
        let usage = v1::VolumeUsage { available: total - used, total, used, unit: v1::Unit::Bytes as i32 };
        Ok(Response::new(v1::NodeGetVolumeStatsResponse { usage: vec![usage], volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Answer<v1::NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let capacity_bytes = self.disk.known(&request.volume_id)?.bytes;
        self.disk.note("NodeExpandVolume", &request.volume_id, &capacity_bytes.to_string());
        Ok(Response::new(v1::NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Answer<v1::NodeGetCapabilitiesResponse> {
        use v1::node_rpc::*;
        let all = [STAGE_UNSTAGE_VOLUME, GET_VOLUME_STATS, EXPAND_VOLUME];
        let capabilities = all.map(|kind| v1::NodeServiceCapability { rpc: Some(v1::Rpc { r#type: kind }) });
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(&self, _: Request<v1::NodeGetInfoRequest>) -> Answer<v1::NodeGetInfoResponse> {
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id: self.id.clone(),
            max_volumes_per_node: self.max_volumes,
            accessible_topology: None,
        }))
    }
}

/// Who the driver is, for the kubelet.
pub(crate) struct Registrar {
    pub(crate) name: String,
    pub(crate) endpoint: String,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<registration::InfoRequest>) -> Answer<registration::PluginInfo> {
        Ok(Response::new(registration::PluginInfo {
            r#type: registration::CSI_PLUGIN.to_owned(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Answer<registration::RegistrationStatusResponse> {
        let status = request.into_inner();
        tracing::info!(registered = status.plugin_registered, error = status.error, "the kubelet answers");
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
