//! The API server: the one journey of a request, and what the kinds add to it.
//!
//! A request is read ([`request`]), its sender known ([`authn`]) and allowed ([`rbac`]), its object decoded
//! ([`resources`]), admitted ([`admission`]), checked by the rules of its kind ([`registry`]) and written by the one
//! engine ([`registry::engine`]); reads come from the watch caches ([`cache`]). [`server`] shows the whole path.
//!
//! Invariants: only this crate opens the store; every write passes authorization, admission and validation, also
//! those from the same process; a watch never skips a change silently.

#![allow(unreachable_pub, reason = "the modules are private: `pub` in them means public to the crate")]

mod admission;
mod aggregator;
mod auth;
mod authn;
mod bootstrap;
mod cache;
mod cel;
mod compiled;
mod connect;
mod convert;
mod custom;
mod discovery;
mod encryption;
mod endpoints;
mod eviction;
mod gate;
mod http;
mod metrics;
mod object;
mod openapi;
mod openapi_v2;
mod outbound;
mod owners;
mod proxy;
mod quota;
mod rbac;
mod registry;
mod render;
mod request;
mod resources;
mod reviews;
mod server;
mod services;
mod subresources;
mod usage;
mod watches;
mod webhook;

pub use self::{
    aggregator::{FRONT_PROXY_NAME, FrontProxy},
    auth::{MASTERS, ServiceAccountTokens, TokenError, User},
    encryption::{EncryptionError, default_encryption_configuration, encryption_rules},
    http::Body,
    server::{ApiServer, ComponentHealth, Config, InProcess},
    services::ServiceRange,
};

/// The Kubernetes version that is served.
pub const KUBERNETES_VERSION: &str = "1.36.0";

/// The version as clients see it: Kubernetes' with ours behind the plus.
pub fn git_version() -> String {
    format!("v{KUBERNETES_VERSION}+skiff{}", env!("CARGO_PKG_VERSION"))
}
