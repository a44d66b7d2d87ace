//! A container runtime in memory. What a container does is said by its image's name: `run` runs until it is stopped,
//! `exit-N` ends at once with code N, `missing` cannot be pulled, `slow` takes its whole grace period to stop.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use skiff_cri::{ImageService, Request, Response, RuntimeService, Status, v1};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
pub(super) struct FakeRuntime {
    pub(super) state: Arc<Mutex<State>>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<String, v1::PodSandboxStatus>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) pulled: Vec<String>,
    /// Calls that change something, as `method name`.
    pub(super) calls: Vec<String>,
    pub(super) network_down: bool,
    next: u32,
}

pub(super) struct Container {
    pub(super) status: v1::ContainerStatus,
    pub(super) sandbox_id: String,
    pub(super) config: v1::ContainerConfig,
    behaviour: String,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap()
}

impl FakeRuntime {
    pub(super) fn new() -> FakeRuntime {
        FakeRuntime { state: Arc::default(), events: broadcast::Sender::new(1000) }
    }

    /// A container by its name in its pod: the newest.
    pub(super) fn id_of(&self, name: &str) -> Option<String> {
        let state = self.state.lock();
        let named = state.containers.iter().filter(|(_, c)| c.status.metadata.as_ref().unwrap().name == name);
        named.max_by_key(|(_, c)| c.status.created_at).map(|(id, _)| id.clone())
    }

    pub(super) fn count(&self, call: &str) -> usize {
        self.state.lock().calls.iter().filter(|c| *c == call).count()
    }

    /// Ends a container by itself.
    pub(super) fn exit(&self, id: &str, code: i32) {
        let mut state = self.state.lock();
        let Some(container) = state.containers.get_mut(id) else { return };
        if container.status.state == v1::ContainerState::Exited as i32 {
            return;
        }
        container.status.state = v1::ContainerState::Exited as i32;
        container.status.finished_at = now();
        container.status.exit_code = code;
        drop(state);
        self.tell(id, v1::ContainerEventType::Stopped);
    }

    fn tell(&self, id: &str, kind: v1::ContainerEventType) {
        let state = self.state.lock();
        let sandbox = state.containers.get(id).and_then(|c| state.sandboxes.get(&c.sandbox_id));
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            pod_sandbox_status: sandbox.or(state.sandboxes.get(id)).cloned(),
            ..Default::default()
        };
        // Nobody may listen.
        let _ = self.events.send(event);
    }
}

fn matches(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

macro_rules! fake {
    (unary { $($name:ident: $argument:ident => $answer:ident,)* }
     stream { $($stream:ident $assoc:ident: $sargument:ident => $sanswer:ident,)* }
     $($rest:tt)*) => {
        #[tonic::async_trait]
        impl RuntimeService for FakeRuntime {
            $(async fn $name(&self, _: Request<v1::$argument>) -> Result<Response<v1::$answer>, Status> {
                Err(Status::unimplemented(stringify!($name)))
            })*
            $(type $assoc = Answers<v1::$sanswer>;
            async fn $stream(&self, _: Request<v1::$sargument>) -> Result<Response<Self::$assoc>, Status> {
                Err(Status::unimplemented(stringify!($stream)))
            })*
            $($rest)*
        }
    };
}

fake! {
    unary {
        update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse,
        reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse,
        attach: AttachRequest => AttachResponse,
        port_forward: PortForwardRequest => PortForwardResponse,
        container_stats: ContainerStatsRequest => ContainerStatsResponse,
        list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse,
        pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse,
        list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse,
        update_runtime_config: UpdateRuntimeConfigRequest => UpdateRuntimeConfigResponse,
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

    async fn version(&self, _: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "skiff".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let down = self.state.lock().network_down;
        let condition = |kind: &str, status| v1::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: if status { String::new() } else { "NetworkPluginNotReady".into() },
            message: if status { String::new() } else { "no network".into() },
        };
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", !down)];
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions }),
            ..Default::default()
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let config = request.into_inner().config.unwrap_or_default();
        let id = {
            let mut state = self.state.lock();
            state.next += 1;
            let id = format!("sandbox-{}", state.next);
            let ip = format!("10.0.0.{}", state.next);
            let metadata = config.metadata.clone().unwrap_or_default();
            state.calls.push(format!("run_pod_sandbox {}", metadata.name));
            let sandbox = v1::PodSandboxStatus {
                id: id.clone(),
                metadata: config.metadata,
                created_at: now(),
                network: Some(v1::PodSandboxNetworkStatus { ip, additional_ips: Vec::new() }),
                labels: config.labels,
                annotations: config.annotations,
                ..Default::default()
            };
            state.sandboxes.insert(id.clone(), sandbox);
            id
        };
        self.tell(&id, v1::ContainerEventType::Started);
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(&self, request: Request<v1::StopPodSandboxRequest>) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let ids: Vec<String> = {
            let mut state = self.state.lock();
            if let Some(sandbox) = state.sandboxes.get_mut(&id) {
                sandbox.state = v1::PodSandboxState::NotReady as i32;
            }
            state.containers.iter().filter(|(_, c)| c.sandbox_id == id).map(|(id, _)| id.clone()).collect()
        };
        ids.iter().for_each(|id| self.exit(id, 137));
        self.tell(&id, v1::ContainerEventType::Stopped);
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(&self, request: Request<v1::RemovePodSandboxRequest>) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.state.lock();
        state.sandboxes.remove(&id);
        state.containers.retain(|_, c| c.sandbox_id != id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(&self, request: Request<v1::PodSandboxStatusRequest>) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let status = self.state.lock().sandboxes.get(&id).cloned().ok_or_else(|| Status::not_found("no such sandbox"))?;
        Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn list_pod_sandbox(&self, request: Request<v1::ListPodSandboxRequest>) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let selector = request.into_inner().filter.unwrap_or_default().label_selector;
        let state = self.state.lock();
        let items = state.sandboxes.values().filter(|s| matches(&s.labels, &selector)).map(|s| v1::PodSandbox {
            id: s.id.clone(),
            metadata: s.metadata.clone(),
            state: s.state,
            created_at: s.created_at,
            labels: s.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
    }

    async fn create_container(&self, request: Request<v1::CreateContainerRequest>) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("container-{}", state.next);
        let metadata = config.metadata.clone().unwrap_or_default();
        state.calls.push(format!("create_container {}", metadata.name));
        let image = config.image.clone().unwrap_or_default();
        let logs = request.sandbox_config.unwrap_or_default().log_directory;
        let container = Container {
            behaviour: image.user_specified_image.clone(),
            status: v1::ContainerStatus {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: v1::ContainerState::Created as i32,
                created_at: now(),
                image_ref: image.image.clone(),
                image: config.image.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                mounts: config.mounts.clone(),
                log_path: format!("{logs}/{}", config.log_path),
                ..Default::default()
            },
            sandbox_id: request.pod_sandbox_id,
            config,
        };
        state.containers.insert(id.clone(), container);
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Result<Response<v1::StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let behaviour = {
            let mut state = self.state.lock();
            let container = state.containers.get_mut(&id).ok_or_else(|| Status::not_found("no such container"))?;
            container.status.state = v1::ContainerState::Running as i32;
            container.status.started_at = now();
            let path = std::path::PathBuf::from(&container.status.log_path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
            container.behaviour.clone()
        };
        self.tell(&id, v1::ContainerEventType::Started);
        if let Some(code) = behaviour.strip_prefix("exit-") {
            self.exit(&id, code.parse().unwrap());
        }
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        let slow = {
            let mut state = self.state.lock();
            let name = state.containers.get(&request.container_id).map(|c| c.status.metadata.clone().unwrap().name);
            state.calls.push(format!("stop_container {} {}", name.unwrap_or_default(), request.timeout));
            state.containers.get(&request.container_id).is_some_and(|c| c.behaviour == "slow")
        };
        if slow {
            tokio::time::sleep(std::time::Duration::from_secs(u64::try_from(request.timeout).unwrap())).await;
        }
        self.exit(&request.container_id, if slow { 137 } else { 0 });
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(&self, request: Request<v1::RemoveContainerRequest>) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        self.state.lock().containers.remove(&request.into_inner().container_id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Result<Response<v1::ListContainersResponse>, Status> {
        let selector = request.into_inner().filter.unwrap_or_default().label_selector;
        let state = self.state.lock();
        let containers = state.containers.values().filter(|c| matches(&c.status.labels, &selector)).map(|c| v1::Container {
            id: c.status.id.clone(),
            pod_sandbox_id: c.sandbox_id.clone(),
            metadata: c.status.metadata.clone(),
            state: c.status.state,
            created_at: c.status.created_at,
            labels: c.status.labels.clone(),
            annotations: c.status.annotations.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(&self, request: Request<v1::ContainerStatusRequest>) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        let state = self.state.lock();
        let container = state.containers.get(&id).ok_or_else(|| Status::not_found("no such container"))?;
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(container.status.clone()), ..Default::default() }))
    }

    /// Streams where the command says.
    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        let url = request.into_inner().cmd.into_iter().next().unwrap_or_default();
        Ok(Response::new(v1::ExecResponse { url }))
    }

    /// `fail` fails, `true` does not.
    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        self.state.lock().calls.push(format!("exec {}", request.cmd.join(" ")));
        let exit_code = i32::from(request.cmd.first().is_some_and(|c| c == "fail"));
        Ok(Response::new(v1::ExecSyncResponse { stdout: b"said".to_vec(), stderr: Vec::new(), exit_code }))
    }

    type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;
    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let events = BroadcastStream::new(self.events.subscribe());
        Ok(Response::new(Box::pin(events.map(|e| e.map_err(|e| Status::data_loss(e.to_string()))))))
    }
}

#[tonic::async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Result<Response<v1::ListImagesResponse>, Status> {
        Ok(Response::new(v1::ListImagesResponse::default()))
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
        let present =
            !name.starts_with("missing") && (!name.starts_with("pulled") || self.state.lock().pulled.contains(&name));
        let image = present.then(|| v1::Image { id: format!("sha256:{name}"), size: 42, ..Default::default() });
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }
    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        if name.starts_with("missing") {
            return Err(Status::not_found(format!("no such image {name}")));
        }
        self.state.lock().pulled.push(name.clone());
        Ok(Response::new(v1::PullImageResponse { image_ref: format!("sha256:{name}") }))
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
