use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use skiff_network::hostport::Protocol;

use super::{ClusterStatus, Clusters, ready};
use crate::{
    Error, Limits, Result, fabric,
    host_ports::{HostNet, HostPortError},
    interrupt::Interrupts,
    kubeconfig,
    node_config::{PortMapping, Settings},
    progress::Progress,
    record::{ClusterRecord, NodeRecord},
    spec::{ClusterSpec, check_name, node_names},
};

/// The usual port of an API server, taken when it is free.
const PREFERRED_API_PORT: u16 = 6443;
const DEFAULT_NAME: &str = "skiff";

/// What `cluster create` is asked for.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The file's name, or `skiff`, if absent.
    pub name: Option<String>,
    pub spec: ClusterSpec,
    pub isolated: bool,
    /// How long to wait until the nodes are Ready and DNS answers. `None`: only until the API answers.
    pub wait: Option<Duration>,
    /// `skiff`, or `kind` when called as that.
    pub context_prefix: String,
    /// The usual one if absent.
    pub kubeconfig: Option<PathBuf>,
    /// What differs from the components' defaults.
    pub settings: Settings,
    /// What each node may take of the machine.
    pub limits: Limits,
}

impl CreateOptions {
    pub fn new(spec: ClusterSpec) -> Self {
        Self {
            name: None,
            spec,
            isolated: false,
            wait: Some(Duration::from_secs(120)),
            context_prefix: "skiff".to_owned(),
            kubeconfig: None,
            settings: Settings::default(),
            limits: Limits::default(),
        }
    }
}

/// A cluster that has just been created.
#[derive(Debug, Clone)]
pub struct Created {
    pub status: ClusterStatus,
    /// From the call until it was ready.
    pub took: Duration,
}

impl Clusters {
    /// Creates a cluster, starts it, waits for it, and makes it kubectl's current context.
    ///
    /// # Errors
    /// Whatever was made is taken away again, also after Ctrl-C.
    pub fn create(&self, options: &CreateOptions, progress: &mut dyn Progress) -> Result<Created> {
        let started = Instant::now();
        let spec = &options.spec;
        let name = options.name.as_deref().or(spec.name.as_deref()).unwrap_or(DEFAULT_NAME);
        check_name(name)?;
        // Making the directory is what decides between two that want the same name.
        let directory = self.home.cluster(name);
        fs::create_dir_all(self.home.clusters())
            .map_err(Error::io(format!("create {}", self.home.clusters().display())))?;
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NameTaken { name: name.to_owned() });
            }
            result => result.map_err(Error::io(format!("create {}", directory.display())))?,
        }
        let interrupts = Interrupts::catch();
        let result = self.build(name, options, progress, &interrupts);
        match result {
            Ok(record) => Ok(Created { status: self.status_of(record), took: started.elapsed() }),
            Err(error) => {
                progress.failed();
                self.take_away(name, progress);
                Err(error)
            }
        }
    }

    fn build(
        &self,
        name: &str,
        options: &CreateOptions,
        progress: &mut dyn Progress,
        interrupts: &Interrupts,
    ) -> Result<ClusterRecord> {
        let _lock = self.lock(name)?;
        // Held until the API server listens.
        let (record, _reservation) = self.new_record(name, options)?;
        record.write(&self.home)?;
        for node in &record.nodes {
            let rootfs = self.home.rootfs(name, &node.name);
            fs::create_dir_all(&rootfs).map_err(Error::io(format!("create {}", rootfs.display())))?;
        }
        interrupts.check()?;
        self.launch(&record, progress, interrupts)?;
        if let Some(patience) = options.wait
            && !record.disable_default_cni
        {
            progress.begin("Waiting until the nodes are Ready and DNS answers");
            self.await_ready(&record, patience, interrupts)?;
            progress.done();
        }
        self.merge_kubeconfig(&record)?;
        Ok(record)
    }

    fn await_ready(&self, record: &ClusterRecord, patience: Duration, interrupts: &Interrupts) -> Result<()> {
        let Some(node) = record.control_plane() else {
            return Ok(());
        };
        let kubeconfig = self.home.inside(&record.name, &node.name, crate::node_config::ADMIN_KUBECONFIG);
        match ready::cluster_ready(&kubeconfig, record.nodes.len(), patience, interrupts)? {
            None => Ok(()),
            Some(missing) => Err(self.not_ready(record, patience, missing)),
        }
    }

    fn take_away(&self, name: &str, progress: &mut dyn Progress) {
        let erased = match ClusterRecord::read(&self.home, name) {
            Ok(Some(record)) => self.erase(&record, progress),
            _ => self.erase_directory(name),
        };
        if let Err(error) = erased {
            // The first error is the one to report; this one says what is left to do.
            tracing::warn!(%error, cluster = name, "cannot clean up; run `skiff cluster delete {name}`");
        }
    }

    fn new_record(&self, name: &str, options: &CreateOptions) -> Result<(ClusterRecord, Reservation)> {
        let spec = &options.spec;
        let others = ClusterRecord::all(&self.home)?;
        let host = HostNet::current().map_err(Error::network(name))?;
        let (api_port, reservation) = free_api_port(&host, spec, &others)?;
        let uplink = match options.isolated {
            true => None,
            false => {
                let taken: Vec<u16> = others.iter().filter_map(|other| other.uplink).collect();
                fabric::free_uplink(&taken).map_err(Error::network(name))?
            }
        };
        let names = node_names(name, &spec.nodes);
        let nodes = spec.nodes.iter().zip(names).enumerate().map(|(index, (node, name))| {
            Ok(NodeRecord {
                name,
                role: node.role,
                // The specification has been checked to be far smaller than the range.
                address: fabric::node_address(index).unwrap_or(Ipv4Addr::UNSPECIFIED),
                ipv6_address: spec.ipv6.and_then(|_| fabric::node_ipv6_address(index)),
                labels: node.labels.clone(),
                ports: node.ports.iter().map(|port| reserve(&host, port)).collect::<Result<_>>()?,
                mounts: node.mounts.clone(),
            })
        });
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = ClusterRecord {
            name: name.to_owned(),
            created,
            context: format!("{}-{name}", options.context_prefix),
            kubeconfig: match &options.kubeconfig {
                Some(path) => path.clone(),
                None => kubeconfig::default_path()?,
            },
            isolated: options.isolated,
            uplink,
            api_address: spec.api_address,
            api_port,
            pod_subnet: spec.pod_subnet,
            service_subnet: spec.service_subnet,
            ipv6: spec.ipv6,
            disable_default_cni: spec.disable_default_cni,
            bootstrap_token: bootstrap_token()?,
            nodes,
            settings: options.settings.clone(),
            limits: options.limits,
        };
        Ok((record, reservation))
    }
}

/// Keeps clusters that are created at the same time from choosing the same port: a name in the host's network
/// namespace that only one process can have, for as long as it lives.
type Reservation = Option<UnixDatagram>;

/// `None`: somebody else has it.
fn claim(port: u16) -> Reservation {
    let name = SocketAddr::from_abstract_name(format!("skiff/api-port/{port}")).ok()?;
    UnixDatagram::bind_addr(&name).ok()
}

fn free_api_port(host: &HostNet, spec: &ClusterSpec, others: &[ClusterRecord]) -> Result<(u16, Reservation)> {
    let try_port = |port| match host.listen_tcp(SocketAddrV4::new(spec.api_address, port)) {
        Ok(listener) => Ok(listener.local_addr().map_err(Error::io("read a socket's address"))?.port()),
        Err(HostPortError::Taken(taken)) => Err(Error::PortTaken(taken)),
        Err(HostPortError::Io { source, .. }) => Err(Error::io(format!("listen on {}", spec.api_address))(source)),
    };
    if let Some(port) = spec.api_port {
        return Ok((try_port(port)?, claim(port)));
    }
    // Stopped clusters keep their ports.
    let reserved: BTreeSet<u16> = others.iter().map(|other| other.api_port).collect();
    // Claimed first and then looked at: whoever claimed it before listens by now, or still has it.
    if !reserved.contains(&PREFERRED_API_PORT)
        && let Some(claim) = claim(PREFERRED_API_PORT)
        && let Ok(port) = try_port(PREFERRED_API_PORT)
    {
        return Ok((port, Some(claim)));
    }
    loop {
        let port = try_port(0)?;
        if !reserved.contains(&port)
            && let Some(claim) = claim(port)
        {
            return Ok((port, Some(claim)));
        }
    }
}

/// Checks that a mapped port is free, and chooses one where none is named.
fn reserve(host: &HostNet, port: &PortMapping) -> Result<PortMapping> {
    let address = SocketAddrV4::new(port.listen_address, port.host_port);
    let local = match port.protocol {
        Protocol::Udp => host.bind_udp(address).map(|socket| socket.local_addr()),
        _ => host.listen_tcp(address).map(|socket| socket.local_addr()),
    };
    let local = local.map_err(|error| match error {
        HostPortError::Taken(taken) => Error::PortTaken(taken),
        HostPortError::Io { source, .. } => Error::io(format!("listen on {address}"))(source),
    })?;
    Ok(PortMapping { host_port: local.map_err(Error::io("read a socket's address"))?.port(), ..port.clone() })
}

/// A token in the form of bootstrap tokens: six characters that name it, sixteen that are secret.
pub fn bootstrap_token() -> Result<String> {
    const CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut token = String::with_capacity(23);
    while token.len() < 23 {
        let mut random = [0; 32];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::io("get random numbers")(e.into()))?;
        // Larger values would make some characters likelier than others.
        for byte in random.into_iter().filter(|byte| *byte < 252) {
            if token.len() == 6 {
                token.push('.');
            }
            if token.len() < 23 {
                token.push(CHARACTERS[usize::from(byte) % CHARACTERS.len()].into());
            }
        }
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_claimed_once() {
        let port = 1;
        let first = claim(port);
        assert!(first.is_some() && claim(port).is_none());
        drop(first);
        assert!(claim(port).is_some());
    }

    #[test]
    fn tokens_have_the_published_form() {
        let token = bootstrap_token().unwrap();
        let (id, secret) = token.split_once('.').unwrap();
        assert_eq!((id.len(), secret.len()), (6, 16));
        assert!(token.bytes().all(|b| b == b'.' || b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert_ne!(token, bootstrap_token().unwrap());
    }
}
