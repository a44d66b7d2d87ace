//! `fsGroup`: a volume's files belong to a group and the group may do what the owner may.
//!
//! Pods that have the volume already may exchange its files for links at any moment. So every file is opened within
//! its directory without following links, and what is changed is what was opened, not a name.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::Mode,
    unistd::{Gid, fchownat},
};

/// How many directories deep a volume may be: each takes a descriptor while its files are changed.
const DEPTH: usize = 512;

/// Gives everything below `path` to the group. With `on_root_mismatch` only if the directory itself is not yet so.
pub(crate) fn set(path: &Path, group: u32, read_only: bool, on_root_mismatch: bool) -> io::Result<()> {
    let root = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let meta = fs::metadata(opened(&root))?;
    if on_root_mismatch
        && meta.gid() == group
        && meta.permissions().mode() & wanted(true, read_only) == wanted(true, read_only)
    {
        return Ok(());
    }
    apply(&root, group, read_only, DEPTH)
}

/// What leads to an open file, whatever its name leads to by now.
fn opened(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn apply(file: &OwnedFd, group: u32, read_only: bool, depth: usize) -> io::Result<()> {
    fchownat(file.as_fd(), "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    let link = nix::sys::stat::fstat(file.as_fd())?;
    if link.st_mode & libc::S_IFMT == libc::S_IFLNK {
        return Ok(());
    }
    let meta = fs::metadata(opened(file))?;
    if meta.is_dir() {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(io::Error::other(format!("the volume has more than {DEPTH} directories in each other")));
        };
        let names = {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mut dir = Dir::openat(file.as_fd(), ".", flags, Mode::empty())?;
            let names = dir.iter().map(|entry| entry.map(|e| e.file_name().to_owned()));
            names.collect::<nix::Result<Vec<_>>>()?
        };
        for name in names.iter().filter(|n| !matches!(n.to_bytes(), b"." | b"..")) {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(file.as_fd(), name.as_c_str(), flags, Mode::empty()) {
                // Somebody has removed it.
                Err(nix::errno::Errno::ENOENT) => {}
                found => apply(&found?, group, read_only, depth)?,
            }
        }
    }
    let mode = meta.permissions().mode() | wanted(meta.is_dir(), read_only);
    fs::set_permissions(opened(file), fs::Permissions::from_mode(mode))
}

fn wanted(dir: bool, read_only: bool) -> u32 {
    let access = if read_only { 0o440 } else { 0o660 };
    // Directories hand their group on to what is made in them.
    if dir { access | 0o2110 } else { access }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_nowhere() {
        let dir = std::env::temp_dir().join(format!("skiff-ownership-{:x}", rand::random::<u64>()));
        let volume = dir.join("volume");
        fs::create_dir_all(volume.join("deep/er")).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for file in [dir.join("outside"), volume.join("deep/er/file")] {
            fs::write(&file, "").unwrap();
            mode(&file, 0o600);
        }
        std::os::unix::fs::symlink(dir.join("outside"), volume.join("link")).unwrap();
        std::os::unix::fs::symlink(&dir, volume.join("deep/up")).unwrap();
        let state = |path: &str| {
            let meta = fs::symlink_metadata(dir.join(path)).unwrap();
            (meta.gid(), meta.permissions().mode() & 0o7777)
        };
        let before = state("outside");
        set(&volume, 4242, false, false).unwrap();
        assert_eq!(state("volume/deep/er/file"), (4242, 0o660));
        assert_eq!(state("volume/deep").0, 4242);
        assert_eq!(state("volume/deep").1 & 0o2770, 0o2770);
        assert_eq!(state("volume/link").0, 4242);
        assert_eq!(state("outside"), before);
        // Once the directory itself is so, nothing below is looked at.
        mode(&volume.join("deep/er/file"), 0o600);
        set(&volume, 4242, false, true).unwrap();
        assert_eq!(state("volume/deep/er/file").1, 0o600);
        let mut path = volume.clone();
        for _ in 0..DEPTH {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        assert!(set(&volume, 4242, false, false).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
