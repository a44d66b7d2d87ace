//! Both ways of reaching a runtime: a unix socket and memory.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use skiff_cri::{
    Code, ImageService, Request, Response, RuntimeService, Status, connect_in_process, connect_unix, serve_unix, v1,
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers `Version` and `GetContainerEvents`, and the listing of images with a large list.
struct Fake;

macro_rules! fake_runtime {
    (unary { $($name:ident: $argument:ident => $answer:ident,)* }
     stream { $($stream:ident $assoc:ident: $sargument:ident => $sanswer:ident,)* }) => {
        #[tonic::async_trait]
        impl RuntimeService for Fake {
            $(async fn $name(
                &self,
                _: Request<v1::$argument>,
            ) -> Result<Response<v1::$answer>, Status> {
                Err(Status::unimplemented(stringify!($name)))
            })*
            $(type $assoc = Answers<v1::$sanswer>;
            async fn $stream(
                &self,
                _: Request<v1::$sargument>,
            ) -> Result<Response<Self::$assoc>, Status> {
                Err(Status::unimplemented(stringify!($stream)))
            })*
            async fn version(
                &self,
                _: Request<v1::VersionRequest>,
            ) -> Result<Response<v1::VersionResponse>, Status> {
                Ok(Response::new(v1::VersionResponse {
                    version: "0.1.0".into(),
                    runtime_name: "fake".into(),
                    runtime_version: "1".into(),
                    runtime_api_version: "v1".into(),
                }))
            }
            type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;
            async fn get_container_events(
                &self,
                _: Request<v1::GetEventsRequest>,
            ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
                let events = (0..3).map(|n| {
                    Ok(v1::ContainerEventResponse {
                        container_id: n.to_string(),
                        ..Default::default()
                    })
                });
                Ok(Response::new(Box::pin(futures::stream::iter(events))))
            }
        }
    };
}

fake_runtime! {
    unary {
        run_pod_sandbox: RunPodSandboxRequest => RunPodSandboxResponse,
        stop_pod_sandbox: StopPodSandboxRequest => StopPodSandboxResponse,
        remove_pod_sandbox: RemovePodSandboxRequest => RemovePodSandboxResponse,
        pod_sandbox_status: PodSandboxStatusRequest => PodSandboxStatusResponse,
        list_pod_sandbox: ListPodSandboxRequest => ListPodSandboxResponse,
        create_container: CreateContainerRequest => CreateContainerResponse,
        start_container: StartContainerRequest => StartContainerResponse,
        stop_container: StopContainerRequest => StopContainerResponse,
        remove_container: RemoveContainerRequest => RemoveContainerResponse,
        list_containers: ListContainersRequest => ListContainersResponse,
        container_status: ContainerStatusRequest => ContainerStatusResponse,
        update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse,
        reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse,
        exec_sync: ExecSyncRequest => ExecSyncResponse,
        exec: ExecRequest => ExecResponse,
        attach: AttachRequest => AttachResponse,
        port_forward: PortForwardRequest => PortForwardResponse,
        container_stats: ContainerStatsRequest => ContainerStatsResponse,
        list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse,
        pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse,
        list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse,
        update_runtime_config: UpdateRuntimeConfigRequest => UpdateRuntimeConfigResponse,
        status: StatusRequest => StatusResponse,
        checkpoint_container: CheckpointContainerRequest => CheckpointContainerResponse,
        list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse,
        list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse,
        runtime_config: RuntimeConfigRequest => RuntimeConfigResponse,
        update_pod_sandbox_resources: UpdatePodSandboxResourcesRequest => UpdatePodSandboxResourcesResponse,
    }
    stream {
        stream_pod_sandboxes StreamPodSandboxesStream: StreamPodSandboxesRequest => StreamPodSandboxesResponse,
        stream_containers StreamContainersStream: StreamContainersRequest => StreamContainersResponse,
        stream_container_stats StreamContainerStatsStream: StreamContainerStatsRequest => StreamContainerStatsResponse,
        stream_pod_sandbox_stats StreamPodSandboxStatsStream: StreamPodSandboxStatsRequest => StreamPodSandboxStatsResponse,
        stream_pod_sandbox_metrics StreamPodSandboxMetricsStream: StreamPodSandboxMetricsRequest => StreamPodSandboxMetricsResponse,
    }
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Result<Response<v1::ListImagesResponse>, Status> {
        let image = v1::Image { id: "x".repeat(1000), ..Default::default() };
        Ok(Response::new(v1::ListImagesResponse { images: vec![image; 8000] }))
    }
    type StreamImagesStream = Answers<v1::StreamImagesResponse>;
    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented("stream_images"))
    }
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        Err(Status::not_found(format!("no image {name}")))
    }
    async fn pull_image(&self, _: Request<v1::PullImageRequest>) -> Result<Response<v1::PullImageResponse>, Status> {
        Err(Status::unimplemented("pull_image"))
    }
    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        Err(Status::unimplemented("remove_image"))
    }
    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        Err(Status::unimplemented("image_fs_info"))
    }
}

/// What must hold whatever the transport.
async fn check(
    (mut runtime, mut image): (
        skiff_cri::RuntimeServiceClient<skiff_cri::Channel>,
        skiff_cri::ImageServiceClient<skiff_cri::Channel>,
    ),
) {
    let version = runtime.version(v1::VersionRequest::default()).await.expect("version");
    assert_eq!(version.into_inner().runtime_name, "fake");

    let events = runtime.get_container_events(v1::GetEventsRequest {}).await.expect("events");
    let ids: Vec<_> = events.into_inner().map(|e| e.expect("an event").container_id).collect().await;
    assert_eq!(ids, ["0", "1", "2"]);

    // Eight megabytes: above gRPC's default limit.
    let images = image.list_images(v1::ListImagesRequest::default()).await.expect("images");
    assert_eq!(images.into_inner().images.len(), 8000);

    let spec = v1::ImageSpec { image: "nope".into(), ..Default::default() };
    let missing =
        image.image_status(v1::ImageStatusRequest { image: Some(spec), verbose: false }).await.expect_err("not there");
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "no image nope"));

    let refused = runtime.attach(v1::AttachRequest::default()).await.expect_err("not served");
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn in_process() {
    let fake = Arc::new(Fake);
    check(connect_in_process(fake.clone(), fake)).await;
}

#[tokio::test]
async fn over_a_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run/skiff.sock");
    // What a killed predecessor leaves behind.
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));

    let fake = Arc::new(Fake);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = {
        let path = path.clone();
        tokio::spawn(async move {
            serve_unix(&path, fake.clone(), fake, async {
                let _ = stopped.await;
            })
            .await
        })
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    let clients = loop {
        match connect_unix(&path).await {
            Ok(clients) => break clients,
            Err(e) if tokio::time::Instant::now() > deadline => panic!("{e}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    };
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    check(clients).await;
    stop.send(()).expect("still serving");
    served.await.expect("no panic").expect("served");
}
