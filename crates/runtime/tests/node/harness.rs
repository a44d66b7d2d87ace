//! A node for one test: directories, a runtime, an image, and their end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skiff_cri::{Channel, ImageServiceClient, RuntimeServiceClient, connect_in_process, v1};
use skiff_images::ImageStore;
use skiff_runtime::{NoNetwork, Runtime, RuntimeConfig};

use crate::guest;

pub(crate) const IMAGE: &str = "test.local/guest:1";
/// The parent of all cgroups of these tests.
fn cgroup() -> String {
    format!("/skiff-node-test-{}", std::process::id())
}

/// A node. Everything on it goes with it.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: Option<Runtime>,
    pub(crate) cri: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    pods: u32,
}

/// What a test asks of a container beyond the usual.
pub(crate) type Adjust<'a> = &'a dyn Fn(&mut v1::ContainerConfig);

/// Runs an asynchronous test.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

/// Serves CRI on a socket until SIGINT, and then cleans up.
pub(crate) fn serve(socket: &Path) {
    block_on(async {
        let node = Node::new().await;
        for archive in std::env::var("IMAGES").unwrap_or_default().split(':').filter(|a| !a.is_empty()) {
            let store = node.runtime.as_ref().expect("a runtime").images().clone();
            store.import_file(Path::new(archive)).expect("imports");
        }
        let runtime = Arc::new(node.runtime.clone().expect("a runtime"));
        let stop = async {
            let _ = tokio::signal::ctrl_c().await;
        };
        skiff_cri::serve_unix(socket, runtime.clone(), runtime, stop).await.expect("serves");
        node.finish().await;
    });
    clean_up();
}

fn config(dir: &Path) -> RuntimeConfig {
    let mut config = RuntimeConfig::new(&dir.join("root"), &dir.join("run"));
    config.cgroup_parent = cgroup();
    config
}

/// An image of this very program under the names of its commands.
fn import_image(store: &ImageStore) {
    let program = std::fs::read("/proc/self/exe").expect("readable");
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content).expect("in memory");
    };
    add("bin/guest", 0o755, &program);
    add("etc/passwd", 0o644, b"root:x:0:0::/root:\nweb:x:101:102::/srv:\n");
    add("etc/group", 0o644, b"root:x:0:\nweb:x:102:\nextra:x:200:web\n");
    add("etc/not-a-program", 0o644, b"text");
    add("bin/garbage", 0o755, b"\x01\x02 no program");
    for command in guest::COMMANDS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, format!("bin/{command}"), "guest").expect("in memory");
    }
    let layer = builder.into_inner().expect("in memory");
    let config = serde_json::json!({
        "os": "linux",
        "config": { "Env": ["PATH=/bin", "FROM=image"], "Cmd": ["echo", "default"] },
        "rootfs": { "type": "layers", "diff_ids": [skiff_images::Digest::of(&layer)] },
    })
    .to_string();
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }
    ])
    .to_string();
    let mut archive = tar::Builder::new(Vec::new());
    let files: [(&str, &[u8]); 3] =
        [("config.json", config.as_bytes()), ("layer.tar", &layer), ("manifest.json", manifest.as_bytes())];
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).expect("in memory");
    }
    store.import(&archive.into_inner().expect("in memory")[..]).expect("imports");
}

impl Node {
    pub(crate) async fn new() -> Node {
        let dir = tempfile::tempdir().expect("a directory");
        let store = ImageStore::open(&dir.path().join("images")).expect("a store");
        import_image(&store);
        let runtime = Runtime::open(config(dir.path()), store, Arc::new(NoNetwork)).await.expect("a runtime");
        let (cri, images) = connect_in_process(Arc::new(runtime.clone()), Arc::new(runtime.clone()));
        Node { dir, runtime: Some(runtime), cri, images, pods: 0 }
    }

    /// As if the daemon had been killed and started again: nothing is shut down.
    pub(crate) async fn restart(&mut self) {
        let old = self.runtime.take().expect("a runtime");
        let store = old.images().clone();
        old.close();
        let runtime = Runtime::open(config(self.dir.path()), store, Arc::new(NoNetwork)).await.expect("a runtime");
        let (cri, images) = connect_in_process(Arc::new(runtime.clone()), Arc::new(runtime.clone()));
        (self.cri, self.images) = (cri, images);
        self.runtime = Some(runtime);
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// The configuration of a further pod.
    pub(crate) fn pod_config(&mut self) -> v1::PodSandboxConfig {
        self.pods += 1;
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: format!("pod{}", self.pods),
                uid: format!("uid{}", self.pods),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: format!("pod{}", self.pods),
            log_directory: self.path(&format!("logs{}", self.pods)).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn run_pod(&mut self) -> (String, v1::PodSandboxConfig) {
        let config = self.pod_config();
        (self.run_pod_with(&config).await.expect("runs"), config)
    }

    pub(crate) async fn run_pod_with(&mut self, config: &v1::PodSandboxConfig) -> Result<String, skiff_cri::Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.cri.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) fn container_config(name: &str, command: &[&str]) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: IMAGE.into(), ..Default::default() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    seccomp: Some(v1::SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn create(
        &mut self,
        pod: &(String, v1::PodSandboxConfig),
        config: v1::ContainerConfig,
    ) -> Result<String, skiff_cri::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.0.clone(),
            config: Some(config),
            sandbox_config: Some(pod.1.clone()),
        };
        Ok(self.cri.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&mut self, id: &str) -> Result<(), skiff_cri::Status> {
        self.cri.start_container(v1::StartContainerRequest { container_id: id.into() }).await?;
        Ok(())
    }

    /// Creates and starts a container.
    pub(crate) async fn run(
        &mut self,
        pod: &(String, v1::PodSandboxConfig),
        name: &str,
        command: &[&str],
        adjust: Adjust<'_>,
    ) -> String {
        let mut config = Self::container_config(name, command);
        adjust(&mut config);
        let id = self.create(pod, config).await.expect("creates");
        self.start(&id).await.expect("starts");
        id
    }

    /// Runs a container to its end and returns its exit code and what it logged, by stream.
    pub(crate) async fn output(
        &mut self,
        pod: &(String, v1::PodSandboxConfig),
        command: &[&str],
        adjust: Adjust<'_>,
    ) -> (i32, String, String) {
        let name = format!("run{}", uuid::Uuid::new_v4().simple());
        let id = self.run(pod, &name, command, adjust).await;
        let status = self.wait_exited(&id).await;
        let log = self.log(pod, &name);
        let of = |stream: &str| {
            let lines = log.iter().filter(|(s, _)| s == stream).map(|(_, text)| text.as_str());
            lines.collect::<Vec<_>>().join("\n")
        };
        (status.exit_code, of("stdout"), of("stderr"))
    }

    /// The entries of a log: stream and text, pieces joined.
    pub(crate) fn log(&self, pod: &(String, v1::PodSandboxConfig), name: &str) -> Vec<(String, String)> {
        let path = Path::new(&pod.1.log_directory).join(format!("{name}.log"));
        let text = std::fs::read_to_string(path).expect("a log");
        let mut out: Vec<(String, String)> = Vec::new();
        let mut joins = false;
        for line in text.lines() {
            let mut parts = line.splitn(4, ' ');
            let (time, stream) = (parts.next().expect("time"), parts.next().expect("stream"));
            let (tag, text) = (parts.next().expect("tag"), parts.next().expect("text"));
            assert!(time.ends_with('Z') && time.len() == 30, "{time}");
            match out.last_mut().filter(|_| joins) {
                Some((_, before)) => before.push_str(text),
                None => out.push((stream.to_owned(), text.to_owned())),
            }
            joins = tag == "P";
        }
        out
    }

    pub(crate) async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = self.cri.container_status(request).await.expect("a status").into_inner();
        answer.status.expect("a status")
    }

    pub(crate) async fn wait_exited(&mut self, id: &str) -> v1::ContainerStatus {
        self.wait_for(id, |s| s.state == v1::ContainerState::Exited as i32).await
    }

    pub(crate) async fn wait_for(
        &mut self,
        id: &str,
        condition: impl Fn(&v1::ContainerStatus) -> bool,
    ) -> v1::ContainerStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status(id).await;
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until a log has a line.
    pub(crate) async fn wait_log(&self, pod: &(String, v1::PodSandboxConfig), name: &str, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.log(pod, name).iter().any(|(_, line)| line == text) {
            assert!(Instant::now() < deadline, "{text:?} is not in {:?}", self.log(pod, name));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn exec(&mut self, id: &str, command: &[&str]) -> (i32, String, String) {
        self.try_exec(id, command, 20).await.expect("runs")
    }

    pub(crate) async fn try_exec(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<(i32, String, String), skiff_cri::Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        let answer = self.cri.exec_sync(request).await?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").trim_end().to_owned();
        Ok((answer.exit_code, text(answer.stdout), text(answer.stderr)))
    }

    pub(crate) async fn stop(&mut self, id: &str, timeout: i64) {
        let request = v1::StopContainerRequest { container_id: id.into(), timeout };
        self.cri.stop_container(request).await.expect("stops");
    }

    /// The process id of a container's first process.
    pub(crate) async fn pid(&mut self, id: &str) -> i32 {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.cri.container_status(request).await.expect("a status").into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
        info["pid"].as_i64().expect("a number") as i32
    }

    /// Removes all pods and checks that nothing is left of them.
    pub(crate) async fn finish(mut self) {
        let pods = self.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        for pod in pods.expect("a list").into_inner().items {
            let pod_sandbox_id = pod.id;
            let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            self.cri.stop_pod_sandbox(request).await.expect("stops");
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id };
            self.cri.remove_pod_sandbox(request).await.expect("removes");
        }
        for dir in ["root/sandboxes", "root/containers", "run/sandboxes", "run/netns"] {
            let left = std::fs::read_dir(self.path(dir)).map_or(0, |entries| entries.count());
            assert_eq!(left, 0, "in {dir}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
        let own = self.dir.path().display().to_string();
        assert!(!mounts.contains(&own), "left mounted: {mounts}");
    }
}

impl Drop for Node {
    /// After a failure: ends what the test left.
    fn drop(&mut self) {
        let own = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if mount.starts_with(&own) {
                let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Ends supervisors that failed tests left, and counts and removes the cgroups of these tests.
pub(crate) fn clean_up() -> usize {
    let own = nix::unistd::getpid().to_string();
    for entry in std::fs::read_dir("/proc").expect("readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if parent == Some(&own)
            && let Ok(pid) = name.parse()
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let mut left = 0;
    for controller in std::fs::read_dir("/sys/fs/cgroup").expect("readable").flatten() {
        left += remove_below(&controller.path().join(cgroup().trim_start_matches('/')));
    }
    left
}

/// Removes a cgroup and returns how many there were below it.
fn remove_below(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            count += 1 + remove_below(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
    count
}
