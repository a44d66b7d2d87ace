//! What the runtime is told to make a container.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::v1;

use crate::{expansion::expand, names, pod::PodExt, qos, sandbox_config, worker::plan::container_hash};

/// Paths in /proc and /sys that containers do not see, unless privileged or with `procMount: Unmasked`.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
];
/// Paths in /proc that containers cannot write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a container's configuration is made of besides its pod.
pub(crate) struct Parts<'a> {
    pub(crate) restart_count: u32,
    pub(crate) image: &'a v1::Image,
    pub(crate) env: Vec<(String, Vec<u8>)>,
    pub(crate) devices: Vec<v1::Device>,
    pub(crate) mounts: Vec<v1::Mount>,
    /// Bytes.
    pub(crate) node_memory: i64,
    /// Id of the container whose processes an ephemeral container sees.
    pub(crate) target_id: Option<String>,
}

/// The configuration of a container. The error is the message of `CreateContainerConfigError`.
pub(crate) fn container_config(
    pod: &Pod,
    container: &Container,
    parts: Parts<'_>,
) -> Result<v1::ContainerConfig, String> {
    verify_non_root(pod, container, parts.image)?;
    let lookup = |name: &str| {
        let found = parts.env.iter().find(|(k, _)| k == name);
        found.map(|(_, v)| String::from_utf8_lossy(v).into_owned())
    };
    let expand_all = |list: Option<&Vec<String>>| list.into_iter().flatten().map(|s| expand(s, lookup)).collect();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt: parts.restart_count }),
        image: Some(v1::ImageSpec {
            image: parts.image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            image_ref: parts.image.id.clone(),
            ..Default::default()
        }),
        command: expand_all(container.command.as_ref()),
        args: expand_all(container.args.as_ref()),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: labels(pod, container),
        annotations: annotations(pod, container, parts.restart_count),
        mounts: parts.mounts,
        devices: parts.devices,
        log_path: format!("{}/{}.log", container.name, parts.restart_count),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(qos::container_resources(pod, container, parts.node_memory)),
            security_context: Some(security_context(pod, container, parts.image, parts.target_id)),
        }),
        envs: parts.env.into_iter().map(|(key, value)| v1::KeyValue { key, value }).collect(),
        ..Default::default()
    })
}

fn labels(pod: &Pod, container: &Container) -> std::collections::BTreeMap<String, String> {
    [
        (names::POD_NAME, pod.name()),
        (names::POD_NAMESPACE, pod.namespace()),
        (names::POD_UID, pod.uid().as_str()),
        (names::CONTAINER_NAME, &container.name),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into()
}

fn annotations(pod: &Pod, container: &Container, restart_count: u32) -> std::collections::BTreeMap<String, String> {
    let mut out = std::collections::BTreeMap::from(
        [
            (names::CONTAINER_HASH, container_hash(container)),
            (names::RESTART_COUNT, restart_count.to_string()),
            (names::TERMINATION_PATH, container.termination_message_path.clone().unwrap_or_default()),
            (names::TERMINATION_POLICY, container.termination_message_policy.clone().unwrap_or_default()),
        ]
        .map(|(k, v)| (k.to_owned(), v)),
    );
    if let Some(grace) = PodExt::spec(pod).termination_grace_period_seconds {
        out.insert(names::POD_GRACE_PERIOD.to_owned(), grace.to_string());
    }
    out
}

/// Where a container's own settings are silent the pod's hold.
fn security_context(
    pod: &Pod,
    container: &Container,
    image: &v1::Image,
    target_id: Option<String>,
) -> v1::LinuxContainerSecurityContext {
    let of_pod = PodExt::spec(pod).security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let int = |value: Option<i64>| value.map(|value| v1::Int64Value { value });
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    let run_as_group = own.run_as_group.or(of_pod.run_as_group);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let mut namespaces = sandbox_config::namespaces(pod);
    if let Some(target_id) = target_id {
        namespaces.pid = v1::NamespaceMode::Target as i32;
        namespaces.target_id = target_id;
    }
    // The image's user, said explicitly, so that a group can be given with it.
    let image_user = run_as_user.is_none();
    let seccomp = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    v1::LinuxContainerSecurityContext {
        capabilities: own.capabilities.map(|c| v1::Capability {
            add_capabilities: c.add.unwrap_or_default(),
            drop_capabilities: c.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces),
        run_as_user: int(run_as_user).or(if image_user { image.uid.clone() } else { None }),
        run_as_username: if image_user && image.uid.is_none() { image.username.clone() } else { String::new() },
        run_as_group: int(run_as_group),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: of_pod
            .fs_group
            .into_iter()
            .chain(of_pod.supplemental_groups.into_iter().flatten())
            .collect(),
        supplemental_groups_policy: match of_pod.supplemental_groups_policy.as_deref() {
            Some("Strict") => v1::SupplementalGroupsPolicy::Strict,
            _ => v1::SupplementalGroupsPolicy::Merge,
        } as i32,
        // Privileged containers and those that may administer the system can raise their privileges anyway.
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(if privileged { sandbox_config::seccomp(None) } else { sandbox_config::seccomp(seccomp) }),
        ..Default::default()
    }
}

/// `runAsNonRoot` is refused where the container would run as root, or where nobody can tell.
fn verify_non_root(pod: &Pod, container: &Container, image: &v1::Image) -> Result<(), String> {
    let of_pod = PodExt::spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let wanted = own.and_then(|s| s.run_as_non_root).or(of_pod.and_then(|s| s.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let names = format!("(pod: \"{}\", container: {})", pod.full_name(), container.name);
    match own.and_then(|s| s.run_as_user).or(of_pod.and_then(|s| s.run_as_user)) {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {names}")),
        Some(_) => return Ok(()),
        None => {}
    }
    match &image.uid {
        Some(uid) if uid.value == 0 => Err(format!("container has runAsNonRoot and image will run as root {names}")),
        None if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {names}",
            image.username
        )),
        None => Err(format!("container has runAsNonRoot and image will run as root {names}")),
        Some(_) => Ok(()),
    }
}

/// The mount of the file for a container's last words, which is made anew for each run. `None` without a path.
pub(crate) fn termination_mount(dir: &Path, container: &Container) -> std::io::Result<Option<v1::Mount>> {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) else { return Ok(None) };
    std::fs::create_dir_all(dir)?;
    let file = dir.join(format!("{:08x}", rand::random::<u32>()));
    std::fs::write(&file, "")?;
    // Whatever user the container runs as.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))?;
    Ok(Some(v1::Mount {
        container_path: path.to_owned(),
        host_path: file.to_string_lossy().into_owned(),
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(container: serde_json::Value, image: v1::Image) -> Result<v1::ContainerConfig, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "securityContext": {"runAsGroup": 9, "fsGroup": 7}},
        }))
        .unwrap();
        let parts = Parts {
            restart_count: 3,
            image: &image,
            env: vec![("A".into(), b"x".to_vec())],
            mounts: Vec::new(),
            devices: Vec::new(),
            node_memory: 1 << 30,
            target_id: None,
        };
        container_config(&pod, &serde_json::from_value(container).unwrap(), parts)
    }

    #[test]
    fn from_container_and_image() {
        let image = v1::Image { id: "sha256:1".into(), username: "web".into(), ..Default::default() };
        let config = made(json!({"name": "c", "command": ["echo", "$(A)"], "args": ["$(B)"]}), image).unwrap();
        assert_eq!(config.command, ["echo", "x"]);
        assert_eq!(config.args, ["$(B)"]);
        assert_eq!(config.log_path, "c/3.log");
        assert_eq!(config.annotations["io.kubernetes.container.restartCount"], "3");
        let security = config.linux.unwrap().security_context.unwrap();
        assert_eq!(security.run_as_username, "web");
        assert_eq!(security.run_as_group.unwrap().value, 9);
        assert_eq!(security.supplemental_groups, [7]);
        assert!(!security.masked_paths.is_empty());
        let container = json!({"name": "c", "securityContext": {"privileged": true}});
        let config = made(container, v1::Image::default()).unwrap();
        assert!(config.linux.unwrap().security_context.unwrap().masked_paths.is_empty());
    }

    #[test]
    fn non_root_is_verified() {
        let container = || json!({"name": "c", "securityContext": {"runAsNonRoot": true}});
        let root = v1::Image { uid: Some(v1::Int64Value { value: 0 }), ..Default::default() };
        assert_eq!(
            made(container(), root).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        let named = v1::Image { username: "web".into(), ..Default::default() };
        assert!(made(container(), named).unwrap_err().contains("non-numeric user (web)"));
        let number = v1::Image { uid: Some(v1::Int64Value { value: 5 }), ..Default::default() };
        assert!(made(container(), number).is_ok());
    }
}
