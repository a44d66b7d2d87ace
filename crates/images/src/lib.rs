//! OCI images: import, pull, unpack, store.
//!
//! [`ImageStore`] keeps images under one directory, each layer unpacked once into a directory that
//! overlayfs takes as a lower one. Nothing that comes out of an archive or a registry is trusted: see
//! [`Limits`] and `docs/runtime.md`.

mod archive;
pub mod build;
mod builtin;
mod config;
mod digest;
mod error;
mod export;
mod layer;
mod manifest;
mod pull;
mod push;
mod reference;
mod store;
mod tree;

pub use builtin::{BUILTIN_REPOSITORY, Builtin};
pub use config::ImageConfig;
pub use digest::Digest;
pub use error::Error;
pub use layer::Limits;
pub use pull::{Auth, Mirror, PullOptions, PullProgress};
pub use reference::Reference;
pub use store::{Image, ImageStore, LayerLease, Usage};
