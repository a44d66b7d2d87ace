//! Writes the gRPC clients and servers of the two CRI services from the tables below. The messages
//! are written by hand, so neither a protocol file nor its compiler is needed.

#[path = "build/services.rs"]
mod services;

use services::{Rpc, service, unary};
use tonic_build::manual::Builder;

const fn stream(name: &'static str, argument: &'static str, answer: &'static str) -> Rpc {
    Rpc(name, argument, answer, true)
}

const RUNTIME: &[Rpc] = &[
    unary("Version", "VersionRequest", "VersionResponse"),
    unary("RunPodSandbox", "RunPodSandboxRequest", "RunPodSandboxResponse"),
    unary("StopPodSandbox", "StopPodSandboxRequest", "StopPodSandboxResponse"),
    unary("RemovePodSandbox", "RemovePodSandboxRequest", "RemovePodSandboxResponse"),
    unary("PodSandboxStatus", "PodSandboxStatusRequest", "PodSandboxStatusResponse"),
    unary("ListPodSandbox", "ListPodSandboxRequest", "ListPodSandboxResponse"),
    stream("StreamPodSandboxes", "StreamPodSandboxesRequest", "StreamPodSandboxesResponse"),
    unary("CreateContainer", "CreateContainerRequest", "CreateContainerResponse"),
    unary("StartContainer", "StartContainerRequest", "StartContainerResponse"),
    unary("StopContainer", "StopContainerRequest", "StopContainerResponse"),
    unary("RemoveContainer", "RemoveContainerRequest", "RemoveContainerResponse"),
    unary("ListContainers", "ListContainersRequest", "ListContainersResponse"),
    stream("StreamContainers", "StreamContainersRequest", "StreamContainersResponse"),
    unary("ContainerStatus", "ContainerStatusRequest", "ContainerStatusResponse"),
    unary("UpdateContainerResources", "UpdateContainerResourcesRequest", "UpdateContainerResourcesResponse"),
    unary("ReopenContainerLog", "ReopenContainerLogRequest", "ReopenContainerLogResponse"),
    unary("ExecSync", "ExecSyncRequest", "ExecSyncResponse"),
    unary("Exec", "ExecRequest", "ExecResponse"),
    unary("Attach", "AttachRequest", "AttachResponse"),
    unary("PortForward", "PortForwardRequest", "PortForwardResponse"),
    unary("ContainerStats", "ContainerStatsRequest", "ContainerStatsResponse"),
    unary("ListContainerStats", "ListContainerStatsRequest", "ListContainerStatsResponse"),
    stream("StreamContainerStats", "StreamContainerStatsRequest", "StreamContainerStatsResponse"),
    unary("PodSandboxStats", "PodSandboxStatsRequest", "PodSandboxStatsResponse"),
    unary("ListPodSandboxStats", "ListPodSandboxStatsRequest", "ListPodSandboxStatsResponse"),
    stream("StreamPodSandboxStats", "StreamPodSandboxStatsRequest", "StreamPodSandboxStatsResponse"),
    unary("UpdateRuntimeConfig", "UpdateRuntimeConfigRequest", "UpdateRuntimeConfigResponse"),
    unary("Status", "StatusRequest", "StatusResponse"),
    unary("CheckpointContainer", "CheckpointContainerRequest", "CheckpointContainerResponse"),
    stream("GetContainerEvents", "GetEventsRequest", "ContainerEventResponse"),
    unary("ListMetricDescriptors", "ListMetricDescriptorsRequest", "ListMetricDescriptorsResponse"),
    unary("ListPodSandboxMetrics", "ListPodSandboxMetricsRequest", "ListPodSandboxMetricsResponse"),
    stream("StreamPodSandboxMetrics", "StreamPodSandboxMetricsRequest", "StreamPodSandboxMetricsResponse"),
    unary("RuntimeConfig", "RuntimeConfigRequest", "RuntimeConfigResponse"),
    unary("UpdatePodSandboxResources", "UpdatePodSandboxResourcesRequest", "UpdatePodSandboxResourcesResponse"),
];

const IMAGE: &[Rpc] = &[
    unary("ListImages", "ListImagesRequest", "ListImagesResponse"),
    stream("StreamImages", "StreamImagesRequest", "StreamImagesResponse"),
    unary("ImageStatus", "ImageStatusRequest", "ImageStatusResponse"),
    unary("PullImage", "PullImageRequest", "PullImageResponse"),
    unary("RemoveImage", "RemoveImageRequest", "RemoveImageResponse"),
    unary("ImageFsInfo", "ImageFsInfoRequest", "ImageFsInfoResponse"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/services.rs");
    let of = |name, methods| service("runtime.v1", name, "crate::v1", methods);
    Builder::new().compile(&[of("RuntimeService", RUNTIME), of("ImageService", IMAGE)]);
}
