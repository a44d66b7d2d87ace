//! What is to be attached to a node, and what may be detached.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{AttachedVolume, Node, PersistentVolume, Pod},
    storage::v1::VolumeAttachment,
};
use skiff_api::csi;

/// How long a node that is not ready may keep a volume that no pod there needs; upstream's.
pub(super) const FORCED_AFTER: Duration = Duration::from_secs(360);
/// How long an attachment may take before somebody is told; upstream's.
pub(super) const ATTACH_PATIENCE: Duration = Duration::from_secs(120);

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that pods on the node need.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) volume: Arc<PersistentVolume>,
    pub(super) driver: String,
    pub(super) handle: String,
    pub(super) pods: Vec<Arc<Pod>>,
}

/// What is known when a node is looked at.
pub(super) struct World<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// `None` if it is gone.
    pub(super) node: Option<&'a Node>,
    pub(super) wanted: &'a [Wanted],
    /// Those of the node.
    pub(super) attachments: &'a [Arc<VolumeAttachment>],
    /// The volumes of attachments, by name.
    pub(super) volumes: &'a BTreeMap<String, Arc<PersistentVolume>>,
    /// Other nodes that have a volume, by its name.
    pub(super) elsewhere: &'a BTreeMap<String, Vec<String>>,
    /// How long an attachment, by name, has been without pods.
    pub(super) idle: &'a dyn Fn(&str) -> Duration,
    /// How long an attachment has been there.
    pub(super) age: &'a dyn Fn(&VolumeAttachment) -> Duration,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Attachments to make: name and place in `wanted`.
    pub(super) attach: Vec<(String, usize)>,
    /// Volumes, by place in `wanted`, that another node has.
    pub(super) taken: Vec<usize>,
    /// Attachments to delete, once the node's status says nothing of them.
    pub(super) detach: Vec<String>,
    /// Attachments without pods that are kept.
    pub(super) idle: Vec<String>,
    /// What the node's status is to say.
    pub(super) attached: Vec<AttachedVolume>,
    /// Volumes, by place in `wanted`, that are attached since the status was written.
    pub(super) done: Vec<usize>,
    /// Volumes that cannot be attached, and why.
    pub(super) failed: Vec<(usize, String)>,
    /// When to look again though nothing happens.
    pub(super) again: Option<Duration>,
}

impl Plan {
    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |known| known.min(after)));
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether several nodes may have it at once.
fn is_shared(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany")
}

/// Whether this controller has made an attachment. Of a volume that is gone all that is left to know it by is the
/// form of its name.
fn is_ours(attachment: &VolumeAttachment, world: &World<'_>) -> bool {
    let name = attachment.metadata.name.as_deref().unwrap_or_default();
    let Some(source) = attachment.spec.source.persistent_volume_name.as_deref() else { return false };
    match world.volumes.get(source) {
        Some(volume) => volume
            .spec
            .as_ref()
            .and_then(|s| s.csi.as_ref())
            .is_some_and(|csi| csi::attachment_name(&csi.driver, &csi.volume_handle, world.name) == name),
        None => {
            let hash = name.strip_prefix("csi-").unwrap_or_default();
            hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())
        }
    }
}

/// How the node says that it has the volume of an attachment mounted, if it does.
fn in_use<'a>(attachment: &str, node: &'a Node, name: &str) -> Option<&'a str> {
    let used = node.status.as_ref().and_then(|s| s.volumes_in_use.as_deref()).unwrap_or_default();
    let is = |unique: &&str| {
        csi::of_unique_name(unique)
            .is_some_and(|(driver, handle)| csi::attachment_name(driver, handle, name) == attachment)
    };
    used.iter().map(String::as_str).find(is)
}

pub(super) fn plan(world: &World<'_>) -> Plan {
    let mut plan = Plan::default();
    let status = world.node.and_then(|n| n.status.as_ref());
    let said = status.and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default();
    for (index, wanted) in world.wanted.iter().enumerate() {
        let name = csi::attachment_name(&wanted.driver, &wanted.handle, world.name);
        let found = world.attachments.iter().find(|a| a.metadata.name.as_deref() == Some(&name));
        let Some(attachment) = found else {
            let volume = wanted.volume.metadata.name.as_deref().unwrap_or_default();
            let taken = world.elsewhere.get(volume).is_some_and(|nodes| !nodes.is_empty());
            match taken && !is_shared(&wanted.volume) {
                true => plan.taken.push(index),
                false => plan.attach.push((name, index)),
            }
            continue;
        };
        // It is made anew once it is gone.
        if attachment.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let state = attachment.status.as_ref();
        if state.is_some_and(|s| s.attached) {
            let unique = csi::unique_name(&wanted.driver, &wanted.handle);
            if said.iter().all(|v| v.name != unique) {
                plan.done.push(index);
            }
            plan.attached.push(AttachedVolume { name: unique, device_path: String::new() });
        } else if let Some(error) = state.and_then(|s| s.attach_error.as_ref()) {
            plan.failed.push((index, error.message.clone().unwrap_or_default()));
        } else if (world.age)(attachment) >= ATTACH_PATIENCE {
            let (driver, handle) = (&wanted.driver, &wanted.handle);
            let why =
                format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
            plan.failed.push((index, why));
            plan.look_again(ATTACH_PATIENCE);
        } else {
            plan.look_again(ATTACH_PATIENCE.saturating_sub((world.age)(attachment)));
        }
    }
    for attachment in world.attachments {
        unneeded(attachment, world, &mut plan);
    }
    plan.attached.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}

/// What becomes of an attachment that no pod needs.
fn unneeded(attachment: &VolumeAttachment, world: &World<'_>, plan: &mut Plan) {
    let Some(name) = attachment.metadata.name.clone() else { return };
    let is_wanted = world.wanted.iter().any(|w| csi::attachment_name(&w.driver, &w.handle, world.name) == name);
    if is_wanted || attachment.metadata.deletion_timestamp.is_some() || !is_ours(attachment, world) {
        return;
    }
    if let Some(node) = world.node {
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let out_of_service = taints.into_iter().any(|t| t.key == OUT_OF_SERVICE);
        let idle = (world.idle)(&name);
        let forced = out_of_service || (!is_ready(node) && idle >= FORCED_AFTER);
        if let Some(unique) = in_use(&name, node, world.name).filter(|_| !forced) {
            if attachment.status.as_ref().is_some_and(|s| s.attached) {
                plan.attached.push(AttachedVolume { name: unique.to_owned(), device_path: String::new() });
            }
            plan.idle.push(name);
            plan.look_again(FORCED_AFTER.saturating_sub(idle).max(Duration::from_secs(1)));
            return;
        }
    }
    plan.detach.push(name);
}

/// Upstream's words for a volume that another node has.
pub(super) fn taken(volume: &str, users: &[Arc<Pod>], namespace: &str) -> String {
    let (near, far): (Vec<_>, Vec<_>) =
        users.iter().partition(|p| p.metadata.namespace.as_deref().unwrap_or_default() == namespace);
    let names: Vec<&str> = near.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
    let why = match (names.is_empty(), far.len()) {
        (true, 0) => "Volume is already exclusively attached to one node and can't be attached to another".to_owned(),
        (true, count) => format!("Volume is already used by {count} pod(s) in different namespaces"),
        (false, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
        (false, count) => {
            format!("Volume is already used by pod(s) {} and {count} pod(s) in different namespaces", names.join(", "))
        }
    };
    format!("Multi-Attach error for volume {volume:?} {why}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const UNIQUE: &str = "kubernetes.io/csi/d^h";

    fn volume(modes: Value) -> Arc<PersistentVolume> {
        let volume = json!({"metadata": {"name": "pv"},
            "spec": {"accessModes": modes, "csi": {"driver": "d", "volumeHandle": "h"}}});
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn attachment(name: &str, status: Value) -> Arc<VolumeAttachment> {
        let made = json!({"metadata": {"name": name}, "status": status,
            "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}});
        Arc::new(serde_json::from_value(made).unwrap())
    }

    fn node(ready: &str, taints: Value, status: Value) -> Node {
        let mut all = json!({"conditions": [{"type": "Ready", "status": ready}]});
        for (key, value) in status.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({"spec": {"taints": taints}, "status": all})).unwrap()
    }

    struct Case {
        node: Option<Node>,
        wanted: bool,
        attachment: Option<Value>,
        modes: Value,
        elsewhere: bool,
        seconds: u64,
    }

    impl Default for Case {
        fn default() -> Case {
            Case {
                node: Some(node("True", json!([]), json!({}))),
                wanted: true,
                attachment: None,
                modes: json!(["ReadWriteOnce"]),
                elsewhere: false,
                seconds: 0,
            }
        }
    }

    fn run(case: Case) -> Plan {
        let name = csi::attachment_name("d", "h", "n");
        let volume = volume(case.modes);
        let wanted = Wanted { volume: volume.clone(), driver: "d".into(), handle: "h".into(), pods: Vec::new() };
        let attachments: Vec<_> = case.attachment.into_iter().map(|status| attachment(&name, status)).collect();
        let waited = Duration::from_secs(case.seconds);
        plan(&World {
            name: "n",
            node: case.node.as_ref(),
            wanted: if case.wanted { std::slice::from_ref(&wanted) } else { &[] },
            attachments: &attachments,
            volumes: &[("pv".to_owned(), volume.clone())].into(),
            elsewhere: &if case.elsewhere { [("pv".to_owned(), vec!["m".to_owned()])].into() } else { BTreeMap::new() },
            idle: &|_| waited,
            age: &|_| waited,
        })
    }

    #[test]
    fn what_pods_need_is_attached() {
        assert_eq!(run(Case::default()).attach, [(csi::attachment_name("d", "h", "n"), 0)]);
        let taken = run(Case { elsewhere: true, ..Case::default() });
        assert_eq!((taken.attach.len(), taken.taken), (0, vec![0]));
        let shared = run(Case { elsewhere: true, modes: json!(["ReadWriteMany"]), ..Case::default() });
        assert_eq!(shared.attach.len(), 1);
        let done = run(Case { attachment: Some(json!({"attached": true})), ..Case::default() });
        assert_eq!((done.attached[0].name.as_str(), done.done), (UNIQUE, vec![0]));
        let error = json!({"attached": false, "attachError": {"message": "no"}});
        assert_eq!(run(Case { attachment: Some(error), ..Case::default() }).failed, [(0, "no".to_owned())]);
        let late = run(Case { attachment: Some(json!({"attached": false})), seconds: 120, ..Case::default() });
        assert_eq!(late.failed[0].1, "timed out waiting for external-attacher of d CSI driver to attach volume h");
    }

    #[test]
    fn what_is_mounted_is_not_detached() {
        let used = json!({"volumesInUse": [UNIQUE], "volumesAttached": [{"name": UNIQUE, "devicePath": ""}]});
        let case = |ready: &str, taints: Value, seconds| Case {
            node: Some(node(ready, taints, used.clone())),
            wanted: false,
            attachment: Some(json!({"attached": true})),
            seconds,
            ..Case::default()
        };
        let kept = run(case("True", json!([]), 1000));
        assert_eq!((kept.detach.len(), kept.attached.len(), kept.idle.len()), (0, 1, 1));
        assert!(run(case("Unknown", json!([]), 359)).detach.is_empty());
        assert_eq!(run(case("Unknown", json!([]), 360)).detach.len(), 1);
        let taint = json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]);
        let forced = run(case("Unknown", taint, 0));
        assert_eq!((forced.detach.len(), forced.attached.len()), (1, 0));
        let unused = Case { wanted: false, attachment: Some(json!({"attached": true})), ..Case::default() };
        assert_eq!(run(unused).detach.len(), 1);
        assert_eq!(run(Case { node: None, ..case("True", json!([]), 0) }).detach.len(), 1);
    }

    #[test]
    fn attachments_of_others_are_left_alone() {
        let name = csi::attachment_name("d", "h", "n");
        let detached = |name: &str, volumes: &BTreeMap<String, Arc<PersistentVolume>>, node: Option<&Node>| {
            let plan = plan(&World {
                name: "n",
                node,
                wanted: &[],
                attachments: &[attachment(name, json!({"attached": true}))],
                volumes,
                elsewhere: &BTreeMap::new(),
                idle: &|_| Duration::ZERO,
                age: &|_| Duration::ZERO,
            });
            plan.detach.len()
        };
        let volumes = [("pv".to_owned(), volume(json!(["ReadWriteOnce"])))].into();
        assert_eq!(detached("by-hand", &volumes, None), 0);
        // Of a volume that is gone, which is known by the node's status alone.
        let none = BTreeMap::new();
        assert_eq!(detached("by-hand", &none, None), 0);
        let used = node("True", json!([]), json!({"volumesInUse": [UNIQUE]}));
        assert_eq!(detached(&name, &none, Some(&used)), 0);
        assert_eq!(detached(&name, &none, Some(&node("True", json!([]), json!({})))), 1);
    }

    #[test]
    fn who_has_it() {
        let pod = |namespace: &str| -> Arc<Pod> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": "p", "namespace": namespace}})).unwrap())
        };
        let start = "Multi-Attach error for volume \"pv\" Volume is already";
        assert_eq!(taken("pv", &[pod("a")], "a"), format!("{start} used by pod(s) p"));
        assert_eq!(taken("pv", &[pod("b")], "a"), format!("{start} used by 1 pod(s) in different namespaces"));
        assert_eq!(
            taken("pv", &[], "a"),
            format!("{start} exclusively attached to one node and can't be attached to another")
        );
    }
}
