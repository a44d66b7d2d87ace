//! The Ingress controller: requests from outside to Services, by host and path, as Ingress objects say.
//!
//! It runs as an ordinary pod, and only while there is an Ingress for it. Flow: [`watch`] follows Ingresses and what
//! they name, and makes [`routes`] of them, a value that never changes; [`proxy`] sends each request where the routes
//! of that moment lead; [`server`] has the sockets, [`tls`] the certificates. Changes replace the routes as a whole, so
//! that a request that is under way is not touched.
//!
//! It serves the class `skiff`, which is the default one, and `nginx` unless somebody else has a class of that name;
//! of nginx' annotations those in [`annotations`]. Requests go straight to the pods behind a Service, in turn, as
//! ingress-nginx does it, so that an endpoint that goes is left out at once and another one is tried when a connection
//! is refused.

pub mod annotations;
mod class;
pub mod proxy;
pub mod routes;
pub mod server;
pub mod tls;
pub mod watch;

pub use class::{CLASS, CONTROLLER, serves};
pub use server::{IngressError, Options, main};

/// The Service in front of the controller; its address is that of all Ingresses.
pub const SERVICE: &str = "ingress";
