//! What names are made of: Services, their endpoints, namespaces.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use serde::Deserialize;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name.
pub type Key = (String, String);

/// The metadata that is kept while an object is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub resource_version: String,
    #[serde(default)]
    labels: Option<SliceLabels>,
}

/// Of all labels only this one is read.
#[derive(Debug, Clone, Default, Deserialize)]
struct SliceLabels {
    #[serde(rename = "kubernetes.io/service-name", default)]
    service: Option<String>,
}

/// The parts of a Service that names are made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub metadata: Meta,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(rename = "clusterIP", default)]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", default)]
    cluster_ips: Option<Vec<String>>,
    #[serde(default)]
    external_name: Option<String>,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RawPort {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

/// The parts of an EndpointSlice that names are made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    pub metadata: Meta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
    #[serde(default)]
    endpoints: Option<Vec<RawEndpoint>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RawEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    conditions: Option<Conditions>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
}

/// A namespace: only that it is there.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Namespace {
    pub metadata: Meta,
}

/// A named port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    /// `tcp`, `udp`, `sctp`, as in SRV names.
    pub protocol: String,
    pub number: u16,
}

/// What a Service's name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Its cluster addresses: one of each family that it has; none as long as it has been given none.
    Addresses(Vec<IpAddr>),
    /// Its endpoints.
    Headless,
    /// Another name.
    External(String),
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    pub target: Target,
    pub ports: Vec<Port>,
}

/// A ready endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: IpAddr,
    /// Its hostname, or the address with dashes.
    pub name: String,
    pub ports: Vec<Port>,
}

/// All that the cluster's names are made of.
#[derive(Debug, Default)]
pub struct Zone {
    services: HashMap<Key, ServiceEntry>,
    /// By Service, then slice, so that a slice is replaced as a whole.
    endpoints: HashMap<Key, BTreeMap<String, Vec<Endpoint>>>,
    /// Which Service a slice belongs to.
    slices: HashMap<Key, Key>,
    namespaces: HashSet<String>,
    by_address: HashMap<IpAddr, Key>,
    /// Raised by every change; the serial number of the zone.
    serial: u32,
}

fn ports(raw: Option<&Vec<RawPort>>) -> Vec<Port> {
    let convert = |port: &RawPort| {
        Some(Port {
            name: port.name.as_deref().unwrap_or_default().to_ascii_lowercase(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
            number: port.port?,
        })
    };
    raw.into_iter().flatten().filter_map(convert).collect()
}

impl Zone {
    pub fn serial(&self) -> u32 {
        self.serial
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The ready endpoints of a Service, by address.
    pub fn endpoints(&self, namespace: &str, service: &str) -> Vec<&Endpoint> {
        let slices = self.endpoints.get(&(namespace.to_owned(), service.to_owned()));
        let mut all: Vec<&Endpoint> = slices.into_iter().flat_map(BTreeMap::values).flatten().collect();
        all.sort();
        all.dedup();
        all
    }

    /// Whose address this is: a Service's (without endpoint) or an endpoint's.
    pub fn reverse(&self, address: IpAddr) -> Vec<(Key, Option<&Endpoint>)> {
        if let Some(key) = self.by_address.get(&address) {
            return vec![(key.clone(), None)];
        }
        let mut found: Vec<(Key, Option<&Endpoint>)> = Vec::new();
        // Reverse questions are rare, and an index would cost more than all other data.
        for (key, slices) in &self.endpoints {
            if !self.services.contains_key(key) {
                continue;
            }
            let endpoint = slices.values().flatten().find(|endpoint| endpoint.address == address);
            found.extend(endpoint.map(|endpoint| (key.clone(), Some(endpoint))));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    pub fn set_namespace(&mut self, namespace: &Namespace) {
        self.serial += 1;
        self.namespaces.insert(namespace.metadata.name.clone());
    }

    pub fn remove_namespace(&mut self, key: &Key) {
        self.serial += 1;
        self.namespaces.remove(&key.1);
    }

    pub fn set_service(&mut self, service: &Service) {
        let key = key_of(&service.metadata);
        self.remove_service(&key);
        let spec = &service.spec;
        let target = match (spec.kind.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => {
                Target::External(spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.').to_owned())
            }
            (_, Some("None")) => Target::Headless,
            (_, address) => {
                let listed = spec.cluster_ips.iter().flatten().map(String::as_str);
                let mut all: Vec<IpAddr> = listed.chain(address).filter_map(|address| address.parse().ok()).collect();
                all.sort();
                all.dedup();
                Target::Addresses(all)
            }
        };
        if let Target::Addresses(addresses) = &target {
            self.by_address.extend(addresses.iter().map(|address| (*address, key.clone())));
        }
        let ports = ports(spec.ports.as_ref());
        self.services.insert(key, ServiceEntry { target, ports });
    }

    pub fn remove_service(&mut self, key: &Key) {
        self.serial += 1;
        if let Some(ServiceEntry { target: Target::Addresses(addresses), .. }) = self.services.remove(key) {
            for address in addresses {
                if self.by_address.get(&address) == Some(key) {
                    self.by_address.remove(&address);
                }
            }
        }
    }

    pub fn set_slice(&mut self, slice: &Slice) {
        let slice_key = key_of(&slice.metadata);
        self.remove_slice(&slice_key);
        let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.service.clone()) else {
            tracing::trace!(slice = slice.metadata.name, "no label {SERVICE_NAME}");
            return;
        };
        if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
            return;
        }
        let ports = ports(slice.ports.as_ref());
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            let condition = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
            condition.unwrap_or(true)
        });
        let endpoints: Vec<Endpoint> = ready
            .flat_map(|endpoint| endpoint.addresses.iter().map(move |address| (endpoint, address)))
            .filter_map(|(endpoint, address)| {
                let address: IpAddr = address.parse().ok()?;
                let name = endpoint.hostname.as_ref().filter(|name| !name.is_empty());
                Some(Endpoint {
                    address,
                    name: name.map_or_else(|| dashed(address), |name| name.to_ascii_lowercase()),
                    ports: ports.clone(),
                })
            })
            .collect();
        let key = (slice.metadata.namespace.clone(), service);
        self.slices.insert(slice_key.clone(), key.clone());
        self.endpoints.entry(key).or_default().insert(slice_key.1, endpoints);
    }

    pub fn remove_slice(&mut self, slice_key: &Key) {
        self.serial += 1;
        let Some(service) = self.slices.remove(slice_key) else {
            return;
        };
        if let Some(slices) = self.endpoints.get_mut(&service) {
            slices.remove(&slice_key.1);
            if slices.is_empty() {
                self.endpoints.remove(&service);
            }
        }
    }

    /// The keys of all objects of a kind, to find out which are gone after a new list.
    pub(crate) fn service_keys(&self) -> Vec<Key> {
        self.services.keys().cloned().collect()
    }

    pub(crate) fn slice_keys(&self) -> Vec<Key> {
        self.slices.keys().cloned().collect()
    }

    pub(crate) fn namespace_keys(&self) -> Vec<Key> {
        self.namespaces.iter().map(|name| (String::new(), name.clone())).collect()
    }
}

pub(crate) fn key_of(meta: &Meta) -> Key {
    (meta.namespace.clone(), meta.name.clone())
}

/// `10-244-0-5`, `fd00-10-244--5`.
pub(crate) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}
