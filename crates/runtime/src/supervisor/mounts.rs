//! Mounting by file descriptor: what is mounted and where it goes are open before they meet, so no path
//! is looked up twice and nothing can be swapped in between.

use std::collections::VecDeque;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// Attributes of a mount, as in linux/mount.h.
pub(super) const READ_ONLY: u64 = 0x1;
pub(super) const NO_SUID: u64 = 0x2;
pub(super) const NO_DEV: u64 = 0x4;
pub(super) const NO_EXEC: u64 = 0x8;

/// struct mount_attr.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Sets attributes and propagation (0: as it is) of a mount, and of those below it if `recursive`.
pub(super) fn set_attributes(mount: BorrowedFd<'_>, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let attributes = MountAttributes { set, propagation, ..Default::default() };
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant string and the attributes a plain value of the size given; both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attributes as *const MountAttributes,
            size_of::<MountAttributes>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A copy of the mount that a path is on, seen from that path, attached nowhere yet.
pub(super) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(fs::CWD, path, flags)?)
}

/// The same of something open.
pub(super) fn clone_tree_at(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(fd, c"", flags)?)
}

/// A new file system, attached nowhere yet.
pub(super) fn new_file_system(
    kind: &CStr,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Attaches a mount to a place.
pub(super) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", place, c"", flags)?)
}

/// What to make where nothing is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Directory,
    File,
}

/// A root file system under construction.
pub(super) struct Root(OwnedFd);

/// Steps a path may take, and links it may pass through.
const MAX_STEPS: usize = 4096;
const MAX_LINKS: usize = 40;

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Root(fs::open(path, flags, Mode::empty())?))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what a path of the container leads to, links followed within the root.
    pub(super) fn find(&self, path: &str) -> io::Result<OwnedFd> {
        Ok(fs::openat2(
            &self.0,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?)
    }

    /// The same, making what is missing. The kernel resolves but does not make, so this goes name by
    /// name, never following a link but by taking its text as further names from the root.
    pub(super) fn ensure(&self, path: &str, make: Make) -> io::Result<OwnedFd> {
        let split = |text: &[u8]| -> Vec<OsString> {
            text.split(|b| *b == b'/')
                .filter(|part| !part.is_empty() && *part != b".")
                .map(|part| OsString::from_vec(part.to_vec()))
                .collect()
        };
        let mut todo: VecDeque<OsString> = split(path.as_bytes()).into();
        let mut here: Vec<OsString> = Vec::new();
        let mut at = self.0.try_clone()?;
        let (mut steps, mut links) = (0, 0);
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(Errno::LOOP.into());
            }
            if name == ".." {
                here.pop();
                here.drain(..).rev().for_each(|name| todo.push_front(name));
                at = self.0.try_clone()?;
                continue;
            }
            let last = todo.is_empty();
            let kind = match fs::statat(&at, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => {
                    self.make(at.as_fd(), &name, if last { make } else { Make::Directory })?;
                    FileType::Directory
                }
                Err(e) => return Err(e.into()),
            };
            if kind == FileType::Symlink {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = fs::readlinkat(&at, &name, Vec::new())?.into_bytes();
                split(&target).into_iter().rev().for_each(|part| todo.push_front(part));
                if target.starts_with(b"/") {
                    here.clear();
                    at = self.0.try_clone()?;
                }
                continue;
            }
            let mut flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if !last {
                flags |= OFlags::DIRECTORY;
            }
            at = fs::openat(&at, &name, flags, Mode::empty())?;
            here.push(name);
        }
        Ok(at)
    }

    fn make(&self, at: BorrowedFd<'_>, name: &OsStr, make: Make) -> io::Result<()> {
        let result = match make {
            Make::Directory => fs::mkdirat(at, name, Mode::from_raw_mode(0o755)),
            Make::File => fs::mknodat(at, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
        };
        match result {
            // Another container that shares the volume was faster.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Whether something open lies on procfs, which must not be mounted over.
pub(super) fn is_procfs(fd: BorrowedFd<'_>) -> io::Result<bool> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    Ok(fs::fstatfs(fd)?.f_type as u64 == PROC_SUPER_MAGIC)
}

/// Whether something open is a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fs::fstat(fd)?.st_mode) == FileType::Directory)
}
