//! Pod garbage: pods that no kubelet will ever remove.
//!
//! Watches Nodes and pods; deletes pods that are bound to a node that is not there, after a quarantine in which the
//! node may come back; deleted pods of a lost node that somebody has declared out of service by its taint; and deleted
//! pods that were never bound.

mod reconcile;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Action, Change, Controller, Informer, Informers, ObjectKey};

use crate::{Result, While as _, is_conflict, is_not_found};

/// How long a node may be missing, upstream's.
const QUARANTINE: Duration = Duration::from_secs(40);

struct Garbage {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    client: kube::Client,
    missing_since: Mutex<HashMap<String, Instant>>,
}

/// Stands for the pods without a node; no node can be called so.
const UNBOUND: &str = "/unbound";

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone().filter(|n| !n.is_empty())
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Garbage {
        nodes: informers.informer(),
        pods: informers.informer(),
        client: informers.client().clone(),
        missing_since: Mutex::default(),
    });
    this.pods.add_index("node", |pod| vec![node_of(pod).unwrap_or_else(|| UNBOUND.to_owned())]);
    let (nodes, pods) = (this.nodes.clone(), this.pods.clone());
    let known = this.nodes.clone();
    Controller::new("podgc")
        .watch(&nodes, |change: &Change<Node>| {
            let gone = matches!(change, Change::Deleted { .. });
            (gone || reconcile::is_out_of_service(change.object())).then(|| ObjectKey::of(&**change.object()))
        })
        .watch(&pods, move |change: &Change<Pod>| {
            let pod = change.object();
            let deleting = pod.metadata.deletion_timestamp.is_some();
            match node_of(pod) {
                None => deleting.then(|| ObjectKey::new("", UNBOUND)),
                Some(node) => {
                    let node_object = known.get("", &node);
                    let lost = node_object.is_none_or(|n| deleting && reconcile::is_out_of_service(&n));
                    lost.then(|| ObjectKey::new("", &node))
                }
            }
        })
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move { this.reconcile(&key.name).await }
        })
        .await;
}

impl Garbage {
    async fn reconcile(&self, name: &str) -> Result<Action> {
        let pods = self.pods.by_index("node", name);
        let deleting = || pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some());
        if name == UNBOUND {
            for pod in deleting() {
                self.remove(pod, None).await?;
            }
            return Ok(Action::Done);
        }
        if let Some(node) = self.nodes.get("", name) {
            self.missing_since.lock().remove(name);
            if reconcile::is_out_of_service(&node) {
                for pod in deleting() {
                    self.remove(pod, None).await?;
                }
            }
            return Ok(Action::Done);
        }
        if pods.is_empty() {
            self.missing_since.lock().remove(name);
            return Ok(Action::Done);
        }
        let since = *self.missing_since.lock().entry(name.to_owned()).or_insert_with(Instant::now);
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        // The cache may be behind; a node that is there again keeps its pods.
        let api: Api<Node> = Api::all(self.client.clone());
        if api.get_metadata_opt(name).await.during("looking for a node")?.is_some() {
            return Ok(Action::Done);
        }
        for pod in &pods {
            self.remove(pod, Some("PodGC: node no longer exists")).await?;
        }
        self.missing_since.lock().remove(name);
        Ok(Action::Done)
    }

    /// Says that the pod has failed, unless it has ended, and takes it away at once. `disruption`: why, if it did not
    /// end by its owner's wish.
    async fn remove(&self, pod: &Pod, disruption: Option<&str>) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        if let Some(status) = reconcile::failed(pod, disruption, jiff::Timestamp::now()) {
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
            match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
                Err(e) if is_not_found(&e) || is_conflict(&e) => return Ok(()),
                patched => patched.during("marking a pod that nobody will end")?,
            };
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&pod.name_any(), &params).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
            deleted => deleted.during("deleting a pod that nobody will end").map(drop),
        }
    }
}
