//! Local clusters: nodes as sandboxes of namespaces.
//!
//! A node has its own network, mount, PID, UTS, IPC and cgroup namespaces and a directory that is its
//! file system; `skiff node-init` is its first process and runs the daemon. The nodes of a cluster are
//! joined by a bridge in a network namespace of the cluster's own, the *fabric*, which no packet to a pod,
//! Service or node address leaves. What clients reach on 127.0.0.1 are sockets opened in the host's
//! network namespace by the daemon, which holds a descriptor of it ([`host_ports`]).
//!
//! - [`clusters`]: create, list, start, stop, delete, as functions with structured results.
//! - [`node_config`]: what a daemon in a node is told; the contract with `skiff server` and `skiff agent`.
//! - [`spec`]: kind's v1alpha4 configuration.
//! - [`init`]: the first process of a node.
//! - [`host_ports`]: ports of the host that lead into a node.
//! - [`load_balancer`]: such ports for Services and `extraPortMappings`.
//! - [`control`]: the daemon's socket for `image load` and `cluster ports`.
#![allow(unsafe_code)]

mod cgroup;
pub mod clusters;
pub mod control;
mod enter;
mod error;
mod fabric;
mod filesystem;
pub mod home;
pub mod host_ports;
pub mod init;
mod interrupt;
pub mod kubeconfig;
pub mod load_balancer;
mod node;
pub mod node_config;
pub mod progress;
pub mod record;
pub mod spec;

pub use cgroup::Limits;
pub use clusters::{Clusters, CreateOptions, load_into_this_machine};
pub use error::{Error, Result};
pub use home::Home;
pub use node_config::NodeConfig;
