//! Volumes and snapshots, wherever they are used.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use skiff_csi::{Controller as Service, Request, Response, Status, v1};

use crate::disk::{Disk, Known, checked, copy, internal};

pub(crate) struct Controller {
    pub(crate) disk: Arc<Disk>,
}

type Answer<T> = Result<Response<T>, Status>;

fn bytes(range: Option<v1::CapacityRange>) -> i64 {
    range.map_or(0, |r| r.required_bytes).max(1 << 20)
}

#[tonic::async_trait]
impl Service for Controller {
    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::CreateVolumeResponse> {
        let request = request.into_inner();
        let id = checked(&request.name)?.to_owned();
        let source = request.volume_content_source.clone();
        let from = match source.as_ref().and_then(|s| s.r#type.as_ref()) {
            Some(v1::Source::Snapshot(s)) => Some(self.disk.snapshot(checked(&s.snapshot_id)?)),
            Some(v1::Source::Volume(v)) => Some(self.disk.volume(checked(&v.volume_id)?)),
            None => None,
        };
        self.disk.note("CreateVolume", &id, if from.is_some() { "from" } else { "" });
        let dir = self.disk.volume(&id);
        if self.disk.known(&id).is_err() {
            fs::create_dir_all(&dir).map_err(internal)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).map_err(internal)?;
            if let Some(from) = from {
                copy(&from, &dir).map_err(|e| Status::not_found(e.to_string()))?;
            }
            self.disk.keep(&id, &Known { bytes: bytes(request.capacity_range), node: None })?;
        }
        let known = self.disk.known(&id)?;
        Ok(Response::new(v1::CreateVolumeResponse {
            volume: Some(v1::Volume {
                capacity_bytes: known.bytes,
                volume_id: id,
                volume_context: request.parameters,
                content_source: source,
                accessible_topology: Vec::new(),
            }),
        }))
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Answer<v1::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        self.disk.note("DeleteVolume", &id, "");
        if self.disk.known(&id).is_ok_and(|known| known.node.is_some()) {
            return Err(Status::failed_precondition(format!("volume {id} is attached")));
        }
        self.disk.forget(&id)?;
        Ok(Response::new(v1::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<v1::ControllerPublishVolumeRequest>,
    ) -> Answer<v1::ControllerPublishVolumeResponse> {
        let request = request.into_inner();
        let mut known = self.disk.known(&request.volume_id)?;
        self.disk.note("ControllerPublishVolume", &request.volume_id, &request.node_id);
        if let Some(node) = known.node.as_ref().filter(|node| **node != request.node_id) {
            return Err(Status::failed_precondition(format!("volume {} is attached to {node}", request.volume_id)));
        }
        known.node = Some(request.node_id.clone());
        self.disk.keep(&request.volume_id, &known)?;
        let publish_context = [("attached-to".to_owned(), request.node_id)].into();
        Ok(Response::new(v1::ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<v1::ControllerUnpublishVolumeRequest>,
    ) -> Answer<v1::ControllerUnpublishVolumeResponse> {
        let request = request.into_inner();
        self.disk.note("ControllerUnpublishVolume", &request.volume_id, &request.node_id);
        if let Ok(mut known) = self.disk.known(&request.volume_id)
            && known.node.as_ref() == Some(&request.node_id)
        {
            known.node = None;
            self.disk.keep(&request.volume_id, &known)?;
        }
        Ok(Response::new(v1::ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<v1::ValidateVolumeCapabilitiesResponse> {
        let request = request.into_inner();
        self.disk.known(&request.volume_id)?;
        let confirmed = v1::Confirmed { volume_capabilities: request.volume_capabilities, ..Default::default() };
        Ok(Response::new(v1::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<v1::ControllerGetCapabilitiesRequest>,
    ) -> Answer<v1::ControllerGetCapabilitiesResponse> {
        use v1::controller_rpc::*;
        let all = [CREATE_DELETE_VOLUME, PUBLISH_UNPUBLISH_VOLUME, CREATE_DELETE_SNAPSHOT, EXPAND_VOLUME];
        let capabilities = all.map(|kind| v1::ControllerServiceCapability { rpc: Some(v1::Rpc { r#type: kind }) });
        Ok(Response::new(v1::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn create_snapshot(&self, request: Request<v1::CreateSnapshotRequest>) -> Answer<v1::CreateSnapshotResponse> {
        let request = request.into_inner();
        let (id, source) = (checked(&request.name)?.to_owned(), request.source_volume_id);
        self.disk.note("CreateSnapshot", &id, &source);
        let known = self.disk.known(&source)?;
        let (from, to) = (self.disk.volume(&source), self.disk.snapshot(&id));
        if !to.exists() {
            let draft = to.with_extension("draft");
            copy(&from, &draft).and_then(|()| fs::rename(draft, to)).map_err(internal)?;
        }
        let now = jiff::Timestamp::now();
        Ok(Response::new(v1::CreateSnapshotResponse {
            snapshot: Some(v1::Snapshot {
                size_bytes: known.bytes,
                snapshot_id: id,
                source_volume_id: source,
                creation_time: Some(v1::Timestamp { seconds: now.as_second(), nanos: 0 }),
                ready_to_use: true,
                group_snapshot_id: String::new(),
            }),
        }))
    }

    async fn delete_snapshot(&self, request: Request<v1::DeleteSnapshotRequest>) -> Answer<v1::DeleteSnapshotResponse> {
        let id = request.into_inner().snapshot_id;
        self.disk.note("DeleteSnapshot", &id, "");
        match fs::remove_dir_all(self.disk.snapshot(checked(&id)?)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(Response::new(v1::DeleteSnapshotResponse {})),
        }
    }

    async fn controller_expand_volume(
        &self,
        request: Request<v1::ControllerExpandVolumeRequest>,
    ) -> Answer<v1::ControllerExpandVolumeResponse> {
        let request = request.into_inner();
        let mut known = self.disk.known(&request.volume_id)?;
        known.bytes = known.bytes.max(bytes(request.capacity_range));
        self.disk.note("ControllerExpandVolume", &request.volume_id, &known.bytes.to_string());
        self.disk.keep(&request.volume_id, &known)?;
        Ok(Response::new(v1::ControllerExpandVolumeResponse {
            capacity_bytes: known.bytes,
            node_expansion_required: true,
        }))
    }
}
