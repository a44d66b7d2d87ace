//! The API server.
pub mod admission;
pub mod auth;
pub mod convert;
pub mod cache;
pub mod http;
pub mod object;
pub mod rbac;
pub mod registry;
pub mod render;
pub mod request;
pub mod resources;
pub mod services;
