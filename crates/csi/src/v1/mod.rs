//! The messages of CSI v1 (package `csi.v1`) as of version 1.12 of the specification.
//!
//! Field numbers and types are those of the published interface; names are in Rust's spelling. What nothing here uses
//! is left out: it decodes as unknown fields, which protobuf skips. Maps are ordered, so that encoding the same message
//! twice gives the same bytes. Messages may hold secrets and are never to be logged.

mod common;
mod controller;
mod identity;
mod node;

pub use common::*;
pub use controller::*;
pub use identity::*;
pub use node::*;

#[cfg(test)]
mod tests;
