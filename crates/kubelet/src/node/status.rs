//! The Node object's status and labels: functions of what was read of the node.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    NodeSystemInfo,
};
use kube::api::ObjectMeta;
use skiff_cri::v1;

use super::capacity::Capacity;
use crate::{
    config::{Config, KUBELET_PORT},
    time::api_time,
};

/// How many images a node tells of, and how many names of each.
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;

/// What was read of the node.
pub(super) struct Facts {
    pub(super) info: NodeSystemInfo,
    pub(super) images: Vec<ContainerImage>,
    /// Why the node is not ready: reason is always `KubeletNotReady`.
    pub(super) not_ready: Option<String>,
    /// What the node is short of: memory, disk, process numbers.
    pub(super) pressures: [bool; 3],
    /// Volumes that must not be detached.
    pub(super) volumes_in_use: Vec<String>,
}

/// Unchanging facts from the kernel and the runtime.
pub(super) fn system_info(version: &str, runtime: Option<&v1::VersionResponse>) -> NodeSystemInfo {
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os_image = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map(|n| n.trim_matches('"').to_owned());
    let machine_id = read("/etc/machine-id");
    let system_uuid = match read("/sys/class/dmi/id/product_uuid") {
        uuid if uuid.is_empty() => machine_id.clone(),
        uuid => uuid,
    };
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime
            .map(|r| format!("{}://{}", r.runtime_name, r.runtime_version))
            .unwrap_or_default(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: version.to_owned(),
        machine_id,
        operating_system: "linux".to_owned(),
        os_image: os_image.unwrap_or_else(|| "Linux".to_owned()),
        swap: None,
        system_uuid,
    }
}

/// Go's name of the processor.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The labels that every node has, with the configured ones.
pub(super) fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    labels.extend(config.labels.clone());
    labels
}

/// The Node object as it is registered.
pub(super) fn node(config: &Config, status: NodeStatus) -> Node {
    let annotations = [
        ("volumes.kubernetes.io/controller-managed-attach-detach", "true"),
        ("alpha.kubernetes.io/provided-node-ip", &config.host_ips().join(",")),
    ];
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            annotations: Some(annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// The images that a node tells of: the largest first.
pub(super) fn images(images: Vec<v1::Image>) -> Vec<ContainerImage> {
    let mut images: Vec<ContainerImage> = images
        .into_iter()
        .map(|image| {
            let mut names: Vec<String> = image.repo_digests.into_iter().chain(image.repo_tags).collect();
            names.truncate(MAX_IMAGE_NAMES);
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    images.truncate(MAX_IMAGES);
    images
}

/// The status; times of conditions change with the conditions only, heartbeats always.
pub(super) fn status(
    config: &Config,
    capacity: &Capacity,
    facts: &Facts,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let [capacity, allocatable] = capacity.lists(config.max_pods);
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let port = config.server.as_ref().map_or(KUBELET_PORT, |s| s.listen.port());
    NodeStatus {
        addresses: Some(
            config
                .node_ips
                .iter()
                .map(|ip| address("InternalIP", ip_text(*ip)))
                .chain([address("Hostname", config.hostname.clone())])
                .collect(),
        ),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(facts, old, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }),
        }),
        images: Some(facts.images.clone()),
        node_info: Some(facts.info.clone()),
        // An empty list takes away what was said before.
        volumes_in_use: (!facts.volumes_in_use.is_empty() || old.is_some_and(|s| s.volumes_in_use.is_some()))
            .then(|| facts.volumes_in_use.clone()),
        ..NodeStatus::default()
    }
}

fn ip_text(ip: IpAddr) -> String {
    ip.to_string()
}

fn conditions(facts: &Facts, old: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
    let ready = match &facts.not_ready {
        None => ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        Some(why) => ("Ready", "False", "KubeletNotReady", why.as_str()),
    };
    let [memory, disk, pids] = facts.pressures;
    let own = [
        match memory {
            true => {
                ("MemoryPressure", "True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            false => {
                ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
            }
        },
        match disk {
            true => ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
            false => ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        },
        match pids {
            true => ("PIDPressure", "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            false => ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        },
        ready,
    ];
    let old = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let made = own.iter().map(|(kind, status, reason, message)| {
        let before = old.iter().find(|c| c.type_ == *kind).filter(|c| c.status == *status);
        NodeCondition {
            type_: (*kind).to_owned(),
            status: (*status).to_owned(),
            reason: Some((*reason).to_owned()),
            message: Some((*message).to_owned()),
            last_heartbeat_time: Some(api_time(now)),
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(api_time(now))),
        }
    });
    made.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_and_not() {
        let config = Config::new("node", "127.0.0.1".parse().unwrap());
        let capacity = Capacity::fixed(1000, 1 << 30, 1 << 30);
        let mut facts = Facts {
            info: NodeSystemInfo::default(),
            images: Vec::new(),
            not_ready: Some("why".into()),
            pressures: [false; 3],
            volumes_in_use: Vec::new(),
        };
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = status(&config, &capacity, &facts, None, at(100));
        facts.not_ready = None;
        let second = status(&config, &capacity, &facts, Some(&first), at(200));
        let ready = |s: &NodeStatus| s.conditions.clone().unwrap().pop().unwrap();
        assert_eq!(ready(&first).reason.as_deref(), Some("KubeletNotReady"));
        assert_eq!(ready(&second).message.as_deref(), Some("kubelet is posting ready status"));
        assert_eq!(ready(&second).last_transition_time.unwrap().0, at(200));
        let memory = &second.conditions.unwrap()[0];
        assert_eq!(memory.last_transition_time.as_ref().unwrap().0, at(100));
        assert_eq!(memory.last_heartbeat_time.as_ref().unwrap().0, at(200));
        assert_eq!(labels(&config)["kubernetes.io/hostname"], "node");
    }
}
