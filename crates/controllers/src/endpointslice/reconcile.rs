//! Which slices there should be.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use kube::ResourceExt as _;

use crate::pods;

/// Endpoints in one slice, upstream's default.
const MAX_ENDPOINTS: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port of a Service as one pod serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SubsetPort {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) number: i32,
    pub(crate) app_protocol: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Whether Services see no difference between two states of a pod.
pub(super) fn same_for_services(old: &Pod, new: &Pod) -> bool {
    let facts = |p: &Pod| {
        (
            p.metadata.uid.clone(),
            p.metadata.labels.clone(),
            p.metadata.deletion_timestamp.is_some(),
            pods::is_ready(p),
            pods::phase(p).to_owned(),
            p.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone())),
            p.spec.as_ref().and_then(|s| s.node_name.clone()),
        )
    };
    facts(old) == facts(new)
}

/// The ports of a Service as a pod serves them: named ones are looked up in its containers. A name that the pod does
/// not have is left out.
pub(crate) fn ports_of(service: &Service, pod: &Pod) -> Vec<SubsetPort> {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let sidecars = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let sidecars = sidecars.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let all: Vec<_> = containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten()).collect();
    let mut ports: Vec<SubsetPort> = service
        .spec
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            let number = match &p.target_port {
                None => p.port,
                Some(IntOrString::Int(n)) => *n,
                Some(IntOrString::String(name)) => {
                    let found = all
                        .iter()
                        .find(|c| c.name.as_ref() == Some(name) && c.protocol.as_deref().unwrap_or("TCP") == protocol);
                    found?.container_port
                }
            };
            let name = p.name.clone().unwrap_or_default();
            Some(SubsetPort { name, protocol, number, app_protocol: p.app_protocol.clone() })
        })
        .collect();
    ports.sort();
    ports
}

/// The address types of a Service's slices, the primary one first: those of its families.
pub(crate) fn address_types(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    match spec.and_then(|s| s.ip_families.clone()).filter(|families| !families.is_empty()) {
        Some(families) => families,
        // Of a time before there were families.
        None => vec![if spec.and_then(|s| s.cluster_ip.as_deref()).is_some_and(|ip| ip.contains(':')) {
            "IPv6".into()
        } else {
            "IPv4".into()
        }],
    }
}

/// The address of a pod that goes into slices of a type.
pub(crate) fn address_of(pod: &Pod, address_type: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let is_meant = |ip: &&String| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (address_type == "IPv6"));
    listed.chain(&status.pod_ip).find(is_meant).cloned()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address_type: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    let ip = address_of(pod, address_type)?;
    if matches!(pods::phase(pod), "Succeeded" | "Failed") {
        return None;
    }
    let publishes = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let serving = pods::is_ready(pod) || publishes;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let spec = pod.spec.as_ref()?;
    // Pods with the Service as their domain have a name of their own in it.
    let named = spec.subdomain.as_deref() == Some(&service.name_any());
    let ready = publishes || (serving && !terminating);
    let zone = node.as_deref().and_then(zone);
    Some(Endpoint {
        hints: hints(service, node.as_deref(), zone.as_deref()).filter(|_| ready),
        addresses: vec![ip],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.hostname.clone().filter(|h| named && !h.is_empty()),
        zone,
        node_name: node,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// For whom an endpoint is meant, by the Service's `trafficDistribution`: its own zone, or its own node.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let by_node = match service.spec.as_ref()?.traffic_distribution.as_deref()? {
        "PreferSameNode" => true,
        "PreferClose" | "PreferSameZone" => false,
        _ => return None,
    };
    let hints = EndpointHints {
        for_nodes: node.filter(|_| by_node).map(|name| vec![ForNode { name: name.to_owned() }]),
        for_zones: zone.map(|name| vec![ForZone { name: name.to_owned() }]),
    };
    (hints != EndpointHints::default()).then_some(hints)
}

fn key(e: &Endpoint) -> (Option<String>, Vec<String>) {
    (e.target_ref.as_ref().and_then(|r| r.uid.clone()), e.addresses.clone())
}

fn slice_ports(ports: &[SubsetPort]) -> Vec<EndpointPort> {
    ports
        .iter()
        .map(|p| EndpointPort {
            name: Some(p.name.clone()),
            port: Some(p.number),
            protocol: Some(p.protocol.clone()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect()
}

/// The changes that lead to the right slices, those of each address type by themselves.
pub(super) fn plan(
    service: &Service,
    selected: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Plan {
    let types = address_types(service);
    let mut plan = Plan::default();
    for address_type in &types {
        let existing: Vec<_> = existing.iter().filter(|s| s.address_type == *address_type).cloned().collect();
        let of_type = plan_type(service, selected, &existing, address_type, zone);
        plan.create.extend(of_type.create);
        plan.update.extend(of_type.update);
        plan.delete.extend(of_type.delete);
    }
    plan.delete.extend(existing.iter().filter(|s| !types.contains(&s.address_type)).cloned());
    plan
}

/// The changes of one address type; endpoints stay in the slice that they are in.
fn plan_type(
    service: &Service,
    selected: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    address_type: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Plan {
    let mut wanted: BTreeMap<Vec<SubsetPort>, Vec<Endpoint>> = BTreeMap::new();
    for pod in selected {
        if let Some(e) = endpoint(service, pod, address_type, zone) {
            wanted.entry(ports_of(service, pod)).or_default().push(e);
        }
    }
    // Also a Service without endpoints has a slice, so that everybody can see that there are none.
    if wanted.is_empty() {
        wanted.insert(Vec::new(), Vec::new());
    }
    let labels = wanted_labels(service);
    let mut plan = Plan::default();
    let mut used: Vec<&Arc<EndpointSlice>> = Vec::new();
    for (ports, mut endpoints) in wanted {
        let ports = slice_ports(&ports);
        let empty = endpoints.is_empty();
        let same = existing.iter().filter(|s| empty || s.ports.clone().unwrap_or_default() == ports);
        for slice in same {
            if used.iter().any(|u| u.uid() == slice.uid()) {
                continue;
            }
            if empty && !used.is_empty() {
                break;
            }
            // Those that are in this slice and are still wanted stay, in their present form.
            let mut kept = Vec::new();
            for old in slice.endpoints.iter().flatten() {
                if let Some(i) = endpoints.iter().position(|e| key(e) == key(old)) {
                    kept.push(endpoints.swap_remove(i));
                }
            }
            let room = MAX_ENDPOINTS.saturating_sub(kept.len()).min(endpoints.len());
            kept.extend(endpoints.drain(..room));
            if kept.is_empty() && !empty {
                continue;
            }
            used.push(slice);
            let mut new = EndpointSlice::clone(slice);
            new.endpoints = Some(kept);
            new.ports = Some(ports.clone());
            let all = new.metadata.labels.get_or_insert_default();
            all.remove(HEADLESS);
            all.extend(labels.clone());
            if new != **slice {
                plan.update.push(new);
            }
        }
        while !endpoints.is_empty() || (empty && used.is_empty() && plan.create.is_empty()) {
            let n = endpoints.len().min(MAX_ENDPOINTS);
            plan.create.push(EndpointSlice {
                metadata: ObjectMeta {
                    namespace: service.namespace(),
                    labels: Some(labels.clone()),
                    ..ObjectMeta::default()
                },
                address_type: address_type.to_owned(),
                endpoints: Some(endpoints.drain(..n).collect()),
                ports: Some(ports.clone()),
            });
        }
    }
    plan.delete = existing.iter().filter(|s| !used.iter().any(|u| u.uid() == s.uid())).cloned().collect();
    plan
}

/// The Service's labels, and whether it is headless.
fn wanted_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d", "uid": "su"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "d", "uid": name},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn hints_follow_the_distribution() {
        let of = |distribution: Value| {
            let service = service(json!({"trafficDistribution": distribution}));
            let zone = |_: &str| Some("z".to_owned());
            let plan = plan(&service, &[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)], &[], &zone);
            let endpoints = plan.create[0].endpoints.clone().unwrap();
            assert_eq!(endpoints[1].hints, None, "not of one that is not ready");
            serde_json::to_value(&endpoints[0].hints).unwrap()
        };
        assert_eq!(of(Value::Null), Value::Null);
        assert_eq!(of(json!("PreferClose")), json!({"forZones": [{"name": "z"}]}));
        let node = json!({"forNodes": [{"name": "n"}], "forZones": [{"name": "z"}]});
        assert_eq!(of(json!("PreferSameNode")), node);
    }

    fn stored(mut slice: EndpointSlice, name: &str) -> Arc<EndpointSlice> {
        slice.metadata.uid = Some(name.into());
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    #[test]
    fn named_ports_are_looked_up_and_readiness_is_told() {
        let s = service(json!({"ports": [{"name": "web", "port": 80, "targetPort": "http"}]}));
        let plan1 = plan(&s, &[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)], &[], &|_| None);
        assert_eq!(plan1.create.len(), 1);
        let slice = &plan1.create[0];
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
        let ready: Vec<_> = slice.endpoints.iter().flatten().map(|e| e.conditions.as_ref().unwrap().ready).collect();
        assert_eq!(ready, [Some(true), Some(false)]);
        // The same again changes nothing.
        let existing = [stored(slice.clone(), "s-1")];
        let again = plan(&s, &[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)], &existing, &|_| None);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty(), "{again:?}");
        let changed = plan(&s, &[pod("a", "10.0.0.1", true)], &existing, &|_| None);
        assert_eq!(changed.update[0].endpoints.as_ref().unwrap().len(), 1);
        // Without pods the slice stays, empty.
        let none = plan(&s, &[], &existing, &|_| None);
        assert_eq!(none.update.len(), 1);
        assert!(none.update[0].endpoints.as_ref().unwrap().is_empty() && none.delete.is_empty());
    }

    #[test]
    fn each_family_has_its_slices() {
        let dual = |name: &str, ips: &[&str]| {
            let mut pod = Pod::clone(&pod(name, ips[0], true));
            let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            pod.status.as_mut().unwrap().pod_ips = serde_json::from_value(json!(ips)).unwrap();
            Arc::new(pod)
        };
        // A pod that has one of the families only is in the slices of that one.
        let pods = [dual("a", &["10.0.0.1", "fd00::1"]), dual("b", &["10.0.0.2"])];
        let service = |families: Value| service(json!({"ports": [{"port": 80}], "ipFamilies": families}));
        let facts = |slice: &EndpointSlice| {
            let addresses = slice.endpoints.iter().flatten().flat_map(|e| e.addresses.clone());
            (slice.address_type.clone(), addresses.collect::<Vec<_>>())
        };
        let both = plan(&service(json!(["IPv4", "IPv6"])), &pods, &[], &|_| None);
        let v4 = ("IPv4".to_owned(), vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()]);
        let v6 = ("IPv6".to_owned(), vec!["fd00::1".to_owned()]);
        assert_eq!(both.create.iter().map(facts).collect::<Vec<_>>(), [v4, v6.clone()]);
        let existing: Vec<_> =
            both.create.iter().enumerate().map(|(i, s)| stored(s.clone(), &format!("s-{i}"))).collect();
        let again = plan(&service(json!(["IPv4", "IPv6"])), &pods, &existing, &|_| None);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty(), "{again:?}");
        // A family that is gone takes its slices along.
        let one = plan(&service(json!(["IPv4"])), &pods, &existing, &|_| None);
        assert!(one.create.is_empty() && one.update.is_empty());
        assert_eq!(one.delete.iter().map(|s| facts(s)).collect::<Vec<_>>(), [v6]);
        // Without pods each family says so.
        let none = plan(&service(json!(["IPv6", "IPv4"])), &[], &[], &|_| None);
        assert_eq!(none.create.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(), ["IPv6", "IPv4"]);
    }

    #[test]
    fn slices_are_not_too_large() {
        let s = service(json!({"ports": [{"port": 80}]}));
        let pods: Vec<_> =
            (0..250).map(|i| pod(&format!("p{i}"), &format!("10.0.{}.{}", i / 250, i % 250 + 1), true)).collect();
        let p = plan(&s, &pods, &[], &|_| None);
        assert_eq!(p.create.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect::<Vec<_>>(), [100, 100, 50]);
    }
}
