//! What the engine stores its file on. Besides a real file there are, in tests, disks that lose power,
//! run full or rot.

use std::{
    fmt::Debug,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FallocateFlags, fallocate};

use crate::{Error, Result, Revision};

/// A file of bytes. Nothing is durable before a `sync`.
#[allow(clippy::len_without_is_empty, reason = "whether a disk is empty is of no interest")]
pub trait Disk: Debug + Send + Sync + 'static {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `out` from `offset` on; an error if that goes beyond the end.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Cuts, or extends with zeros. Should fail if there is no space for writing to what it adds.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes everything so far durable.
    fn sync(&self) -> io::Result<()>;
    /// Writes within the length.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
}

/// Where a store lives: a disk, and a mark beside it.
///
/// The mark is the last acknowledged revision, written after each commit and never synced. It can be
/// older than the disk's content, after a power cut, but not newer; a store that opens at an older
/// revision than its mark has lost something.
pub trait Medium: Send + Sync + 'static {
    /// For messages, and for what lies beside it.
    fn path(&self) -> &Path;
    /// Opens the disk, anew after an I/O error. Not called while an earlier one is in use.
    fn open(&self) -> io::Result<Arc<dyn Disk>>;
    /// The mark, if there is a readable one.
    fn mark(&self) -> Option<Revision>;
    /// Sets the mark. Failing is no reason to fail a write.
    fn set_mark(&self, revision: Revision);
}

/// A file in a file system, locked against other processes.
pub(super) struct FileMedium {
    path: PathBuf,
    mark: File,
    lock: File,
}

impl Drop for FileMedium {
    fn drop(&mut self) {
        // Closing would not do: a process just forked elsewhere in this one holds the lock until it execs.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "cannot unlock the store");
        }
    }
}

impl FileMedium {
    /// Locks the store at `path` and creates what is missing, readable by its owner only.
    pub(super) fn open(path: &Path) -> Result<FileMedium> {
        let unavailable =
            |what: &Path, error: io::Error| Error::unavailable(format!("cannot open {}: {error}", what.display()));
        let lock_path = lock_path(path);
        let lock = options().open(&lock_path).map_err(|error| unavailable(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&lock_path).unwrap_or_default();
                let holder = holder.trim();
                let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
                return Err(Error::Locked { path: path.to_owned(), holder });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(unavailable(&lock_path, error)),
        }
        // Only for the message above, so failing is harmless.
        let _ = lock.set_len(0).and_then(|()| lock.write_all_at(std::process::id().to_string().as_bytes(), 0));
        let mark_path = mark_path(path);
        let mark = options().open(&mark_path).map_err(|error| unavailable(&mark_path, error))?;
        Ok(FileMedium { path: path.to_owned(), mark, lock })
    }
}

/// The file that holds the mark of the store at `path`.
pub(super) fn mark_path(path: &Path) -> PathBuf {
    beside(path, "mark")
}

/// The file that is locked while the store at `path` is open.
pub(super) fn lock_path(path: &Path) -> PathBuf {
    beside(path, "lock")
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

impl Medium for FileMedium {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> io::Result<Arc<dyn Disk>> {
        let existed = self.path.exists();
        let file = options().open(&self.path)?;
        if !existed && let Some(dir) = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            // Or the file's name could be lost with its synced content.
            File::open(dir)?.sync_all()?;
        }
        Ok(Arc::new(FileDisk { file }))
    }

    fn mark(&self) -> Option<Revision> {
        let mut bytes = [0; 12];
        self.mark.read_exact_at(&mut bytes, 0).ok()?;
        let (number, crc) = bytes.split_at(8);
        // A torn mark is no mark.
        (crc32c::crc32c(number).to_le_bytes() == crc)
            .then(|| Revision(u64::from_le_bytes(number.try_into().expect("eight bytes are eight bytes"))))
    }

    fn set_mark(&self, revision: Revision) {
        let number = revision.0.to_le_bytes();
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(&crc32c::crc32c(&number).to_le_bytes());
        if let Err(error) = self.mark.write_all_at(&bytes, 0) {
            tracing::debug!(%error, "cannot write the store's mark");
        }
    }
}

#[derive(Debug)]
struct FileDisk {
    file: File,
}

impl Disk for FileDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len <= old {
            return self.file.set_len(len);
        }
        // Space is reserved when the file grows, so that a full disk fails the growth, before anything
        // was written, and never the rewriting of a page.
        match fallocate(&self.file, FallocateFlags::empty(), old, len - old) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len),
            Err(error) => {
                // Give back what was reserved before it failed.
                self.file.set_len(old)?;
                Err(error.into())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

/// A disk as the engine wants it.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<dyn Disk>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
