use std::{io, path::PathBuf};

use crate::host_ports::PortTaken;

/// Why something could not be done to a cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is already a cluster named {name:?}; delete it with `skiff cluster delete {name}` or choose another name"
    )]
    NameTaken { name: String },
    #[error("there is no cluster named {name:?}{}", known(.existing))]
    NotFound { name: String, existing: Vec<String> },
    #[error("{name:?} is not a valid cluster name: {why}")]
    InvalidName { name: String, why: &'static str },
    /// The configuration file cannot be used.
    #[error("{}: {message}", file.display())]
    Config { file: PathBuf, message: String },
    #[error("cannot {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot set up the network of cluster {cluster:?}")]
    Network {
        cluster: String,
        #[source]
        source: skiff_network::Error,
    },
    #[error(transparent)]
    PortTaken(#[from] PortTaken),
    /// A node's first process reported a failure while it set itself up.
    #[error("node {node} could not be started: {message}")]
    Node { node: String, message: String },
    #[error("node {node} did not stop")]
    NodeStuck { node: String },
    #[error("cluster {cluster:?} did not become ready within {seconds} s: {missing}; the end of its log:\n{log}")]
    NotReady { cluster: String, seconds: u64, missing: String, log: String },
    #[error("cannot change the kubeconfig {}: {message}", file.display())]
    Kubeconfig { file: PathBuf, message: String },
    #[error("cluster {name:?} is not running; start it with `skiff cluster start {name}`")]
    NotRunning { name: String },
    /// The daemon of a node refused a request on its control socket.
    #[error("node {node}: {message}")]
    Daemon { node: String, message: String },
    #[error("interrupted")]
    Interrupted,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: action.into(), source }
    }

    pub(crate) fn network(cluster: &str) -> impl FnOnce(skiff_network::Error) -> Self + use<> {
        let cluster = cluster.to_owned();
        move |source| Self::Network { cluster, source }
    }
}

fn known(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    format!("; there is {}", names.join(", "))
}
