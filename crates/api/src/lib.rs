//! The Kubernetes API as data: kinds, their fields, metadata, selectors, quantities and patches; no I/O.

pub mod apply;
pub mod cron;
pub mod csi;
pub mod decode;
pub mod docker_config;
pub mod fields;
pub mod kinds;
pub mod names;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod storage;
pub mod validation;

pub use kinds::Kind;
pub use status::Status;
