//! NodeVolumeLimits: a driver attaches only so many volumes to a node, by the node's CSINode object.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Pod, storage::v1::CSINode};
use skiff_client::ObjectKey;

use super::{
    Refusal,
    volume_binding::{Storage, claims_of, is_bound},
};
use crate::nodes::{NodeInfo, PodInfo};

/// Volumes by driver, each with a name of its own.
type Volumes = BTreeMap<String, BTreeSet<String>>;

/// What a pod adds to a node, and what nodes have.
#[derive(Debug, Default)]
pub(crate) struct State {
    new: Volumes,
    nodes: BTreeMap<String, Arc<CSINode>>,
    /// By node.
    attached: BTreeMap<String, Volumes>,
}

/// A pod's volumes that count. One that is yet to be made counts for its class's provisioner.
fn volumes(pod: &Pod, storage: &Storage, into: &mut Volumes) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for (name, _) in claims_of(pod) {
        let Some(claim) = storage.claims.get(&ObjectKey::new(namespace, &name)) else { continue };
        let spec = claim.spec.clone().unwrap_or_default();
        let volume = spec.volume_name.as_ref().filter(|_| is_bound(claim)).and_then(|v| storage.volumes.get(v));
        let (driver, volume) = match volume {
            Some(volume) => match volume.spec.as_ref().and_then(|s| s.csi.as_ref()) {
                Some(csi) => (csi.driver.clone(), csi.volume_handle.clone()),
                None => continue,
            },
            None => match spec.storage_class_name.as_ref().and_then(|c| storage.classes.get(c)) {
                // No handle can be such a name.
                Some(class) => (class.provisioner.clone(), format!("\0{namespace}/{name}")),
                None => continue,
            },
        };
        into.entry(driver).or_default().insert(volume);
    }
}

impl State {
    pub(crate) fn new(pod: &PodInfo, nodes: &[&NodeInfo], storage: &Storage) -> State {
        let mut state = State::default();
        volumes(&pod.pod, storage, &mut state.new);
        // As it is for most pods.
        if state.new.is_empty() {
            return state;
        }
        let limited = |csi: &CSINode| {
            let drivers = csi.spec.drivers.iter();
            drivers.filter(|d| limit(d).is_some()).any(|d| state.new.contains_key(&d.name))
        };
        state.nodes =
            storage.csi_nodes.iter().filter(|(_, csi)| limited(csi)).map(|(n, c)| (n.clone(), c.clone())).collect();
        if state.nodes.is_empty() {
            return state;
        }
        for node in nodes.iter().filter(|n| state.nodes.contains_key(n.name())) {
            let attached = state.attached.entry(node.name().to_owned()).or_default();
            for other in node.pods.values() {
                volumes(&other.pod, storage, attached);
            }
        }
        // Those that are still attached though their pods are gone.
        for attachment in storage.attachments.values() {
            let Some(attached) = state.attached.get_mut(&attachment.spec.node_name) else { continue };
            let volume = attachment.spec.source.persistent_volume_name.as_ref().and_then(|v| storage.volumes.get(v));
            if let Some(csi) = volume.and_then(|v| v.spec.as_ref()).and_then(|s| s.csi.as_ref()) {
                attached.entry(csi.driver.clone()).or_default().insert(csi.volume_handle.clone());
            }
        }
        state
    }

    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let Some(csi) = self.nodes.get(node.name()) else { return Ok(()) };
        let attached = self.attached.get(node.name());
        for driver in &csi.spec.drivers {
            let (Some(limit), Some(new)) = (limit(driver), self.new.get(&driver.name)) else { continue };
            let empty = BTreeSet::new();
            let has = attached.and_then(|a| a.get(&driver.name)).unwrap_or(&empty);
            let added = new.difference(has).count();
            if added > 0 && has.len() + added > limit {
                return Err(Refusal::of("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }
}

fn limit(driver: &k8s_openapi::api::storage::v1::CSINodeDriver) -> Option<usize> {
    usize::try_from(driver.allocatable.as_ref()?.count?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::tests::{cluster, pod},
        *,
    };

    fn storage() -> Storage {
        let mut storage = Storage::default();
        for name in ["a", "b", "c"] {
            let claim = json!({"metadata": {"name": name, "annotations": {skiff_api::storage::BIND_COMPLETED: "yes"}},
                "spec": {"volumeName": name}});
            storage.claims.insert(ObjectKey::new("", name), Arc::new(serde_json::from_value(claim).unwrap()));
            let volume = json!({"metadata": {"name": name}, "spec": {"csi": {"driver": "d", "volumeHandle": name}}});
            storage.volumes.insert(name.into(), Arc::new(serde_json::from_value(volume).unwrap()));
        }
        let drivers = json!([{"name": "d", "nodeID": "n", "allocatable": {"count": 2}}]);
        let node = json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}});
        storage.csi_nodes.insert("n".into(), Arc::new(serde_json::from_value(node).unwrap()));
        storage
    }

    fn with(claims: &[&str]) -> PodInfo {
        let volumes: Vec<Value> =
            claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
        pod(json!({"volumes": volumes}))
    }

    #[test]
    fn so_many_and_no_more() {
        let mut storage = storage();
        let nodes = cluster(&[("n", "x", &[with(&["a"])])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let fits = |claims: &[&str], storage: &Storage| State::new(&with(claims), &all, storage).filter(&nodes[0]);
        assert!(fits(&["b"], &storage).is_ok());
        // What is there already costs nothing.
        assert!(fits(&["a", "b"], &storage).is_ok());
        assert_eq!(fits(&["b", "c"], &storage).unwrap_err().reasons, ["node(s) exceed max volume count"]);
        let attachment = json!({"metadata": {"name": "va"},
            "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "c"}}});
        storage.attachments.insert("va".into(), Arc::new(serde_json::from_value(attachment).unwrap()));
        assert!(fits(&["b"], &storage).is_err());
        assert!(fits(&["c"], &storage).is_ok());
        storage.csi_nodes.clear();
        assert!(fits(&["b", "c"], &storage).is_ok());
    }
}
