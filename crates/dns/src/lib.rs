//! Cluster DNS: the names of Services and pods, after the Kubernetes DNS specification, and everything
//! else from the resolvers of `/etc/resolv.conf`.
//!
//! It runs as an ordinary pod, and small: one thread, and of every object only the fields that names are
//! made of ([`reflect`]). What is answered to a query is a pure function of the query and the
//! [`zone`](zone::Zone): [`answer`](mod@answer). [`server`] has the sockets, [`forward`] the way upstream, [`health`]
//! the probes and counters.
//!
//! Held to CoreDNS as kubeadm configures it: TTL 30, `pods insecure`, SOA with every negative answer,
//! reverse names of Services and endpoints, answers in turn. Not here: a cache of upstream answers.

pub mod answer;
pub mod forward;
pub mod health;
mod options;
pub mod reflect;
pub mod server;
pub mod zone;

pub use options::Options;
pub use server::{DnsError, main, run};
