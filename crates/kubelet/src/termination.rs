//! A container's last words: its termination message, or the end of its log.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use skiff_cri::v1::ContainerStatus;

use crate::{logs, names};

/// Longest termination message, bytes.
const MAX_MESSAGE: u64 = 4096;
/// How much of a log stands in for a message.
const MAX_LOG_LINES: usize = 80;
const MAX_LOG_BYTES: usize = 2048;

/// What a container that has ended left as message, by its policy.
pub(crate) async fn last_words(status: &ContainerStatus) -> String {
    let status = status.clone();
    tokio::task::spawn_blocking(move || read(&status)).await.unwrap_or_default()
}

fn read(status: &ContainerStatus) -> String {
    let path = status.annotations.get(names::TERMINATION_PATH).map(String::as_str).unwrap_or_default();
    let fallback = status.annotations.get(names::TERMINATION_POLICY).map(String::as_str)
        == Some("FallbackToLogsOnError")
        && status.exit_code != 0
        && status.reason != "ContainerCannotRun";
    let file = status.mounts.iter().find(|m| !path.is_empty() && m.container_path == path);
    let message = match file {
        None => String::new(),
        Some(mount) => match tail(Path::new(&mount.host_path), MAX_MESSAGE) {
            Ok(message) => message,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return format!("Error on reading termination log {}: {error}", mount.host_path),
        },
    };
    if message.is_empty() && fallback {
        return match logs::last_lines(Path::new(&status.log_path), MAX_LOG_LINES, MAX_LOG_BYTES) {
            Ok(text) => text,
            Err(error) => format!("Error on reading termination message from logs: {error}"),
        };
    }
    message
}

/// The last `max` bytes of a file.
fn tail(path: &Path, max: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
