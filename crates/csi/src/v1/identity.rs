//! Who a driver is.

use std::collections::BTreeMap;

use super::{BoolValue, Rpc};

/// Argument of `Identity.GetPluginInfo`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct GetPluginInfoRequest {}

/// Answer of `Identity.GetPluginInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPluginInfoResponse {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub vendor_version: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub manifest: BTreeMap<String, String>,
}

/// Argument of `Identity.GetPluginCapabilities`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct GetPluginCapabilitiesRequest {}

/// Answer of `Identity.GetPluginCapabilities`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetPluginCapabilitiesResponse {
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<PluginCapability>,
}

/// What a driver can do as a whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginCapability {
    #[prost(oneof = "PluginCapabilityType", tags = "1, 2")]
    pub r#type: Option<PluginCapabilityType>,
}

/// Argument of `Identity.Probe`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ProbeRequest {}

/// Answer of `Identity.Probe`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProbeResponse {
    #[prost(message, optional, tag = "1")]
    pub ready: Option<BoolValue>,
}

/// One of these.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum PluginCapabilityType {
    #[prost(message, tag = "1")]
    Service(Rpc),
    #[prost(message, tag = "2")]
    VolumeExpansion(Rpc),
}

/// Kinds of [`PluginCapabilityType::Service`].
pub mod service {
    pub const CONTROLLER: i32 = 1;
    pub const VOLUME_ACCESSIBILITY_CONSTRAINTS: i32 = 2;
}
