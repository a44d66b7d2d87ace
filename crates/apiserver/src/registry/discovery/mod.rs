//! Endpoint slices.

pub(crate) mod endpointslice;
