//! From CRI's configuration and an image's to what a supervisor is told.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use skiff_cri::v1;
use skiff_images::ImageConfig;

use crate::caps;
use crate::cgroup::{Access, DeviceRule, Limits};
use crate::error::{Error, Result};
use crate::record::{self, ContainerRecord};
use crate::runtime::{Container, Runtime, Sandbox, lock};
use crate::seccomp;
use crate::spec::{
    CgroupSpec, ContainerSpec, DeviceSpec, MountSpec, PidMode, ProcessSpec, Propagation, Rootfs, UserSpec,
};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The file systems in the node's `/dev` that are not devices.
const NOT_DEVICES: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", "hugepages"];

/// The security settings of a container; defaults where CRI gives none.
pub(crate) fn security(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn resources(config: &v1::ContainerConfig) -> v1::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

pub(crate) fn namespaces(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}

/// Whether the containers of a sandbox share a PID namespace. One that says nothing gets the safer way,
/// although the value 0 of the field means sharing.
pub(crate) fn shares_pid(config: &v1::PodSandboxConfig) -> bool {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref()?.namespace_options.as_ref())
        .is_some_and(|options| options.pid == v1::NamespaceMode::Pod as i32)
}

/// Limits of CRI; zero and empty mean: not set.
pub(crate) fn limits(resources: &v1::LinuxContainerResources) -> Limits {
    let signed = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Limits {
        cpu_shares: unsigned(resources.cpu_shares),
        cpu_quota: signed(resources.cpu_quota),
        cpu_period: unsigned(resources.cpu_period),
        memory: signed(resources.memory_limit_in_bytes),
        memory_and_swap: signed(resources.memory_swap_limit_in_bytes),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        hugepages: resources.hugepage_limits.iter().map(|h| (h.page_size.clone(), h.limit)).collect(),
        unified: resources.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

/// What an image's entrypoint and command and a container's command and arguments make together.
fn arguments(config: &v1::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    let all: Vec<_> = command.iter().chain(args).cloned().collect();
    if all.is_empty() {
        return Err(Error::Invalid("no command specified".to_owned()));
    }
    Ok(all)
}

/// The environment: later settings of a name replace earlier ones.
fn environment(config: &v1::ContainerConfig, image: &ImageConfig, hostname: &str) -> Result<Vec<String>> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    if !hostname.is_empty() {
        env.push(format!("HOSTNAME={hostname}"));
    }
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    env.extend(image.env.iter().cloned());
    for variable in &config.envs {
        let value = std::str::from_utf8(&variable.value)
            .map_err(|_| Error::Unsupported(format!("the value of variable {} is not UTF-8", variable.key)))?;
        env.push(format!("{}={value}", variable.key));
    }
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let mut seen = BTreeSet::new();
    let mut out: Vec<_> = env.into_iter().rev().filter(|v| seen.insert(name(v))).collect();
    out.reverse();
    Ok(out)
}

fn user(security: &v1::LinuxContainerSecurityContext, image: &ImageConfig) -> Result<UserSpec> {
    let user = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, name) if !name.is_empty() => name.to_owned(),
        (None, _) => image.user.clone(),
    };
    let id = |value: i64| u32::try_from(value).map_err(|_| Error::Invalid(format!("invalid group id {value}")));
    if let Some(uid) = &security.run_as_user {
        id(uid.value).map_err(|_| Error::Invalid(format!("invalid user id {}", uid.value)))?;
    }
    if security.run_as_group.is_some() && user.is_empty() {
        return Err(Error::Invalid("user group is specified without user".to_owned()));
    }
    Ok(UserSpec {
        user,
        gid: security.run_as_group.as_ref().map(|gid| id(gid.value)).transpose()?,
        groups: security.supplemental_groups.iter().map(|g| id(*g)).collect::<Result<_>>()?,
        strict_groups: security.supplemental_groups_policy == v1::SupplementalGroupsPolicy::Strict as i32,
    })
}

fn mounts(config: &v1::ContainerConfig, sandbox: &Sandbox) -> Result<Vec<MountSpec>> {
    let mut out: Vec<MountSpec> = Vec::new();
    for (name, target) in [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")]
    {
        let source = sandbox.run_dir.join(name);
        let given = config.mounts.iter().any(|m| clean(&m.container_path) == target);
        if !given && source.exists() {
            out.push(MountSpec { source, target: target.to_owned(), ..Default::default() });
        }
    }
    for mount in &config.mounts {
        if mount.image.is_some() {
            return Err(Error::Unsupported("mounting images as volumes is not supported".to_owned()));
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(Error::Unsupported("id-mapped mounts are not supported".to_owned()));
        }
        let target = clean(&mount.container_path);
        if !mount.container_path.starts_with('/') || target == "/" {
            return Err(Error::Invalid(format!("invalid mount path {:?}", mount.container_path)));
        }
        let propagation = match v1::MountPropagation::try_from(mount.propagation) {
            Ok(v1::MountPropagation::HostToContainer) => Propagation::HostToContainer,
            Ok(v1::MountPropagation::Bidirectional) => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
            return Err(Error::Invalid("recursive_read_only requires readonly and private propagation".to_owned()));
        }
        let source = PathBuf::from(&mount.host_path);
        if let Err(e) = std::fs::metadata(&source) {
            return Err(Error::io(format!("stat {:?}", mount.host_path))(e));
        }
        out.push(MountSpec {
            source,
            target,
            readonly: mount.readonly,
            recursive_readonly: mount.recursive_read_only,
            propagation,
        });
    }
    // Parents before what is mounted in them; otherwise as given.
    out.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(out)
}

/// A path without empty names, `.` and `..`, as its text says.
fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// The device nodes and rules of a container.
fn devices(config: &v1::ContainerConfig, privileged: bool) -> Result<(Vec<DeviceSpec>, Vec<DeviceRule>)> {
    let mut nodes = Vec::new();
    let mut rules = if privileged { DeviceRule::everything() } else { DeviceRule::defaults() };
    if privileged {
        collect_devices(Path::new("/dev"), "/dev", &mut nodes).map_err(Error::io("list devices"))?;
    }
    for device in &config.devices {
        let what = || format!("stat device {:?}", device.host_path);
        let host = std::fs::canonicalize(&device.host_path).map_err(Error::io(what()))?;
        let target = match device.container_path.as_str() {
            "" => &device.host_path,
            path => path,
        };
        let access = Access::parse(&device.permissions)
            .ok_or_else(|| Error::Invalid(format!("invalid device permissions {:?}", device.permissions)))?;
        let mut found = Vec::new();
        if host.is_dir() {
            collect_devices(&host, &clean(target), &mut found).map_err(Error::io(what()))?;
        } else {
            found.extend(device_node(&host, &clean(target)).map_err(Error::io(what()))?);
        }
        if found.is_empty() {
            return Err(Error::Invalid(format!("{:?} is not a device node", device.host_path)));
        }
        if !privileged {
            rules.extend(found.iter().map(|node| DeviceRule {
                block: Some(node.block),
                major: Some(node.major),
                minor: Some(node.minor),
                access,
            }));
        }
        nodes.retain(|node: &DeviceSpec| found.iter().all(|new| new.path != node.path));
        nodes.extend(found);
    }
    Ok((nodes, rules))
}

fn device_node(host: &Path, target: &str) -> std::io::Result<Option<DeviceSpec>> {
    let metadata = std::fs::symlink_metadata(host)?;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Ok(None);
    }
    Ok(Some(DeviceSpec {
        path: target.to_owned(),
        block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }))
}

fn collect_devices(dir: &Path, target: &str, out: &mut Vec<DeviceSpec>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if NOT_DEVICES.contains(&name) || name == "ptmx" {
            continue;
        }
        let path = format!("{target}/{name}");
        if entry.file_type()?.is_dir() {
            collect_devices(&entry.path(), &path, out)?;
        } else {
            out.extend(device_node(&entry.path(), &path)?);
        }
    }
    Ok(())
}

impl Runtime {
    /// What a process of the container is started with. For an exec, `args` and `tty` are its own.
    pub(crate) fn process_spec(
        &self,
        config: &v1::ContainerConfig,
        image: &ImageConfig,
        hostname: &str,
        args: Option<Vec<String>>,
    ) -> Result<ProcessSpec> {
        let security = security(config);
        let requested = security.capabilities.clone().unwrap_or_default();
        let capabilities = caps::resolve(
            security.privileged,
            &requested.add_capabilities,
            &requested.drop_capabilities,
            &requested.add_ambient_capabilities,
        )
        .map_err(|name| Error::Invalid(format!("unknown capability {name:?} to add or drop")))?;
        let cwd = [&config.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
        Ok(ProcessSpec {
            args: match args {
                Some(args) => args,
                None => arguments(config, image)?,
            },
            env: environment(config, image, hostname)?,
            cwd: cwd.cloned().unwrap_or_else(|| "/".to_owned()),
            user: user(&security, image)?,
            capabilities,
            no_new_privs: security.no_new_privs,
            seccomp: self.seccomp(&security, capabilities.bounding)?,
            oom_score_adj: Some(resources(config).oom_score_adj as i32),
        })
    }

    /// The compiled filter of a container. A container that says nothing runs without one, as CRI has
    /// it: it is the kubelet that makes `RuntimeDefault` of it where it is told to.
    fn seccomp(&self, security: &v1::LinuxContainerSecurityContext, capabilities: u64) -> Result<Option<PathBuf>> {
        use v1::ProfileType;
        let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else {
            return Ok(None);
        };
        let cache = self.0.config.seccomp_cache();
        match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Unconfined) => Ok(None),
            Ok(ProfileType::RuntimeDefault) => seccomp::runtime_default(&cache, capabilities)
                .map(Some)
                .map_err(Error::io("compile the default seccomp profile")),
            Ok(ProfileType::Localhost) => {
                let path = profile.localhost_ref.trim_start_matches("localhost/");
                seccomp::localhost(&cache, Path::new(path), capabilities)
                    .map(Some)
                    .map_err(Error::io(format!("load seccomp profile {path:?}")))
            }
            Err(_) => Err(Error::Invalid("unknown seccomp profile type".to_owned())),
        }
    }

    /// Everything about a container but its cgroup, which is made at the start.
    pub(crate) fn container_spec(
        &self,
        container_dir: &Path,
        record: &ContainerRecord,
        sandbox: &Sandbox,
        image: &ImageConfig,
        lower: Vec<PathBuf>,
    ) -> Result<(ContainerSpec, Vec<DeviceRule>)> {
        let config = &record.config;
        let security = security(config);
        let apparmor = security.apparmor.as_ref().map(|profile| profile.profile_type);
        if apparmor == Some(v1::ProfileType::Localhost as i32) {
            return Err(Error::Unsupported("AppArmor profiles are not supported".to_owned()));
        }
        let sandbox_config = lock(&sandbox.record).config.clone();
        let own = security.namespace_options.clone().unwrap_or_default();
        let pid = match v1::NamespaceMode::try_from(own.pid) {
            Ok(v1::NamespaceMode::Pod) if security.namespace_options.is_some() => {
                if shares_pid(&sandbox_config) {
                    PidMode::Pod
                } else {
                    PidMode::Own
                }
            }
            Ok(v1::NamespaceMode::Node) => PidMode::Host,
            Ok(v1::NamespaceMode::Target) => PidMode::Target(self.container(&own.target_id)?.id.clone()),
            _ => PidMode::Own,
        };
        let host_ipc = namespaces(&sandbox_config).ipc == v1::NamespaceMode::Node as i32;
        let (devices, rules) = devices(config, security.privileged)?;
        let spec = ContainerSpec {
            id: record.id.clone(),
            state_file: container_dir.join(record::STATE),
            log_path: (!record.log_path.is_empty()).then(|| PathBuf::from(&record.log_path)),
            rootfs: Rootfs {
                lower,
                upper: container_dir.join("upper"),
                work: container_dir.join("work"),
                mountpoint: container_dir.join("rootfs"),
                readonly: security.readonly_rootfs,
            },
            mounts: mounts(config, sandbox)?,
            shm: (!host_ipc).then(|| sandbox.run_dir.join("shm")),
            cgroup: CgroupSpec::default(),
            devices,
            masked_paths: security.masked_paths.clone(),
            readonly_paths: security.readonly_paths.clone(),
            pid,
            privileged: security.privileged,
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            process: self.process_spec(config, image, &sandbox_config.hostname, None)?,
        };
        Ok((spec, rules))
    }

    /// The image configuration a container was made from. The image itself may have been removed.
    pub(crate) fn image_config(container: &Container) -> Result<ImageConfig> {
        let bytes = std::fs::read(container.dir.join("image.json"))
            .map_err(Error::io("read the container's image configuration"))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::io("read the container's image configuration")(e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrypoint_and_command_combine_as_kubernetes_says() {
        let image =
            ImageConfig { entrypoint: vec!["/entry".into(), "e".into()], cmd: vec!["c".into()], ..Default::default() };
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let check = |command: &[&str], args: &[&str]| {
            let config = v1::ContainerConfig { command: list(command), args: list(args), ..Default::default() };
            arguments(&config, &image).expect("a command").join(" ")
        };
        assert_eq!(check(&[], &[]), "/entry e c");
        assert_eq!(check(&[], &["x"]), "/entry e x");
        assert_eq!(check(&["/cmd"], &[]), "/cmd");
        assert_eq!(check(&["/cmd"], &["x"]), "/cmd x");
        assert!(arguments(&v1::ContainerConfig::default(), &ImageConfig::default()).is_err());
    }

    #[test]
    fn later_variables_win() {
        let image = ImageConfig { env: list(&["PATH=/bin", "A=1"]), ..Default::default() };
        fn list(words: &[&str]) -> Vec<String> {
            words.iter().map(|w| (*w).to_owned()).collect()
        }
        let config = v1::ContainerConfig {
            envs: vec![v1::KeyValue { key: "A".into(), value: b"2=3".to_vec() }],
            ..Default::default()
        };
        let env = environment(&config, &image, "web-0").expect("valid");
        assert_eq!(env, ["HOSTNAME=web-0", "PATH=/bin", "A=2=3"]);
    }

    #[test]
    fn paths_are_cleaned() {
        for (given, cleaned) in [("/a//b/./c/", "/a/b/c"), ("/a/../../b", "/b"), ("/", "/")] {
            assert_eq!(clean(given), cleaned);
        }
    }
}
