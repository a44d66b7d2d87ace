use std::{net::SocketAddr, path::PathBuf};

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
        let any = |port| SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port));
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
