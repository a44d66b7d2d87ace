//! Which endpoints a Service's traffic may go to.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::ServicePort,
    discovery::v1::{Endpoint, EndpointSlice},
};

use skiff_network::nft::Family;

use crate::service::View;

/// The endpoints of one Service port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    /// For traffic that may go to any node.
    pub(crate) cluster: BTreeSet<SocketAddr>,
    /// For traffic that has to stay on this node.
    pub(crate) local: BTreeSet<SocketAddr>,
    /// Addresses of pods that may be on this node, which may meet themselves behind the Service.
    pub(crate) hairpin: BTreeSet<IpAddr>,
    /// Whether there is any usable endpoint at all, near or far.
    pub(crate) any: bool,
}

struct Candidate<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
    local: bool,
}

impl Candidate<'_> {
    fn condition(
        &self,
        of: impl Fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>,
    ) -> Option<bool> {
        self.endpoint.conditions.as_ref().and_then(of)
    }

    /// Absent means yes.
    fn ready(&self) -> bool {
        self.condition(|conditions| conditions.ready).unwrap_or(true)
    }

    /// Absent means the same as ready.
    fn serving(&self) -> bool {
        self.condition(|conditions| conditions.serving).unwrap_or_else(|| self.ready())
    }

    fn terminating(&self) -> bool {
        self.condition(|conditions| conditions.terminating).unwrap_or(false)
    }
}

/// Chooses the endpoints of a port: ready ones, or, where there is none, those that still serve while
/// they terminate. This is decided for the node by itself, too, so that a rolling update under
/// `externalTrafficPolicy: Local` loses nothing.
pub(crate) fn of_port(port: &ServicePort, slices: &[Arc<EndpointSlice>], node: &View) -> Endpoints {
    let address_type = match node.family {
        Family::Ip6 => "IPv6",
        _ => "IPv4",
    };
    let candidates: Vec<Candidate<'_>> = slices
        .iter()
        .filter(|slice| slice.address_type == address_type)
        .flat_map(|slice| candidates(port, slice, node))
        .collect();
    let pick = |local_only: bool| {
        let eligible = || candidates.iter().filter(move |candidate| candidate.local || !local_only);
        let ready: Vec<&Candidate<'_>> = eligible().filter(|candidate| candidate.ready()).collect();
        match ready.is_empty() {
            false => ready,
            true => eligible().filter(|candidate| candidate.serving() && candidate.terminating()).collect(),
        }
    };
    let addresses = |chosen: &[&Candidate<'_>]| chosen.iter().map(|candidate| candidate.address).collect();
    let all = pick(false);
    let cluster: BTreeSet<SocketAddr> = addresses(&hinted(&all, node));
    let local: BTreeSet<SocketAddr> = addresses(&pick(true));
    let here = |candidate: &&Candidate<'_>| candidate.local || candidate.endpoint.node_name.is_none();
    let hairpin = candidates.iter().filter(here).map(|candidate| candidate.address.ip()).collect();
    Endpoints { hairpin, any: !cluster.is_empty() || !local.is_empty(), cluster, local }
}

fn candidates<'a>(port: &ServicePort, slice: &'a EndpointSlice, node: &View) -> Vec<Candidate<'a>> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let wanted = slice.ports.iter().flatten().find(|slice_port| {
        slice_port.name.as_deref().unwrap_or_default() == name
            && slice_port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    // No port number stands for "all ports", which a proxy can do nothing with.
    let Some(number) = wanted.and_then(|port| port.port).and_then(|number| u16::try_from(number).ok()) else {
        return Vec::new();
    };
    let endpoints = slice.endpoints.iter().flatten();
    endpoints
        .filter_map(|endpoint| {
            // Further addresses of an endpoint have no defined meaning.
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            if !node.pod_cidr.is_like(address) {
                return None;
            }
            Some(Candidate {
                address: SocketAddr::new(address, number),
                endpoint,
                local: endpoint.node_name.as_deref() == Some(node.name.as_str()),
            })
        })
        .collect()
}

/// Endpoints that hints reserve for this node or its zone, if every endpoint has hints and any is for
/// us; otherwise all of them.
fn hinted<'c, 'a>(all: &[&'c Candidate<'a>], node: &View) -> Vec<&'c Candidate<'a>> {
    let by = |mine: &dyn Fn(&Candidate<'_>) -> Option<bool>| -> Option<Vec<&'c Candidate<'a>>> {
        let mut chosen = Vec::new();
        for candidate in all {
            if mine(candidate)? {
                chosen.push(*candidate);
            }
        }
        (!chosen.is_empty()).then_some(chosen)
    };
    let hints = |candidate: &Candidate<'_>| candidate.endpoint.hints.clone();
    let for_node = |candidate: &Candidate<'_>| {
        let nodes = hints(candidate)?.for_nodes?;
        (!nodes.is_empty()).then(|| nodes.iter().any(|hint| hint.name == node.name))
    };
    let for_zone = |candidate: &Candidate<'_>| {
        let zones = hints(candidate)?.for_zones?;
        let zone = node.zone.as_ref()?;
        (!zones.is_empty()).then(|| zones.iter().any(|hint| hint.name == *zone))
    };
    by(&for_node).or_else(|| by(&for_zone)).unwrap_or_else(|| all.to_vec())
}
