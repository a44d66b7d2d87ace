//! Pod networks: the boundary to whoever connects a pod's network namespace.

mod cni;

use std::net::IpAddr;
use std::path::PathBuf;

use futures::future::BoxFuture;

pub use cni::CniNetwork;

/// A port of the node that leads to one of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Port of the node; never 0.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Address of the node; empty for all.
    pub host_ip: String,
}

/// A pod to be connected.
#[derive(Clone, Debug)]
pub struct PodNetworkRequest {
    /// Sandbox id.
    pub sandbox_id: String,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// UID of the pod.
    pub uid: String,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// Ports of the node that lead to it.
    pub port_mappings: Vec<PortMapping>,
    /// Annotations of the pod, some of which plug-ins read (bandwidth).
    pub annotations: Vec<(String, String)>,
}

/// Why a pod's network could not be set up or torn down; the text is for users.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no usable configuration.
    #[error("cni plugin not initialized")]
    NotInitialized,
    /// A plug-in could not be run.
    #[error("failed to run CNI plugin {plugin:?}")]
    Run {
        /// Its type.
        plugin: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A plug-in or the network itself reported a failure.
    #[error("plugin type={plugin:?} failed ({command}): {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// `add`, `delete` or `check`.
        command: String,
        /// What it said.
        message: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Connects pods. Implemented by [`CniNetwork`] for plug-ins that are programs, and by whoever wants to
/// do without the cost of running one.
pub trait PodNetwork: Send + Sync + 'static {
    /// Whether pods can be connected; the error's text is shown in the node's `Ready` condition.
    fn status(&self) -> Result<(), NetworkError>;

    /// Connects a pod and returns its addresses, the primary one first.
    fn setup<'a>(&'a self, pod: &'a PodNetworkRequest) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>>;

    /// Disconnects a pod. Must succeed for pods that are not connected, or not any more, and when
    /// the network namespace is gone.
    fn teardown<'a>(&'a self, pod: &'a PodNetworkRequest) -> BoxFuture<'a, Result<(), NetworkError>>;
}

/// No network but the pod's loopback, for tests and for nodes that only run pods in their own network.
#[derive(Debug, Default)]
pub struct NoNetwork;

impl PodNetwork for NoNetwork {
    fn status(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    fn setup<'a>(&'a self, _: &'a PodNetworkRequest) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn teardown<'a>(&'a self, _: &'a PodNetworkRequest) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
