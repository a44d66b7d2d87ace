//! What the runtime is told to make a pod's sandbox.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, SeccompProfile};
use skiff_cri::v1;

use crate::{
    config::Config,
    dns::{self, NodeDns},
    names,
    pod::PodExt,
    qos,
};

/// The sandbox of a pod. The error is for the user.
pub(crate) fn sandbox_config(
    pod: &Pod,
    attempt: u32,
    config: &Config,
    resolv_conf: &str,
    seen: Timestamp,
) -> Result<v1::PodSandboxConfig, String> {
    let uid = pod.uid();
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(names::POD_NAME.into(), pod.name().into());
    labels.insert(names::POD_NAMESPACE.into(), pod.namespace().into());
    labels.insert(names::POD_UID.into(), uid.as_str().into());
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    annotations.insert(names::CONFIG_SOURCE.into(), "api".into());
    annotations.insert(names::CONFIG_SEEN.into(), seen.to_string());
    let hostname = if pod.host_network() { String::new() } else { dns::kernel_hostname(pod, &config.cluster_domain)? };
    let node_dns = NodeDns { cluster_dns: &config.cluster_dns, cluster_domain: &config.cluster_domain, resolv_conf };
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name().into(),
            uid: uid.as_str().into(),
            namespace: pod.namespace().into(),
            attempt,
        }),
        hostname,
        log_directory: config.pod_log_dir(pod.namespace(), pod.name(), uid.as_str()).to_string_lossy().into_owned(),
        dns_config: Some(dns::dns_config(pod, &node_dns)),
        port_mappings: if pod.host_network() { Vec::new() } else { port_mappings(pod) },
        labels,
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: qos::cgroup_parent(&config.cgroup_parent, pod),
            security_context: Some(security_context(pod)),
            sysctls: sysctls(pod),
            overhead: None,
            resources: Some(qos::pod_resources(pod)),
        }),
    })
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    let containers = pod.all_containers();
    let ports = containers.iter().flat_map(|(_, c)| c.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.unwrap_or(0) > 0)
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// Which namespaces the pod shares with the node and its containers with each other.
pub(crate) fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod as PodMode};
    let spec = PodExt::spec(pod);
    let node_or_pod = |node: Option<bool>| if node == Some(true) { Node } else { PodMode };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => Node,
        (_, Some(true)) => PodMode,
        _ => Container,
    };
    v1::NamespaceOption {
        network: node_or_pod(spec.host_network) as i32,
        pid: pid as i32,
        ipc: node_or_pod(spec.host_ipc) as i32,
        ..Default::default()
    }
}

fn security_context(pod: &Pod) -> v1::LinuxSandboxSecurityContext {
    let context = PodExt::spec(pod).security_context.clone().unwrap_or_default();
    let privileged = pod
        .all_containers()
        .iter()
        .any(|(_, c)| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    let int = |value: Option<i64>| value.map(|value| v1::Int64Value { value });
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(context.run_as_user),
        run_as_group: int(context.run_as_group),
        supplemental_groups: context
            .fs_group
            .into_iter()
            .chain(context.supplemental_groups.into_iter().flatten())
            .collect(),
        privileged,
        seccomp: Some(seccomp(context.seccomp_profile.as_ref())),
        ..Default::default()
    }
}

/// A seccomp profile as the runtime takes it; none is unconfined, upstream's default.
pub(crate) fn seccomp(profile: Option<&SeccompProfile>) -> v1::SecurityProfile {
    use v1::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let profile_type = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => RuntimeDefault,
        Some("Localhost") => Localhost,
        _ => Unconfined,
    };
    let file = profile.and_then(|p| p.localhost_profile.as_deref()).filter(|_| profile_type == Localhost);
    v1::SecurityProfile {
        profile_type: profile_type as i32,
        localhost_ref: file.map(|f| format!("/var/lib/kubelet/seccomp/{f}")).unwrap_or_default(),
    }
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = PodExt::spec(pod).security_context.as_ref();
    let listed = context.and_then(|c| c.sysctls.as_ref());
    listed.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn from_the_pods_spec() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {
                "shareProcessNamespace": true, "hostIPC": true,
                "securityContext": {"fsGroup": 5, "supplementalGroups": [6], "sysctls": [{"name": "net.a", "value": "1"}]},
                "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}, {"containerPort": 81}]}],
            },
        }))
        .unwrap();
        let config = Config::new("node", "127.0.0.1".parse().unwrap());
        let made = sandbox_config(&pod, 2, &config, "", Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(made.hostname, "p");
        assert_eq!(made.log_directory, "/var/log/pods/n_p_u");
        assert_eq!(made.labels["app"], "x");
        assert_eq!(made.labels["io.kubernetes.pod.uid"], "u");
        assert_eq!(made.port_mappings.len(), 1);
        assert_eq!(made.port_mappings[0].protocol, v1::Protocol::Udp as i32);
        let linux = made.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/kubepods/besteffort/podu");
        assert_eq!(linux.sysctls["net.a"], "1");
        let security = linux.security_context.unwrap();
        assert_eq!(security.supplemental_groups, [5, 6]);
        let namespaces = security.namespace_options.unwrap();
        assert_eq!(namespaces.pid, v1::NamespaceMode::Pod as i32);
        assert_eq!(namespaces.ipc, v1::NamespaceMode::Node as i32);
    }
}
