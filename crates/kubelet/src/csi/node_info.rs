//! What the API is told of the node's drivers: the CSINode object, the node's annotation and labels.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::Node,
        storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use skiff_api::csi::NODE_ID_ANNOTATION;
use skiff_csi::v1::NodeGetInfoResponse;

use crate::{kubelet::Kubelet, volumes::api_message};

/// Before the API server is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a write that others were faster with is tried at once.
const CONFLICTS: usize = 5;

/// Makes the node's CSINode object, which is there with or without drivers.
pub(super) async fn make(kubelet: &Arc<Kubelet>) {
    loop {
        match read(kubelet).await {
            Ok(_) => return,
            Err(error) => tracing::debug!(error, "the CSINode object cannot be made yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The node's CSINode object, made if there is none.
async fn read(kubelet: &Kubelet) -> Result<CSINode, String> {
    let name = &kubelet.config.node_name;
    let api: Api<CSINode> = Api::all(kubelet.client.clone());
    if let Some(found) = api.get_opt(name).await.map_err(|e| api_message(&e))? {
        return Ok(found);
    }
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    let node = nodes.get(name).await.map_err(|e| api_message(&e))?;
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.uid().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let wanted = CSINode {
        metadata: ObjectMeta { name: Some(name.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() },
        spec: CSINodeSpec { drivers: Vec::new() },
    };
    api.create(&PostParams::default(), &wanted).await.map_err(|e| api_message(&e))
}

/// Writes the drivers anew after `change`; tried again if somebody else wrote meanwhile.
async fn update(kubelet: &Kubelet, change: impl Fn(&mut Vec<CSINodeDriver>)) -> Result<(), String> {
    let api: Api<CSINode> = Api::all(kubelet.client.clone());
    for _ in 0..CONFLICTS {
        let found = read(kubelet).await?;
        let mut drivers = found.spec.drivers.clone();
        change(&mut drivers);
        if drivers == found.spec.drivers {
            return Ok(());
        }
        let patch = json!({"metadata": {"resourceVersion": found.resource_version()}, "spec": {"drivers": drivers}});
        match api.patch(&kubelet.config.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            patched => return patched.map(drop).map_err(|e| api_message(&e)),
        }
    }
    Err("the CSINode object is written by others all the time".to_owned())
}

/// The driver as the CSINode object has it.
fn entry(driver: &str, info: &NodeGetInfoResponse) -> CSINodeDriver {
    let segments = info.accessible_topology.as_ref().map(|t| t.segments.keys().cloned().collect::<Vec<_>>());
    let count = i32::try_from(info.max_volumes_per_node).ok().filter(|count| *count > 0);
    CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: segments.filter(|keys| !keys.is_empty()),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}

/// The identities in the node's annotation with one set, or taken away.
fn node_ids(node: &Node, driver: &str, id: Option<&str>) -> Option<String> {
    let text = node.annotations().get(NODE_ID_ANNOTATION);
    let mut ids: BTreeMap<String, String> = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    match id {
        Some(id) => ids.insert(driver.to_owned(), id.to_owned()),
        None => ids.remove(driver),
    };
    let text = || json!(ids).to_string();
    (!ids.is_empty()).then(text)
}

/// Tells of a driver. Refuses what would change a label of the node.
pub(super) async fn add(kubelet: &Kubelet, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
    if info.node_id.is_empty() {
        return Err("error adding CSI driver node info: nodeID must not be empty".to_owned());
    }
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    let name = &kubelet.config.node_name;
    let node = nodes.get(name).await.map_err(|e| api_message(&e))?;
    let topology = info.accessible_topology.as_ref().map(|t| t.segments.clone()).unwrap_or_default();
    for (key, value) in &topology {
        if let Some(has) = node.labels().get(key).filter(|has| *has != value) {
            return Err(format!(
                "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{has:?}"
            ));
        }
    }
    let ids = node_ids(&node, driver, Some(&info.node_id));
    if node.annotations().get(NODE_ID_ANNOTATION) != ids.as_ref()
        || topology.keys().any(|k| !node.labels().contains_key(k))
    {
        let patch = json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: ids}, "labels": topology}});
        nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map_err(|e| api_message(&e))?;
    }
    let wanted = entry(driver, info);
    update(kubelet, |drivers| {
        drivers.retain(|d| d.name != driver);
        drivers.push(wanted.clone());
        drivers.sort_by(|a, b| a.name.cmp(&b.name));
    })
    .await
}

/// Tells that a driver is gone. Its labels stay, as upstream leaves them: volumes depend on them.
pub(super) async fn remove(kubelet: &Kubelet, driver: &str) {
    let without = update(kubelet, |drivers| drivers.retain(|d| d.name != driver)).await;
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    let name = &kubelet.config.node_name;
    let annotation = async {
        let node = nodes.get(name).await.map_err(|e| api_message(&e))?;
        let patch = json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: node_ids(&node, driver, None)}}});
        nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map_err(|e| api_message(&e))
    };
    for error in [without.err(), annotation.await.err()].into_iter().flatten() {
        tracing::warn!(driver, error, "cannot tell the API that a CSI driver is gone");
    }
}

#[cfg(test)]
mod tests {
    use skiff_csi::v1::Topology;

    use super::*;

    #[test]
    fn entries() {
        let segments = [("b".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        let info = NodeGetInfoResponse {
            node_id: "id".into(),
            max_volumes_per_node: 3,
            accessible_topology: Some(Topology { segments: segments.into() }),
        };
        let made = entry("d", &info);
        assert_eq!(made.topology_keys.unwrap(), ["a", "b"]);
        assert_eq!(made.allocatable.unwrap().count, Some(3));
        let made = entry("d", &NodeGetInfoResponse { node_id: "id".into(), ..Default::default() });
        assert_eq!((made.topology_keys, made.allocatable), (None, None));
    }

    #[test]
    fn identities() {
        let node = |ids: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: ids}}})).unwrap()
        };
        let both = node_ids(&node("{\"a\":\"1\"}"), "b", Some("2"));
        assert_eq!(both.as_deref(), Some("{\"a\":\"1\",\"b\":\"2\"}"));
        assert_eq!(node_ids(&node("{\"a\":\"1\"}"), "a", None), None);
        assert_eq!(node_ids(&node("nonsense"), "a", Some("1")).as_deref(), Some("{\"a\":\"1\"}"));
    }
}
