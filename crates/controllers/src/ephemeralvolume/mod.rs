//! Generic ephemeral volumes: a claim of its own for each such volume of a pod, named `<pod>-<volume>`.
//!
//! Watches pods and claims; writes claims, which belong to their pod and are collected with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use skiff_client::{
    Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey, owner_mapper,
};

use crate::{Result, While as _, is_conflict, is_not_found, pods};

struct Ephemeral {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    client: kube::Client,
    recorder: EventRecorder,
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| v.ephemeral.is_some())
}

pub(crate) async fn run(informers: Informers) {
    let this = Arc::new(Ephemeral {
        pods: informers.informer(),
        claims: informers.informer(),
        client: informers.client().clone(),
        recorder: EventRecorder::new(informers.client().clone(), "ephemeral_volume", None),
    });
    let (pods, claims) = (this.pods.clone(), this.claims.clone());
    Controller::new("ephemeralvolume")
        .watch(&pods, |change: &Change<Pod>| {
            let pod = change.object();
            (volumes(pod).next().is_some() && !matches!(change, Change::Deleted { .. })).then(|| ObjectKey::of(&**pod))
        })
        .watch(&claims, owner_mapper::<PersistentVolumeClaim>("", "Pod"))
        .run(move |key: ObjectKey| {
            let this = this.clone();
            async move { this.reconcile(&key).await }
        })
        .await;
}

/// The claim of a volume.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
    let meta = template.metadata.unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.name_any(), volume.name)),
            namespace: pod.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![pods::owner_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    })
}

impl Ephemeral {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(Action::Done) };
        if !pods::is_active(&pod) {
            return Ok(Action::Done);
        }
        for volume in volumes(&pod) {
            let Some(claim) = claim(&pod, volume) else { continue };
            let name = claim.name_any();
            if let Some(there) = self.claims.get(&key.namespace, &name) {
                if !there.owner_references().iter().any(|o| Some(&o.uid) == pod.meta().uid.as_ref()) {
                    let message = format!(
                        "PVC \"{}/{name}\" was not created for pod \"{}/{}\" (pod is not owner)",
                        key.namespace, key.namespace, key.name
                    );
                    self.recorder.for_object(&*pod, EventType::Warning, "EphemeralVolumeCreateFailed", message);
                }
                continue;
            }
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
            match api.create(&PostParams::default(), &claim).await {
                // It is there already and not in the cache yet, or all goes with the namespace.
                Err(e) if is_conflict(&e) || is_not_found(&e) => {}
                Err(kube::Error::Api(status)) if status.message.contains("being terminated") => {}
                Err(error) => {
                    let message = format!("create PVC {name}: {error}");
                    self.recorder.for_object(&*pod, EventType::Warning, "EphemeralVolumeCreateFailed", message);
                    return Err(error).during("creating the claim of an ephemeral volume");
                }
                Ok(_) => {}
            }
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_for_each_volume() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "plain", "emptyDir": {}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}},
            ]},
        }))
        .unwrap();
        let made: Vec<_> = volumes(&pod).filter_map(|v| claim(&pod, v)).collect();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].name_any(), "p-scratch");
        assert_eq!(made[0].labels()["a"], "b");
        let owner = &made[0].owner_references()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Pod", "u", Some(true)));
    }
}
