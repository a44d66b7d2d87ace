//! The node in the API: registration, status, lease.

pub(crate) mod capacity;
mod lease;
mod status;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use skiff_client::EventType;
use skiff_cri::v1;
use tokio::{sync::watch, time::Instant};

use self::status::Facts;
use crate::{
    config::Config,
    cri::Runtime,
    eviction::{Pressure, node_reference},
    kubelet::Kubelet,
};

/// How often the status is sent though nothing changed.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How often the runtime is asked whether it is ready: while it is not, and once it is.
const UNREADY_PERIOD: Duration = Duration::from_millis(100);
const READY_PERIOD: Duration = Duration::from_secs(30);
/// Before the API server is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// Why no container can be run.
    runtime: Option<String>,
    /// Why no pod can have a network.
    pub(crate) network: Option<String>,
}

impl Readiness {
    fn of(answer: &v1::StatusResponse) -> Readiness {
        let conditions = answer.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let why = |kind: &str, of: &str| match conditions.iter().find(|c| c.r#type == kind) {
            Some(c) if c.status => None,
            Some(c) => {
                Some(format!("container runtime{of} not ready: {kind}=false reason:{} message:{}", c.reason, c.message))
            }
            None => Some(format!("container runtime{of} not ready: {kind} is not told")),
        };
        Readiness { runtime: why("RuntimeReady", ""), network: why("NetworkReady", " network") }
    }

    /// For the node's Ready condition.
    fn message(&self) -> Option<String> {
        let parts: Vec<String> = [&self.runtime, &self.network].into_iter().flatten().cloned().collect();
        match parts.len() {
            0 => None,
            1 => parts.into_iter().next(),
            _ => Some(format!("[{}]", parts.join(", "))),
        }
    }
}

/// Before the runtime has said anything.
pub(crate) fn unknown() -> Readiness {
    let why = || Some("container runtime status check may not have completed yet".to_owned());
    Readiness { runtime: why(), network: why() }
}

/// Asks the runtime whether it is ready, often until it is. Ends when nobody listens.
pub(crate) async fn watch_readiness(runtime: Runtime, readiness: watch::Sender<Readiness>) {
    loop {
        let now = match runtime.status().await {
            Ok(answer) => Readiness::of(&answer),
            Err(error) => Readiness {
                runtime: Some(format!("container runtime is down: {error}")),
                network: Some("container runtime is down".to_owned()),
            },
        };
        let period = if now == Readiness::default() { READY_PERIOD } else { UNREADY_PERIOD };
        readiness.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = readiness.closed() => return,
        }
    }
}

/// Registers the node and keeps its status and lease current. Never ends.
pub(crate) async fn run(kubelet: Arc<Kubelet>, mut readiness: watch::Receiver<Readiness>) {
    let version = loop {
        match kubelet.runtime.version().await {
            Ok(version) => break version,
            Err(error) => {
                tracing::warn!(%error, "cannot ask the runtime for its version");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let info = status::system_info(&kubelet.config.version, Some(&version));
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    let facts = |kubelet: Arc<Kubelet>, not_ready: Option<String>| {
        let info = info.clone();
        async move {
            let images = match kubelet.runtime.images().await {
                Ok(images) => status::images(images),
                Err(error) => {
                    tracing::warn!(%error, "cannot list images");
                    Vec::new()
                }
            };
            let pressures = Pressure::ALL.map(|p| kubelet.eviction.has(p));
            let volumes_in_use = kubelet.csi.in_use();
            Facts { info, images, not_ready, pressures, volumes_in_use }
        }
    };
    let not_ready = readiness.borrow_and_update().message();
    let first = facts(kubelet.clone(), not_ready).await;
    let mut sent = register(&kubelet, &nodes, &first).await;
    tokio::spawn(lease::run(kubelet.client.clone(), kubelet.config.node_name.clone()));
    tokio::spawn(pass_pod_cidr(kubelet.clone()));
    let mut last = Instant::now();
    loop {
        kubelet.csi.reported(sent.volumes_in_use.as_deref().unwrap_or_default());
        let not_ready = readiness.borrow_and_update().message();
        let now = facts(kubelet.clone(), not_ready).await;
        let next = status::status(&kubelet.config, &kubelet.capacity, &now, Some(&sent), kubelet.now());
        if last.elapsed() >= STATUS_PERIOD || differs(&sent, &next) {
            match send(&nodes, &kubelet.config, &next).await {
                Ok(()) => {
                    tell_changes(&kubelet, &sent, &next);
                    (sent, last) = (next, Instant::now());
                    kubelet.csi.reported(sent.volumes_in_use.as_deref().unwrap_or_default());
                }
                Err(kube::Error::Api(error)) if error.code == 404 => sent = register(&kubelet, &nodes, &now).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot send the node's status");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = readiness.changed() => if changed.is_err() { return },
            () = kubelet.node_changed.notified() => {}
            () = tokio::time::sleep_until(last + STATUS_PERIOD) => {}
        }
    }
}

/// Events for conditions that changed, with upstream's reasons.
fn tell_changes(kubelet: &Kubelet, old: &NodeStatus, new: &NodeStatus) {
    let status = |of: &NodeStatus, kind: &str| {
        of.conditions.iter().flatten().find(|c| c.type_ == kind).map(|c| c.status.clone())
    };
    for (kind, on, off) in [
        ("Ready", "NodeReady", "NodeNotReady"),
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ] {
        let now = status(new, kind);
        if now != status(old, kind) {
            let reason = if now.as_deref() == Some("True") { on } else { off };
            let message = format!("Node {} status is now: {reason}", kubelet.config.node_name);
            kubelet.recorder.event(node_reference(kubelet), EventType::Normal, reason, message);
        }
    }
}

/// Whether there is more to tell than a heartbeat.
fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let without_heartbeats = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        status
    };
    without_heartbeats(old) != without_heartbeats(new)
}

/// The status as a strategic merge patch: lists without merge key are replaced, conditions and addresses are merged by
/// type. Two addresses of one type would be one then, so that they replace the list.
fn patch_of(status: &NodeStatus) -> Value {
    let mut patch = json!(status);
    if let Some(addresses) = patch["addresses"].as_array_mut() {
        let repeats = addresses.iter().enumerate().any(|(i, a)| addresses[..i].iter().any(|b| a["type"] == b["type"]));
        if repeats {
            addresses.push(json!({"$patch": "replace"}));
        }
    }
    patch
}

async fn send(nodes: &Api<Node>, config: &Config, status: &NodeStatus) -> Result<(), kube::Error> {
    let body = json!({"status": patch_of(status)});
    nodes.patch_status(&config.node_name, &PatchParams::default(), &Patch::Strategic(body)).await?;
    Ok(())
}

/// Creates the Node object, or takes over the one that is there.
async fn register(kubelet: &Kubelet, nodes: &Api<Node>, facts: &Facts) -> NodeStatus {
    let config = &kubelet.config;
    loop {
        let status = status::status(config, &kubelet.capacity, facts, None, kubelet.now());
        match nodes.create(&PostParams::default(), &status::node(config, status)).await {
            Ok(node) => {
                tracing::info!(node = config.node_name, "registered the node");
                return node.status.unwrap_or_default();
            }
            Err(kube::Error::Api(error)) if error.code == 409 => match adopt(nodes, config).await {
                Ok(status) => return status,
                Err(error) => tracing::warn!(%error, "cannot take over the Node object"),
            },
            Err(error) => tracing::warn!(%error, "cannot register the node"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn adopt(nodes: &Api<Node>, config: &Config) -> Result<NodeStatus, kube::Error> {
    let node = nodes.get(&config.node_name).await?;
    let wanted = status::labels(config);
    let has = node.metadata.labels.unwrap_or_default();
    if wanted.iter().any(|(k, v)| has.get(k) != Some(v)) {
        let body = json!({"metadata": {"labels": wanted}});
        nodes.patch(&config.node_name, &PatchParams::default(), &Patch::Strategic(body)).await?;
    }
    Ok(node.status.unwrap_or_default())
}

/// Tells the runtime the node's ranges of pod addresses, as soon as there are some.
async fn pass_pod_cidr(kubelet: Arc<Kubelet>) {
    let mut changes = kubelet.node.subscribe();
    let mut passed = None;
    while let Some(change) = changes.recv().await {
        let spec = change.object().spec.as_ref();
        let all = spec.and_then(|s| s.pod_cidrs.clone()).filter(|all| !all.is_empty());
        let cidr = all.map(|all| all.join(",")).or_else(|| spec.and_then(|s| s.pod_cidr.clone()));
        if let Some(cidr) = cidr.filter(|c| passed.as_ref() != Some(c)) {
            match kubelet.runtime.update_pod_cidr(&cidr).await {
                Ok(()) => passed = Some(cidr),
                Err(error) if error.is_unimplemented() => passed = Some(cidr),
                Err(error) => tracing::warn!(%error, "cannot tell the runtime the range of pod addresses"),
            }
        }
    }
}

/// An informer's selector for this node alone.
pub(crate) fn selector(name: &str) -> skiff_client::Selector {
    skiff_client::Selector::fields(format!("metadata.name={name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_addresses_of_one_type_are_no_merge() {
        let status =
            |addresses: Value| -> NodeStatus { serde_json::from_value(json!({"addresses": addresses})).unwrap() };
        let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
        let single = json!([address("InternalIP", "10.0.0.1"), address("Hostname", "n")]);
        assert_eq!(patch_of(&status(single.clone()))["addresses"], single);
        let both =
            json!([address("InternalIP", "10.0.0.1"), address("InternalIP", "fc00::1"), address("Hostname", "n")]);
        let patch = patch_of(&status(both));
        assert_eq!(patch["addresses"].as_array().map(Vec::len), Some(4));
        assert_eq!(patch["addresses"][3], json!({"$patch": "replace"}));
    }
}
