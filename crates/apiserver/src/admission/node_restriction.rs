//! NodeRestriction: a kubelet writes its own node, its own lease and the pods that are bound to it. Also the
//! taint that keeps pods off a node that has not reported yet (TaintNodesByCondition).

use serde_json::{Value, json};
use skiff_api::{Status, storage};

use super::{Attributes, Operation};

/// A new node takes no pods until it has said that it is ready.
pub(super) fn taint_new_node(node: &mut Value) {
    let taints = &mut node["spec"]["taints"];
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(list) = taints.as_array_mut()
        && !list.iter().any(|t| t["key"] == "node.kubernetes.io/not-ready")
    {
        list.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
    }
}

/// Refuses what is not a kubelet's to do.
pub(super) fn admit(a: &Attributes<'_>, value: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(node) = a.user.name.strip_prefix("system:node:").filter(|_| a.user.in_group("system:nodes")) else {
        return Ok(());
    };
    let own_pod = |pod: &Value| pod["spec"]["nodeName"] == node;
    match (a.resource.group, a.resource.plural) {
        ("", "nodes") if a.name != node => Err(a.refuse(format!("node {node:?} is not allowed to modify node {:?}", a.name))),
        ("", "pods") => match a.operation {
            Operation::Create if value["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() => {
                Err(a.refuse(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods")))
            }
            Operation::Create if !own_pod(value) => {
                Err(a.refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself")))
            }
            Operation::Update | Operation::Delete if !old.is_some_and(own_pod) => {
                let verb = if a.operation == Operation::Delete { "delete" } else { "update status for" };
                Err(a.refuse(format!("node {node:?} can only {verb} pods with spec.nodeName set to itself")))
            }
            _ => Ok(()),
        },
        // A node says that it has removed a volume's directory by taking its finalizer away, and no more.
        ("", "persistentvolumes") => {
            let rest = |volume: &Value| {
                let mut volume = volume.clone();
                if let Some(meta) = volume["metadata"].as_object_mut() {
                    meta.retain(|k, _| !["finalizers", "managedFields", "resourceVersion"].contains(&k.as_str()));
                }
                volume
            };
            let others = |volume: &Value| {
                let list = volume["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
                list.into_iter().filter(|f| f != storage::DIRECTORY_FINALIZER).collect::<Vec<_>>()
            };
            match old.filter(|old| {
                old["metadata"]["labels"][storage::NODE_LABEL] == node
                    && rest(old) == rest(value)
                    && others(old) == others(value)
            }) {
                Some(_) => Ok(()),
                None => Err(a.refuse(format!("node {node:?} can only remove the finalizer of its own volumes"))),
            }
        }
        // A CSINode that is being created is named in the object.
        ("storage.k8s.io", "csinodes") => {
            let name = if a.name.is_empty() { value["metadata"]["name"].as_str() } else { Some(a.name.as_str()) };
            match name == Some(node) {
                true => Ok(()),
                false => Err(a.refuse("can only access CSINode with the same name as the requesting node")),
            }
        }
        ("coordination.k8s.io", "leases") => {
            if a.namespace != "kube-node-lease" {
                Err(a.refuse("can only access leases in the \"kube-node-lease\" system namespace"))
            } else if a.name != node {
                Err(a.refuse("can only access node lease with the same name as the requesting node"))
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}
