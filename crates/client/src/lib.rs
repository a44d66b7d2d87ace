//! Talking to the API server: transports, informers, work queues, leader election, events; and what several
//! components read in the objects alike ([`placement`]).
//!
//! Every component but the API server itself is a client of the API, in one process through
//! [`in_process`], elsewhere through [`https`]. Both give a [`kube::Client`], so a component does not
//! know which one it has.
//!
//! Controllers are level-triggered: an [`Informer`] keeps a complete copy of a kind's objects and
//! tells what changed, a [`WorkQueue`] turns that into keys to look at, a [`Controller`] calls a
//! reconcile function with one key at a time. What was missed does not matter, only what is.

mod backoff;
mod config;
mod controller;
mod events;
mod https;
mod in_process;
mod informer;
mod leader;
pub mod placement;
mod upgrade;
mod workqueue;

#[cfg(any(test, feature = "testing"))]
pub mod fake;

pub use backoff::Backoff;
pub use config::{Config, ConfigError, Credentials, Pem};
pub use controller::{Action, Controller, owner_mapper, self_mapper};
pub use events::{EventRecorder, EventType, object_reference};
pub use https::https;
pub use in_process::in_process;
pub use informer::{Change, Informer, Informers, ObjectKey, Selector, Subscription};
pub use leader::{LeaderElection, LeadershipLost};
pub use upgrade::{server_name, tls_connector, upgrade};
pub use workqueue::WorkQueue;
