//! The runtime's services as the kubelet calls them: calls that change something are never cut short, because a
//! runtime need not be prepared for a client that leaves in the middle.

use std::{collections::BTreeMap, future::Future};

use skiff_cri::{Channel, Code, ImageServiceClient, RuntimeServiceClient, Status, v1};

use crate::{names, pod::PodUid};

/// A call to the runtime that failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime's answer.
    #[error("{}", .0.message())]
    Answer(#[source] Box<Status>),
    /// An answer without what it must have.
    #[error("the container runtime answered without {0}")]
    Incomplete(&'static str),
    /// The call's task ended early, as it does when the process stops.
    #[error("the call to the container runtime was broken off")]
    BrokenOff,
}

impl From<Status> for RuntimeError {
    fn from(status: Status) -> Self {
        RuntimeError::Answer(Box::new(status))
    }
}

impl RuntimeError {
    /// The runtime does not know what was named.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, RuntimeError::Answer(status) if status.code() == Code::NotFound)
    }

    /// The runtime does not offer the call.
    pub(crate) fn is_unimplemented(&self) -> bool {
        matches!(self, RuntimeError::Answer(status) if status.code() == Code::Unimplemented)
    }

    /// Time ran out.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, RuntimeError::Answer(status) if status.code() == Code::DeadlineExceeded)
    }
}

type Result<T> = std::result::Result<T, RuntimeError>;

/// Both services of a runtime. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// Runs to its end even if the caller does not wait for it.
fn whole<T: Send + 'static>(
    call: impl Future<Output = std::result::Result<T, Status>> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    // Spawned here and not in the future: a call's state is large, and a worker's should be small.
    let task = tokio::spawn(call);
    async move {
        match task.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(RuntimeError::BrokenOff),
        }
    }
}

fn uid_selector(uid: &PodUid) -> BTreeMap<String, String> {
    [(names::POD_UID.to_owned(), uid.as_str().to_owned())].into()
}

/// Not being there is no error for who wants it gone.
fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

impl Runtime {
    pub(crate) fn new(runtime: RuntimeServiceClient<Channel>, images: ImageServiceClient<Channel>) -> Runtime {
        Runtime { runtime, images }
    }

    pub(crate) async fn version(&self) -> Result<v1::VersionResponse> {
        let request = v1::VersionRequest { version: "v1".into() };
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    pub(crate) async fn status(&self) -> Result<v1::StatusResponse> {
        Ok(self.runtime.clone().status(v1::StatusRequest::default()).await?.into_inner())
    }

    pub(crate) async fn update_pod_cidr(&self, pod_cidr: &str) -> Result<()> {
        let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        self.runtime.clone().update_runtime_config(request).await?;
        Ok(())
    }

    /// All sandboxes that were made for pods.
    pub(crate) async fn all_sandboxes(&self) -> Result<Vec<v1::PodSandbox>> {
        Ok(self.runtime.clone().list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items)
    }

    pub(crate) async fn sandboxes_of(&self, uid: &PodUid) -> Result<Vec<v1::PodSandbox>> {
        let filter = v1::PodSandboxFilter { label_selector: uid_selector(uid), ..Default::default() };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    /// `None` if it is not there (any more).
    pub(crate) async fn sandbox_status(&self, id: &str) -> Result<Option<v1::PodSandboxStatus>> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        match self.runtime.clone().pod_sandbox_status(request).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    pub(crate) async fn containers_of(&self, uid: &PodUid) -> Result<Vec<v1::Container>> {
        let filter = v1::ContainerFilter { label_selector: uid_selector(uid), ..Default::default() };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(request).await?.into_inner().containers)
    }

    /// All containers of all pods.
    pub(crate) async fn all_containers(&self) -> Result<Vec<v1::Container>> {
        Ok(self.runtime.clone().list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers)
    }

    /// `None` if it is not there (any more).
    pub(crate) async fn container_status(&self, id: &str) -> Result<Option<v1::ContainerStatus>> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.runtime.clone().container_status(request).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    pub(crate) async fn run_sandbox(&self, config: v1::PodSandboxConfig, handler: String) -> Result<String> {
        let mut client = self.runtime.clone();
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        let answer = whole(async move { client.run_pod_sandbox(request).await }).await?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(whole(async move { client.stop_pod_sandbox(request).await }).await.map(drop))
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(whole(async move { client.remove_pod_sandbox(request).await }).await.map(drop))
    }

    pub(crate) async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String> {
        let mut client = self.runtime.clone();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(whole(async move { client.create_container(request).await }).await?.into_inner().container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        whole(async move { client.start_container(request).await }).await.map(drop)
    }

    /// Waits until the container has ended: `timeout_s` seconds after its signal at the latest.
    pub(crate) async fn stop_container(&self, id: &str, timeout_s: i64) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: timeout_s };
        gone_is_fine(whole(async move { client.stop_container(request).await }).await.map(drop))
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(whole(async move { client.remove_container(request).await }).await.map(drop))
    }

    /// Has the container's output written to a new file under the name of its log.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(request).await?;
        Ok(())
    }

    /// Runs a command to its end; 0 seconds for no limit.
    pub(crate) async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout_s: i64) -> Result<v1::ExecSyncResponse> {
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: timeout_s };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    pub(crate) async fn exec(&self, request: v1::ExecRequest) -> Result<String> {
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    pub(crate) async fn attach(&self, request: v1::AttachRequest) -> Result<String> {
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    pub(crate) async fn port_forward(&self, sandbox_id: &str, port: Vec<i32>) -> Result<String> {
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port };
        Ok(self.runtime.clone().port_forward(request).await?.into_inner().url)
    }

    pub(crate) async fn events(
        &self,
    ) -> Result<impl futures::Stream<Item = std::result::Result<v1::ContainerEventResponse, Status>> + use<>> {
        Ok(self.runtime.clone().get_container_events(v1::GetEventsRequest {}).await?.into_inner())
    }

    pub(crate) async fn container_stats(&self) -> Result<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest::default();
        Ok(self.runtime.clone().list_container_stats(request).await?.into_inner().stats)
    }

    pub(crate) async fn images(&self) -> Result<Vec<v1::Image>> {
        Ok(self.images.clone().list_images(v1::ListImagesRequest::default()).await?.into_inner().images)
    }

    pub(crate) async fn image_status(&self, image: &str) -> Result<Option<v1::Image>> {
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = v1::ImageStatusRequest { image: Some(spec), verbose: false };
        match self.images.clone().image_status(request).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Removes an image with all its names.
    pub(crate) async fn remove_image(&self, image: &str) -> Result<()> {
        let mut client = self.images.clone();
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = v1::RemoveImageRequest { image: Some(spec) };
        gone_is_fine(whole(async move { client.remove_image(request).await }).await.map(drop))
    }

    /// A directory of the file system that images are on, if the runtime tells.
    pub(crate) async fn image_filesystem(&self) -> Result<Option<String>> {
        let answer = self.images.clone().image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
        Ok(answer.image_filesystems.into_iter().next().and_then(|fs| fs.fs_id).map(|id| id.mountpoint))
    }

    pub(crate) async fn pull_image(&self, image: &str, auth: Option<v1::AuthConfig>) -> Result<String> {
        let mut client = self.images.clone();
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = v1::PullImageRequest { image: Some(spec), auth, sandbox_config: None };
        Ok(whole(async move { client.pull_image(request).await }).await?.into_inner().image_ref)
    }
}
