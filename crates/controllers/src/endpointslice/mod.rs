//! EndpointSlices: where the pods that a Service selects can be reached.
//!
//! Watches Services, pods, nodes (for zones) and its own slices; owns the slices that it labels as its own; writes
//! EndpointSlices.

mod reconcile;

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use skiff_client::{Action, Change, Controller, Informer, Informers, ObjectKey, self_mapper};

pub(crate) use self::reconcile::{SubsetPort, address_of, address_types, ports_of};
use crate::{Result, While as _, is_conflict, is_not_found, pods};

const WORKERS: usize = 5;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

struct Slices {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    client: kube::Client,
}

/// The Services that select a pod, before or after a change of it.
pub(crate) fn services_of(services: &Informer<Service>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let pod = change.object();
    // Much of what pods report concerns nobody else. That a pod is gone does.
    if let Change::Applied { old: Some(old), new } = change
        && reconcile::same_for_services(old, new)
    {
        return Vec::new();
    }
    let namespace = pod.namespace().unwrap_or_default();
    let selected = |service: &Service| {
        let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty()) else {
            return false;
        };
        let matches = |pod: &Pod| selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v));
        matches(pod) || change.old().is_some_and(|old| matches(old))
    };
    services.list_namespace(&namespace).into_iter().filter(|s| selected(s)).map(|s| ObjectKey::of(&*s)).collect()
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Slices {
        services: informers.informer(),
        pods: informers.informer(),
        nodes: informers.informer(),
        slices: informers.informer(),
        client: informers.client().clone(),
    });
    this.slices.add_index("service", |slice| slice.labels().get(SERVICE_NAME).cloned().into_iter().collect());
    let (services, all_pods, slices, nodes) =
        (this.services.clone(), this.pods.clone(), this.slices.clone(), this.nodes.clone());
    let of_pod = this.services.clone();
    Controller::new("endpointslice")
        .workers(WORKERS)
        .watch(&services, self_mapper)
        .watch(&all_pods, move |change| services_of(&of_pod, change))
        .watch(&slices, |change: &Change<EndpointSlice>| {
            let slice = change.object();
            let service = slice
                .labels()
                .get(SERVICE_NAME)
                .filter(|_| slice.labels().get(MANAGED_BY).is_some_and(|m| m == CONTROLLER))?;
            Some(ObjectKey::new(slice.namespace().as_deref().unwrap_or_default(), service))
        })
        .reads(&nodes)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Slices {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .by_index("service", &key.name)
            .into_iter()
            .filter(|s| {
                s.namespace().as_deref() == Some(&*key.namespace)
                    && s.labels().get(MANAGED_BY).is_some_and(|m| m == CONTROLLER)
            })
            .collect();
        let service = self.services.get_key(&key).filter(|s| s.metadata.deletion_timestamp.is_none());
        let selecting = service.as_deref().filter(|s| {
            let spec = s.spec.as_ref();
            spec.and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty())
                && spec.and_then(|s| s.type_.as_deref()) != Some("ExternalName")
        });
        let Some(service) = selecting else {
            // Of a Service that is gone the garbage collector removes them; one that no longer selects keeps none.
            for slice in existing.iter().filter(|_| service.is_some()) {
                self.delete(slice).await?;
            }
            return Ok(Action::Done);
        };
        let selector = service.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        let selected: Vec<Arc<Pod>> = self
            .pods
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|p| selector.iter().all(|(k, v)| p.labels().get(k) == Some(v)))
            .collect();
        let zone =
            |node: &str| self.nodes.get("", node).and_then(|n| n.labels().get("topology.kubernetes.io/zone").cloned());
        let plan = reconcile::plan(service, &selected, &existing, &zone);
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for mut slice in plan.create {
            let labels = slice.metadata.labels.get_or_insert_default();
            labels.insert(SERVICE_NAME.into(), key.name.to_string());
            labels.insert(MANAGED_BY.into(), CONTROLLER.into());
            slice.metadata.generate_name = Some(format!("{}-", key.name));
            slice.metadata.owner_references = Some(vec![pods::owner_reference(service)]);
            match api.create(&PostParams::default(), &slice).await {
                Err(kube::Error::Api(status)) if status.message.contains("being terminated") => {
                    return Ok(Action::Done);
                }
                created => created.during("creating an EndpointSlice")?,
            };
        }
        for slice in plan.update {
            match api.replace(&slice.name_any(), &PostParams::default(), &slice).await {
                Err(e) if is_not_found(&e) => {}
                replaced => {
                    replaced.during("updating an EndpointSlice")?;
                }
            }
        }
        for slice in &plan.delete {
            self.delete(slice).await?;
        }
        Ok(Action::Done)
    }

    async fn delete(&self, slice: &EndpointSlice) -> Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &slice.namespace().unwrap_or_default());
        match api.delete(&slice.name_any(), &DeleteParams::default()).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            deleted => deleted.during("deleting an EndpointSlice").map(|_| ()),
        }
    }
}
