//! Endpoints: the older form of what EndpointSlices say, which `kubectl get endpoints` shows.
//!
//! Watches Services and pods; writes Endpoints of the Service's name.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};

use crate::{
    Result, While as _,
    endpointslice::{SubsetPort, address_of, address_types, ports_of, services_of},
    is_conflict, is_not_found, pods,
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";

struct State {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    client: kube::Client,
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(State {
        services: informers.informer(),
        pods: informers.informer(),
        endpoints: informers.informer(),
        client: informers.client().clone(),
    });
    let (services, all_pods, endpoints) = (this.services.clone(), this.pods.clone(), this.endpoints.clone());
    let of_pod = this.services.clone();
    Controller::new("endpoints")
        .workers(2)
        .watch(&services, self_mapper)
        .watch(&all_pods, move |change| services_of(&of_pod, change))
        .watch(&endpoints, self_mapper)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

/// The subsets: pods that serve the same ports together, in the order of their addresses, which are those of the
/// Service's primary family.
fn subsets(service: &Service, selected: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let publishes = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let families = address_types(service);
    let family = families.first().map(String::as_str).unwrap_or_default();
    type Addresses = (Vec<EndpointAddress>, Vec<EndpointAddress>);
    let mut by_ports: BTreeMap<Vec<SubsetPort>, Addresses> = BTreeMap::new();
    for pod in selected {
        let Some(ip) = address_of(pod, family) else { continue };
        if matches!(pods::phase(pod), "Succeeded" | "Failed")
            || (pod.metadata.deletion_timestamp.is_some() && !publishes)
        {
            continue;
        }
        let spec = pod.spec.clone().unwrap_or_default();
        let named = spec.subdomain.as_deref() == Some(&service.name_any());
        let address = EndpointAddress {
            ip,
            hostname: spec.hostname.filter(|h| named && !h.is_empty()),
            node_name: spec.node_name,
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.namespace(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
        };
        let (ready, waiting) = by_ports.entry(ports_of(service, pod)).or_default();
        if publishes || pods::is_ready(pod) { ready.push(address) } else { waiting.push(address) }
    }
    let some = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!list.is_empty()).then_some(list)
    };
    by_ports
        .into_iter()
        .map(|(ports, (ready, waiting))| EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(waiting),
            ports: (!ports.is_empty()).then(|| {
                let port = |p: SubsetPort| EndpointPort {
                    name: Some(p.name).filter(|n| !n.is_empty()),
                    port: p.number,
                    protocol: Some(p.protocol),
                    app_protocol: p.app_protocol,
                };
                ports.into_iter().map(port).collect()
            }),
        })
        .collect()
}

impl State {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let current = self.endpoints.get_key(&key);
        let Some(service) = self.services.get_key(&key) else {
            // Endpoints that somebody wrote by hand are theirs.
            if current.is_some_and(|e| e.labels().get(MANAGED_BY).is_some_and(|m| m == CONTROLLER)) {
                match api.delete(&key.name, &DeleteParams::default()).await {
                    Err(e) if is_not_found(&e) => {}
                    deleted => {
                        deleted.during("deleting Endpoints")?;
                    }
                }
            }
            return Ok(Action::Done);
        };
        let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.clone()).filter(|s| !s.is_empty()) else {
            return Ok(Action::Done);
        };
        let selected: Vec<Arc<Pod>> = self
            .pods
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|p| selector.iter().all(|(k, v)| p.labels().get(k) == Some(v)))
            .collect();
        let subsets = subsets(&service, &selected);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(MANAGED_BY.into(), CONTROLLER.into());
        if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
            labels.insert("service.kubernetes.io/headless".into(), String::new());
        }
        let mut wanted = current.as_deref().cloned().unwrap_or_default();
        wanted.metadata.name = Some(key.name.to_string());
        wanted.metadata.labels = Some(labels);
        wanted.subsets = (!subsets.is_empty()).then_some(subsets);
        let written = match &current {
            Some(current) if **current == wanted => return Ok(Action::Done),
            Some(_) => api.replace(&key.name, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Err(e) if is_not_found(&e) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(Action::Done),
            Err(e) if is_conflict(&e) => Err(e).during("writing Endpoints that changed meanwhile"),
            written => written.during("writing Endpoints").map(|_| Action::Done),
        }
    }
}
