//! Attaches volumes of CSI drivers to the nodes whose pods need them (upstream's `attachdetach`).
//!
//! Watches pods, nodes, claims, volumes, drivers and attachments; writes VolumeAttachments, which drivers' attachers
//! act on, and `status.volumesAttached` of nodes, which kubelets wait for. A volume is detached when no pod on the node
//! needs it and the kubelet says by `status.volumesInUse` that it is not mounted; from a node that is not ready after
//! six minutes, and from one that is out of service by its taint at once. **Invariant:** before an attachment is
//! deleted the node's status says nothing of it any more, so no kubelet mounts what is being detached.

mod reconcile;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey};

use self::reconcile::{Plan, Wanted, World};
use crate::{
    Result, While as _, is_conflict, is_not_found, pods,
    volumebinder::{BY_CLAIM, claims_of, index_by_claim},
};

/// Index of pods: the node's name.
const BY_NODE: &str = "node";
/// Index of attachments: the node's name.
const ON_NODE: &str = "node";
/// Index of attachments: the volume's name.
const OF_VOLUME: &str = "volume";

struct AttachDetach {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    client: kube::Client,
    recorder: EventRecorder,
    /// Since when attachments, by name, are without pods.
    idle: Mutex<HashMap<String, Instant>>,
    /// Volumes and nodes of which it was told that another node has them.
    told: Mutex<HashSet<(String, String)>>,
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

fn key(node: &str) -> ObjectKey {
    ObjectKey::new("", node)
}

/// Nodes of the pods that use a claim.
fn users(pods: &Informer<Pod>, namespace: &str, claim: &str) -> Vec<ObjectKey> {
    let users = pods.by_index(BY_CLAIM, &format!("{namespace}/{claim}"));
    users.iter().filter_map(|p| node_of(p)).map(key).collect()
}

fn users_of_volume(pods: &Informer<Pod>, volume: &PersistentVolume) -> Vec<ObjectKey> {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let names = reference.and_then(|r| Some((r.namespace.as_deref()?, r.name.as_deref()?)));
    names.map(|(namespace, name)| users(pods, namespace, name)).unwrap_or_default()
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(AttachDetach {
        pods: informers.informer(),
        nodes: informers.informer(),
        claims: informers.informer(),
        volumes: informers.informer(),
        drivers: informers.informer(),
        attachments: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "attachdetach-controller", None),
        idle: Mutex::default(),
        told: Mutex::default(),
    });
    index_by_claim(&this.pods);
    this.pods.add_index(BY_NODE, |pod| node_of(pod).map(str::to_owned).into_iter().collect());
    this.attachments.add_index(ON_NODE, |a| vec![a.spec.node_name.clone()]);
    this.attachments.add_index(OF_VOLUME, |a| a.spec.source.persistent_volume_name.clone().into_iter().collect());
    let (by_claim, by_volume, by_attachment) = (this.pods.clone(), this.pods.clone(), this.clone());
    let all_nodes = this.nodes.clone();
    Controller::new("attachdetach")
        .watch(&this.pods, |change: &Change<Pod>| {
            let pod = change.object();
            // Most pods have no volumes that anybody could attach.
            let node = node_of(pod).filter(|_| !claims_of(pod).is_empty());
            node.map(key)
        })
        .watch(&this.nodes, |change: &Change<Node>| {
            let state = |n: &Node| {
                let status = n.status.clone().unwrap_or_default();
                let ready = status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == "Ready");
                let taints = n.spec.as_ref().and_then(|s| s.taints.clone());
                (status.volumes_in_use, status.volumes_attached, ready.map(|c| c.status), taints)
            };
            // Heartbeats change nothing that matters here.
            let differs = match change {
                Change::Applied { old: Some(old), new } => state(old) != state(new),
                _ => true,
            };
            differs.then(|| key(&change.object().name_any()))
        })
        .watch(&this.claims, move |change: &Change<PersistentVolumeClaim>| {
            let claim = change.object();
            users(&by_claim, &claim.namespace().unwrap_or_default(), &claim.name_any())
        })
        .watch(&this.volumes, move |change: &Change<PersistentVolume>| users_of_volume(&by_volume, change.object()))
        .watch(&this.drivers, move |_: &Change<CSIDriver>| {
            all_nodes.list().iter().map(|n| key(&n.name_any())).collect::<Vec<_>>()
        })
        .watch(&this.attachments, move |change: &Change<VolumeAttachment>| {
            let attachment = change.object();
            let mut keys = vec![key(&attachment.spec.node_name)];
            if matches!(change, Change::Deleted { .. }) {
                // Another node may have waited for it.
                let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
                let volume = by_attachment.volumes.get("", volume);
                keys.extend(volume.iter().flat_map(|v| users_of_volume(&by_attachment.pods, v)));
            }
            keys
        })
        .run({
            let this = this.clone();
            move |key: ObjectKey| {
                let this = this.clone();
                async move { this.node(&key.name).await }
            }
        })
        .await;
}

impl AttachDetach {
    /// The volumes that are to be attached for the pods of a node.
    fn wanted(&self, node: &str) -> Vec<Wanted> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for pod in self.pods.by_index(BY_NODE, node) {
            if matches!(pods::phase(&pod), "Succeeded" | "Failed") {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            for claim in claims_of(&pod) {
                let Some(volume) = self.bound_to(&namespace, &claim) else { continue };
                let Some(csi) = volume.spec.as_ref().and_then(|s| s.csi.clone()) else { continue };
                let driver = self.drivers.get("", &csi.driver);
                // As upstream has it, volumes of a driver of which nothing is said are attached.
                if driver.is_some_and(|d| d.spec.attach_required == Some(false)) {
                    continue;
                }
                let entry = wanted.entry(volume.name_any()).or_insert_with(|| Wanted {
                    volume: volume.clone(),
                    driver: csi.driver.clone(),
                    handle: csi.volume_handle.clone(),
                    pods: Vec::new(),
                });
                entry.pods.push(pod.clone());
            }
        }
        wanted.into_values().collect()
    }

    fn bound_to(&self, namespace: &str, claim: &str) -> Option<Arc<PersistentVolume>> {
        let claim = self.claims.get(namespace, claim)?;
        let volume = self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref()?)?;
        let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
        (reference.uid.is_some() && reference.uid == claim.uid()).then_some(volume)
    }

    async fn node(&self, name: &str) -> Result<Action> {
        let node = self.nodes.get("", name);
        let wanted = self.wanted(name);
        let attachments = self.attachments.by_index(ON_NODE, name);
        if wanted.is_empty() && attachments.is_empty() {
            let says = node.as_ref().and_then(|n| n.status.as_ref()?.volumes_attached.as_ref());
            if says.is_none_or(Vec::is_empty) {
                return Ok(Action::Done);
            }
        }
        let of = |a: &Arc<VolumeAttachment>| a.spec.source.persistent_volume_name.clone();
        let volumes = attachments.iter().filter_map(of).filter_map(|v| Some((v.clone(), self.volumes.get("", &v)?)));
        let volumes = volumes.collect();
        let elsewhere = wanted.iter().map(|w| {
            let volume = w.volume.name_any();
            let others = self.attachments.by_index(OF_VOLUME, &volume).into_iter();
            let nodes: BTreeSet<String> = others.map(|a| a.spec.node_name.clone()).filter(|n| n != name).collect();
            (volume, nodes.into_iter().collect())
        });
        let now = Timestamp::now();
        let plan = reconcile::plan(&World {
            name,
            node: node.as_deref(),
            wanted: &wanted,
            attachments: &attachments,
            volumes: &volumes,
            elsewhere: &elsewhere.collect(),
            idle: &|attachment| {
                let mut idle = self.idle.lock();
                idle.entry(attachment.to_owned()).or_insert_with(Instant::now).elapsed()
            },
            age: &|attachment| {
                let made = attachment.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
                now.duration_since(made).try_into().unwrap_or(Duration::ZERO)
            },
        });
        self.carry_out(name, node.as_deref(), &wanted, &plan).await?;
        // Only what is without pods is remembered.
        let of_node: BTreeSet<String> = attachments.iter().map(|a| a.name_any()).collect();
        self.idle.lock().retain(|a, _| !of_node.contains(a) || plan.idle.contains(a));
        Ok(plan.again.map_or(Action::Done, Action::RequeueAfter))
    }

    async fn carry_out(&self, name: &str, node: Option<&Node>, wanted: &[Wanted], plan: &Plan) -> Result<()> {
        if let Some(node) = node {
            self.tell_node(node, plan).await?;
        }
        for attachment in &plan.detach {
            let api: Api<VolumeAttachment> = Api::all(self.client.clone());
            match api.delete(attachment, &DeleteParams::default()).await {
                Err(e) if is_not_found(&e) => {}
                deleted => {
                    deleted.during("detaching a volume")?;
                }
            }
        }
        let warn = |wanted: &Wanted, message: &str| {
            for pod in &wanted.pods {
                self.recorder.for_object(&**pod, EventType::Warning, "FailedAttachVolume", message.to_owned());
            }
        };
        for index in &plan.taken {
            let wanted = &wanted[*index];
            let volume = wanted.volume.name_any();
            if self.told.lock().insert((volume.clone(), name.to_owned())) {
                let reference = wanted.volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).unwrap_or_default();
                let namespace = reference.namespace.unwrap_or_default();
                let claim = format!("{namespace}/{}", reference.name.unwrap_or_default());
                let mut others = self.pods.by_index(BY_CLAIM, &claim);
                others.retain(|p| node_of(p).is_some_and(|n| n != name));
                warn(wanted, &reconcile::taken(&volume, &others, &namespace));
            }
        }
        for (attachment, index) in &plan.attach {
            self.told.lock().remove(&(wanted[*index].volume.name_any(), name.to_owned()));
            if let Err(error) = self.attach(attachment, &wanted[*index], name).await {
                let volume = wanted[*index].volume.name_any();
                warn(&wanted[*index], &format!("AttachVolume.Attach failed for volume {volume:?} : {error}"));
                return Err(error).during("attaching a volume");
            }
        }
        for (index, why) in &plan.failed {
            let volume = wanted[*index].volume.name_any();
            warn(&wanted[*index], &format!("AttachVolume.Attach failed for volume {volume:?} : {why}"));
        }
        for index in &plan.done {
            let message = format!("AttachVolume.Attach succeeded for volume {:?} ", wanted[*index].volume.name_any());
            for pod in &wanted[*index].pods {
                self.recorder.for_object(&**pod, EventType::Normal, "SuccessfulAttachVolume", message.clone());
            }
        }
        Ok(())
    }

    async fn attach(&self, name: &str, wanted: &Wanted, node: &str) -> kube::Result<()> {
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: wanted.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(wanted.volume.name_any()),
                    ..VolumeAttachmentSource::default()
                },
            },
            status: None,
        };
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &attachment).await {
            // It is there already, and the watch will show it.
            Err(error) if is_conflict(&error) => Ok(()),
            created => created.map(drop),
        }
    }

    /// Writes what is attached to the node, if its status says anything else.
    async fn tell_node(&self, node: &Node, plan: &Plan) -> Result<()> {
        let said = node.status.as_ref().and_then(|s| s.volumes_attached.clone()).unwrap_or_default();
        if said == plan.attached {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({"status": {"volumesAttached": plan.attached}});
        match api.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) => Ok(()),
            patched => patched.during("writing which volumes a node has").map(drop),
        }
    }
}
