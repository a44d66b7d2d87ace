//! The runtime service: CRI's calls, each handed on to where it is done.

mod container;
mod exec;
mod image;
mod sandbox;
mod spec;
mod stats;

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use skiff_cri::{Request, Response, RuntimeService, Status, v1};
use tokio::sync::broadcast::error::RecvError;

pub(crate) use exec::{ExecProcess, input_pipe, output_pipe};

use crate::error::Error;
use crate::runtime::Runtime;
use crate::supervisor::log::now_nanoseconds;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// The version of the kubelet's runtime API, which has been the same for ever.
const KUBE_API_VERSION: &str = "0.1.0";
/// Items in one message of a streamed list.
const LIST_CHUNK: usize = 100;

/// Whether the labels have all that is selected.
fn matches_labels(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A list in pieces; an empty one has none.
fn list_stream<T: Send + Clone + 'static, M: Send + 'static>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Response<Answers<M>> {
    let chunks: Vec<Vec<T>> = items.chunks(LIST_CHUNK).map(<[T]>::to_vec).collect();
    Response::new(Box::pin(futures::stream::iter(chunks).map(move |chunk| Ok(message(chunk)))))
}

fn unsupported<T>(what: &str) -> Answer<T> {
    Err(Error::Unsupported(format!("{what} is not supported by this runtime")).into())
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: KUBE_API_VERSION.to_owned(),
            runtime_name: "skiff".to_owned(),
            runtime_version: self.0.config.version.clone(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition = |kind: &str, problem: Option<(&str, String)>| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: problem.is_none(),
            reason: problem.as_ref().map_or(String::new(), |(reason, _)| (*reason).to_owned()),
            message: problem.map_or(String::new(), |(_, message)| message),
        };
        let network = self
            .0
            .network
            .status()
            .err()
            .map(|e| ("NetworkPluginNotReady", format!("Network plugin returns error: {e}")));
        let mut info = BTreeMap::new();
        if request.into_inner().verbose {
            let config = serde_json::json!({
                "root": self.0.config.root,
                "run": self.0.config.run,
                "cgroupVersion": if self.0.cgroups.is_v2() { 2 } else { 1 },
            });
            info.insert("config".to_owned(), config.to_string());
        }
        let features = || Some(v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false });
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", network)],
            }),
            info,
            runtime_handlers: ["", "skiff"]
                .map(|name| v1::RuntimeHandler { name: name.to_owned(), features: features() })
                .into(),
            features: Some(v1::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        }))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        Ok(Response::new(v1::RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 }),
        }))
    }

    /// The pod network's range is the business of whoever provides the network.
    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let runtime = self.clone();
        // To the end, though the caller give up: what is half made could not be found again.
        let made = tokio::spawn(async move { runtime.run_sandbox(request.into_inner()).await });
        let pod_sandbox_id = made.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        self.stop_sandbox(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.remove_sandbox(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let containers = self.containers_of(&sandbox.id);
        let mut info = BTreeMap::new();
        if request.verbose {
            let netns = self.0.config.netns_pin(&sandbox.id);
            let text = serde_json::json!({ "netns": netns, "runtime": "skiff" });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(self.sandbox_status(&sandbox)),
            info,
            containers_statuses: containers.iter().map(|c| self.container_status(c)).collect(),
            timestamp: now_nanoseconds(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = self.list_sandboxes(request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Answers<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.list_sandboxes(request.into_inner().filter);
        Ok(list_stream(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let container_id = self.create_container(request.into_inner()).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let runtime = self.clone();
        let id = request.into_inner().container_id;
        let started = tokio::spawn(async move { runtime.start_container(&id).await });
        started.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let v1::StopContainerRequest { container_id, timeout } = request.into_inner();
        self.stop_container(&container_id, timeout).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.remove_container(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let containers = self.list_containers(request.into_inner().filter);
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Answers<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = self.list_containers(request.into_inner().filter);
        Ok(list_stream(containers, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.container(&request.container_id)?;
        let mut info = BTreeMap::new();
        if request.verbose {
            let pid = container.state.borrow().pid;
            let text = serde_json::json!({ "pid": pid, "runtimeType": "skiff" });
            info.insert("info".to_owned(), text.to_string());
        }
        let status = Some(self.container_status(&container));
        Ok(Response::new(v1::ContainerStatusResponse { status, info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.update_container(&request.container_id, request.linux.unwrap_or_default()).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.reopen_log(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        Ok(Response::new(self.exec_sync(request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        let url = self.streaming_url(crate::streaming::Ticket::Exec(request))?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        let url = self.streaming_url(crate::streaming::Ticket::Attach(request))?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        sandbox.client()?;
        let url = self.streaming_url(crate::streaming::Ticket::PortForward(request))?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        let stats = Some(self.container_stats(&container)?);
        Ok(Response::new(v1::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = self.list_container_stats(request.into_inner().filter);
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Answers<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.list_container_stats(request.into_inner().filter);
        Ok(list_stream(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        let stats = Some(self.pod_stats(&sandbox));
        Ok(Response::new(v1::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = self.list_pod_stats(request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Answers<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.list_pod_stats(request.into_inner().filter);
        Ok(list_stream(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let receiver = self.0.events.subscribe();
        let events = futures::stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), receiver)),
                // Never silently: who missed something must list again.
                Err(RecvError::Lagged(missed)) => {
                    let text = format!("{missed} events were lost, list and subscribe again");
                    Some((Err(Status::data_loss(text)), receiver))
                }
                Err(RecvError::Closed) => None,
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        unsupported("checkpointing containers")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        unsupported("listing metrics")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        unsupported("listing metrics")
    }

    type StreamPodSandboxMetricsStream = Answers<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        unsupported("listing metrics")
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        // The pod's cgroup is the kubelet's; this only tells that it has changed it.
        self.sandbox(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }
}
