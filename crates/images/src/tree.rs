//! A directory tree that is written entry by entry and never left.
//!
//! Every step opens one name below an already open directory without following links; symbolic links
//! are resolved here, against the tree's own root. A link, however made, can therefore only lead to
//! another place of the tree. Nobody else writes the tree meanwhile, so there is no race to win.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

/// Steps one path may take, over all the links in it.
const MAX_STEPS: usize = 8192;
/// Links one path may pass through, as in the kernel.
const MAX_LINKS: usize = 40;
/// Overlayfs' mark on a directory that hides the lower directories of its name.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Names from the root to an entry, without `.` and `..`.
pub(crate) type Names = Vec<OsString>;

/// Splits an entry's path, resolving `..` in the text. `None` if it leads out of the root.
pub(crate) fn split(path: &[u8]) -> Option<Names> {
    let mut names = Names::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            part => names.push(OsString::from_vec(part.to_vec())),
        }
    }
    Some(names)
}

/// What a name stands for.
enum Found {
    Directory(Stat),
    Link(OsString),
    Whiteout,
    Other,
    Nothing,
}

/// The tree under construction and the layers below it.
pub(crate) struct Tree {
    root: OwnedFd,
    /// Nearest first.
    lower: Vec<OwnedFd>,
    /// The directory used last: entries of a directory follow each other.
    last: Option<(Names, OwnedFd)>,
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn open_child(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(at, name, flags, Mode::empty())?)
}

fn look(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<Found> {
    let stat = match fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(e) => return Err(e.into()),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Directory(stat),
        FileType::Symlink => {
            let target = fs::readlinkat(at, name, Vec::new())?;
            Found::Link(OsString::from_vec(target.into_bytes()))
        }
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    fs::fgetxattr(dir, OPAQUE, &mut value[..]).is_ok_and(|n| n == 1 && value[0] == b'y')
}

pub(crate) fn set_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

impl Tree {
    /// A tree in an existing, empty directory, above these ones (nearest first).
    pub(crate) fn new(root: &Path, lower: &[PathBuf]) -> io::Result<Tree> {
        Ok(Tree {
            root: open_root(root)?,
            lower: lower.iter().map(|path| open_root(path)).collect::<io::Result<_>>()?,
            last: None,
        })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory of these names, following links within the tree and making what is
    /// missing: as it is in a lower layer, else owned by root with mode 0755.
    pub(crate) fn directory(&mut self, names: &[OsString]) -> io::Result<OwnedFd> {
        if let Some((known, fd)) = &self.last
            && known == names
        {
            return fd.try_clone();
        }
        let fd = self.walk(names, true)?;
        self.last = Some((names.to_vec(), fd.try_clone()?));
        Ok(fd)
    }

    /// The same without making anything.
    pub(crate) fn existing_directory(&self, names: &[OsString]) -> io::Result<OwnedFd> {
        self.walk(names, false)
    }

    fn walk(&self, names: &[OsString], create: bool) -> io::Result<OwnedFd> {
        let mut todo: VecDeque<OsString> = names.iter().cloned().collect();
        let mut at = self.root.try_clone()?;
        let mut here = Names::new();
        let (mut steps, mut links) = (0, 0);
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(Errno::LOOP.into());
            }
            if name == ".." {
                // From the top again, one name shorter; above the root is the root.
                here.pop();
                for name in here.drain(..).rev() {
                    todo.push_front(name);
                }
                at = self.root.try_clone()?;
                continue;
            }
            let mut found = look(at.as_fd(), &name)?;
            if matches!(found, Found::Nothing | Found::Whiteout) {
                if !create {
                    return Err(Errno::NOENT.into());
                }
                let hidden = matches!(found, Found::Whiteout);
                here.push(name.clone());
                let below = if hidden { Found::Nothing } else { self.look_below(&here)? };
                here.pop();
                match below {
                    Found::Link(target) => found = Found::Link(target),
                    below => {
                        if hidden {
                            fs::unlinkat(&at, &name, AtFlags::empty())?;
                        }
                        fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755))?;
                        let dir = open_child(at.as_fd(), &name)?;
                        if hidden {
                            set_opaque(dir.as_fd())?;
                        }
                        match below {
                            Found::Directory(stat) => copy_owner_and_mode(dir.as_fd(), &stat)?,
                            _ => fs::fchmod(&dir, Mode::from_raw_mode(0o755))?,
                        }
                        at = dir;
                        here.push(name);
                        continue;
                    }
                }
            }
            match found {
                Found::Directory(_) => {
                    at = open_child(at.as_fd(), &name)?;
                    here.push(name);
                }
                Found::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = target.as_bytes();
                    for part in target.split(|b| *b == b'/').rev() {
                        if !part.is_empty() && part != b"." {
                            todo.push_front(OsStr::from_bytes(part).to_owned());
                        }
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                        at = self.root.try_clone()?;
                    }
                }
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        Ok(at)
    }

    /// What the layers below show at these names, as overlayfs would merge them.
    fn look_below(&self, names: &[OsString]) -> io::Result<Found> {
        let Some((last, parents)) = names.split_last() else {
            return Ok(Found::Nothing);
        };
        'layers: for layer in &self.lower {
            let mut at = layer.try_clone()?;
            let mut hides_rest = false;
            for name in parents {
                match look(at.as_fd(), name)? {
                    Found::Directory(_) => at = open_child(at.as_fd(), name)?,
                    Found::Nothing if hides_rest => return Ok(Found::Nothing),
                    Found::Nothing => continue 'layers,
                    _ => return Ok(Found::Nothing),
                }
                hides_rest |= is_opaque(at.as_fd());
            }
            match look(at.as_fd(), last)? {
                Found::Nothing if !hides_rest => {}
                Found::Whiteout => return Ok(Found::Nothing),
                found => return Ok(found),
            }
        }
        Ok(Found::Nothing)
    }

    /// Opens a regular file of a lower layer for reading; for hard links to what this layer lacks.
    pub(crate) fn lower_file(&self, names: &[OsString]) -> io::Result<(std::fs::File, Stat)> {
        let (last, parents) = names.split_last().ok_or(Errno::NOENT)?;
        if !matches!(self.look_below(names)?, Found::Other) {
            return Err(Errno::NOENT.into());
        }
        for layer in &self.lower {
            let mut at = layer.try_clone()?;
            let mut there = true;
            for name in parents {
                match open_child(at.as_fd(), name) {
                    Ok(dir) => at = dir,
                    Err(_) => {
                        there = false;
                        break;
                    }
                }
            }
            let Ok(stat) = fs::statat(&at, last, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if there && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return Ok((fs::openat(&at, last, flags, Mode::empty())?.into(), stat));
            }
        }
        Err(Errno::NOENT.into())
    }

    /// Makes room for a new entry: removes what has the name, whatever it is.
    pub(crate) fn clear(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) => {
                // It may have been a link that the remembered directory was reached through.
                self.last = None;
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                self.last = None;
                let path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd())).join(name);
                std::fs::remove_dir_all(path)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Makes the directory an entry stands for, or opens the one that is there.
    pub(crate) fn make_directory(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        match look(at, name)? {
            Found::Directory(_) => return open_child(at, name),
            Found::Nothing => fs::mkdirat(at, name, Mode::from_raw_mode(0o755))?,
            found => {
                self.clear(at, name)?;
                fs::mkdirat(at, name, Mode::from_raw_mode(0o755))?;
                if matches!(found, Found::Whiteout) {
                    // Removed and made anew in one layer: what is below stays hidden.
                    let dir = open_child(at, name)?;
                    set_opaque(dir.as_fd())?;
                    return Ok(dir);
                }
            }
        }
        open_child(at, name)
    }

    /// Hides what the lower layers have under this name.
    pub(crate) fn white_out(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match look(at, name)? {
            Found::Nothing => {
                Ok(fs::mknodat(at, name, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0))?)
            }
            // The layer's own entry wins, and only what is below is hidden: a file does so anyway.
            Found::Directory(_) => set_opaque(open_child(at, name)?.as_fd()),
            _ => Ok(()),
        }
    }
}

fn copy_owner_and_mode(dir: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::fchown(dir, Some(uid), Some(gid))?;
    Ok(fs::fchmod(dir, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}
