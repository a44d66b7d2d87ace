//! Writes the gRPC clients and servers of the two CRI services from the tables below. The messages
//! are written by hand, so neither a protocol file nor its compiler is needed.

use tonic_build::manual::{Builder, Method, Service};

/// Name, argument and answer of a method, and whether the answer is a stream.
struct Rpc(&'static str, &'static str, &'static str, bool);

const fn unary(name: &'static str, argument: &'static str, answer: &'static str) -> Rpc {
    Rpc(name, argument, answer, false)
}

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

fn service(name: &str, methods: &[Rpc]) -> Service {
    let mut service = Service::builder().name(name).package("runtime.v1");
    for Rpc(route, argument, answer, streamed) in methods {
        let mut method = Method::builder()
            .name(snake_case(route))
            .route_name(route)
            .input_type(format!("crate::v1::{argument}"))
            .output_type(format!("crate::v1::{answer}"))
            .codec_path("tonic_prost::ProstCodec");
        if *streamed {
            method = method.server_streaming();
        }
        service = service.method(method.build());
    }
    service.build()
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    Builder::new().compile(&[service("RuntimeService", RUNTIME), service("ImageService", IMAGE)]);
}
