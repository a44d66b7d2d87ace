//! Sends statuses to the API server: what differs, at once, the newest only, until it is there.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use skiff_client::WorkQueue;
use tokio::sync::watch;

use super::conditions::{OWNED, TERMINATED_BY_KUBELET};
use crate::pod::{PodExt, PodUid};

/// How many statuses are sent at once.
const SENDERS: usize = 8;
/// Between tries at a server that does not answer.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Statuses on their way.
pub(crate) struct Sender {
    client: Client,
    queue: WorkQueue<PodUid>,
    slots: Mutex<HashMap<PodUid, Slot>>,
}

struct Slot {
    namespace: String,
    name: String,
    /// Counts what was asked to be sent.
    version: u64,
    wanted: PodStatus,
    /// As the server has it, as far as known.
    sent: PodStatus,
    /// The version that is at the server.
    done: watch::Sender<u64>,
    /// The resource version that the last patch made, and the last one that was compared.
    written: u64,
    compared: u64,
}

impl Slot {
    /// Whether somebody else changed what is the kubelet's to say, as the node lifecycle controller does with a pod's
    /// readiness while the node is not heard of.
    fn overwritten(&mut self, pod: &Pod) -> bool {
        let version = resource_version(pod);
        let in_flight = *self.done.borrow() < self.version;
        if in_flight || self.version == 0 || version <= self.compared || version < self.written {
            return false;
        }
        self.compared = version;
        let said = |status: &PodStatus| {
            let conditions = status.conditions.iter().flatten().filter(|c| OWNED.contains(&c.type_.as_str()));
            let mut said: Vec<(String, String)> = conditions.map(|c| (c.type_.clone(), c.status.clone())).collect();
            said.sort();
            (status.phase.clone(), said)
        };
        pod.status.as_ref().is_some_and(|status| said(status) != said(&self.sent))
    }
}

/// Kubernetes lets clients compare these since 1.35; 0 for none.
fn resource_version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Sender {
    /// Senders that work until this is dropped.
    pub(crate) fn start(client: Client) -> Arc<Sender> {
        let sender = Arc::new(Sender { client, queue: WorkQueue::new(), slots: Mutex::default() });
        for _ in 0..SENDERS {
            tokio::spawn(Sender::work(Arc::downgrade(&sender), sender.queue.clone()));
        }
        sender
    }

    /// Has the status sent if it differs from what the server has. Returns a number for [`Sender::wait`].
    pub(crate) fn send(&self, pod: &Pod, status: PodStatus) -> u64 {
        let mut slots = self.slots.lock();
        let slot = slots.entry(pod.uid()).or_insert_with(|| Slot {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            version: 0,
            wanted: PodStatus::default(),
            sent: pod.status.clone().unwrap_or_default(),
            done: watch::Sender::new(0),
            written: 0,
            compared: 0,
        });
        let overwritten = slot.overwritten(pod);
        if overwritten {
            slot.sent = pod.status.clone().unwrap_or_default();
        }
        if slot.wanted == status && !overwritten {
            return slot.version;
        }
        slot.version += 1;
        slot.wanted = status;
        let version = slot.version;
        drop(slots);
        self.queue.add(pod.uid());
        version
    }

    /// Waits until this or a newer status is at the server (or the pod is gone from there).
    pub(crate) async fn wait(&self, uid: &PodUid, version: u64) {
        let done = self.slots.lock().get(uid).map(|slot| slot.done.subscribe());
        if let Some(mut done) = done {
            // The slot goes away with the pod.
            let _ = done.wait_for(|done| *done >= version).await;
        }
    }

    /// The pod is gone.
    pub(crate) fn forget(&self, uid: &PodUid) {
        self.slots.lock().remove(uid);
    }

    async fn work(sender: Weak<Sender>, queue: WorkQueue<PodUid>) {
        while let Some(uid) = queue.next().await {
            let Some(sender) = sender.upgrade() else { return };
            match sender.send_one(&uid).await {
                Ok(()) => queue.forget(&uid),
                Err(error) => {
                    let tries = queue.failures(&uid).min(6);
                    tracing::warn!(pod = %uid, %error, "cannot send a pod's status, trying again");
                    queue.add_rate_limited(uid.clone());
                    queue.add_after(uid.clone(), (RETRY * 2u32.pow(tries)).min(RETRY_MAX));
                }
            }
            queue.done(&uid);
        }
    }

    async fn send_one(&self, uid: &PodUid) -> Result<(), kube::Error> {
        let (namespace, name, version, wanted, patch) = {
            let slots = self.slots.lock();
            let Some(slot) = slots.get(uid) else { return Ok(()) };
            let patch = diff(&slot.sent, &slot.wanted);
            (slot.namespace.clone(), slot.name.clone(), slot.version, slot.wanted.clone(), patch)
        };
        let mut written = 0;
        if let Some(status) = patch {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let body = json!({"metadata": {"uid": uid.as_str()}, "status": status});
            match pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await {
                Ok(pod) => written = resource_version(&pod),
                // The pod is gone, or a namesake is in its place.
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 || status.code == 422 => {
                    tracing::debug!(pod = %uid, code = status.code, message = %status.message, "status refused");
                    if status.code == 422 {
                        tracing::warn!(pod = %uid, message = %status.message, "the server takes a pod's status for invalid");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(slot) = self.slots.lock().get_mut(uid) {
            slot.sent = wanted;
            slot.written = slot.written.max(written);
            slot.done.send_replace(version);
        }
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.queue.shut_down();
    }
}

/// The strategic merge patch from one status to another; `None` if there is nothing to change.
fn diff(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(object)) => object,
        // A status is always an object.
        _ => Map::new(),
    };
    let (old, new) = (object(old), object(new));
    let mut patch = Map::new();
    for (field, value) in &new {
        if old.get(field) == Some(value) {
            continue;
        }
        let changed = match field.as_str() {
            "conditions" => merged(old.get(field), value, "type"),
            "podIPs" => merged(old.get(field), value, "ip"),
            _ => value.clone(),
        };
        patch.insert(field.clone(), changed);
    }
    for field in old.keys().filter(|field| !new.contains_key(*field) && *field != "conditions") {
        // What the kubelet does not compute is not its to remove.
        if ["reason", "message", "podIP", "podIPs", "containerStatuses", "initContainerStatuses"]
            .contains(&field.as_str())
        {
            patch.insert(field.clone(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The elements of a list merged by a key that are new or changed, and directives for those that are gone.
fn merged(old: Option<&Value>, new: &Value, key: &str) -> Value {
    let elements = |list: Option<&Value>| list.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (elements(old), elements(Some(new)));
    let same = |list: &[Value], element: &Value| list.iter().any(|e| e[key] == element[key]);
    let removed = old.iter().filter(|e| !same(&new, e)).map(|e| json!({"$patch": "delete", key: e[key]}));
    // Conditions of others are theirs.
    let ours = |element: &Value| {
        key != "type"
            || element["reason"] == TERMINATED_BY_KUBELET
            || element[key].as_str().is_some_and(|kind| OWNED.contains(&kind))
    };
    let changed = new.iter().filter(|e| ours(e) && !old.contains(e)).map(|element| {
        let mut element = element.clone();
        // What the element no longer has must be said.
        if let Some(before) = old.iter().find(|e| e[key] == element[key]).and_then(Value::as_object) {
            for field in before.keys() {
                if element.get(field).is_none() {
                    element[field.as_str()] = Value::Null;
                }
            }
        }
        element
    });
    // Conditions of others are never removed.
    let removed: Vec<Value> = if key == "type" { Vec::new() } else { removed.collect() };
    Value::Array(removed.into_iter().chain(changed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_differs() {
        let old = status(json!({
            "phase": "Pending", "reason": "X",
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"},
                {"type": "PodScheduled", "status": "True"},
                {"type": "example.com/gate", "status": "True"},
            ],
        }));
        let new = status(json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.2"}],
        }));
        assert_eq!(
            diff(&old, &new).unwrap(),
            json!({
                "phase": "Running",
                "reason": null,
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}],
                "podIPs": [{"ip": "10.0.0.2"}],
            })
        );
        assert_eq!(diff(&new, &new), None);
    }
}
