//! Running commands in containers, attaching to them and forwarding ports.

/// Argument of `RuntimeService.ExecSync`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub cmd: Vec<String>,
    /// Seconds; 0 for no limit.
    #[prost(int64, tag = "3")]
    pub timeout: i64,
}

/// Answer of `RuntimeService.ExecSync`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

/// Argument of `RuntimeService.Exec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub cmd: Vec<String>,
    /// With a terminal there is no separate error output: `stderr` must be false.
    #[prost(bool, tag = "3")]
    pub tty: bool,
    #[prost(bool, tag = "4")]
    pub stdin: bool,
    #[prost(bool, tag = "5")]
    pub stdout: bool,
    #[prost(bool, tag = "6")]
    pub stderr: bool,
}

/// Answer of `RuntimeService.Exec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecResponse {
    /// Where the client connects to stream.
    #[prost(string, tag = "1")]
    pub url: String,
}

/// Argument of `RuntimeService.Attach`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(bool, tag = "2")]
    pub stdin: bool,
    /// Must be what the container was created with.
    #[prost(bool, tag = "3")]
    pub tty: bool,
    #[prost(bool, tag = "4")]
    pub stdout: bool,
    #[prost(bool, tag = "5")]
    pub stderr: bool,
}

/// Answer of `RuntimeService.Attach`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachResponse {
    /// Where the client connects to stream.
    #[prost(string, tag = "1")]
    pub url: String,
}

/// Argument of `RuntimeService.PortForward`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortForwardRequest {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    #[prost(int32, repeated, tag = "2")]
    pub port: Vec<i32>,
}

/// Answer of `RuntimeService.PortForward`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortForwardResponse {
    /// Where the client connects to stream.
    #[prost(string, tag = "1")]
    pub url: String,
}
