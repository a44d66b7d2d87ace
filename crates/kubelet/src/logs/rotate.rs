//! Keeping containers' logs small: a log that has grown too large is set aside under a name with the time, and the
//! runtime is asked to begin a new one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::kubelet::Kubelet;

/// Upstream's `containerLogMaxSize` and `containerLogMaxFiles`, the one being written included.
const MAX_BYTES: u64 = 10 << 20;
const MAX_FILES: usize = 5;
/// How often sizes are looked at, as upstream does.
const PERIOD: Duration = Duration::from_secs(10);

/// Rotates logs for ever.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for handle in kubelet.pods.all() {
            let view = handle.view.borrow().clone();
            for container in view.containers.iter().filter(|c| c.is_running() && !c.status.log_path.is_empty()) {
                let log = Path::new(&container.status.log_path);
                if fs::metadata(log).map_or(0, |m| m.len()) > MAX_BYTES
                    && let Err(error) = rotate(&kubelet, container.id(), log).await
                {
                    tracing::warn!(log = %log.display(), error, "cannot rotate a container's log");
                }
            }
        }
    }
}

async fn rotate(kubelet: &Kubelet, id: &str, log: &Path) -> Result<(), String> {
    let aside = set_aside(log, MAX_FILES).map_err(|e| e.to_string())?;
    if let Err(error) = kubelet.runtime.reopen_log(id).await {
        // The runtime writes to the old file still, so it keeps its name.
        fs::rename(&aside, log).map_err(|e| e.to_string())?;
        return Err(error.to_string());
    }
    Ok(())
}

/// Renames the log and removes the oldest of those that were set aside before. The log's new name.
fn set_aside(log: &Path, max_files: usize) -> io::Result<PathBuf> {
    let mut old = set_aside_before(log)?;
    old.sort();
    // Room for this one and for the new log.
    let excess = (old.len() + 2).saturating_sub(max_files);
    for path in old.iter().take(excess) {
        fs::remove_file(path)?;
    }
    let mut name = log.as_os_str().to_owned();
    name.push(jiff::Timestamp::now().strftime(".%Y%m%d-%H%M%S").to_string());
    let aside = PathBuf::from(name);
    fs::rename(log, &aside)?;
    Ok(aside)
}

fn set_aside_before(log: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(name) = log.file_name().and_then(|n| n.to_str()) else { return Ok(Vec::new()) };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in fs::read_dir(log.parent().unwrap_or(Path::new("/")))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a log and all that was set aside of it.
pub(crate) fn remove(log: &Path) -> io::Result<()> {
    let all = match set_aside_before(log) {
        Ok(old) => old.into_iter().chain([log.to_owned()]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for path in all {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let dir = std::env::temp_dir().join(format!("skiff-rotate-{:x}", rand::random::<u64>()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("0.log");
        for old in ["20260101-000001", "20260101-000002", "20260101-000003"] {
            fs::write(dir.join(format!("0.log.{old}")), "").unwrap();
        }
        fs::write(dir.join("1.log"), "").unwrap();
        fs::write(&log, "x").unwrap();
        let aside = set_aside(&log, 4).unwrap();
        assert_eq!(fs::read_to_string(aside).unwrap(), "x");
        assert!(!dir.join("0.log.20260101-000001").exists());
        assert_eq!(set_aside_before(&log).unwrap().len(), 3);
        remove(&log).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "another run's log stays");
        fs::remove_dir_all(dir).unwrap();
    }
}
