//! The messages of CRI v1 (package `runtime.v1`) as of Kubernetes v1.36.
//!
//! Field numbers and types are those of the published interface; names are in Rust's spelling. The
//! Windows parts are left out: they decode as unknown fields, which protobuf skips. Maps are ordered,
//! so that encoding the same message twice gives the same bytes.

mod common;
mod container;
mod image;
mod runtime;
mod sandbox;
mod stats;
mod streaming;

pub use common::*;
pub use container::*;
pub use image::*;
pub use runtime::*;
pub use sandbox::*;
pub use stats::*;
pub use streaming::*;

#[cfg(test)]
mod tests;
