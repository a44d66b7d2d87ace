//! Unpacking a layer into a directory that overlayfs takes as a lower one.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::process::{Gid, Uid};
use tar::EntryType;

use crate::digest::HashingReader;
use crate::tree::{self, Tree};
use crate::{Digest, Error};

/// What is accepted of images, so that a small archive cannot fill the disk or the memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one layer, uncompressed.
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// Bytes of an archive, uncompressed.
    pub archive_bytes: u64,
    /// Bytes of a manifest, index or configuration.
    pub document_bytes: u64,
    /// Layers of one image; overlayfs takes about 500.
    pub layers: usize,
}

impl Default for Limits {
    /// Generous: the largest images in use hold models of tens of gigabytes.
    fn default() -> Limits {
        Limits {
            layer_bytes: 128 << 30,
            layer_entries: 4_000_000,
            archive_bytes: 256 << 30,
            document_bytes: 8 << 20,
            layers: 200,
        }
    }
}

/// Bytes that may lie between two entries: long names, extended attributes, padding.
const MAX_ENTRY_HEADERS: u64 = 1 << 20;
/// Longest path the kernel takes.
const MAX_PATH: usize = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Other names of that kind are a file system's internals from before overlayfs.
const INTERNAL_WHITEOUT: &[u8] = b".wh..wh.";

/// What came out of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Bytes of its files.
    pub(crate) bytes: u64,
}

/// Undoes gzip or zstd, told by their first bytes, whatever a media type says.
pub(crate) fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let head = io::BufRead::fill_buf(&mut reader)?;
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// Fails when more is read than there is budget for. The budget is set between entries.
struct Budget<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buffer)?;
        match self.left.get().checked_sub(n as u64) {
            Some(left) => self.left.set(left),
            None => {
                return Err(io::Error::other("headers of an archive entry are too large"));
            }
        }
        Ok(n)
    }
}

/// Unpacks a layer, compressed or not, into the empty directory `target`.
///
/// `lower` are the layers below, nearest first: directories that this layer implies without listing
/// them keep the owner and mode they have there. Blocks; meant for a thread of its own.
pub(crate) fn unpack(
    compressed: impl Read,
    target: &Path,
    lower: &[PathBuf],
    limits: &Limits,
) -> Result<Unpacked, Error> {
    let damaged = |e: io::Error| Error::Archive(e.to_string());
    let mut reader = HashingReader::new(decompress(compressed).map_err(damaged)?);
    let mut tree = Tree::new(target, lower).map_err(Error::io("open a layer's directory"))?;
    let left = Rc::new(Cell::new(MAX_ENTRY_HEADERS));
    let mut layer = Layer { tree: &mut tree, times: Vec::new(), bytes: 0, limits };
    {
        let mut archive = tar::Archive::new(Budget { inner: &mut reader, left: left.clone() });
        let mut count = 0;
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            count += 1;
            if count > limits.layer_entries {
                return Err(Error::TooLarge { what: "number of files in a layer", limit: limits.layer_entries });
            }
            // Padding to the next header is part of the following budget.
            left.set(entry.size().saturating_add(MAX_ENTRY_HEADERS));
            layer.bytes = layer.bytes.saturating_add(entry.size());
            if layer.bytes > limits.layer_bytes {
                return Err(Error::TooLarge { what: "layer", limit: limits.layer_bytes });
            }
            layer.entry(&mut entry)?;
            io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
            left.set(MAX_ENTRY_HEADERS);
        }
    }
    layer.finish()?;
    let bytes = layer.bytes;
    // What follows the end mark counts for the digest, but not without end.
    let mut rest = (&mut reader).take(limits.layer_bytes);
    io::copy(&mut rest, &mut io::sink()).map_err(damaged)?;
    if rest.limit() == 0 {
        return Err(Error::TooLarge { what: "layer", limit: limits.layer_bytes });
    }
    Ok(Unpacked { diff_id: reader.finish().map_err(damaged)?, bytes })
}

/// A layer being unpacked.
struct Layer<'a> {
    tree: &'a mut Tree,
    /// Directories whose time is set in the end, when nothing is written into them any more.
    times: Vec<(tree::Names, Timespec)>,
    bytes: u64,
    limits: &'a Limits,
}

/// The attributes of an entry.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&path[..path.len().min(MAX_PATH)]).into_owned();
        let refuse = |reason| Error::UnsafeEntry { path: shown(), reason };
        if path.len() >= MAX_PATH {
            return Err(refuse("its name is too long"));
        }
        if path.contains(&0) {
            return Err(refuse("its name holds a null byte"));
        }
        let names = tree::split(&path).ok_or_else(|| refuse("it lies outside of the root"))?;
        let failed = |source| Error::Unpack { path: shown(), source };
        let attributes = Attributes::of(entry).map_err(failed)?;
        let Some((name, parents)) = names.split_last() else {
            if kind.is_dir() {
                let root = self.tree.root().try_clone_to_owned().map_err(failed)?;
                attributes.apply(root.as_fd()).map_err(failed)?;
                self.times.push((names, attributes.mtime));
                return Ok(());
            }
            return Err(refuse("it would replace the root"));
        };
        let parent = self.tree.directory(parents).map_err(failed)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(parent.as_fd(), name, hidden).map_err(|e| {
                if e.kind() == io::ErrorKind::InvalidInput { refuse("not the name of a whiteout") } else { failed(e) }
            });
        }
        match kind {
            EntryType::Directory => {
                let dir = self.tree.make_directory(parent.as_fd(), name).map_err(failed)?;
                attributes.apply(dir.as_fd()).map_err(failed)?;
                self.times.push((names, attributes.mtime));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(parent.as_fd(), name, &attributes, entry).map_err(failed)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
                if target.is_empty() || target.contains(&0) || target.len() >= MAX_PATH {
                    return Err(refuse("its link target is not usable"));
                }
                self.symlink(parent.as_fd(), name, &target, &attributes).map_err(failed)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
                if target.contains(&0) || target.len() >= MAX_PATH {
                    return Err(refuse("its link target is not usable"));
                }
                let target = tree::split(&target)
                    .filter(|names| !names.is_empty())
                    .ok_or_else(|| refuse("its link target lies outside of the root"))?;
                self.hard_link(parent.as_fd(), name, &target).map_err(failed)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let device = match kind {
                    EntryType::Fifo => 0,
                    _ => fs::makedev(
                        header.device_major().map_err(failed)?.unwrap_or(0),
                        header.device_minor().map_err(failed)?.unwrap_or(0),
                    ),
                };
                if kind == EntryType::Char && device == 0 {
                    return Err(refuse("a device with the numbers of an overlay whiteout"));
                }
                self.special(parent.as_fd(), name, kind, device, &attributes).map_err(failed)
            }
            _ => Err(refuse("an entry of an unknown type")),
        }
    }

    fn whiteout(&mut self, parent: BorrowedFd<'_>, name: &OsStr, hidden: &[u8]) -> io::Result<()> {
        if name.as_bytes() == OPAQUE_WHITEOUT {
            return tree::set_opaque(parent);
        }
        if name.as_bytes().starts_with(INTERNAL_WHITEOUT) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.tree.white_out(parent, OsStr::from_bytes(hidden))
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        attributes: &Attributes,
        content: &mut impl Read,
    ) -> io::Result<()> {
        self.tree.clear(parent, name)?;
        let mut file = create(parent, name)?;
        let written = io::copy(content, &mut file)?;
        if written > self.limits.layer_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        attributes.apply(file.as_fd())?;
        set_time(file.as_fd(), attributes.mtime)
    }

    fn symlink(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        target: &[u8],
        attributes: &Attributes,
    ) -> io::Result<()> {
        self.tree.clear(parent, name)?;
        fs::symlinkat(target, parent, name)?;
        attributes.own(parent, name)?;
        attributes.date(parent, name)
    }

    fn hard_link(&mut self, parent: BorrowedFd<'_>, name: &OsStr, target: &[OsString]) -> io::Result<()> {
        let (target_name, target_parents) = target.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let from = self.tree.existing_directory(target_parents);
        let there = match &from {
            Ok(dir) => fs::statat(dir, target_name, AtFlags::SYMLINK_NOFOLLOW).ok(),
            Err(_) => None,
        };
        match (from, there) {
            (Ok(dir), Some(stat)) => {
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                let same = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
                if same {
                    return Ok(());
                }
                self.tree.clear(parent, name)?;
                // Without following: the target may be a symbolic link itself.
                Ok(fs::linkat(&dir, target_name, parent, name, AtFlags::empty())?)
            }
            // A link to a file of a lower layer: overlayfs cannot link across layers, so it is a copy.
            _ => {
                let (mut source, stat) = self.tree.lower_file(target)?;
                self.tree.clear(parent, name)?;
                let mut file = create(parent, name)?;
                io::copy(&mut source, &mut file)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                fs::fchown(&file, Some(uid), Some(gid))?;
                fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                Ok(())
            }
        }
    }

    fn special(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        kind: EntryType,
        device: u64,
        attributes: &Attributes,
    ) -> io::Result<()> {
        self.tree.clear(parent, name)?;
        let file_type = match kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        fs::mknodat(parent, name, file_type, Mode::empty(), device)?;
        attributes.own(parent, name)?;
        // The name was just made, is no link, and nobody else is here.
        fs::chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        attributes.date(parent, name)
    }

    /// Sets the times of the directories, deepest first.
    fn finish(&mut self) -> Result<(), Error> {
        let mut times = std::mem::take(&mut self.times);
        times.sort_by_key(|(names, _)| std::cmp::Reverse(names.len()));
        for (names, mtime) in times {
            // A later entry may have replaced it.
            let Ok(dir) = self.tree.existing_directory(&names) else {
                continue;
            };
            set_time(dir.as_fd(), mtime).map_err(Error::io("set the time of a directory"))?;
        }
        Ok(())
    }
}

fn create(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?;
    Ok(fd.into())
}

fn set_time(fd: BorrowedFd<'_>, mtime: Timespec) -> io::Result<()> {
    Ok(fs::futimens(fd, &Timestamps { last_access: mtime, last_modification: mtime })?)
}

impl Attributes {
    fn of<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Attributes> {
        let header = entry.header();
        // A field left blank means zero; the library takes it for damage.
        let old = header.as_old();
        let is_blank = |field: &[u8]| field.iter().all(|b| matches!(b, 0 | b' '));
        let id = |field: &[u8], id: io::Result<u64>| {
            let id = if is_blank(field) { 0 } else { id? };
            u32::try_from(id).map_err(|_| io::Error::other("user or group id out of range"))
        };
        let mut attributes = Attributes {
            uid: id(&old.uid, header.uid())?,
            gid: id(&old.gid, header.gid())?,
            mode: if is_blank(&old.mode) { 0 } else { header.mode()? & 0o7777 },
            mtime: Timespec { tv_sec: header.mtime().unwrap_or(0).min(i64::MAX as u64) as i64, tv_nsec: 0 },
            xattrs: Vec::new(),
        };
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let Ok(key) = extension.key() else { continue };
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    // Not `trusted.overlay.*`, with which a layer could redirect a directory, and not
                    // labels of the machine the image was made on.
                    if name == "security.capability" || name.starts_with("user.") {
                        attributes.xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
                    }
                } else if key == "mtime"
                    && let Some(mtime) = extension.value().ok().and_then(parse_time)
                {
                    attributes.mtime = mtime;
                }
            }
        }
        Ok(attributes)
    }

    /// Owner first: changing it clears set-user-id and file capabilities.
    fn apply(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fs::fchmod(fd, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            match fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
                // The file system of the store need not know `user.` attributes.
                Err(rustix::io::Errno::OPNOTSUPP) if name.starts_with("user.") => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn own(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        Ok(fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn date(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let times = Timestamps { last_access: self.mtime, last_modification: self.mtime };
        Ok(fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Seconds with an optional fraction, as extended headers write times.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut nanoseconds = 0;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanoseconds = nanoseconds * 10 + i64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
    }
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanoseconds })
}

#[cfg(test)]
mod tests;
