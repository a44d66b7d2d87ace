//! Addresses and node ports of Services: given at creation, unique, given back at deletion.
//!
//! The set of what is in use is kept in memory and filled from the Services themselves at start, so that there
//! is no second record that could disagree. Only servers that share their store have one there (`claims`).

mod claims;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::{Kind, Status, validation::Faults};

/// Ports that Services of type NodePort get, upstream's default range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The addresses that Services of one family get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    pub base: IpAddr,
    /// Bits of the prefix, such as 12 of `10.96.0.0/12`.
    pub prefix: u8,
}

impl ServiceRange {
    /// Parses `10.96.0.0/12` or `fd00:10:96::/112`.
    pub fn parse(text: &str) -> Option<ServiceRange> {
        let (base, prefix) = text.split_once('/')?;
        let base: IpAddr = base.parse().ok()?;
        let prefix = prefix.parse().ok()?;
        let base = match base {
            IpAddr::V4(base) if (8..=30).contains(&prefix) => {
                Ipv4Addr::from_bits(base.to_bits() & (u32::MAX << (32 - prefix))).into()
            }
            // Upstream's allocator takes ranges of up to 64 bits.
            IpAddr::V6(base) if (64..=126).contains(&prefix) => {
                Ipv6Addr::from_bits(base.to_bits() & (u128::MAX << (128 - prefix))).into()
            }
            _ => return None,
        };
        Some(ServiceRange { base, prefix })
    }

    /// Parses one range, or two of different families: `10.96.0.0/16,fd00:10:96::/112`. The first one's family is the
    /// one that Services get by default.
    pub fn parse_list(text: &str) -> Option<Vec<ServiceRange>> {
        let ranges = text.split(',').map(|one| ServiceRange::parse(one.trim())).collect::<Option<Vec<_>>>()?;
        match ranges.as_slice() {
            [_] => Some(ranges),
            [a, b] if a.family() != b.family() => Some(ranges),
            _ => None,
        }
    }

    pub fn family(&self) -> Family {
        Family::of(self.base)
    }

    /// The address at an index; 1 is that of the `kubernetes` Service, 10 that of DNS.
    pub fn nth(&self, index: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits().wrapping_add(index)).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().wrapping_add(index.into())).into(),
        }
    }

    /// How many addresses are handed out at most; of a larger range the rest is for those who ask for them.
    fn size(&self) -> u32 {
        match self.base {
            IpAddr::V4(_) => 1 << (32 - self.prefix),
            IpAddr::V6(_) => 1 << (128 - self.prefix).min(MOST_BITS),
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => (ip.to_bits() ^ base.to_bits()) >> (32 - self.prefix) == 0,
            (IpAddr::V6(base), IpAddr::V6(ip)) => (ip.to_bits() ^ base.to_bits()) >> (128 - self.prefix) == 0,
            _ => false,
        }
    }
}

/// Bits of the addresses of a large IPv6 range that are handed out.
const MOST_BITS: u8 = 20;

#[derive(Default)]
struct InUse {
    addresses: HashSet<IpAddr>,
    /// Node port and protocol, and how many ports of Services share it (one Service may, per protocol).
    node_ports: HashSet<(u16, String)>,
}

/// See the [module](self).
pub struct ServiceAddresses {
    /// One, or one of each family; the first is the default.
    ranges: Vec<ServiceRange>,
    in_use: Arc<Mutex<InUse>>,
}

/// What an update took; given back unless it is kept.
pub struct Reservation {
    in_use: Option<Arc<Mutex<InUse>>>,
    addresses: Vec<IpAddr>,
    node_ports: Vec<(u16, String)>,
    /// What the old object had and the new one has no more; freed when the update is kept.
    freed_addresses: Vec<IpAddr>,
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

fn addresses_of(service: &Value) -> Vec<IpAddr> {
    let spec = &service["spec"];
    let listed = spec["clusterIPs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = if listed.is_empty() { std::slice::from_ref(&spec["clusterIP"]) } else { listed };
    all.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
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
    pub fn new(ranges: Vec<ServiceRange>) -> ServiceAddresses {
        ServiceAddresses { ranges, in_use: Arc::default() }
    }

    pub fn ranges(&self) -> &[ServiceRange] {
        &self.ranges
    }

    /// The families that Services can have, the default one first.
    pub fn families(&self) -> Vec<Family> {
        self.ranges.iter().map(ServiceRange::family).collect()
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

    /// Fills in a Service's address families.
    ///
    /// # Errors
    /// Those that cannot be had, before anything else is looked at.
    pub fn init_families(&self, kind: &Kind, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if kind.kind != "Service" || !kind.group.is_empty() {
            return Ok(());
        }
        let mut faults = Faults::default();
        crate::registry::init_families(new, old, &self.families(), &mut faults);
        if faults.0.is_empty() {
            return Ok(());
        }
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        Err(Status::invalid_object(kind, name, &faults.0))
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
        self.assign_addresses(new, &old_addresses, &mut in_use, &mut reservation, faults);
        assign_ports(new, &old_ports, &mut in_use, &mut reservation, faults);
        let (now_addresses, now_ports) = (addresses_of(new), node_ports_of(new));
        reservation.freed_addresses = old_addresses.into_iter().filter(|a| !now_addresses.contains(a)).collect();
        reservation.freed_ports = old_ports.into_iter().filter(|p| !now_ports.contains(p)).collect();
        reservation
    }

    fn assign_addresses(
        &self,
        new: &mut Value,
        old: &[IpAddr],
        in_use: &mut InUse,
        reservation: &mut Reservation,
        faults: &mut Faults,
    ) {
        let spec = &mut new["spec"];
        if spec["type"] == "ExternalName" {
            return;
        }
        if spec["clusterIP"] == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return;
        }
        let mut wanted: Vec<String> = spec["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|ip| ip.as_str().unwrap_or_default().to_owned())
            .collect();
        if let (true, Some(one)) = (wanted.is_empty(), spec["clusterIP"].as_str().filter(|s| !s.is_empty())) {
            wanted.push(one.to_owned());
        }
        let families: Vec<&str> =
            spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let ranges: Vec<ServiceRange> = match families.is_empty() {
            true => self.ranges.first().copied().into_iter().collect(),
            false => {
                let named = |name: &&str| self.ranges.iter().find(|range| range.family().name() == *name).copied();
                families.iter().filter_map(named).collect()
            }
        };
        wanted.resize(wanted.len().max(ranges.len()), String::new());
        for (i, range) in ranges.into_iter().enumerate() {
            match choose(range, &wanted[i], old, in_use) {
                Ok(None) => {}
                Ok(Some(ip)) => {
                    in_use.addresses.insert(ip);
                    reservation.addresses.push(ip);
                    wanted[i] = ip.to_string();
                }
                Err(why) => {
                    faults.invalid("spec.clusterIPs", json!(wanted), why);
                    return;
                }
            }
        }
        if let Some(first) = wanted.first() {
            spec["clusterIP"] = first.as_str().into();
            spec["clusterIPs"] = json!(wanted);
        }
    }
}

/// The address that a Service gets of a range: the one that it asks for, or a free one. `None`: one that it has already.
fn choose(range: ServiceRange, wanted: &str, old: &[IpAddr], in_use: &InUse) -> Result<Option<IpAddr>, String> {
    if wanted.is_empty() {
        let free = free_address(range, in_use);
        return free.map(Some).ok_or_else(|| "failed to allocate IP: range is full".to_owned());
    }
    // What is no address has been refused before.
    let Ok(ip) = wanted.parse::<IpAddr>() else { return Ok(None) };
    if old.contains(&ip) {
        return Ok(None);
    }
    if !range.contains(ip) {
        return Err(format!(
            "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}/{}",
            range.base, range.prefix
        ));
    }
    if in_use.addresses.contains(&ip) {
        return Err(format!("failed to allocate IP {ip}: provided IP is already allocated"));
    }
    Ok(Some(ip))
}

/// A random free address from the upper part of the range, so that people can choose from the lower one.
fn free_address(range: ServiceRange, in_use: &InUse) -> Option<IpAddr> {
    let size = range.size();
    // Upstream keeps min(max(16, size/16), 256) addresses for static use.
    let reserved = (size / 16).clamp(16, 256).min(size / 2);
    let pick = |from: u32, to: u32| {
        let span = to - from;
        let start = rand::random_range(0..span);
        (0..span).map(|i| range.nth(from + (start + i) % span)).find(|ip| !in_use.addresses.contains(ip))
    };
    // The last address is the one for broadcasts where the family has those.
    let end = if range.family() == Family::V4 { size - 1 } else { size };
    pick(reserved, end).or_else(|| pick(1, reserved))
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

    fn addresses(ranges: &str) -> ServiceAddresses {
        ServiceAddresses::new(ServiceRange::parse_list(ranges).unwrap())
    }

    fn service(spec: Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": "s", "namespace": "d"}, "spec": spec})
    }

    #[test]
    fn addresses_are_unique_and_given_back() {
        let a = addresses("10.96.0.0/28");
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
        let a = addresses("10.96.0.0/12");
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
        let a = addresses("10.96.0.0/12");
        let mut s =
            service(json!({"type": "NodePort", "clusterIP": "192.168.0.1", "ports": [{"port": 80, "nodePort": 80}]}));
        let mut f = Faults::default();
        drop(a.assign(kind(), &mut s, None, &mut f));
        assert_eq!(f.0.len(), 2, "{:?}", f.0);
    }

    #[test]
    fn ranges_are_one_or_two_of_different_families() {
        for good in ["10.96.0.0/12", "fd00:10:96::/112", "10.96.0.0/16,fd00:10:96::/112", "fd00::/108, 10.0.0.0/8"] {
            assert!(ServiceRange::parse_list(good).is_some(), "{good}");
        }
        for bad in ["", "10.0.0.0/31", "fd00::/63", "10.0.0.0/16,10.1.0.0/16", "10.0.0.0/16,fd00::/112,fd01::/112"] {
            assert!(ServiceRange::parse_list(bad).is_none(), "{bad}");
        }
        let range = ServiceRange::parse("fd00:10:96::ff/112").unwrap();
        assert_eq!(range.nth(10).to_string(), "fd00:10:96::a");
        assert!(range.contains("fd00:10:96::ffff".parse().unwrap()));
        assert!(!range.contains("fd00:10:96::1:0".parse().unwrap()) && !range.contains("10.96.0.1".parse().unwrap()));
    }

    #[test]
    fn each_family_has_its_address() {
        let a = addresses("10.96.0.0/28,fd00:10:96::/124");
        let mut s = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
        let mut f = Faults::default();
        a.assign(kind(), &mut s, None, &mut f).keep();
        assert!(f.0.is_empty(), "{:?}", f.0);
        let both: Vec<IpAddr> = addresses_of(&s);
        assert!(both[0].is_ipv4() && both[1].is_ipv6() && both.len() == 2, "{s}");
        assert_eq!(s["spec"]["clusterIP"], s["spec"]["clusterIPs"][0]);
        // The second one goes and comes back; meanwhile somebody else can have it.
        let mut single = s.clone();
        single["spec"]["ipFamilies"] = json!(["IPv4"]);
        single["spec"]["clusterIPs"] = json!([both[0]]);
        a.assign(kind(), &mut single, Some(&s), &mut f).keep();
        assert_eq!(addresses_of(&single), [both[0]]);
        let mut other = service(json!({"ipFamilies": ["IPv6"], "clusterIP": both[1], "clusterIPs": [both[1]]}));
        a.assign(kind(), &mut other, None, &mut f).keep();
        let mut again = single.clone();
        again["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        a.assign(kind(), &mut again, Some(&single), &mut f).keep();
        assert!(f.0.is_empty(), "{:?}", f.0);
        assert_ne!(addresses_of(&again)[1], both[1]);
        let mut taken = service(json!({"ipFamilies": ["IPv6"], "clusterIP": both[1], "clusterIPs": [both[1]]}));
        drop(a.assign(kind(), &mut taken, None, &mut f));
        assert!(f.0[0].to_string().ends_with("provided IP is already allocated"), "{:?}", f.0);
    }
}
