//! The proxy's state and its hand on the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use skiff_client::ObjectKey;
use skiff_network::{
    conntrack::{self, Flow},
    hostport::Protocol,
    netlink::Socket,
    nft::{self, Batch},
};

use crate::{
    rules::{Delta, Rules},
    service::{self, NodeInfo, Numbers, UdpFront, View, Wants},
    table,
};

/// Why rules could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the rules of Services")]
pub struct ProxyError(#[from] skiff_network::Error);

/// A Service and its slices. `None`: it is gone.
pub(crate) type Known = Option<(Arc<Service>, Vec<Arc<EndpointSlice>>)>;
/// A Service that changed, and what it is now.
pub type Changed = (ObjectKey, Known);

/// The proxy of one node, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Proxy {
    socket: Socket,
    /// One of each address family.
    planes: Vec<Plane>,
}

/// The rules of one address family.
#[derive(Debug)]
struct Plane {
    node: View,
    rules: Rules,
    numbers: Numbers,
    /// The kernel has our table, and what we believe to be in it.
    in_step: bool,
    /// UDP addresses whose tracked flows have not been looked through since they changed.
    suspects: BTreeSet<UdpFront>,
}

impl Proxy {
    /// Writes nothing yet; the first [`apply`](Self::apply) replaces the whole tables, so that it should
    /// have all Services.
    pub fn open(node: NodeInfo) -> Result<Self, ProxyError> {
        let plane = |node| Plane {
            node,
            rules: Rules::default(),
            numbers: Numbers::default(),
            in_step: false,
            suspects: BTreeSet::new(),
        };
        Ok(Self { socket: nft::socket()?, planes: node.views().into_iter().map(plane).collect() })
    }

    /// Brings the rules in line with changed Services, in one atomic batch for each family, then ends UDP
    /// flows to endpoints that are none any more.
    ///
    /// # Errors
    /// The rules of the family stay as they were; the next call, also with no changes, writes everything anew.
    pub fn apply(&mut self, changed: impl IntoIterator<Item = Changed>) -> Result<(), ProxyError> {
        let changed: Vec<Changed> = changed.into_iter().collect();
        // All of them learn of the changes before any can fail to write them.
        let deltas: Vec<Delta> = self.planes.iter_mut().map(|plane| plane.learn(&changed)).collect();
        for (plane, delta) in self.planes.iter_mut().zip(deltas) {
            plane.write(&delta, &mut self.socket)?;
        }
        Ok(())
    }

    /// Whether the tables are still there. If they are not, the next [`apply`](Self::apply) writes them.
    pub fn check(&mut self) -> Result<bool, ProxyError> {
        let mut intact = true;
        for plane in &mut self.planes {
            let tables = nft::tables(&mut self.socket, plane.node.family)?;
            plane.in_step &= tables.iter().any(|name| name == table::TABLE);
            intact &= plane.in_step;
        }
        Ok(intact)
    }

    /// Removes all rules.
    pub fn remove(&mut self) -> Result<(), ProxyError> {
        for plane in &mut self.planes {
            plane.in_step = false;
            let mut batch: Batch = table::batch(plane.node.family);
            batch.delete_table();
            batch.commit(&mut self.socket)?;
        }
        Ok(())
    }
}

impl Plane {
    fn learn(&mut self, changed: &[Changed]) -> Delta {
        let mut delta = Delta::default();
        for (key, object) in changed {
            let before = self.rules.wants(key);
            let wants = object
                .as_ref()
                .map(|(service, slices)| service::wants(service, slices, &self.node, before, &mut self.numbers));
            self.suspects.extend(changed_udp(before, wants.as_ref()));
            self.numbers
                .release(&key.to_string(), |port| wants.as_ref().is_some_and(|wants| wants.order.contains_key(port)));
            self.rules.set(key, wants, &mut delta);
        }
        delta
    }

    fn write(&mut self, delta: &Delta, socket: &mut Socket) -> Result<(), ProxyError> {
        let mut batch = table::batch(self.node.family);
        if self.in_step {
            delta.write(&mut batch, &self.node);
        } else {
            self.rules.write_all(&mut batch, &self.node);
        }
        let (deleted, added) = delta.size();
        tracing::debug!(deleted, added, bytes = batch.size(), "writing Service rules");
        self.in_step = false;
        batch.commit(socket)?;
        self.in_step = true;
        self.forget_stale_flows(socket)
    }

    /// Connection tracking would lead a UDP client to its old endpoint, or to none, for as long as it
    /// keeps sending.
    fn forget_stale_flows(&mut self, socket: &mut Socket) -> Result<(), ProxyError> {
        if self.suspects.is_empty() {
            return Ok(());
        }
        let suspects = &self.suspects;
        let udp = Protocol::Udp.number();
        let forgotten = conntrack::forget_where(socket, self.node.family, udp, |flow| is_stale(suspects, flow))?;
        if forgotten > 0 {
            tracing::debug!(forgotten, "UDP flows to endpoints that are gone");
        }
        self.suspects.clear();
        Ok(())
    }
}

fn is_stale(suspects: &BTreeSet<UdpFront>, flow: &Flow) -> bool {
    let mut of_front = suspects.iter().filter(|front| {
        front.port == flow.destination.port() && front.address.is_none_or(|address| address == flow.destination.ip())
    });
    of_front.any(|front| !front.endpoints.contains(&flow.replier))
}

/// The UDP addresses of a Service that lost an endpoint, got their first one, or are gone, with the
/// endpoints that are right now.
fn changed_udp(before: Option<&Wants>, after: Option<&Wants>) -> Vec<UdpFront> {
    type Fronts = BTreeMap<(Option<IpAddr>, u16), BTreeSet<SocketAddr>>;
    let fronts = |wants: Option<&Wants>| -> Fronts {
        let all = wants.into_iter().flat_map(|wants| &wants.udp);
        all.map(|front| ((front.address, front.port), front.endpoints.clone())).collect()
    };
    let (before, after) = (fronts(before), fronts(after));
    let none = BTreeSet::new();
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter_map(|key| {
            let old = before.get(key).unwrap_or(&none);
            let new = after.get(key).unwrap_or(&none);
            let lost = old.difference(new).next().is_some();
            let first = old.is_empty() && !new.is_empty();
            (lost || first).then(|| UdpFront { address: key.0, port: key.1, endpoints: new.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests;
