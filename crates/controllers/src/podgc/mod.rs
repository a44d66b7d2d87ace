//! Pod garbage: pods of nodes that are gone for good are removed.
//!
//! Watches Nodes and pods; deletes pods that are bound to a node that is not there, after a quarantine in which the
//! node may come back.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use parking_lot::Mutex;
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
    this.pods.add_index("node", |pod| node_of(pod).into_iter().collect());
    let (nodes, pods) = (this.nodes.clone(), this.pods.clone());
    let known = this.nodes.clone();
    Controller::new("podgc")
        .watch(&nodes, |change: &Change<Node>| {
            matches!(change, Change::Deleted { .. }).then(|| ObjectKey::of(&**change.object()))
        })
        .watch(&pods, move |change: &Change<Pod>| {
            let node = node_of(change.object())?;
            known.get("", &node).is_none().then(|| ObjectKey::new("", &node))
        })
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move { this.reconcile(&key.name).await }
        })
        .await;
}

impl Garbage {
    async fn reconcile(&self, node: &str) -> Result<Action> {
        let orphans = self.pods.by_index("node", node);
        if self.nodes.get("", node).is_some() || orphans.is_empty() {
            self.missing_since.lock().remove(node);
            return Ok(Action::Done);
        }
        let since = *self.missing_since.lock().entry(node.to_owned()).or_insert_with(Instant::now);
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        // The cache may be behind; a node that is there again keeps its pods.
        let api: Api<Node> = Api::all(self.client.clone());
        if api.get_metadata_opt(node).await.during("looking for a node")?.is_some() {
            return Ok(Action::Done);
        }
        for pod in orphans {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&pod.name_any(), &params).await {
                Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                deleted => {
                    deleted.during("deleting a pod of a node that is gone")?;
                }
            }
        }
        self.missing_since.lock().remove(node);
        Ok(Action::Done)
    }
}
