//! Who the driver is.

use skiff_csi::{Identity, Request, Response, Status, v1};

pub(crate) struct Driver {
    pub(crate) name: String,
    pub(crate) controller: bool,
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        Ok(Response::new(v1::GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        use v1::PluginCapabilityType::{Service, VolumeExpansion};
        let online = VolumeExpansion(v1::Rpc { r#type: 1 });
        let controller = self.controller.then_some(Service(v1::Rpc { r#type: v1::service::CONTROLLER }));
        let all = controller.into_iter().chain([online]).map(|kind| v1::PluginCapability { r#type: Some(kind) });
        Ok(Response::new(v1::GetPluginCapabilitiesResponse { capabilities: all.collect() }))
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        Ok(Response::new(v1::ProbeResponse { ready: Some(v1::BoolValue { value: true }) }))
    }
}
