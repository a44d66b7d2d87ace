//! Starting a container: back-off, image, environment, mounts, create, start, postStart.

use k8s_openapi::api::core::v1::Container;
use skiff_cri::v1;

use super::{CONFIG_RETRY, RETRY, Worker, hooks, plan::Start};
use crate::{
    backoff::go_seconds,
    container_config::{Parts, container_config, termination_mount},
    dns, env,
    fields::Addresses,
    images::Presence,
    pod::{PodExt, Role},
    sandbox_config::sandbox_config,
    status::Waiting,
};

/// The file in every container that the kubelet writes.
const HOSTS: &str = "/etc/hosts";

impl Worker {
    /// Starts a container if it is time. True if something was done.
    pub(super) async fn start(&mut self, start: &Start) -> bool {
        let container = &start.container;
        let name = container.name.as_str();
        if let Some((left, delay)) = self.in_back_off(name) {
            let full = self.pod.full_name();
            if self.waiting.get(name).is_none_or(|w| w.reason != "CrashLoopBackOff") {
                let event = format!("Back-off restarting failed container {name} in pod {full}");
                self.kubelet.container_warning(&self.pod, name, "BackOff", &event);
            }
            let message = format!("back-off {} restarting failed container={name} pod={full}", go_seconds(delay));
            self.wait(name, "CrashLoopBackOff", message);
            self.look_again(left);
            return false;
        }
        let image = match self.kubelet.images.ensure(&self.kubelet, &self.pod, container).await {
            Presence::Present(image) => image,
            Presence::Pulling => {
                // Shows the last failure until the pull is over.
                return false;
            }
            Presence::Missing(waiting, retry) => {
                self.waiting.insert(name.to_owned(), waiting);
                self.look_again(retry.unwrap_or(CONFIG_RETRY));
                return false;
            }
        };
        if let Some(ended) = self.ended_at(name) {
            self.backoffs.next(&name.to_owned(), ended, self.kubelet.now());
        }
        match self.create_and_start(start, &image).await {
            Ok(()) => {
                self.waiting.remove(name);
                true
            }
            Err((reason, message)) => {
                let again = reason == "RunContainerError" || reason == "PostStartHookError";
                self.wait(name, reason, message);
                if !again {
                    self.look_again(CONFIG_RETRY);
                }
                // What failed after it was created is to be seen.
                again
            }
        }
    }

    fn wait(&mut self, name: &str, reason: &str, message: String) {
        self.waiting.insert(name.to_owned(), Waiting { reason: reason.to_owned(), message });
    }

    fn in_back_off(&self, name: &str) -> Option<(std::time::Duration, std::time::Duration)> {
        self.backoffs.remaining(&name.to_owned(), self.ended_at(name)?, self.kubelet.now())
    }

    /// The error is the reason and the message of the container's waiting state.
    async fn create_and_start(&mut self, start: &Start, image: &v1::Image) -> Result<(), (&'static str, String)> {
        let container = &start.container;
        let name = container.name.as_str();
        let Some(sandbox) = self.observed.ready_sandbox().cloned() else {
            return Err(("CreateContainerError", "the pod has no sandbox".to_owned()));
        };
        let failed = |reason: &'static str, message: String| {
            self.kubelet.container_warning(&self.pod, name, "Failed", &format!("Error: {message}"));
            (reason, message)
        };
        let restart_count = self.next_restart_count(name);
        let config = self
            .configure(start, image, restart_count)
            .await
            .map_err(|message| failed("CreateContainerConfigError", message))?;
        // One that was created and never started, by a kubelet that ended in between.
        if let Some(latest) = self.observed.latest(name).filter(|c| !c.is_exited() && !c.is_running()) {
            let removed = self.kubelet.runtime.remove_container(latest.id()).await;
            removed.map_err(|e| failed("CreateContainerError", e.to_string()))?;
        }
        let attempt = sandbox.metadata.as_ref().map_or(0, |m| m.attempt);
        let sandbox_config =
            sandbox_config(&self.pod, attempt, &self.kubelet.config, &self.kubelet.resolv_conf(), self.start_time)
                .map_err(|message| failed("CreateContainerConfigError", message))?;
        // CRI leaves the directory of the log to the kubelet.
        let logs = std::path::Path::new(&sandbox_config.log_directory).join(name);
        tokio::fs::create_dir_all(&logs)
            .await
            .map_err(|e| failed("CreateContainerError", format!("cannot make {}: {e}", logs.display())))?;
        let id = self
            .kubelet
            .runtime
            .create_container(&sandbox.id, config, sandbox_config)
            .await
            .map_err(|e| failed("CreateContainerError", e.to_string()))?;
        self.kubelet.container_event(&self.pod, name, "Created", "Container created");
        self.kubelet.runtime.start_container(&id).await.map_err(|e| failed("RunContainerError", e.to_string()))?;
        self.kubelet.container_event(&self.pod, name, "Started", "Container started");
        self.post_start(container, &id).await
    }

    async fn post_start(&self, container: &Container, id: &str) -> Result<(), (&'static str, String)> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let pod_ip = self.pod_ip();
        let ran = tokio::select! {
            ran = hooks::run(&self.kubelet, container, id, &pod_ip, hook) => ran,
            // The container is about to be stopped.
            () = self.handle.ended() => return Ok(()),
        };
        let Err(message) = ran else { return Ok(()) };
        let name = container.name.as_str();
        self.kubelet.container_warning(&self.pod, name, "FailedPostStartHook", "PostStartHook failed");
        self.kubelet.container_event(&self.pod, name, "Killing", "FailedPostStartHook");
        let grace = self.pod.grace_period();
        if let Err(error) = self.kubelet.runtime.stop_container(id, grace).await {
            tracing::warn!(container = id, %error, "cannot stop a container whose postStart hook failed");
        }
        Err(("PostStartHookError", message))
    }

    /// One more than the last run's; if the runtime has forgotten it, by its log or by the status.
    fn next_restart_count(&self, name: &str) -> u32 {
        if let Some(latest) = self.observed.latest(name) {
            return latest.restart_count + u32::from(latest.is_exited() || latest.is_running());
        }
        let pod = &self.pod;
        let dir = self.kubelet.config.pod_log_dir(pod.namespace(), pod.name(), self.handle.uid.as_str()).join(name);
        let logs = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let runs = logs.filter_map(|e| e.file_name().to_str()?.split('.').next()?.parse::<u32>().ok());
        runs.max().map_or(0, |last| last + 1)
    }

    async fn configure(
        &self,
        start: &Start,
        image: &v1::Image,
        restart_count: u32,
    ) -> Result<v1::ContainerConfig, String> {
        let container = &start.container;
        let env = self.environment(container).await?;
        let mut mounts = self.volumes.container_mounts(&self.kubelet, &self.pod, container, &env)?;
        let devices = self.volumes.container_devices(container)?;
        let dir = self.kubelet.config.pod_dir(self.handle.uid.as_str());
        if mounts.iter().all(|m| m.container_path != HOSTS) {
            let hosts = dir.join("etc-hosts");
            self.write_hosts(&hosts).map_err(|e| format!("cannot write {}: {e}", hosts.display()))?;
            mounts.push(v1::Mount {
                container_path: HOSTS.to_owned(),
                host_path: hosts.to_string_lossy().into_owned(),
                readonly: container
                    .security_context
                    .as_ref()
                    .is_some_and(|s| s.read_only_root_filesystem == Some(true)),
                ..Default::default()
            });
        }
        let container_dir = dir.join("containers").join(&container.name);
        let message = termination_mount(&container_dir, container)
            .map_err(|e| format!("cannot make the termination log: {e}"))?;
        mounts.extend(message);
        let target_id = match start.role {
            Role::Ephemeral => self.target_of(&container.name)?,
            _ => None,
        };
        let node_memory = self.kubelet.capacity.memory_bytes;
        container_config(
            &self.pod,
            container,
            Parts { restart_count, image, env, mounts, devices, node_memory, target_id },
        )
    }

    /// The container whose processes an ephemeral container is to see.
    fn target_of(&self, name: &str) -> Result<Option<String>, String> {
        let spec = PodExt::spec(&*self.pod);
        let ephemeral = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name);
        let Some(target) = ephemeral.and_then(|c| c.target_container_name.as_deref()).filter(|t| !t.is_empty()) else {
            return Ok(None);
        };
        match self.observed.current(target) {
            Some(found) => Ok(Some(found.id().to_owned())),
            None => Err(format!("unable to find target container {target}")),
        }
    }

    async fn environment(&self, container: &Container) -> Result<Vec<(String, Vec<u8>)>, String> {
        let kubelet = &self.kubelet;
        let namespace = self.pod.namespace();
        let (config_maps, secrets) = env::references(container);
        let mut sources = env::Sources::default();
        for name in config_maps {
            let found = kubelet.config_maps.get(namespace, &name, &self.handle.uid).await.map_err(|e| e.to_string())?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = kubelet.secrets.get(namespace, &name, &self.handle.uid).await.map_err(|e| e.to_string())?;
            sources.secrets.insert(name, found);
        }
        if !kubelet.services.is_synced()
            && tokio::time::timeout(RETRY * 5, kubelet.services.wait_synced()).await.is_err()
        {
            return Err("services have not yet been read at least once, cannot construct envs".to_owned());
        }
        let mut services = kubelet.services.list_namespace(namespace);
        if namespace != "default" {
            services.extend(kubelet.services.get("default", "kubernetes"));
        }
        let addresses = Addresses { pod_ips: self.pod_ips(), host_ips: kubelet.config.host_ips() };
        let context = env::Context {
            sources: &sources,
            services: &services,
            addresses: &addresses,
            allocatable: &kubelet.capacity.allocatable(),
        };
        env::environment(&self.pod, container, &context)
    }

    fn write_hosts(&self, path: &std::path::Path) -> std::io::Result<()> {
        let node_hosts = match self.pod.host_network() {
            true => Some(std::fs::read_to_string(HOSTS).unwrap_or_default()),
            false => None,
        };
        let domain = &self.kubelet.config.cluster_domain;
        let text = dns::hosts_file(&self.pod, &self.observed.pod_ips(), domain, node_hosts.as_deref());
        // Written in place: running containers have this very file.
        std::fs::write(path, text)
    }
}
