//! The life of a sandbox.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use skiff_cri::v1;

use super::matches_labels;
use super::spec::{namespaces, shares_pid};
use crate::error::{Error, Result};
use crate::network::{PodNetworkRequest, PortMapping};
use crate::record::SandboxRecord;
use crate::runtime::{Runtime, Sandbox, lock};
use crate::spec::{Call, SandboxSpec};
use crate::supervisor::log::now_nanoseconds;

/// Shared memory of a pod, as everywhere.
const SHM_BYTES: u64 = 64 << 20;
/// How long killed containers may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Parameters that make low ports and ping usable without privileges, safe in a namespace of one's own.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// A new id: 64 random hexadecimal digits.
pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn in_node_network(config: &v1::PodSandboxConfig) -> bool {
    namespaces(config).network == v1::NamespaceMode::Node as i32
}

impl Runtime {
    pub(crate) async fn run_sandbox(&self, request: v1::RunPodSandboxRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::Invalid("a sandbox needs a configuration".to_owned()))?;
        check(&config, &request.runtime_handler)?;
        let id = new_id();
        let sandbox = self.reserve_sandbox(&id, config, request.runtime_handler)?;
        let _busy = sandbox.busy.lock().await;
        let made = self.make_sandbox(&sandbox).await;
        if let Err(error) = made {
            if let Err(e) = self.stop_sandbox_parts(&sandbox).await {
                tracing::warn!(sandbox = %id, error = %e, "cannot undo a sandbox");
            }
            lock(&self.0.sandboxes).remove(&id);
            self.clean_sandbox_files(&id);
            return Err(error);
        }
        self.emit(&sandbox, &id, v1::ContainerEventType::Created);
        self.emit(&sandbox, &id, v1::ContainerEventType::Started);
        Ok(id)
    }

    /// Registers a sandbox, so that no second one is made for the same attempt.
    fn reserve_sandbox(&self, id: &str, config: v1::PodSandboxConfig, runtime_handler: String) -> Result<Arc<Sandbox>> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let mut sandboxes = lock(&self.0.sandboxes);
        let taken = sandboxes.values().find(|s| lock(&s.record).config.metadata.as_ref() == Some(&metadata));
        if let Some(other) = taken {
            let v1::PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
            return Err(Error::Reserved {
                kind: "sandbox",
                name: format!("{name}_{namespace}_{uid}_{attempt}"),
                id: other.id.clone(),
            });
        }
        let record = SandboxRecord {
            id: id.to_owned(),
            config,
            runtime_handler,
            created_at: now_nanoseconds(),
            ..Default::default()
        };
        let sandbox = Arc::new(Sandbox {
            id: id.to_owned(),
            dir: self.0.config.sandbox_dir(id),
            run_dir: self.0.config.sandbox_run_dir(id),
            record: Mutex::new(record),
            client: Mutex::new(None),
            busy: tokio::sync::Mutex::new(()),
            execs: Mutex::default(),
        });
        sandboxes.insert(id.to_owned(), sandbox.clone());
        Ok(sandbox)
    }

    async fn make_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let config = lock(&sandbox.record).config.clone();
        for dir in [&sandbox.dir, &sandbox.run_dir] {
            std::fs::create_dir_all(dir).map_err(Error::io("create the sandbox's directory"))?;
        }
        sandbox.update(|_| {})?;
        if !config.log_directory.is_empty() {
            std::fs::create_dir_all(&config.log_directory).map_err(Error::io("create the sandbox's log directory"))?;
        }
        write_files(&sandbox.run_dir, &config).map_err(Error::io("write the sandbox's files"))?;
        crate::client::spawn(&self.0.config.supervisor, &sandbox.run_dir)
            .map_err(Error::io("start the pod's supervisor"))?;
        let client = self.connect(sandbox).map_err(Error::io("connect to the pod's supervisor"))?;
        let spec = self.sandbox_spec(sandbox, &config);
        client.call(Call::Init(spec), Vec::new()).await.map_err(Error::supervisor("create the sandbox"))?;
        if !in_node_network(&config) {
            // Noted first: after a crash in between the network is torn down.
            sandbox.update(|record| record.networked = true)?;
            let ips = self.0.network.setup(&self.network_request(sandbox)).await.map_err(|source| Error::Network {
                what: "setup",
                id: sandbox.id.clone(),
                source,
            })?;
            sandbox.update(|record| record.ips = ips.iter().map(ToString::to_string).collect())?;
        }
        sandbox.update(|record| record.ready = true)
    }

    fn sandbox_spec(&self, sandbox: &Sandbox, config: &v1::PodSandboxConfig) -> SandboxSpec {
        let node_network = in_node_network(config);
        let host_ipc = namespaces(config).ipc == v1::NamespaceMode::Node as i32;
        let mut sysctls = std::collections::BTreeMap::new();
        if !node_network {
            sysctls.extend(DEFAULT_SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        if let Some(linux) = &config.linux {
            sysctls.extend(linux.sysctls.clone());
        }
        SandboxSpec {
            // A pod in the node's network has the node's name too.
            hostname: (!node_network).then(|| config.hostname.clone()),
            netns_pin: (!node_network).then(|| self.0.config.netns_pin(&sandbox.id)),
            host_ipc,
            shm: (!host_ipc).then(|| sandbox.run_dir.join("shm")),
            shm_bytes: SHM_BYTES,
            share_pid: shares_pid(config),
            sysctls,
        }
    }

    fn network_request(&self, sandbox: &Sandbox) -> PodNetworkRequest {
        let record = lock(&sandbox.record);
        let metadata = record.config.metadata.clone().unwrap_or_default();
        let mapping = |mapping: &v1::PortMapping| {
            let port = |n: i32| u16::try_from(n).ok().filter(|port| *port != 0);
            Some(PortMapping {
                host_port: port(mapping.host_port)?,
                container_port: port(mapping.container_port)?,
                protocol: match v1::Protocol::try_from(mapping.protocol) {
                    Ok(v1::Protocol::Udp) => "udp",
                    Ok(v1::Protocol::Sctp) => "sctp",
                    _ => "tcp",
                },
                host_ip: mapping.host_ip.clone(),
            })
        };
        PodNetworkRequest {
            sandbox_id: sandbox.id.clone(),
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            netns: self.0.config.netns_pin(&sandbox.id),
            port_mappings: record.config.port_mappings.iter().filter_map(mapping).collect(),
            annotations: record.config.annotations.clone().into_iter().collect(),
        }
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let sandbox = match self.sandbox(id) {
            // Stopping what is gone is done.
            Err(Error::NotFound { .. }) => return Ok(()),
            sandbox => sandbox?,
        };
        let _busy = sandbox.busy.lock().await;
        self.stop_sandbox_parts(&sandbox).await
    }

    /// Ends the containers, takes down the network and lets the namespaces go. May be repeated.
    async fn stop_sandbox_parts(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let was_ready = lock(&sandbox.record).ready;
        if sandbox.dir.exists() {
            sandbox.update(|record| record.ready = false)?;
        }
        let client = lock(&sandbox.client).clone();
        if let Some(client) = client {
            // Gone already is as good.
            let _ = client.call(Call::Shutdown, Vec::new()).await;
            for container in self.containers_of(&sandbox.id) {
                if container.is_running() && !container.wait_ended(KILL_PATIENCE).await {
                    let id = &container.id;
                    return Err(Error::Deadline(format!("container {id:?} does not end when killed")));
                }
            }
        }
        let networked = lock(&sandbox.record).networked;
        if networked {
            let request = self.network_request(sandbox);
            self.0.network.teardown(&request).await.map_err(|source| Error::Network {
                what: "destroy",
                id: sandbox.id.clone(),
                source,
            })?;
            sandbox.update(|record| record.networked = false)?;
        }
        self.release_mounts(&sandbox.id)?;
        if was_ready {
            self.emit(sandbox, &sandbox.id, v1::ContainerEventType::Stopped);
        }
        Ok(())
    }

    /// Takes off what a sandbox has mounted on the node.
    fn release_mounts(&self, id: &str) -> Result<()> {
        let shm = self.0.config.sandbox_run_dir(id).join("shm");
        let pin = self.0.config.netns_pin(id);
        for path in [&shm, &pin] {
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Not mounted, or not there.
                Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
                Err(e) => return Err(Error::io(format!("unmount {}", path.display()))(e.into())),
            }
        }
        match std::fs::remove_file(&pin) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", pin.display()))(e)),
            _ => Ok(()),
        }
    }

    /// Removes the files of a sandbox that is not known any more.
    pub(crate) fn clean_sandbox_files(&self, id: &str) {
        if let Err(e) = self.release_mounts(id) {
            tracing::warn!(sandbox = %id, error = %e, "cannot clean up");
        }
        for dir in [self.0.config.sandbox_run_dir(id), self.0.config.sandbox_dir(id)] {
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(dir = %dir.display(), error = %e, "cannot clean up");
                }
                _ => {}
            }
        }
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let sandbox = match self.sandbox(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            sandbox => sandbox?,
        };
        {
            let _busy = sandbox.busy.lock().await;
            self.stop_sandbox_parts(&sandbox).await?;
        }
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container.id).await?;
        }
        let _busy = sandbox.busy.lock().await;
        self.clean_sandbox_files(&sandbox.id);
        lock(&self.0.sandboxes).remove(&sandbox.id);
        self.emit(&sandbox, &sandbox.id, v1::ContainerEventType::Deleted);
        Ok(())
    }

    pub(crate) fn sandbox_status(&self, sandbox: &Sandbox) -> v1::PodSandboxStatus {
        let record = lock(&sandbox.record);
        let mut ips = record.ips.iter().cloned();
        v1::PodSandboxStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: state_of(&record) as i32,
            created_at: record.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(namespaces(&record.config)) }),
            }),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            runtime_handler: record.runtime_handler.clone(),
        }
    }

    pub(crate) fn list_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let sandboxes = lock(&self.0.sandboxes);
        let mut out = Vec::new();
        for sandbox in sandboxes.values() {
            let record = lock(&sandbox.record);
            let state = state_of(&record) as i32;
            // One that is being made is nobody's business yet.
            let being_made = !record.ready && record.ips.is_empty() && sandbox.busy.try_lock().is_err();
            if being_made
                || !record.id.starts_with(&filter.id)
                || filter.state.as_ref().is_some_and(|wanted| wanted.state != state)
                || !matches_labels(&filter.label_selector, &record.config.labels)
            {
                continue;
            }
            out.push(v1::PodSandbox {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                state,
                created_at: record.created_at,
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
                runtime_handler: record.runtime_handler.clone(),
            });
        }
        out
    }

    /// The pod's own cgroup.
    pub(crate) fn pod_cgroup(&self, sandbox: &Sandbox) -> String {
        let record = lock(&sandbox.record);
        let parent = record.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        match parent.trim_matches('/') {
            "" => format!("{}/{}", self.0.config.cgroup_parent.trim_end_matches('/'), sandbox.id),
            parent => format!("/{parent}"),
        }
    }
}

fn state_of(record: &SandboxRecord) -> v1::PodSandboxState {
    if record.ready { v1::PodSandboxState::Ready } else { v1::PodSandboxState::NotReady }
}

/// Refuses what cannot work.
fn check(config: &v1::PodSandboxConfig, handler: &str) -> Result<()> {
    if config.metadata.is_none() {
        return Err(Error::Invalid("a sandbox needs metadata".to_owned()));
    }
    if !handler.is_empty() && handler != "skiff" && handler != "runc" {
        return Err(Error::Invalid(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured")));
    }
    let options = namespaces(config);
    if options.userns_options.is_some_and(|u| u.mode == v1::NamespaceMode::Pod as i32) {
        return Err(Error::Unsupported("user namespaces are not supported".to_owned()));
    }
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    if parent.split('/').any(|name| name == "..") {
        return Err(Error::Invalid(format!("invalid cgroup parent {parent:?}")));
    }
    for name in config.linux.iter().flat_map(|linux| linux.sysctls.keys()) {
        // Only those that belong to a namespace of the pod; the others are the node's.
        let net = name.starts_with("net.") && !in_node_network(config);
        let ipc = (name.starts_with("fs.mqueue.")
            || name.starts_with("kernel.shm")
            || name.starts_with("kernel.msg")
            || name == "kernel.sem")
            && options.ipc != v1::NamespaceMode::Node as i32;
        if !(net || ipc) || name.contains("..") || name.contains('/') {
            return Err(Error::Invalid(format!("sysctl {name:?} is not in a separate kernel namespace")));
        }
    }
    Ok(())
}

/// The files that containers of the pod find in `/etc`.
fn write_files(dir: &Path, config: &v1::PodSandboxConfig) -> io::Result<()> {
    let hostname = match in_node_network(config) {
        true => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        false => config.hostname.clone(),
    };
    std::fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\t{hostname}\n"
    );
    std::fs::write(dir.join("hosts"), hosts)?;
    let resolv = match &config.dns_config {
        Some(dns) if *dns != v1::DnsConfig::default() => {
            let mut text = String::new();
            if !dns.searches.is_empty() {
                text.push_str(&format!("search {}\n", dns.searches.join(" ")));
            }
            for server in &dns.servers {
                text.push_str(&format!("nameserver {server}\n"));
            }
            if !dns.options.is_empty() {
                text.push_str(&format!("options {}\n", dns.options.join(" ")));
            }
            text
        }
        _ => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    std::fs::write(dir.join("resolv.conf"), resolv)
}
