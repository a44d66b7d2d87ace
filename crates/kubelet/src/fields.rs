//! What `fieldRef` and `resourceFieldRef` stand for, in environments and in downward API volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use skiff_api::quantity::Quantity;

use crate::{pod::PodExt, qos};

/// Addresses that are known only on the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) pod_ips: Vec<String>,
    pub(crate) host_ips: Vec<String>,
}

/// The value of a field of the pod. The error is upstream's message.
pub(crate) fn field(pod: &Pod, addresses: &Addresses, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let values = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("invalid fieldPath with subscript {path:?}")),
        };
        return Ok(values.and_then(|v| v.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().as_str().to_owned(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => PodExt::spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => PodExt::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => addresses.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => addresses.host_ips.join(","),
        "status.podIP" => addresses.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// One line `key="value"` for each pair, by key.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// What a node can give, in place of limits that a container does not have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allocatable {
    pub(crate) cpu_millis: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) ephemeral_storage_bytes: i64,
}

/// The value of a container's resource, in units of the divisor, rounded up.
pub(crate) fn resource(
    selector: &ResourceFieldSelector,
    container: &Container,
    allocatable: &Allocatable,
) -> Result<String, String> {
    let (list, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let value = match list {
        "limits" => qos::limit(container, name).or(match name {
            "cpu" => Some(Quantity::from_millis(allocatable.cpu_millis)),
            "memory" => Some(Quantity::from_bytes(allocatable.memory_bytes)),
            "ephemeral-storage" => Some(Quantity::from_bytes(allocatable.ephemeral_storage_bytes)),
            _ => None,
        }),
        "requests" => qos::request(container, name).or_else(|| qos::limit(container, name)),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    }
    .unwrap_or(Quantity::ZERO);
    let divisor: Quantity = match &selector.divisor {
        Some(divisor) if divisor.0 != "0" => divisor.0.parse().map_err(|e| format!("{e}"))?,
        _ => Quantity::from_units(1),
    };
    // Thousandths are exact for CPU; bytes could overflow there.
    let (value, divisor) = match name {
        "cpu" => (value.millis(), divisor.millis()),
        _ => (value.units(), divisor.units()),
    };
    Ok(value.checked_add(divisor.max(1) - 1).unwrap_or(value).div_euclid(divisor.max(1)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_of_the_pod() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2\"", "a": "1"}},
            "spec": {"nodeName": "node", "containers": []},
        }))
        .unwrap();
        let addresses = Addresses {
            pod_ips: vec!["10.0.0.2".into(), "fd00::2".into()],
            host_ips: vec!["10.0.0.1".into(), "fc00::1".into()],
        };
        let get = |path| field(&pod, &addresses, path).unwrap();
        assert_eq!(get("metadata.labels"), "a=\"1\"\nb=\"2\\\"\"");
        assert_eq!(get("metadata.labels['a']"), "1");
        assert_eq!(get("metadata.annotations['none']"), "");
        assert_eq!(get("status.podIP"), "10.0.0.2");
        assert_eq!(get("status.hostIP"), "10.0.0.1");
        assert_eq!(get("status.podIPs"), "10.0.0.2,fd00::2");
        assert_eq!(get("status.hostIPs"), "10.0.0.1,fc00::1");
        assert!(field(&pod, &addresses, "spec.what").is_err());
    }

    #[test]
    fn resources_in_units_of_the_divisor() {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}},
        }))
        .unwrap();
        let node = Allocatable { cpu_millis: 2000, memory_bytes: 1 << 30, ephemeral_storage_bytes: 0 };
        let get = |name: &str, divisor: &str| {
            let selector = serde_json::from_value(json!({"resource": name, "divisor": divisor})).unwrap();
            resource(&selector, &container, &node).unwrap()
        };
        assert_eq!(get("limits.cpu", "1"), "2");
        assert_eq!(get("limits.cpu", "1m"), "1500");
        assert_eq!(get("limits.memory", "1Mi"), "100");
        assert_eq!(get("requests.memory", "0"), "104857600");
        assert_eq!(get("limits.ephemeral-storage", "1"), "0");
    }
}
