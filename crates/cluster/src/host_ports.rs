//! Ports of the host that lead into a node.
//!
//! The listening sockets are made in the host's network namespace, of which the daemon holds a
//! descriptor, by a short-lived thread; from then on they are ordinary sockets. Connections from them to
//! the target are made in the daemon's own namespace, the node's. So a host port can be added and removed
//! while the cluster runs, and no rule on the host is involved.

mod forward;
mod holder;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use skiff_network::NetNs;
pub use skiff_network::hostport::Protocol;
use tokio::{sync::watch, task::AbortHandle};

use crate::node_config::HostConfig;

/// A port of the host that somebody else has.
#[derive(Debug, thiserror::Error)]
#[error("port {} on {} is already in use{}", port_name(*.address, *.protocol), .address.ip(), by(.holder))]
pub struct PortTaken {
    pub address: SocketAddr,
    pub protocol: Protocol,
    /// `nginx (process 812)`, when it can be found out.
    pub holder: Option<String>,
}

fn port_name(address: SocketAddr, protocol: Protocol) -> String {
    match protocol {
        Protocol::Tcp => address.port().to_string(),
        other => format!("{}/{other}", address.port()),
    }
}

fn by(holder: &Option<String>) -> String {
    holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default()
}

/// Why a host port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    #[error(transparent)]
    Taken(#[from] PortTaken),
    #[error("cannot open port {address}/{protocol} of the host")]
    Io {
        address: SocketAddr,
        protocol: Protocol,
        #[source]
        source: io::Error,
    },
}

/// The host's network namespace.
#[derive(Debug)]
pub struct HostNet {
    namespace: NetNs,
    /// The host's /proc, where a port's holder can be looked up.
    proc: Option<OwnedFd>,
}

impl HostNet {
    /// From inside a node, with the descriptors that it inherited. They stay open.
    pub fn inherited(config: &HostConfig) -> io::Result<Self> {
        let copy = |fd: i32| {
            // SAFETY: the node's first process keeps these descriptors open for as long as the daemon runs.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fd.try_clone_to_owned()
        };
        Ok(Self { namespace: NetNs::from_fd(copy(config.netns_fd)?), proc: copy(config.proc_fd).ok() })
    }

    /// The caller's own namespace: for `skiff server` on a real machine, and for `skiff cluster`.
    pub fn current() -> skiff_network::Result<Self> {
        Ok(Self { namespace: NetNs::current()?, proc: std::fs::File::open("/proc").ok().map(OwnedFd::from) })
    }

    /// A listening TCP socket. Port 0 takes any free one.
    pub fn listen_tcp(&self, address: impl Into<SocketAddr>) -> Result<TcpListener, HostPortError> {
        let address = address.into();
        self.open(address, Protocol::Tcp, move || {
            // std sets SO_REUSEADDR, so connections of a previous run are no obstacle.
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// A bound UDP socket.
    pub fn bind_udp(&self, address: impl Into<SocketAddr>) -> Result<UdpSocket, HostPortError> {
        let address = address.into();
        self.open(address, Protocol::Udp, move || {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    fn open<T: Send>(
        &self,
        address: SocketAddr,
        protocol: Protocol,
        open: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, HostPortError> {
        let failed = |source| HostPortError::Io { address, protocol, source };
        let opened = self.namespace.run(|| {
            open().map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => HostPortError::Taken(PortTaken {
                    address,
                    protocol,
                    holder: self.proc.as_ref().and_then(|proc| holder::find(proc, address, protocol)),
                }),
                _ => failed(error),
            })
        });
        opened.unwrap_or_else(|error| Err(failed(io::Error::other(error))))
    }
}

/// A host port and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Forward {
    pub protocol: Protocol,
    /// On the host.
    pub listen: SocketAddr,
    /// Reached from the node.
    pub target: SocketAddr,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} → {}", self.listen, self.protocol, self.target)
    }
}

type Key = (Protocol, SocketAddr);

/// The host ports that are open. Cloning shares them; they close with the last clone.
#[derive(Debug, Clone)]
pub struct HostPorts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: HostNet,
    open: Mutex<BTreeMap<Key, Open>>,
}

#[derive(Debug)]
struct Open {
    forward: Forward,
    target: watch::Sender<SocketAddr>,
    task: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        for port in open.values() {
            port.task.abort();
        }
    }
}

impl HostPorts {
    pub fn new(host: HostNet) -> Self {
        Self { inner: Arc::new(Inner { host, open: Mutex::new(BTreeMap::new()) }) }
    }

    pub fn host(&self) -> &HostNet {
        &self.inner.host
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Open>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a host port, and returns where it listens: port 0 takes any free one. One that is already
    /// open is only led elsewhere if the target differs; established connections stay where they are.
    ///
    /// Has to be called within a tokio runtime.
    pub fn open(&self, forward: Forward) -> Result<SocketAddr, HostPortError> {
        let key = (forward.protocol, forward.listen);
        let mut open = self.lock();
        if let Some(present) = open.get_mut(&key) {
            present.forward = forward;
            present.target.send_replace(forward.target);
            return Ok(forward.listen);
        }
        let failed = |source| HostPortError::Io { address: forward.listen, protocol: forward.protocol, source };
        let (target, targets) = watch::channel(forward.target);
        let (task, local) = match forward.protocol {
            Protocol::Tcp => {
                let listener = self.inner.host.listen_tcp(forward.listen)?;
                let local = listener.local_addr().map_err(failed)?;
                let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
                (tokio::spawn(forward::tcp(listener, targets)), local)
            }
            Protocol::Udp => {
                let socket = self.inner.host.bind_udp(forward.listen)?;
                let local = socket.local_addr().map_err(failed)?;
                let socket = tokio::net::UdpSocket::from_std(socket).map_err(failed)?;
                (tokio::spawn(forward::udp(socket, targets)), local)
            }
            Protocol::Sctp => return Err(failed(io::ErrorKind::Unsupported.into())),
        };
        let forward = Forward { listen: local, ..forward };
        let entry = Open { forward, target, task: task.abort_handle() };
        open.insert((forward.protocol, local), entry);
        Ok(local)
    }

    /// Closes a host port; true if it was open. Established connections go on.
    pub fn close(&self, protocol: Protocol, listen: SocketAddr) -> bool {
        match self.lock().remove(&(protocol, listen)) {
            Some(port) => {
                port.task.abort();
                true
            }
            None => false,
        }
    }

    /// The open ports.
    pub fn list(&self) -> Vec<Forward> {
        self.lock().values().map(|port| port.forward).collect()
    }
}

#[cfg(test)]
mod tests;
