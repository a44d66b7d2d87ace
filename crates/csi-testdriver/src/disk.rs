//! The directory that has all volumes: `volumes/ID/`, and `volumes/ID.json` with what is known of each.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use skiff_csi::Status;

/// What is known of a volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) bytes: i64,
    /// The node that it is attached to.
    pub(crate) node: Option<String>,
}

pub(crate) struct Disk {
    root: PathBuf,
    calls: Mutex<fs::File>,
}

/// What went wrong with a file, as drivers say it.
pub(crate) fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Ids become paths.
pub(crate) fn checked(id: &str) -> Result<&str, Status> {
    let plain = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if plain { Ok(id) } else { Err(Status::invalid_argument(format!("no id: {id:?}"))) }
}

impl Disk {
    pub(crate) fn new(root: PathBuf) -> io::Result<Disk> {
        for dir in ["volumes", "snapshots", "ephemeral"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let calls = fs::OpenOptions::new().create(true).append(true).open(root.join("calls"))?;
        Ok(Disk { root, calls: Mutex::new(calls) })
    }

    /// Notes a call, for tests to read.
    pub(crate) fn note(&self, call: &str, id: &str, more: &str) {
        // One write, since the processes of all nodes write here.
        let line = format!("{call} {id} {more}\n");
        if let Err(error) = self.calls.lock().write_all(line.as_bytes()) {
            tracing::warn!(%error, "cannot note a call");
        }
    }

    pub(crate) fn volume(&self, id: &str) -> PathBuf {
        self.root.join("volumes").join(id)
    }

    pub(crate) fn snapshot(&self, id: &str) -> PathBuf {
        self.root.join("snapshots").join(id)
    }

    pub(crate) fn ephemeral(&self, id: &str) -> PathBuf {
        self.root.join("ephemeral").join(id)
    }

    /// `NotFound` if there is no such volume.
    pub(crate) fn known(&self, id: &str) -> Result<Known, Status> {
        let text = match fs::read(self.volume(checked(id)?).with_extension("json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Status::not_found(format!("volume {id} does not exist")));
            }
            text => text.map_err(internal)?,
        };
        serde_json::from_slice(&text).map_err(internal)
    }

    pub(crate) fn keep(&self, id: &str, known: &Known) -> Result<(), Status> {
        let path = self.volume(checked(id)?).with_extension("json");
        let draft = path.with_extension("draft");
        let text = serde_json::to_vec(known).map_err(internal)?;
        fs::write(&draft, text).and_then(|()| fs::rename(draft, path)).map_err(internal)
    }

    pub(crate) fn forget(&self, id: &str) -> Result<(), Status> {
        let dir = self.volume(checked(id)?);
        let gone = |done: io::Result<()>| match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(()),
        };
        gone(fs::remove_dir_all(&dir))?;
        gone(fs::remove_file(dir.with_extension("json")))
    }
}

/// Copies the files of a directory and those below it.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// How many bytes the files have.
pub(crate) fn used(dir: &Path) -> io::Result<i64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += match entry.file_type()?.is_dir() {
            true => used(&entry.path())?,
            false => i64::try_from(entry.metadata()?.len()).unwrap_or(0),
        };
    }
    Ok(sum)
}
