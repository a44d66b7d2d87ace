//! Ports of the host for Services of type LoadBalancer and for kind's `extraPortMappings`.
//!
//! Runs in the daemon of a node. On the control plane it follows Services: each port of a load balancer
//! is opened on 127.0.0.1 of the host, or ::1 for IPv6, and leads to the Service's cluster address of that family, entered from the node,
//! so that all rules of Services apply. Once all ports of a Service are open its status names the address:
//! `localhost`. Upstream's contract with a cloud's load balancer is kept: classes of others are left
//! alone, events say what is being done, and a Service that is no load balancer any more loses its status.
//!
//! What is wanted is a function of the Services ([`wanted`]). A port that somebody else has is tried again
//! until it is free.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informers, ObjectKey};
use tokio::sync::Notify;

use crate::{
    NodeConfig,
    control::PortStatus,
    host_ports::{Forward, HostPorts, Protocol},
};

/// How often a port that was taken is tried again.
const RETRY: Duration = Duration::from_secs(2);
const COMPONENT: &str = "service-controller";
/// What the status of a load balancer says, and what users type.
const HOSTNAME: &str = "localhost";

/// Why a port is wanted, in the order of precedence when two want the same one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// `extraPortMappings` of the cluster's configuration.
    Mapping,
    /// `skiff cluster ports --add`.
    ByHand,
    /// A Service; older ones come first.
    Service { created: String, key: (String, String) },
}

impl Reason {
    fn text(&self) -> String {
        match self {
            Self::Mapping => "extraPortMappings".to_owned(),
            Self::ByHand => "added by hand".to_owned(),
            Self::Service { key, .. } => format!("service {}/{}", key.0, key.1),
        }
    }
}

/// The ports that a load balancer is to have. Empty if the Service is none, or one of somebody else's.
pub fn wanted(service: &Service) -> Vec<Forward> {
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else {
        return Vec::new();
    };
    let listed = spec.cluster_ips.as_deref().filter(|listed| !listed.is_empty());
    let addresses = listed.unwrap_or(spec.cluster_ip.as_slice()).iter().filter_map(|address| address.parse().ok());
    let forward = |address: IpAddr, port: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            // No sockets of the host are made for it.
            Some(_) => return None,
        };
        let number = u16::try_from(port.port).ok()?;
        let localhost: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Some(Forward { protocol, listen: SocketAddr::new(localhost, number), target: SocketAddr::new(address, number) })
    };
    let ports = || spec.ports.iter().flatten();
    addresses.flat_map(|address| ports().filter_map(move |port| forward(address, port))).collect()
}

/// A load balancer that no other implementation is asked for.
fn is_ours(service: &Service) -> bool {
    service.metadata.deletion_timestamp.is_none()
        && service
            .spec
            .as_ref()
            .is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none())
}

fn has_our_status(service: &Service) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    matches!(ingress, [only] if only.hostname.as_deref() == Some(HOSTNAME))
}

type Slot = (Protocol, SocketAddr);

/// The host ports of a node, from all that want some. Cloning shares them.
#[derive(Debug, Clone)]
pub struct PortManager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ports: HostPorts,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    wishes: BTreeMap<Reason, Vec<Forward>>,
    /// Why a wish is not fulfilled.
    problems: BTreeMap<(Reason, Slot), String>,
}

impl PortManager {
    /// Opens the configuration's mappings of this node. Has to be called within a tokio runtime.
    pub fn new(ports: HostPorts, config: &NodeConfig) -> Self {
        let mappings = config.extra_port_mappings.iter().map(|mapping| Forward {
            protocol: mapping.protocol,
            listen: SocketAddr::new(mapping.listen_address.into(), mapping.host_port),
            target: SocketAddr::new(config.node_ip.into(), mapping.container_port),
        });
        let manager = Self { inner: Arc::new(Inner { ports, state: Mutex::default(), changed: Notify::new() }) };
        manager.set(Reason::Mapping, mappings.collect());
        manager
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is wanted for a reason, and opens and closes ports accordingly.
    fn set(&self, reason: Reason, forwards: Vec<Forward>) {
        let mut state = self.state();
        match forwards.is_empty() {
            true => state.wishes.remove(&reason),
            false => state.wishes.insert(reason, forwards),
        };
        self.apply(&mut state);
    }

    /// Tries again what could not be opened. True if everything is open now.
    fn retry(&self) -> bool {
        let mut state = self.state();
        if !state.problems.is_empty() {
            self.apply(&mut state);
        }
        state.problems.is_empty()
    }

    fn apply(&self, state: &mut State) {
        let mut granted: BTreeMap<Slot, (&Reason, Forward)> = BTreeMap::new();
        let mut problems = BTreeMap::new();
        // Who has a port keeps it; the order decides only between those who have none.
        let open = self.inner.ports.list();
        let wishes = || state.wishes.iter().flat_map(|(reason, forwards)| forwards.iter().map(move |f| (reason, *f)));
        for (reason, forward) in wishes().filter(|(_, forward)| open.contains(forward)) {
            granted.entry((forward.protocol, forward.listen)).or_insert((reason, forward));
        }
        for (reason, forward) in wishes() {
            let slot = (forward.protocol, forward.listen);
            match granted.get(&slot) {
                None => drop(granted.insert(slot, (reason, forward))),
                Some((other, _)) if *other == reason => {}
                Some((other, _)) => {
                    let (port, address) = (forward.listen.port(), forward.listen.ip());
                    let text = format!("port {port} on {address} is already used for {}", other.text());
                    problems.insert((reason.clone(), slot), text);
                }
            }
        }
        for open in open {
            if !granted.contains_key(&(open.protocol, open.listen)) {
                self.inner.ports.close(open.protocol, open.listen);
            }
        }
        for (slot, (reason, forward)) in granted {
            if let Err(error) = self.inner.ports.open(forward) {
                problems.insert((reason.clone(), slot), error.to_string());
            }
        }
        state.problems = problems;
        self.inner.changed.notify_one();
    }

    /// All ports that are wanted, with what keeps them from being open.
    pub fn list(&self) -> Vec<PortStatus> {
        let state = self.state();
        let all =
            state.wishes.iter().flat_map(|(reason, forwards)| forwards.iter().map(move |forward| (reason, forward)));
        all.map(|(reason, forward)| PortStatus {
            forward: *forward,
            reason: reason.text(),
            problem: state.problems.get(&(reason.clone(), (forward.protocol, forward.listen))).cloned(),
        })
        .collect()
    }

    /// Opens a port by hand. Port 0 takes any free one.
    pub fn open(&self, forward: Forward) -> Result<SocketAddr, String> {
        let listen = match forward.listen.port() {
            // Chosen once, so that it stays the same when ports are opened anew.
            0 => self.free_port(forward)?,
            _ => forward.listen,
        };
        let forward = Forward { listen, ..forward };
        let slot = (forward.protocol, listen);
        let mut state = self.state();
        let by_hand = state.wishes.entry(Reason::ByHand).or_default();
        by_hand.retain(|other| (other.protocol, other.listen) != slot);
        by_hand.push(forward);
        self.apply(&mut state);
        if let Some(problem) = state.problems.get(&(Reason::ByHand, slot)).cloned() {
            drop(state);
            self.close(forward.protocol, listen);
            return Err(problem);
        }
        Ok(listen)
    }

    fn free_port(&self, forward: Forward) -> Result<SocketAddr, String> {
        let local = match forward.protocol {
            Protocol::Udp => self.inner.ports.host().bind_udp(forward.listen).map(|socket| socket.local_addr()),
            _ => self.inner.ports.host().listen_tcp(forward.listen).map(|socket| socket.local_addr()),
        };
        let local = local.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(SocketAddr::new(forward.listen.ip(), local.port()))
    }

    /// Closes a port that was opened by hand; false if there is none.
    pub fn close(&self, protocol: Protocol, listen: SocketAddr) -> bool {
        let mut state = self.state();
        let by_hand = state.wishes.entry(Reason::ByHand).or_default();
        let before = by_hand.len();
        by_hand.retain(|forward| (forward.protocol, forward.listen) != (protocol, listen));
        let found = by_hand.len() != before;
        if by_hand.is_empty() {
            state.wishes.remove(&Reason::ByHand);
        }
        self.apply(&mut state);
        found
    }

    /// What is wrong with the ports of a Service: `None` if all are open.
    fn problem_of(&self, reason: &Reason) -> Option<String> {
        let state = self.state();
        state.problems.iter().find(|((owner, _), _)| owner == reason).map(|(_, problem)| problem.clone())
    }

    /// Tries taken ports again, for as long as it is polled. For nodes that follow no Services.
    pub async fn keep_trying(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            self.retry();
        }
    }
}

/// Follows the Services until the informer ends: opens and closes their ports and writes their status.
pub async fn run(manager: PortManager, informers: Informers) {
    let services = informers.informer::<Service>();
    services.wait_synced().await;
    let mut changes = services.subscribe();
    let mut balancers = Balancers {
        events: EventRecorder::new(informers.client().clone(), COMPONENT, None),
        client: informers.client().clone(),
        manager,
        reported: BTreeMap::new(),
        pending: BTreeSet::new(),
    };
    loop {
        let key = tokio::select! {
            change = changes.recv() => match change {
                Some(change) => Some(ObjectKey::of(change.object().as_ref())),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if !balancers.is_content() => None,
        };
        let keys = match key {
            Some(key) => BTreeSet::from([key]),
            None => {
                balancers.manager.retry();
                balancers.pending.clone()
            }
        };
        for key in keys {
            balancers.reconcile(&key, services.get_key(&key)).await;
        }
    }
}

struct Balancers {
    client: kube::Client,
    events: EventRecorder,
    manager: PortManager,
    /// By Service: the reason under which its ports are wanted, and the problem that was last reported.
    reported: BTreeMap<ObjectKey, (Reason, Option<String>)>,
    /// Services that are to be looked at again.
    pending: BTreeSet<ObjectKey>,
}

impl Balancers {
    fn is_content(&self) -> bool {
        self.pending.is_empty() && self.manager.state().problems.is_empty()
    }

    async fn reconcile(&mut self, key: &ObjectKey, service: Option<Arc<Service>>) {
        self.pending.remove(key);
        let forwards = service.as_ref().map(|service| wanted(service)).unwrap_or_default();
        if forwards.is_empty() {
            if let Some((reason, _)) = self.reported.remove(key) {
                self.manager.set(reason, Vec::new());
            }
            if let Some(service) = service.filter(|service| has_our_status(service) && !is_ours(service)) {
                self.write_status(key, &service, false).await;
            }
            return;
        }
        let Some(service) = service else {
            return;
        };
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string());
        let reason = Reason::Service {
            created: created.unwrap_or_default(),
            key: (key.namespace.to_string(), key.name.to_string()),
        };
        // One of the same name that was deleted and created again.
        if let Some((old, _)) = self.reported.get(key).filter(|(old, _)| *old != reason) {
            self.manager.set(old.clone(), Vec::new());
            self.reported.remove(key);
        }
        let first = !self.reported.contains_key(key);
        if first && !has_our_status(&service) {
            self.events.for_object(
                service.as_ref(),
                EventType::Normal,
                "EnsuringLoadBalancer",
                "Ensuring load balancer",
            );
        }
        self.manager.set(reason.clone(), forwards);
        let problem = self.manager.problem_of(&reason);
        let last = self.reported.insert(key.clone(), (reason, problem.clone())).and_then(|(_, problem)| problem);
        match problem {
            Some(problem) => {
                self.pending.insert(key.clone());
                if last.as_ref() != Some(&problem) {
                    let message = format!("Error syncing load balancer: failed to ensure load balancer: {problem}");
                    self.events.for_object(service.as_ref(), EventType::Warning, "SyncLoadBalancerFailed", message);
                }
                if has_our_status(&service) {
                    self.write_status(key, &service, false).await;
                }
            }
            None if has_our_status(&service) => {}
            None => {
                if self.write_status(key, &service, true).await {
                    let message = "Ensured load balancer";
                    self.events.for_object(service.as_ref(), EventType::Normal, "EnsuredLoadBalancer", message);
                }
            }
        }
    }

    /// True if it was written; if not, the Service is looked at again.
    async fn write_status(&mut self, key: &ObjectKey, service: &Service, served: bool) -> bool {
        let ingress = match served {
            true => json!([{ "hostname": HOSTNAME }]),
            false => json!(null),
        };
        // With the UID, so that a Service of the same name that came later is not meant.
        let patch = json!({
            "metadata": { "uid": service.metadata.uid },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        let services = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        match services.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => true,
            // Gone, or another one: its own change comes by itself.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => false,
            Err(error) => {
                tracing::warn!(service = %key, %error, "cannot write the status of a load balancer");
                self.pending.insert(key.clone());
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
