//! A driver on a socket, and who is refused.

use skiff_csi::{
    Code, Identity, IdentityClient, IdentityServer, NodeClient, Request, Response, Routes, Status, connect, listen,
    serve, status_text, v1,
};

struct Driver;

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        Ok(Response::new(v1::GetPluginInfoResponse { name: "a.driver".into(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        Err(Status::aborted("later"))
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        Ok(Response::new(v1::ProbeResponse::default()))
    }
}

#[tokio::test]
async fn calls_reach_their_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("csi.sock");
    let routes = Routes::default().with(IdentityServer::new(Driver));
    // What a driver that was killed left behind does not matter.
    drop(listen(&path).unwrap());
    let server = tokio::spawn(serve(listen(&path).unwrap(), routes, std::future::pending()));
    let mut identity = IdentityClient::new(connect(&path));
    let info = identity.get_plugin_info(v1::GetPluginInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().name, "a.driver");
    let error = identity.get_plugin_capabilities(v1::GetPluginCapabilitiesRequest {}).await.unwrap_err();
    assert_eq!(status_text(&error), "rpc error: code = Aborted desc = later");
    let error = NodeClient::new(connect(&path)).node_get_info(v1::NodeGetInfoRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    server.abort();
    let error = IdentityClient::new(connect(&dir.path().join("none"))).probe(v1::ProbeRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}
