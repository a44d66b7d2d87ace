//! How a plugin makes itself known to the kubelet (package `pluginregistration`, v1): it serves this on a socket in
//! the kubelet's directory of plugins.

/// Argument of `Registration.GetInfo`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct InfoRequest {}

/// Who a plugin is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DRAPlugin` or `DevicePlugin`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Socket of the plugin itself; empty for the one that was asked.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// What the kubelet made of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// Answer of `Registration.NotifyRegistrationStatus`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct RegistrationStatusResponse {}

/// The type of CSI drivers.
pub const CSI_PLUGIN: &str = "CSIPlugin";
