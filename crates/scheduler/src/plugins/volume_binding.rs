//! VolumeBinding, VolumeZone and VolumeRestrictions: a pod can only be where its volumes are, or can be made; and a
//! claim of one pod alone has one pod.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
};
use skiff_api::{quantity::Quantity, storage};
use skiff_client::ObjectKey;

use super::{Refusal, node_affinity, terms};
use crate::nodes::{NodeInfo, PodInfo};

/// Claims, volumes and classes as they are.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    pub(crate) claims: BTreeMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(crate) classes: BTreeMap<String, Arc<StorageClass>>,
    pub(crate) drivers: BTreeMap<String, Arc<CSIDriver>>,
    pub(crate) csi_nodes: BTreeMap<String, Arc<CSINode>>,
    pub(crate) capacities: BTreeMap<ObjectKey, Arc<CSIStorageCapacity>>,
    pub(crate) attachments: BTreeMap<String, Arc<VolumeAttachment>>,
}

/// What a pod needs of volumes.
#[derive(Debug, Default)]
pub(crate) struct State {
    bound: Vec<Arc<PersistentVolume>>,
    /// Claims that wait for the pod's node.
    waiting: Vec<Waiting>,
    /// A claim that may have one pod only has it already.
    taken: bool,
}

#[derive(Debug)]
struct Waiting {
    claim: Arc<PersistentVolumeClaim>,
    /// Volumes that are there and would do, the smallest first.
    candidates: Vec<Arc<PersistentVolume>>,
    class: Arc<StorageClass>,
    /// Where its driver has room for it; None if the driver does not say.
    room: Option<Vec<Arc<CSIStorageCapacity>>>,
}

/// Where the driver of a class has room for a claim.
fn room(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    storage: &Storage,
) -> Option<Vec<Arc<CSIStorageCapacity>>> {
    storage.drivers.get(&class.provisioner).filter(|d| d.spec.storage_capacity == Some(true))?;
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let wanted: Option<Quantity> = requests.and_then(|r| r.get("storage")).and_then(|q| q.0.parse().ok());
    let enough = |capacity: &&Arc<CSIStorageCapacity>| {
        let largest = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
        let largest: Option<Quantity> = largest.and_then(|q| q.0.parse().ok());
        Some(&capacity.storage_class_name) == class.metadata.name.as_ref() && largest.is_some() && largest >= wanted
    };
    Some(storage.capacities.values().filter(enough).cloned().collect())
}

/// Whether there is room for a claim that has to be made on this node.
fn has_room(room: &[Arc<CSIStorageCapacity>], node: &NodeInfo) -> bool {
    let labels = node.node.as_ref().and_then(|n| n.metadata.labels.as_ref());
    room.iter().any(|capacity| {
        let topology = capacity.node_topology.as_ref().and_then(terms::compile);
        topology.is_some_and(|t| terms::matches(&t, labels))
    })
}

/// What is to be written for a claim before its pod is bound.
#[derive(Clone, Debug)]
pub(crate) enum Binding {
    /// It gets this volume.
    Volume(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>),
    /// It is to be made for the node.
    Provision(Arc<PersistentVolumeClaim>),
}

/// The claims of a pod, in order; the flag says that the claim is the pod's own.
pub(crate) fn claims_of(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(source), _) => Some((source.claim_name.clone(), false)),
            (_, Some(_)) => Some((format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), v.name), true)),
            _ => None,
        })
        .collect()
}

pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    let completed = annotations.is_some_and(|a| a.contains_key(storage::BIND_COMPLETED));
    completed && claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty())
}

fn size(volume: &PersistentVolume) -> Option<Quantity> {
    volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?.0.parse().ok()
}

/// Whether a free volume would do for a claim that waits.
fn would_do(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(asks)) = (&volume.spec, &claim.spec) else { return false };
    let wanted = asks.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let wanted: Option<Quantity> = wanted.and_then(|q| q.0.parse().ok());
    let modes = has.access_modes.as_deref().unwrap_or_default();
    let mode = |m: &Option<String>| m.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let free = match &has.claim_ref {
        None => volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available"),
        Some(r) => {
            let uid = r.uid.as_deref().unwrap_or_default();
            r.name == claim.metadata.name
                && r.namespace == claim.metadata.namespace
                && (uid.is_empty() || claim.metadata.uid.as_deref() == Some(uid))
        }
    };
    let selector = asks.selector.as_ref().map(terms::compile);
    free && volume.metadata.deletion_timestamp.is_none()
        && has.storage_class_name.clone().unwrap_or_default() == asks.storage_class_name.clone().unwrap_or_default()
        && size(volume) >= wanted
        && asks.access_modes.iter().flatten().all(|m| modes.contains(m))
        && mode(&has.volume_mode) == mode(&asks.volume_mode)
        && selector.is_none_or(|s| s.is_some_and(|s| terms::matches(&s, volume.metadata.labels.as_ref())))
}

/// Whether a volume can be used on a node.
fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    affinity.is_none_or(|a| node_affinity::any_term_matches(&a.node_selector_terms, node))
}

/// Labels of old: a volume of a zone is used in that zone. Several are separated by `__`.
fn zone_conflicts(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let keys = [
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
    ];
    let labels = volume.metadata.labels.as_ref();
    keys.iter().any(|key| {
        let (wanted, has) = (labels.and_then(|l| l.get(*key)), node.label(key));
        wanted.zip(has).is_some_and(|(wanted, has)| wanted.split("__").all(|zone| zone != has))
    })
}

fn allows(class: &StorageClass, node: &NodeInfo) -> bool {
    if class.provisioner == "kubernetes.io/no-provisioner" {
        return false;
    }
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    topologies.is_empty()
        || topologies.iter().any(|t| {
            let mut expressions = t.match_label_expressions.iter().flatten();
            expressions.all(|e| node.label(&e.key).is_some_and(|v| e.values.iter().any(|x| x == v)))
        })
}

impl State {
    /// The error is said of all nodes.
    pub(crate) fn new(pod: &PodInfo, nodes: &[&NodeInfo], storage: &Storage) -> Result<State, String> {
        let claims = claims_of(&pod.pod);
        let mut state = State::default();
        let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut immediate = false;
        for (name, own) in &claims {
            let Some(claim) = storage.claims.get(&ObjectKey::new(namespace, name)) else {
                return Err(match own {
                    true => {
                        format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                    }
                    false => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
                let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            let spec = claim.spec.clone().unwrap_or_default();
            let only_one = spec.access_modes.iter().flatten().any(|m| m == "ReadWriteOncePod");
            state.taken |= only_one
                && nodes.iter().flat_map(|n| n.pods.values()).any(|other| {
                    let same = other.pod.metadata.namespace.as_deref().unwrap_or_default() == namespace;
                    same && other.pod.metadata.uid != pod.pod.metadata.uid
                        && claims_of(&other.pod).iter().any(|(c, _)| c == name)
                });
            if is_bound(claim) {
                let volume = spec.volume_name.and_then(|v| storage.volumes.get(&v).cloned());
                let Some(volume) = volume else {
                    return Err("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".to_owned());
                };
                state.bound.push(volume);
                continue;
            }
            let class = spec.storage_class_name.as_ref().and_then(|c| storage.classes.get(c));
            match class.filter(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")) {
                Some(class) if spec.volume_name.is_none() => {
                    let mut candidates: Vec<_> =
                        storage.volumes.values().filter(|v| would_do(v, claim)).cloned().collect();
                    candidates.sort_by_key(|v| (size(v), v.metadata.name.clone()));
                    let room = room(claim, class, storage);
                    state.waiting.push(Waiting { claim: claim.clone(), candidates, class: class.clone(), room });
                }
                _ => immediate = true,
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        Ok(state)
    }

    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if self.taken {
            return Err(Refusal::of(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ));
        }
        if self.bound.iter().any(|v| !reaches(v, node)) {
            return Err(Refusal::final_("node(s) didn't match PersistentVolume's node affinity"));
        }
        if self.bound.iter().any(|v| zone_conflicts(v, node)) {
            return Err(Refusal::final_("node(s) had no available volume zone"));
        }
        let Some(bindings) = self.bindings(node) else {
            return Err(Refusal::final_("node(s) didn't find available persistent volumes to bind"));
        };
        let short = bindings.iter().zip(&self.waiting).any(|(binding, waiting)| {
            let made = matches!(binding, Binding::Provision(_));
            made && waiting.room.as_ref().is_some_and(|room| !has_room(room, node))
        });
        if short {
            return Err(Refusal::final_("node(s) did not have enough free storage"));
        }
        Ok(())
    }

    /// What each waiting claim gets on a node; None if one gets nothing.
    pub(crate) fn bindings(&self, node: &NodeInfo) -> Option<Vec<Binding>> {
        let mut used: Vec<Option<String>> = Vec::new();
        let mut bindings = Vec::new();
        for waiting in &self.waiting {
            let free = |v: &&Arc<PersistentVolume>| reaches(v, node) && !used.contains(&v.metadata.name);
            let annotations = waiting.claim.metadata.annotations.as_ref();
            let chosen = annotations.and_then(|a| a.get(storage::SELECTED_NODE));
            match waiting.candidates.iter().find(free) {
                Some(volume) => {
                    used.push(volume.metadata.name.clone());
                    bindings.push(Binding::Volume(waiting.claim.clone(), volume.clone()));
                }
                // One for another node may be under way.
                None if chosen.is_some_and(|n| n != node.name()) => return None,
                None if allows(&waiting.class, node) => bindings.push(Binding::Provision(waiting.claim.clone())),
                None => return None,
            }
        }
        Some(bindings)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::tests::{cluster, pod},
        *,
    };

    fn storage(claim: Value, annotations: Value, volumes: &[(&str, Value)], mode: &str) -> Storage {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in claim.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let claim = json!({"metadata": {"name": "c", "annotations": annotations}, "spec": spec});
        let class = json!({"metadata": {"name": "s"}, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": mode});
        Storage {
            claims: [(ObjectKey::new("", "c"), Arc::new(serde_json::from_value(claim).unwrap()))].into(),
            classes: [("s".into(), Arc::new(serde_json::from_value(class).unwrap()))].into(),
            volumes: volumes
                .iter()
                .map(|(name, more)| {
                    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "s", "capacity": {"storage": "1Gi"}});
                    for (key, value) in more.as_object().unwrap() {
                        spec[key] = value.clone();
                    }
                    let v = json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Available"}});
                    ((*name).to_owned(), Arc::new(serde_json::from_value(v).unwrap()))
                })
                .collect(),
            ..Storage::default()
        }
    }

    fn in_zone(zone: &str) -> Value {
        json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]}}})
    }

    fn claiming() -> PodInfo {
        pod(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}))
    }

    #[test]
    fn bound_volumes_tie_a_pod_to_their_nodes() {
        let nodes = cluster(&[("a", "x", &[]), ("b", "y", &[])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let done = json!({storage::BIND_COMPLETED: "yes"});
        let world = storage(json!({"volumeName": "v"}), done, &[("v", in_zone("x"))], "Immediate");
        let state = State::new(&claiming(), &all, &world).unwrap();
        assert!(state.filter(&nodes[0]).is_ok());
        assert_eq!(
            state.filter(&nodes[1]).unwrap_err().reasons,
            ["node(s) didn't match PersistentVolume's node affinity"]
        );
    }

    #[test]
    fn claims_that_are_not_bound() {
        let nodes = cluster(&[("a", "x", &[]), ("b", "y", &[])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let now = storage(json!({}), json!({}), &[], "Immediate");
        assert_eq!(
            State::new(&claiming(), &all, &now).unwrap_err(),
            "pod has unbound immediate PersistentVolumeClaims"
        );
        assert_eq!(
            State::new(&claiming(), &all, &Storage::default()).unwrap_err(),
            "persistentvolumeclaim \"c\" not found"
        );
        let late = storage(json!({}), json!({}), &[("v", in_zone("y"))], "WaitForFirstConsumer");
        let state = State::new(&claiming(), &all, &late).unwrap();
        assert!(state.filter(&nodes[0]).is_err());
        assert!(matches!(state.bindings(&nodes[1]).unwrap()[..], [Binding::Volume(..)]));
    }

    #[test]
    fn drivers_say_where_they_have_room() {
        let nodes = cluster(&[("a", "x", &[]), ("b", "y", &[])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let mut world = storage(json!({}), json!({}), &[], "WaitForFirstConsumer");
        let class = json!({"metadata": {"name": "s"}, "provisioner": "d", "volumeBindingMode": "WaitForFirstConsumer"});
        world.classes.insert("s".into(), Arc::new(serde_json::from_value(class).unwrap()));
        let driver = json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": true}});
        world.drivers.insert("d".into(), Arc::new(serde_json::from_value(driver).unwrap()));
        let reasons = |world: &Storage| {
            let state = State::new(&claiming(), &all, world).unwrap();
            nodes.iter().map(|n| state.filter(n).err().map(|r| r.reasons[0].clone())).collect::<Vec<_>>()
        };
        let short = Some("node(s) did not have enough free storage".to_owned());
        assert_eq!(reasons(&world), [short.clone(), short.clone()]);
        for (name, zone, size) in [("small", "x", "1Mi"), ("large", "y", "1Gi")] {
            let capacity = json!({"metadata": {"name": name}, "storageClassName": "s", "capacity": size,
                "nodeTopology": {"matchLabels": {"zone": zone}}});
            world.capacities.insert(ObjectKey::new("", name), Arc::new(serde_json::from_value(capacity).unwrap()));
        }
        assert_eq!(reasons(&world), [short, None]);
    }

    #[test]
    fn a_claim_of_one_pod_has_one() {
        let nodes = cluster(&[("a", "x", &[claiming()])]);
        let all: Vec<&NodeInfo> = nodes.iter().collect();
        let spec = json!({"volumeName": "v", "accessModes": ["ReadWriteOncePod"]});
        let world = storage(spec, json!({storage::BIND_COMPLETED: "yes"}), &[("v", json!({}))], "Immediate");
        let mut second = claiming();
        Arc::make_mut(&mut second.pod).metadata.uid = Some("other".into());
        assert!(State::new(&second, &all, &world).unwrap().filter(&nodes[0]).is_err());
    }
}
