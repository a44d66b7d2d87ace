//! The pod network of one node.
//!
//! Each pod has a veth pair: `eth0` inside, a port of the bridge outside, and an address of each family that the
//! node has a range of. The pod's address is a /32 (of IPv6 a /128)
//! and everything, its neighbours on the same bridge included, is reached through the gateway, which
//! is the bridge's own address. So every packet between pods passes the node's IP layer, where
//! Services and policies are decided, without the br_netfilter module; ports are isolated from each
//! other, so that there is no way around it. The price is one IP hop instead of one bridge hop.
//!
//! Where `net.bridge.bridge-nf-call-iptables` (or `-ip6tables`) is on, the bridge itself runs the IP rules and then takes
//! the short way between two ports. Ports are then left open to each other: it works as it does in
//! clusters that rely on that setting. Nodes of local clusters turn it off in their namespaces.
//!
//! Invariants: the record in [`ipam`](crate::ipam) is written before anything of a pod exists in the
//! kernel and removed last, so that a setup or teardown cut short at any line can be repeated.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use crate::{
    Error, NetNs, Result, Subnet,
    hostport::{self, HostPort, TableConfig},
    ipam::{Attachment, Ipam, Record},
    links::{Hop, Links, Mac, Route, VethEnd, mac_of},
    netlink::Socket,
    sysctl,
};

/// How the pod network of a node is set up.
#[derive(Debug, Clone)]
pub struct PodNetworkConfig {
    /// Name of the bridge.
    pub bridge: String,
    /// The node's own ranges, one of each family with the primary one first; the first address after a base is the
    /// gateway.
    pub pod_cidrs: Vec<Subnet>,
    /// `None`: pods keep their source address everywhere (nodes without a way out). Otherwise it is
    /// replaced by the node's for destinations outside these ranges: those of pods, Services and nodes.
    pub masquerade_except: Option<Vec<Subnet>>,
    /// The kernel's default if absent.
    pub mtu: Option<u32>,
    /// Where the addresses in use are recorded.
    pub data_dir: PathBuf,
}

impl PodNetworkConfig {
    /// The usual bridge and data directory.
    pub fn new(pod_cidrs: Vec<Subnet>) -> Self {
        Self {
            bridge: DEFAULT_BRIDGE.to_owned(),
            pod_cidrs,
            masquerade_except: None,
            mtu: None,
            data_dir: PathBuf::from(DEFAULT_DATA_DIR),
        }
    }
}

pub const DEFAULT_BRIDGE: &str = "cni0";
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks/skiff";

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddress {
    /// In the order of the node's ranges.
    pub ips: Vec<PodIp>,
    pub mac: Mac,
    /// The outer end of the pair.
    pub host_interface: String,
}

/// An address of a pod, and through which everything is reached from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodIp {
    pub address: IpAddr,
    pub gateway: IpAddr,
}

/// The pod network of the node in whose namespace it was opened. Calls may come from any thread.
#[derive(Debug)]
pub struct PodNetwork {
    config: PodNetworkConfig,
    /// One of each range.
    gateways: Vec<IpAddr>,
    bridge: u32,
    isolate: bool,
    namespace: NetNs,
    sockets: Mutex<Sockets>,
}

#[derive(Debug)]
struct Sockets {
    links: Links,
    netfilter: Socket,
}

impl PodNetwork {
    /// Prepares the caller's network namespace: bridge, forwarding, nftables table. What is there
    /// already is kept, except for the table, which is replaced to fit the configuration.
    pub fn open(config: PodNetworkConfig) -> Result<Self> {
        Self::prepare(config, true)
    }

    /// The same, but keeps an existing table: for the short life of a plugin process.
    pub fn attach(config: PodNetworkConfig) -> Result<Self> {
        Self::prepare(config, false)
    }

    fn prepare(config: PodNetworkConfig, rebuild: bool) -> Result<Self> {
        let gateways = config.pod_cidrs.iter().map(|range| gateway_of(*range)).collect::<Result<Vec<_>>>()?;
        let primary =
            *gateways.first().ok_or_else(|| Error::Invalid("the node has no range of pod addresses".to_owned()))?;
        let mut links = Links::open()?;
        let mut netfilter = hostport::open_socket(None)?;
        let ipam = Ipam::lock(&config.data_dir, &config.pod_cidrs)?;
        let bridge = links.ensure_bridge(&config.bridge, Some(mac_of(primary)), config.mtu)?;
        for range in &config.pod_cidrs {
            match range.is_ipv4() {
                true => prepare_ipv4(&config.bridge)?,
                false => prepare_ipv6(&config.bridge)?,
            }
        }
        for (gateway, range) in gateways.iter().zip(&config.pod_cidrs) {
            links.ensure_address(bridge, *gateway, range.prefix())?;
        }
        if rebuild || !hostport::exists(&mut netfilter, &config.pod_cidrs)? {
            let table = TableConfig {
                bridge: config.bridge.clone(),
                pod_cidrs: config.pod_cidrs.clone(),
                masquerade_except: config.masquerade_except.clone(),
            };
            hostport::rebuild(&mut netfilter, &table, &ipam)?;
        }
        let isolate = !config.pod_cidrs.iter().any(|range| bridge_filters(*range));
        Ok(Self {
            config,
            gateways,
            bridge,
            isolate,
            namespace: NetNs::current()?,
            sockets: Mutex::new(Sockets { links, netfilter }),
        })
    }

    pub fn config(&self) -> &PodNetworkConfig {
        &self.config
    }

    fn ipam(&self) -> Result<Ipam> {
        Ipam::lock(&self.config.data_dir, &self.config.pod_cidrs)
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Sockets> {
        // The sockets hold no state that a panic could leave half changed.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects a pod's network namespace. Repeating it after a failure or a crash is fine.
    ///
    /// `container_id` is the sandbox's; `interface` usually `eth0`.
    ///
    /// # Errors
    /// Leaves nothing behind when it fails.
    pub fn setup(
        &self,
        container_id: &str,
        namespace: BorrowedFd<'_>,
        interface: &str,
        host_ports: &[HostPort],
    ) -> Result<PodAddress> {
        let attachment = Attachment { container_id: container_id.to_owned(), interface: interface.to_owned() };
        let addresses = {
            let mut ipam = self.ipam()?;
            let record = Record { host_ports: host_ports.to_vec() };
            if !host_ports.is_empty() {
                hostport::check_free(&ipam, container_id, host_ports)?;
            }
            let primary = ipam.allocate(&attachment, &record)?;
            ipam.addresses_of(primary)
        };
        let connected = self.connect(&attachment, namespace, &addresses, host_ports);
        if connected.is_err()
            && let Err(error) = self.teardown(container_id, interface)
        {
            tracing::warn!(container_id, error = error.chain(), "cannot undo a failed pod network setup");
        }
        connected
    }

    fn connect(
        &self,
        attachment: &Attachment,
        namespace: BorrowedFd<'_>,
        addresses: &[IpAddr],
        host_ports: &[HostPort],
    ) -> Result<PodAddress> {
        let host_interface = host_interface(attachment);
        let ips: Vec<PodIp> = addresses
            .iter()
            .filter_map(|address| {
                let gateway = self.gateways.iter().find(|gateway| gateway.is_ipv4() == address.is_ipv4())?;
                Some(PodIp { address: *address, gateway: *gateway })
            })
            .collect();
        // The first one is always there.
        let mac = addresses.first().map(|address| mac_of(*address)).unwrap_or_default();
        let mut inside = Links::open_in(namespace)?;
        {
            let mut sockets = self.sockets();
            let near = VethEnd { master: Some(self.bridge), ..VethEnd::new(&host_interface) };
            let far = VethEnd { mac: Some(mac), namespace: Some(namespace), ..VethEnd::new(&attachment.interface) };
            let created = sockets.links.add_veth(near, far, self.config.mtu);
            if matches!(&created, Err(Error::Netlink { source, .. }) if source.is(libc::EEXIST)) {
                // Left over from a setup that was cut short.
                sockets.links.delete(&host_interface)?;
                sockets.links.add_veth(near, far, self.config.mtu)?;
            } else {
                created?;
            }
            let port = sockets.links.index(&host_interface)?;
            sockets.links.configure_port(port, self.isolate)?;
        }
        inside.set_up("lo")?;
        let link = inside.index(&attachment.interface)?;
        let routes = ips.iter().flat_map(|ip| {
            let everything = if ip.address.is_ipv4() { Subnet::ALL_IPV4 } else { Subnet::ALL_IPV6 };
            let by_gateway = Hop::Gateway { gateway: ip.gateway, link, onlink: false };
            [
                Route { destination: Subnet::host(ip.gateway), hop: Hop::Link { link } },
                Route { destination: everything, hop: by_gateway },
            ]
        });
        inside.configure_pod_end(link, addresses, &routes.collect::<Vec<_>>())?;
        // From the pod outwards, each link tells the next one that there is a carrier (see Links::find).
        // Without this the node's first pod would be deaf for up to a second.
        inside.index(&attachment.interface)?;
        for link in [&host_interface, &self.config.bridge] {
            self.sockets().links.index(link)?;
        }
        if !host_ports.is_empty() {
            let ipam = self.ipam()?;
            let mut sockets = self.sockets();
            hostport::synchronise(&mut sockets.netfilter, &self.config.pod_cidrs, &ipam)?;
            hostport::forget_udp_flows(&mut sockets.netfilter, &self.config.pod_cidrs, host_ports)?;
        }
        Ok(PodAddress { ips, mac, host_interface })
    }

    /// Takes back [`setup`](Self::setup). What is gone already is fine.
    pub fn teardown(&self, container_id: &str, interface: &str) -> Result<()> {
        self.disconnect(&Attachment { container_id: container_id.to_owned(), interface: interface.to_owned() })
    }

    fn disconnect(&self, attachment: &Attachment) -> Result<()> {
        // The kernel takes some 20 ms, mostly waiting: on a socket of its own, so that others go on.
        Links::open_in(self.namespace.as_fd())?.delete(&host_interface(attachment))?;
        let mut ipam = self.ipam()?;
        let host_ports = ipam.host_ports()?;
        let host_ports = host_ports
            .into_iter()
            .find(|(allocation, _)| allocation.attachment == *attachment)
            .map(|(_, ports)| ports)
            .unwrap_or_default();
        // The record goes last of what can fail half-way, but the maps follow the records: should they
        // not be brought in line, the next change or the next start does it.
        ipam.release(attachment)?;
        if !host_ports.is_empty() {
            let mut sockets = self.sockets();
            hostport::synchronise(&mut sockets.netfilter, &self.config.pod_cidrs, &ipam)?;
            hostport::forget_udp_flows(&mut sockets.netfilter, &self.config.pod_cidrs, &host_ports)?;
        }
        Ok(())
    }

    /// Removes what belongs to no attachment of `wanted`: after a crash or a reboot of the node.
    pub fn collect_garbage(&self, wanted: &HashSet<Attachment>) -> Result<()> {
        let allocations = self.ipam()?.allocations().to_vec();
        for allocation in allocations {
            if !wanted.contains(&allocation.attachment) {
                self.disconnect(&allocation.attachment)?;
            }
        }
        Ok(())
    }

    /// Verifies that an attachment is as [`setup`](Self::setup) left it.
    pub fn check(&self, container_id: &str, namespace: BorrowedFd<'_>, interface: &str) -> Result<()> {
        let attachment = Attachment { container_id: container_id.to_owned(), interface: interface.to_owned() };
        let ipam = self.ipam()?;
        let allocation = ipam
            .find(&attachment)
            .ok_or_else(|| Error::Invalid(format!("container {container_id} has no address on {interface}")))?;
        let wanted = ipam.addresses_of(allocation.address);
        drop(ipam);
        let outer = host_interface(&attachment);
        let port = self.sockets().links.find(&outer)?;
        if port.is_none_or(|link| link.master != Some(self.bridge)) {
            return Err(Error::NoSuchLink(outer));
        }
        let mut inside = Links::open_in(namespace)?;
        let link = inside.index(interface)?;
        let present = inside.addresses(link)?;
        match wanted.iter().find(|wanted| !present.iter().any(|(address, _)| address == *wanted)) {
            Some(missing) => Err(Error::Invalid(format!("{interface} does not have the address {missing}"))),
            None => Ok(()),
        }
    }

    /// The primary addresses in use, for `cluster` diagnostics and garbage collection.
    pub fn attachments(&self) -> Result<Vec<(Attachment, IpAddr)>> {
        let ipam = self.ipam()?;
        let pairs = ipam.allocations().iter();
        Ok(pairs.map(|a| (a.attachment.clone(), a.address)).collect())
    }

    /// [`setup`](Self::setup) for a namespace given by its path.
    pub fn setup_path(
        &self,
        container_id: &str,
        namespace: &std::path::Path,
        interface: &str,
        host_ports: &[HostPort],
    ) -> Result<PodAddress> {
        let namespace = NetNs::open(namespace)?;
        self.setup(container_id, namespace.as_fd(), interface, host_ports)
    }
}

/// Whether the bridge itself runs the rules of a range's family.
fn bridge_filters(range: Subnet) -> bool {
    sysctl::is_on(match range.is_ipv4() {
        true => "net/bridge/bridge-nf-call-iptables",
        false => "net/bridge/bridge-nf-call-ip6tables",
    })
}

fn gateway_of(range: Subnet) -> Result<IpAddr> {
    let smallest = if range.is_ipv4() { 29 } else { 125 };
    let gateway = range.nth(1).filter(|_| range.prefix() <= smallest);
    gateway.ok_or_else(|| Error::Invalid(format!("the pod range {range} is too small")))
}

fn of_bridge(family: &str, bridge: &str, name: &str) -> String {
    format!("net/{family}/conf/{}/{name}", bridge.replace('.', "/"))
}

fn prepare_ipv4(bridge: &str) -> Result<()> {
    sysctl::set("net/ipv4/ip_forward", "1")?;
    // Packets between pods leave by the interface that they came from, which is no reason to tell
    // the sender of a shorter way. The kernel sends redirects if either setting is on.
    sysctl::set("net/ipv4/conf/all/send_redirects", "0")?;
    sysctl::set(&of_bridge("ipv4", bridge, "send_redirects"), "0")?;
    // Host ports are also served on 127.0.0.1.
    sysctl::set(&of_bridge("ipv4", bridge, "route_localnet"), "1")
}

fn prepare_ipv6(bridge: &str) -> Result<()> {
    sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
    // With its link-local address the bridge asks for pods' hardware addresses. Nobody else can have that address,
    // and who looks whether somebody has it is silent for a second.
    sysctl::set(&of_bridge("ipv6", bridge, "accept_dad"), "0")?;
    sysctl::set(&of_bridge("ipv6", bridge, "accept_ra"), "0")
}

/// The outer interface's name follows from the attachment, so that it can be found again without a
/// record. Fifteen characters is the kernel's limit.
fn host_interface(attachment: &Attachment) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = attachment.container_id.bytes().chain([b'/']).chain(attachment.interface.bytes());
    for byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("veth{:011x}", hash >> 20)
}

#[cfg(test)]
mod tests;
