//! What the daemon notes of sandboxes and containers, to find them again after a restart.
//!
//! A record is one file, a protobuf message that holds CRI's own messages, written in one step. What
//! changes while the daemon is away is in the state file that the supervisor writes.

use std::fs;
use std::io;
use std::path::Path;

use prost::Message;
use skiff_cri::v1;

use crate::spec::ContainerState;

const RECORD: &str = "record";
/// The supervisor's file in a container's directory.
pub(crate) const STATE: &str = "state.json";

/// A sandbox.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, required, tag = "2")]
    pub(crate) config: v1::PodSandboxConfig,
    #[prost(string, tag = "3")]
    pub(crate) runtime_handler: String,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub(crate) created_at: i64,
    /// Addresses, the primary one first.
    #[prost(string, repeated, tag = "5")]
    pub(crate) ips: Vec<String>,
    /// Whether it was made completely and has not been stopped.
    #[prost(bool, tag = "6")]
    pub(crate) ready: bool,
    /// Whether the network may be set up, so that it must be torn down.
    #[prost(bool, tag = "7")]
    pub(crate) networked: bool,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) sandbox: String,
    #[prost(message, required, tag = "3")]
    pub(crate) config: v1::ContainerConfig,
    #[prost(string, tag = "4")]
    pub(crate) image_id: String,
    #[prost(string, tag = "5")]
    pub(crate) image_ref: String,
    /// Chain ids of the image's layers, bottom first.
    #[prost(string, repeated, tag = "6")]
    pub(crate) layers: Vec<String>,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "7")]
    pub(crate) created_at: i64,
    /// Whether it was to be started.
    #[prost(bool, tag = "8")]
    pub(crate) started: bool,
    /// Why it could not be started, if so.
    #[prost(string, tag = "9")]
    pub(crate) start_error: String,
    /// Path of its cgroup below the hierarchies' root.
    #[prost(string, tag = "10")]
    pub(crate) cgroup: String,
    /// Number of the signal that asks it to stop.
    #[prost(int32, tag = "11")]
    pub(crate) stop_signal: i32,
    /// Where it logs; empty for nowhere.
    #[prost(string, tag = "12")]
    pub(crate) log_path: String,
}

/// Reads a directory's record.
pub(crate) fn read<T: Message + Default>(dir: &Path) -> io::Result<T> {
    let bytes = fs::read(dir.join(RECORD))?;
    Ok(T::decode(bytes.as_slice())?)
}

/// Writes a directory's record in one step.
pub(crate) fn write(dir: &Path, record: &impl Message) -> io::Result<()> {
    replace(&dir.join(RECORD), &record.encode_to_vec())
}

/// Reads the state of the container in a directory; the initial one before the supervisor wrote any.
pub(crate) fn read_state(dir: &Path) -> io::Result<ContainerState> {
    match fs::read(dir.join(STATE)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ContainerState::default()),
        Err(e) => Err(e),
    }
}

/// Writes a state in the place of a supervisor that is gone.
pub(crate) fn write_state(dir: &Path, state: &ContainerState) -> io::Result<()> {
    replace(&dir.join(STATE), &serde_json::to_vec(state)?)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    fs::write(&staged, bytes)?;
    fs::rename(staged, path)
}
