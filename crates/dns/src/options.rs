use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
};

/// How the server is run; [`Options::default`] is what the pod in a cluster needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// `/health`.
    pub health: SocketAddr,
    /// `/ready`.
    pub ready: SocketAddr,
    /// `/metrics`.
    pub metrics: SocketAddr,
    /// The cluster's domain, without dots around it.
    pub domain: String,
    /// Names the resolvers for everything else.
    pub resolv_conf: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        let address = any_address();
        let any = |port| SocketAddr::new(address, port);
        Self {
            listen: any(53),
            health: any(8080),
            ready: any(8181),
            metrics: any(9153),
            domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

/// The address that stands for all of this machine's: IPv6's, which takes IPv4 along, where there is IPv6.
fn any_address() -> IpAddr {
    // Nothing is sent to find out whether there is an address to send from.
    let connected = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 53)));
    match connected {
        Ok(()) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}
