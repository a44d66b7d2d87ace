//! The life of a container.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skiff_cri::v1;
use skiff_images::Image;
use tokio::sync::watch;

use super::matches_labels;
use super::sandbox::new_id;
use super::spec::limits;
use crate::client::CallError;
use crate::error::{Error, Result};
use crate::record::{self, ContainerRecord};
use crate::runtime::{Container, Runtime, Sandbox, lock};
use crate::spec::{Call, ContainerState};
use crate::supervisor::log::now_nanoseconds;

/// How long processes may take to be gone after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Exit code of a container that could not be started.
const START_ERROR: i32 = 128;
const SIGTERM: i32 = libc::SIGTERM;
const SIGKILL: i32 = libc::SIGKILL;

/// Blocking work off the asynchronous threads.
async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::io("finish")(io::Error::other(e))),
    }
}

impl Runtime {
    pub(crate) async fn create_container(&self, request: v1::CreateContainerRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::Invalid("a container needs a configuration".to_owned()))?;
        let metadata =
            config.metadata.clone().ok_or_else(|| Error::Invalid("a container needs metadata".to_owned()))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !lock(&sandbox.record).ready {
            return Err(Error::Precondition(format!("sandbox {:?} is not running", sandbox.id)));
        }
        let name = config.image.as_ref().map_or("", |image| image.image.as_str());
        let image = self.0.images.find(name).ok_or_else(|| skiff_images::Error::NotFound(name.to_owned()))?;
        let id = new_id();
        let log_directory = lock(&sandbox.record).config.log_directory.clone();
        let log_path = match (log_directory.as_str(), config.log_path.as_str()) {
            ("", _) | (_, "") => String::new(),
            (dir, path) => format!("{dir}/{path}"),
        };
        let container_record = ContainerRecord {
            id: id.clone(),
            sandbox: sandbox.id.clone(),
            image_id: image.id.to_string(),
            image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            layers: image.layers.iter().map(ToString::to_string).collect(),
            created_at: now_nanoseconds(),
            cgroup: format!("{}/{id}", self.pod_cgroup(&sandbox)),
            stop_signal: stop_signal(&config, &image)?,
            log_path,
            config,
            ..Default::default()
        };
        let container = Arc::new(Container {
            id: id.clone(),
            dir: self.0.config.container_dir(&id),
            record: Mutex::new(container_record),
            state: watch::Sender::new(ContainerState::default()),
            busy: tokio::sync::Mutex::new(()),
            _layers: self.0.images.lease(&image),
        });
        {
            let mut containers = lock(&self.0.containers);
            let taken = containers.values().find(|c| {
                let record = lock(&c.record);
                record.sandbox == sandbox.id && record.config.metadata.as_ref() == Some(&metadata)
            });
            if let Some(other) = taken {
                return Err(Error::Reserved {
                    kind: "container",
                    name: format!("{}_{}_{}", metadata.name, sandbox.id, metadata.attempt),
                    id: other.id.clone(),
                });
            }
            containers.insert(id.clone(), container.clone());
        }
        if let Err(e) = self.make_container(&container, &sandbox, &image) {
            lock(&self.0.containers).remove(&id);
            remove_dir(&container.dir)?;
            return Err(e);
        }
        self.emit(&sandbox, &id, v1::ContainerEventType::Created);
        Ok(id)
    }

    fn make_container(&self, container: &Container, sandbox: &Sandbox, image: &Image) -> Result<()> {
        // What is wrong with the configuration is said now, not at the start.
        let record = lock(&container.record).clone();
        let lower = self.0.images.lower_dirs(image);
        self.container_spec(&container.dir, &record, sandbox, &image.config, lower.clone())?;
        let make = || -> io::Result<()> {
            for name in ["upper", "work", "rootfs"] {
                std::fs::create_dir_all(container.dir.join(name))?;
            }
            // The root of the container is the upper directory, with the image's mode and owner.
            let upper = container.dir.join("upper");
            let mode = match lower.first() {
                Some(top) => {
                    let top = std::fs::metadata(top)?;
                    std::os::unix::fs::chown(&upper, Some(top.uid()), Some(top.gid()))?;
                    top.mode() & 0o7777
                }
                None => 0o755,
            };
            std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(mode))?;
            std::fs::write(container.dir.join("image.json"), serde_json::to_vec(&image.config)?)
        };
        make().map_err(Error::io("create the container's directory"))?;
        container.update(|_| {})
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let sandbox = self.sandbox_of(&container)?;
        let _busy = container.busy.lock().await;
        if lock(&container.record).started {
            let state = if container.is_running() { "RUNNING" } else { "EXITED" };
            return Err(Error::Precondition(format!(
                "failed to start container {:?}: container is in CONTAINER_{state} state",
                container.id
            )));
        }
        if !lock(&sandbox.record).ready {
            return Err(Error::Precondition(format!("sandbox {:?} is not running", sandbox.id)));
        }
        let client = sandbox.client()?;
        let prepared = {
            let (runtime, container, sandbox) = (self.clone(), container.clone(), sandbox.clone());
            run(move || runtime.prepare_start(&container, &sandbox)).await
        };
        let spec_file = match prepared {
            Ok(file) => file,
            Err(e) => return Err(self.start_failed(&container, &sandbox, e)),
        };
        container.update(|record| record.started = true)?;
        match client.call(Call::Start(spec_file), Vec::new()).await {
            Ok((answer, _)) => {
                if let Some(state) = answer.containers.get(&container.id) {
                    // Unless it has ended meanwhile, which is heard on another way.
                    container.state.send_if_modified(|known| {
                        let first = known.finished_at == 0;
                        if first {
                            *known = state.clone();
                        }
                        first
                    });
                }
                self.emit(&sandbox, &container.id, v1::ContainerEventType::Started);
                Ok(())
            }
            Err(CallError::Refused(text)) => Err(self.start_failed(&container, &sandbox, Error::Start(text))),
            Err(e) => {
                let error = Error::Supervisor { what: "start the container".to_owned(), source: e };
                Err(self.start_failed(&container, &sandbox, error))
            }
        }
    }

    /// Makes the cgroup and writes what the supervisor reads.
    fn prepare_start(&self, container: &Container, sandbox: &Sandbox) -> Result<std::path::PathBuf> {
        let record = lock(&container.record).clone();
        let image = Self::image_config(container)?;
        let lower = self.lower_dirs(&record)?;
        let (mut spec, rules) = self.container_spec(&container.dir, &record, sandbox, &image, lower)?;
        let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let limits = resources.map(limits).unwrap_or_default();
        spec.cgroup = self
            .0
            .cgroups
            .create(&record.cgroup, &limits, &rules)
            .map_err(Error::io("create the container's cgroup"))?;
        let file = container.dir.join("spec.json");
        let bytes = serde_json::to_vec(&spec).map_err(|e| Error::io("write the spec")(e.into()))?;
        std::fs::write(&file, bytes).map_err(Error::io("write the spec"))?;
        Ok(file)
    }

    fn lower_dirs(&self, record: &ContainerRecord) -> Result<Vec<std::path::PathBuf>> {
        let layers = self.0.images.root().join("layers");
        let mut out = Vec::new();
        for layer in record.layers.iter().rev() {
            let digest: skiff_images::Digest = layer.parse()?;
            out.push(layers.join(digest.hex()).join("fs"));
        }
        Ok(out)
    }

    /// Notes that a container could not be started; it then counts as ended.
    fn start_failed(&self, container: &Arc<Container>, sandbox: &Arc<Sandbox>, error: Error) -> Error {
        let text = skiff_cri::Status::from(Error::Invalid(error.to_string())).message().to_owned();
        let state = ContainerState { finished_at: now_nanoseconds(), exit_code: START_ERROR, ..Default::default() };
        let noted = container
            .update(|record| {
                record.started = true;
                record.start_error = text;
            })
            .and_then(|()| record::write_state(&container.dir, &state).map_err(Error::io("write the state")));
        if let Err(e) = noted {
            tracing::warn!(container = %container.id, error = %e, "cannot note a failed start");
        }
        container.state.send_replace(state);
        let cgroup = lock(&container.record).cgroup.clone();
        if let Err(e) = self.0.cgroups.remove(&cgroup) {
            tracing::warn!(container = %container.id, error = %e, "cannot remove its cgroup");
        }
        self.emit(sandbox, &container.id, v1::ContainerEventType::Stopped);
        error
    }

    pub(crate) async fn stop_container(&self, id: &str, timeout_seconds: i64) -> Result<()> {
        let container = match self.container(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            container => container?,
        };
        let _busy = container.busy.lock().await;
        self.stop_started(&container, timeout_seconds).await
    }

    async fn stop_started(&self, container: &Arc<Container>, timeout_seconds: i64) -> Result<()> {
        if !container.is_running() {
            return Ok(());
        }
        let client = match self.sandbox_of(container)?.client() {
            Ok(client) => client,
            // Its end is being noted.
            Err(_) => return self.wait_killed(container).await,
        };
        let signal = |signal, all| {
            let call = Call::Signal { id: container.id.clone(), signal, all };
            let client = client.clone();
            async move { client.call(call, Vec::new()).await }
        };
        let ended_already = |result: std::result::Result<_, CallError>| match result {
            Ok(_) | Err(CallError::Refused(_) | CallError::Gone) => Ok(()),
            Err(e) => Err(Error::supervisor("signal the container")(e)),
        };
        if timeout_seconds > 0 {
            let stop_signal = lock(&container.record).stop_signal;
            ended_already(signal(stop_signal, false).await)?;
            let patience = Duration::from_secs(timeout_seconds.unsigned_abs());
            if container.wait_ended(patience).await {
                return Ok(());
            }
        }
        ended_already(signal(SIGKILL, true).await)?;
        self.wait_killed(container).await
    }

    async fn wait_killed(&self, container: &Container) -> Result<()> {
        match container.wait_ended(KILL_PATIENCE).await {
            true => Ok(()),
            false => Err(Error::Deadline(format!(
                "an error occurs during waiting for container {:?} to be killed",
                container.id
            ))),
        }
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let container = match self.container(id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            container => container?,
        };
        let _busy = container.busy.lock().await;
        self.stop_started(&container, 0).await?;
        let sandbox = self.sandbox_of(&container);
        if let Ok(client) = sandbox.as_ref().map_err(|_| ()).and_then(|s| s.client().map_err(|_| ())) {
            // A supervisor that is gone has nothing to forget.
            let _ = client.call(Call::Forget(container.id.clone()), Vec::new()).await;
        }
        {
            let (runtime, container) = (self.clone(), container.clone());
            run(move || {
                let cgroup = lock(&container.record).cgroup.clone();
                runtime.0.cgroups.remove(&cgroup).map_err(Error::io("remove the container's cgroup"))?;
                runtime.remove_own_pod_cgroup(&container);
                remove_dir(&container.dir)
            })
            .await?;
        }
        lock(&self.0.containers).remove(&container.id);
        if let Ok(sandbox) = sandbox {
            self.emit(&sandbox, &container.id, v1::ContainerEventType::Deleted);
        }
        Ok(())
    }

    /// Removes the pod's cgroup if it is one of ours, made because CRI named none, and is empty.
    fn remove_own_pod_cgroup(&self, container: &Container) {
        let cgroup = lock(&container.record).cgroup.clone();
        let ours = format!("{}/", self.0.config.cgroup_parent.trim_end_matches('/'));
        if let Some((pod, _)) = cgroup.rsplit_once('/')
            && pod.starts_with(&ours)
        {
            for dir in self.0.cgroups.dirs(pod) {
                // Not empty while the pod has further containers.
                let _ = std::fs::remove_dir(dir);
            }
        }
    }

    pub(crate) fn container_status(&self, container: &Container) -> v1::ContainerStatus {
        let record = lock(&container.record).clone();
        let state = container.state.borrow().clone();
        let config = &record.config;
        let reason = match &state {
            _ if !record.start_error.is_empty() => "StartError",
            state if state.finished_at == 0 => "",
            state if state.oom_killed => "OOMKilled",
            state if state.exit_code == 0 => "Completed",
            _ => "Error",
        };
        let user = state.user.as_ref().map(|user| v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        });
        v1::ContainerStatus {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            state: state_of(&state) as i32,
            created_at: record.created_at,
            started_at: state.started_at,
            finished_at: state.finished_at,
            exit_code: state.exit_code,
            image: config.image.clone(),
            image_ref: record.image_ref.clone(),
            reason: reason.to_owned(),
            message: record.start_error.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: record.log_path.clone(),
            resources: config
                .linux
                .as_ref()
                .and_then(|linux| linux.resources.clone())
                .map(|resources| v1::ContainerResources { linux: Some(resources) }),
            image_id: record.image_id.clone(),
            user,
            stop_signal: signal_to_cri(record.stop_signal) as i32,
        }
    }

    pub(crate) fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let containers = lock(&self.0.containers);
        let mut out = Vec::new();
        for container in containers.values() {
            let record = lock(&container.record);
            let state = state_of(&container.state.borrow()) as i32;
            if !record.id.starts_with(&filter.id)
                || !record.sandbox.starts_with(&filter.pod_sandbox_id)
                || filter.state.as_ref().is_some_and(|wanted| wanted.state != state)
                || !matches_labels(&filter.label_selector, &record.config.labels)
            {
                continue;
            }
            out.push(v1::Container {
                id: record.id.clone(),
                pod_sandbox_id: record.sandbox.clone(),
                metadata: record.config.metadata.clone(),
                image: record.config.image.clone(),
                image_ref: record.image_ref.clone(),
                state,
                created_at: record.created_at,
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
                image_id: record.image_id.clone(),
            });
        }
        out
    }

    pub(crate) async fn update_container(&self, id: &str, resources: v1::LinuxContainerResources) -> Result<()> {
        let container = self.container(id)?;
        let _busy = container.busy.lock().await;
        if container.is_running() {
            let (runtime, container) = (self.clone(), container.clone());
            let limits = limits(&resources);
            run(move || {
                let cgroup = lock(&container.record).cgroup.clone();
                runtime.0.cgroups.update(&cgroup, &limits).map_err(Error::io("update the container's resources"))
            })
            .await?;
        }
        container.update(|record| {
            let linux = record.config.linux.get_or_insert_default();
            merge(linux.resources.get_or_insert_default(), resources);
        })
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(Error::Precondition("container is not running".to_owned()));
        }
        let client = self.sandbox_of(&container)?.client()?;
        client
            .call(Call::ReopenLog(container.id.clone()), Vec::new())
            .await
            .map_err(Error::supervisor("reopen the container's log"))?;
        Ok(())
    }
}

/// Takes over what is set.
fn merge(into: &mut v1::LinuxContainerResources, from: v1::LinuxContainerResources) {
    let set = |into: &mut i64, from: i64| {
        if from != 0 {
            *into = from;
        }
    };
    set(&mut into.cpu_period, from.cpu_period);
    set(&mut into.cpu_quota, from.cpu_quota);
    set(&mut into.cpu_shares, from.cpu_shares);
    set(&mut into.memory_limit_in_bytes, from.memory_limit_in_bytes);
    set(&mut into.memory_swap_limit_in_bytes, from.memory_swap_limit_in_bytes);
    set(&mut into.oom_score_adj, from.oom_score_adj);
    for (into, from) in [(&mut into.cpuset_cpus, from.cpuset_cpus), (&mut into.cpuset_mems, from.cpuset_mems)] {
        if !from.is_empty() {
            *into = from;
        }
    }
    into.unified.extend(from.unified);
}

pub(crate) fn state_of(state: &ContainerState) -> v1::ContainerState {
    match (state.started_at, state.finished_at) {
        (0, 0) => v1::ContainerState::Created,
        (_, 0) => v1::ContainerState::Running,
        _ => v1::ContainerState::Exited,
    }
}

/// CRI's names of signals are those of the system in the generated form `Sigterm`.
fn signal_to_cri(number: i32) -> v1::Signal {
    (1..=65)
        .filter_map(|n| v1::Signal::try_from(n).ok())
        .find(|signal| signal_from_cri(*signal) == Some(number))
        .unwrap_or(v1::Signal::RuntimeDefault)
}

fn signal_from_cri(signal: v1::Signal) -> Option<i32> {
    let name = format!("{signal:?}").to_ascii_uppercase();
    parse_signal(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The number of a signal given as name, with or without `SIG`, or as number.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = [("RTMIN", libc::SIGRTMIN()), ("RTMAX", libc::SIGRTMAX())];
    for (base, number) in real_time {
        if let Some(rest) = name.strip_prefix(base) {
            let offset = if rest.is_empty() { 0 } else { rest.parse::<i32>().ok()? };
            return Some(number + offset).filter(|n| (1..=64).contains(n));
        }
    }
    let name = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        name => name,
    };
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// The container's stop signal, else the image's, else SIGTERM.
fn stop_signal(config: &v1::ContainerConfig, image: &Image) -> Result<i32> {
    let own = v1::Signal::try_from(config.stop_signal)
        .map_err(|_| Error::Invalid(format!("unknown stop signal {}", config.stop_signal)))?;
    if let Some(number) = signal_from_cri(own).filter(|_| own != v1::Signal::RuntimeDefault) {
        return Ok(number);
    }
    match image.config.stop_signal.as_str() {
        "" => Ok(SIGTERM),
        text => parse_signal(text)
            .ok_or_else(|| Error::Invalid(format!("failed to parse stop signal {text:?} of the image"))),
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", dir.display()))(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_translate_both_ways() {
        for n in 1..=65 {
            let signal = v1::Signal::try_from(n).expect("known");
            assert!(signal_from_cri(signal).is_some(), "{signal:?}");
        }
        assert_eq!(signal_from_cri(v1::Signal::Sigquit), Some(3));
        assert_eq!(signal_from_cri(v1::Signal::SigrtminPlus3), Some(libc::SIGRTMIN() + 3));
        assert_eq!(signal_to_cri(15), v1::Signal::Sigterm);
        assert_eq!(parse_signal("SIGQUIT"), Some(3));
        assert_eq!(parse_signal("usr1"), Some(10));
        assert_eq!(parse_signal("37"), Some(37));
        assert_eq!(parse_signal("RTMIN+3"), Some(37));
        assert_eq!((parse_signal("SIGNOPE"), parse_signal("0"), parse_signal("65")), (None, None, None));
    }
}
