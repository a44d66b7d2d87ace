//! The Service proxy: Services and EndpointSlices into nftables rules.
//!
//! Flow: [`service`] turns one Service and its slices into what is wanted of the rules, a pure function;
//! [`rules`] keeps the wants of all Services and answers with what has to change; [`table`] knows the
//! rules that are the same for every Service and writes changes; [`run`] is the loop around them.
//!
//! There are no chains per Service or endpoint, as upstream's proxy has them: a Service is elements of
//! maps. A packet's new connection costs five lookups, however many Services there are, and a change of
//! one endpoint is a batch of a few hundred bytes. Which address gets it is decided once per connection;
//! everything after that is connection tracking.
//!
//! [`Members`] tells who ends a pod when no rule leads to it any more.
//!
//! Beside it, [`follow_nodes`] keeps the routes to the pods of other nodes, and [`policies`] enforces
//! NetworkPolicies.
//!
//! What clients see follows upstream's nftables mode: the choice of endpoints (ready ones, or serving
//! ones that terminate when no ready one is left), both traffic policies, session affinity, source
//! ranges, rejection of Services without endpoints and of unused ports of cluster addresses, and
//! masquerading of traffic from outside the pod range.

mod endpoints;
mod health;
mod members;
mod policies;
mod proxy;
mod routes;
mod rules;
mod run;
mod service;
mod table;

pub use health::serve_health;
pub use members::Members;
pub use policies::{Policies, follow_policies};
pub use proxy::{Changed, Proxy, ProxyError};
pub use routes::follow_nodes;
pub use run::run;
pub use service::NodeInfo;
