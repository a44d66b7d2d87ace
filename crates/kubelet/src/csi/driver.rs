//! A driver's node service, with upstream's time limit and wording of errors.

use std::{future::Future, path::PathBuf, time::Duration};

use skiff_csi::{Channel, NodeClient, Response, Status, status_text, v1};

/// How long one call may take, upstream's.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The answer to a call is no larger than that.
const ANSWER_LIMIT: usize = 4 << 20;

/// A call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", status_text(.0))]
pub(super) struct CallError(pub(super) Status);

impl CallError {
    /// The driver has said that it has not done it. After any other error it may still be at work.
    pub(super) fn is_final(&self) -> bool {
        use skiff_csi::Code;
        !matches!(
            self.0.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Unknown
        )
    }
}

/// A registered driver.
#[derive(Clone, Debug)]
pub(super) struct Driver {
    /// Where it listens.
    pub(super) endpoint: PathBuf,
}

/// What a driver's node service can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) stages: bool,
    pub(super) stats: bool,
    pub(super) expands: bool,
    pub(super) single_node_multi_writer: bool,
    pub(super) mount_group: bool,
}

async fn call<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CallError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CallError(status)),
        Err(_) => Err(CallError(Status::deadline_exceeded("context deadline exceeded"))),
    }
}

impl Driver {
    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(skiff_csi::connect(&self.endpoint)).max_decoding_message_size(ANSWER_LIMIT)
    }

    pub(super) async fn info(&self) -> Result<v1::NodeGetInfoResponse, CallError> {
        call(self.node().node_get_info(v1::NodeGetInfoRequest {})).await
    }

    pub(super) async fn capabilities(&self) -> Result<Capabilities, CallError> {
        use v1::node_rpc::*;
        let answer = call(self.node().node_get_capabilities(v1::NodeGetCapabilitiesRequest {})).await?;
        let has = |kind| answer.capabilities.iter().any(|c| c.rpc.is_some_and(|rpc| rpc.r#type == kind));
        Ok(Capabilities {
            stages: has(STAGE_UNSTAGE_VOLUME),
            stats: has(GET_VOLUME_STATS),
            expands: has(EXPAND_VOLUME),
            single_node_multi_writer: has(SINGLE_NODE_MULTI_WRITER),
            mount_group: has(VOLUME_MOUNT_GROUP),
        })
    }

    pub(super) async fn stage(&self, request: v1::NodeStageVolumeRequest) -> Result<(), CallError> {
        call(self.node().node_stage_volume(request)).await.map(drop)
    }

    pub(super) async fn unstage(&self, request: v1::NodeUnstageVolumeRequest) -> Result<(), CallError> {
        call(self.node().node_unstage_volume(request)).await.map(drop)
    }

    pub(super) async fn publish(&self, request: v1::NodePublishVolumeRequest) -> Result<(), CallError> {
        call(self.node().node_publish_volume(request)).await.map(drop)
    }

    pub(super) async fn unpublish(&self, request: v1::NodeUnpublishVolumeRequest) -> Result<(), CallError> {
        call(self.node().node_unpublish_volume(request)).await.map(drop)
    }

    pub(super) async fn expand(&self, request: v1::NodeExpandVolumeRequest) -> Result<(), CallError> {
        call(self.node().node_expand_volume(request)).await.map(drop)
    }

    pub(super) async fn stats(
        &self,
        request: v1::NodeGetVolumeStatsRequest,
    ) -> Result<v1::NodeGetVolumeStatsResponse, CallError> {
        call(self.node().node_get_volume_stats(request)).await
    }
}
