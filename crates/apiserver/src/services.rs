//! Addresses and node ports of Services: given at creation, unique, given back at deletion.
//!
//! The set of what is in use is kept in memory and filled from the Services themselves at start, so that there
//! is no second record that could disagree. Only servers that share their store have one there (`claims`).

mod claims;

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::{Kind, validation::Faults};

/// Ports that Services of type NodePort get, upstream's default range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// The addresses that Services get.
#[derive(Clone, Copy, Debug)]
pub struct ServiceRange {
    pub base: Ipv4Addr,
    /// Bits of the prefix, such as 12 of `10.96.0.0/12`.
    pub prefix: u8,
}

impl ServiceRange {
    /// Parses `10.96.0.0/12`.
    pub fn parse(text: &str) -> Option<ServiceRange> {
        let (base, prefix) = text.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|p| (8..=30).contains(p))?;
        let mask = u32::MAX << (32 - prefix);
        let base: Ipv4Addr = base.parse().ok()?;
        Some(ServiceRange { base: Ipv4Addr::from(u32::from(base) & mask), prefix })
    }

    /// The address at an index; 1 is that of the `kubernetes` Service, 10 that of DNS.
    pub fn nth(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).wrapping_add(index))
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    fn contains(&self, ip: Ipv4Addr) -> bool {
        u32::from(ip) >> (32 - self.prefix) == u32::from(self.base) >> (32 - self.prefix)
    }
}

#[derive(Default)]
struct InUse {
    addresses: HashSet<Ipv4Addr>,
    /// Node port and protocol, and how many ports of Services share it (one Service may, per protocol).
    node_ports: HashSet<(u16, String)>,
}

/// See the [module](self).
pub struct ServiceAddresses {
    range: ServiceRange,
    in_use: Arc<Mutex<InUse>>,
}

/// What an update took; given back unless it is kept.
pub struct Reservation {
    in_use: Option<Arc<Mutex<InUse>>>,
    addresses: Vec<Ipv4Addr>,
    node_ports: Vec<(u16, String)>,
    /// What the old object had and the new one has no more; freed when the update is kept.
    freed_addresses: Vec<Ipv4Addr>,
    freed_ports: Vec<(u16, String)>,
}

impl Reservation {
    pub fn none() -> Reservation {
        Reservation {
            in_use: None,
            addresses: vec![],
            node_ports: vec![],
            freed_addresses: vec![],
            freed_ports: vec![],
        }
    }

    /// The object was written: what was taken stays taken.
    pub fn keep(mut self) {
        if let Some(in_use) = self.in_use.take() {
            let mut in_use = in_use.lock();
            for a in &self.freed_addresses {
                in_use.addresses.remove(a);
            }
            for p in &self.freed_ports {
                in_use.node_ports.remove(p);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(in_use) = &self.in_use {
            let mut in_use = in_use.lock();
            for a in &self.addresses {
                in_use.addresses.remove(a);
            }
            for p in &self.node_ports {
                in_use.node_ports.remove(p);
            }
        }
    }
}

fn addresses_of(service: &Value) -> Vec<Ipv4Addr> {
    service["spec"]["clusterIP"].as_str().and_then(|s| s.parse().ok()).into_iter().collect()
}

fn node_ports_of(service: &Value) -> Vec<(u16, String)> {
    let mut ports: Vec<_> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| {
            let port = u16::try_from(p["nodePort"].as_u64().filter(|n| *n > 0)?).ok()?;
            Some((port, p["protocol"].as_str().unwrap_or("TCP").to_owned()))
        })
        .collect();
    let health = service["spec"]["healthCheckNodePort"].as_u64().and_then(|n| u16::try_from(n).ok());
    ports.extend(health.filter(|n| *n > 0).map(|n| (n, "TCP".to_owned())));
    ports
}

impl ServiceAddresses {
    pub fn new(range: ServiceRange) -> ServiceAddresses {
        ServiceAddresses { range, in_use: Arc::default() }
    }

    pub fn range(&self) -> ServiceRange {
        self.range
    }

    /// Takes note of a Service that is there at start.
    pub fn adopt(&self, service: &Value) {
        let mut in_use = self.in_use.lock();
        in_use.addresses.extend(addresses_of(service));
        in_use.node_ports.extend(node_ports_of(service));
    }

    /// Gives back what a deleted Service had.
    pub fn release(&self, kind: &Kind, service: &Value) {
        if kind.kind != "Service" || !kind.group.is_empty() {
            return;
        }
        let mut in_use = self.in_use.lock();
        for a in addresses_of(service) {
            in_use.addresses.remove(&a);
        }
        for p in node_ports_of(service) {
            in_use.node_ports.remove(&p);
        }
    }

    /// Gives a Service its addresses and node ports, or checks those that it asks for.
    pub fn assign(&self, kind: &Kind, new: &mut Value, old: Option<&Value>, faults: &mut Faults) -> Reservation {
        if kind.kind != "Service" || !kind.group.is_empty() || !faults.0.is_empty() {
            return Reservation::none();
        }
        let mut reservation = Reservation::none();
        reservation.in_use = Some(self.in_use.clone());
        let mut in_use = self.in_use.lock();
        let old_addresses = old.map(addresses_of).unwrap_or_default();
        let old_ports = old.map(node_ports_of).unwrap_or_default();
        self.assign_address(new, &old_addresses, &mut in_use, &mut reservation, faults);
        assign_ports(new, &old_ports, &mut in_use, &mut reservation, faults);
        let (now_addresses, now_ports) = (addresses_of(new), node_ports_of(new));
        reservation.freed_addresses = old_addresses.into_iter().filter(|a| !now_addresses.contains(a)).collect();
        reservation.freed_ports = old_ports.into_iter().filter(|p| !now_ports.contains(p)).collect();
        reservation
    }

    fn assign_address(
        &self,
        new: &mut Value,
        old: &[Ipv4Addr],
        in_use: &mut InUse,
        reservation: &mut Reservation,
        faults: &mut Faults,
    ) {
        let spec = &mut new["spec"];
        if spec["type"] == "ExternalName" {
            return;
        }
        let wanted = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
        if wanted == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return;
        }
        let ip = if wanted.is_empty() {
            match self.free_address(in_use) {
                Some(ip) => ip,
                None => {
                    faults.push(skiff_api::validation::FieldError::invalid(
                        "spec.clusterIPs",
                        json!([]),
                        "failed to allocate IP: range is full",
                    ));
                    return;
                }
            }
        } else {
            let at = "spec.clusterIPs";
            let ip: Ipv4Addr = match wanted.parse() {
                Ok(ip) => ip,
                Err(_) => return,
            };
            if old.contains(&ip) {
                return;
            }
            if !self.range.contains(ip) {
                let detail = format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}/{}",
                    self.range.base, self.range.prefix
                );
                faults.invalid(at, json!([wanted]), detail);
                return;
            }
            if in_use.addresses.contains(&ip) {
                faults.invalid(
                    at,
                    json!([wanted]),
                    format!("failed to allocate IP {ip}: provided IP is already allocated"),
                );
                return;
            }
            ip
        };
        in_use.addresses.insert(ip);
        reservation.addresses.push(ip);
        spec["clusterIP"] = ip.to_string().into();
        spec["clusterIPs"] = json!([ip.to_string()]);
    }

    /// A random free address from the upper part of the range, so that people can choose from the lower one.
    fn free_address(&self, in_use: &InUse) -> Option<Ipv4Addr> {
        let size = self.range.size();
        // Upstream keeps min(max(16, size/16), 256) addresses for static use.
        let reserved = (size / 16).clamp(16, 256).min(size / 2);
        let pick = |from: u32, to: u32| {
            let span = to - from;
            let start = rand::random_range(0..span);
            (0..span).map(|i| self.range.nth(from + (start + i) % span)).find(|ip| !in_use.addresses.contains(ip))
        };
        pick(reserved, size - 1).or_else(|| pick(1, reserved))
    }
}

fn assign_ports(
    new: &mut Value,
    old: &[(u16, String)],
    in_use: &mut InUse,
    reservation: &mut Reservation,
    faults: &mut Faults,
) {
    let kind = new["spec"]["type"].as_str().unwrap_or_default().to_owned();
    let wants = kind == "NodePort" || (kind == "LoadBalancer" && new["spec"]["allocateLoadBalancerNodePorts"] != false);
    assign_health_check_port(&mut new["spec"], old, in_use, reservation, faults);
    // The same number may serve two protocols of one Service.
    let mut given: HashMap<u64, u16> = HashMap::new();
    let Some(ports) = new["spec"]["ports"].as_array_mut() else { return };
    for (i, port) in ports.iter_mut().enumerate() {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let number = port["port"].as_u64().unwrap_or_default();
        let asked = port["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        let node_port = match asked {
            Some(n) if old.contains(&(n, protocol.clone())) => continue,
            Some(n) => {
                let at = format!("spec.ports[{i}].nodePort");
                if !NODE_PORTS.contains(&n) {
                    let range = format!("{}-{}", NODE_PORTS.start(), NODE_PORTS.end());
                    faults.invalid(
                        at,
                        n,
                        format!("provided port is not in the valid range. The range of valid ports is {range}"),
                    );
                    continue;
                }
                if in_use.node_ports.contains(&(n, protocol.clone())) {
                    faults.invalid(at, n, "provided port is already allocated");
                    continue;
                }
                n
            }
            None if !wants => continue,
            None => {
                let shared =
                    given.get(&number).copied().filter(|n| !in_use.node_ports.contains(&(*n, protocol.clone())));
                let span = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
                let start = rand::random_range(0..span);
                let free = || {
                    (0..span)
                        .filter_map(|k| u16::try_from(u32::from(*NODE_PORTS.start()) + (start + k) % span).ok())
                        .find(|n| {
                            !["TCP", "UDP", "SCTP"].iter().any(|p| in_use.node_ports.contains(&(*n, (*p).to_owned())))
                        })
                };
                match shared.or_else(free) {
                    Some(n) => n,
                    None => {
                        faults.invalid(
                            format!("spec.ports[{i}].nodePort"),
                            0,
                            "failed to allocate a nodePort: range is full",
                        );
                        continue;
                    }
                }
            }
        };
        given.insert(number, node_port);
        in_use.node_ports.insert((node_port, protocol.clone()));
        reservation.node_ports.push((node_port, protocol));
        port["nodePort"] = node_port.into();
    }
}

/// The port on which nodes tell a load balancer whether they have pods of the Service.
fn assign_health_check_port(
    spec: &mut Value,
    old: &[(u16, String)],
    in_use: &mut InUse,
    reservation: &mut Reservation,
    faults: &mut Faults,
) {
    const AT: &str = "spec.healthCheckNodePort";
    if !crate::registry::needs_health_check(spec) {
        return;
    }
    let key = |port: u16| (port, "TCP".to_owned());
    let asked = spec["healthCheckNodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    let port = match asked {
        Some(port) if old.contains(&key(port)) => return,
        Some(port) if in_use.node_ports.contains(&key(port)) => {
            faults.invalid(
                AT,
                port,
                format!("failed to allocate requested HealthCheck NodePort {port}: provided port is already allocated"),
            );
            return;
        }
        Some(port) => port,
        None => {
            let span = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
            let start = rand::random_range(0..span);
            let mut all =
                (0..span).filter_map(|k| u16::try_from(u32::from(*NODE_PORTS.start()) + (start + k) % span).ok());
            match all.find(|port| !in_use.node_ports.contains(&key(*port))) {
                Some(port) => port,
                None => {
                    faults.invalid(AT, 0, "failed to allocate a HealthCheck NodePort: range is full");
                    return;
                }
            }
        }
    };
    in_use.node_ports.insert(key(port));
    reservation.node_ports.push(key(port));
    spec["healthCheckNodePort"] = port.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> &'static Kind {
        skiff_api::kinds::by_kind("", "v1", "Service").unwrap()
    }

    fn service(spec: Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": "s", "namespace": "d"}, "spec": spec})
    }

    #[test]
    fn addresses_are_unique_and_given_back() {
        let a = ServiceAddresses::new(ServiceRange::parse("10.96.0.0/28").unwrap());
        let mut seen = HashSet::new();
        for _ in 0..14 {
            let mut s = service(json!({"type": "ClusterIP"}));
            let mut f = Faults::default();
            a.assign(kind(), &mut s, None, &mut f).keep();
            assert!(f.0.is_empty(), "{:?}", f.0);
            assert!(seen.insert(s["spec"]["clusterIP"].as_str().unwrap().to_owned()));
        }
        let mut s = service(json!({"type": "ClusterIP"}));
        let mut f = Faults::default();
        drop(a.assign(kind(), &mut s, None, &mut f));
        assert!(f.0[0].to_string().contains("range is full"));
        a.release(kind(), &service(json!({"clusterIP": seen.iter().next().unwrap()})));
        let mut f = Faults::default();
        a.assign(kind(), &mut service(json!({})), None, &mut f).keep();
        assert!(f.0.is_empty());
    }

    #[test]
    fn what_is_not_kept_is_given_back() {
        let a = ServiceAddresses::new(ServiceRange::parse("10.96.0.0/12").unwrap());
        let mut s =
            service(json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]}));
        let mut f = Faults::default();
        drop(a.assign(kind(), &mut s.clone(), None, &mut f));
        a.assign(kind(), &mut s, None, &mut f).keep();
        assert!(f.0.is_empty());
        let mut f = Faults::default();
        drop(a.assign(kind(), &mut s.clone(), None, &mut f));
        assert_eq!(f.0.len(), 2, "{:?}", f.0);
        // The object's own update keeps them.
        let mut f = Faults::default();
        let old = s.clone();
        a.assign(kind(), &mut s, Some(&old), &mut f).keep();
        assert!(f.0.is_empty());
    }

    #[test]
    fn ports_and_addresses_outside_their_ranges_are_refused() {
        let a = ServiceAddresses::new(ServiceRange::parse("10.96.0.0/12").unwrap());
        let mut s =
            service(json!({"type": "NodePort", "clusterIP": "192.168.0.1", "ports": [{"port": 80, "nodePort": 80}]}));
        let mut f = Faults::default();
        drop(a.assign(kind(), &mut s, None, &mut f));
        assert_eq!(f.0.len(), 2, "{:?}", f.0);
    }
}
