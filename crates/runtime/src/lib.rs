//! The built-in container runtime: a CRI implementation on namespaces, cgroups and overlayfs.
//!
//! [`Runtime`] is the daemon's part: it implements both CRI services and keeps records. Each pod has a
//! supervisor, a process of its own that [`supervisor_main`] is, which holds the pod's namespaces and
//! containers and outlives the daemon. `docs/runtime.md` tells the whole story.
#![allow(unsafe_code)]

mod caps;
mod cgroup;
mod client;
mod config;
mod error;
mod network;
mod record;
mod runtime;
mod seccomp;
mod service;
mod spec;
mod streaming;
mod supervisor;
mod wire;

pub use config::RuntimeConfig;
pub use network::{CniNetwork, NetworkError, NoNetwork, PodNetwork, PodNetworkRequest, PortMapping};
pub use runtime::{OpenError, Runtime};
pub use supervisor::supervisor_main;
