//! Mounting for volumes: tmpfs, sub-paths, and taking all of a pod's mounts away.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
};

/// Mounts a tmpfs there unless one is. The size is in bytes.
pub(crate) fn tmpfs(path: &Path, size: Option<u64>) -> io::Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let options = size.map(|size| format!("size={size}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref())?;
    Ok(())
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// Paths below `root` that something is mounted on, deepest first.
pub(crate) fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(root))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// The kernel writes spaces and their like as `\040`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|o| std::str::from_utf8(o).ok()).and_then(|o| u8::from_str_radix(o, 8).ok());
        match (byte, octal) {
            (b'\\', Some(decoded)) => {
                out.push(decoded);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&out))
}

/// Unmounts everything below a directory and removes it. While anything is still mounted nothing is removed: behind
/// a mount may be data that is not the pod's.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    for path in mounts_below(dir)? {
        umount2(&path, MntFlags::MNT_DETACH)?;
    }
    if let Some(left) = mounts_below(dir)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a path below a volume without ever leaving the volume, whatever links are in it or appear meanwhile.
fn open_below(volume: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(volume.as_fd(), path, how)
}

/// Mounts a sub-path of a volume on `target`, and makes it as a directory if it is not there.
///
/// A container that shares the volume may exchange names for links at any time. So the path is resolved by the kernel
/// within the volume, and what is mounted is the file that was opened, not a name.
pub(crate) fn bind_sub_path(volume: &Path, sub_path: &Path, target: &Path) -> io::Result<()> {
    if sub_path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "subPath must be a relative path without '..'"));
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(volume, flags, Mode::empty())?;
    let opened = match open_below(&root, sub_path) {
        Ok(opened) => opened,
        Err(nix::errno::Errno::ENOENT) => make_below(&root, sub_path)?,
        Err(nix::errno::Errno::EXDEV) => {
            return Err(io::Error::other(format!(
                "subpath {:?} not within volume path {:?}",
                sub_path.display().to_string(),
                volume.display().to_string()
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    // One left by a run before may lead elsewhere.
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// Makes the directories of a path below a volume. They may be used by whoever may use the volume.
fn make_below(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let permissions = fs::metadata(format!("/proc/self/fd/{}", root.as_raw_fd()))?.permissions();
    let mut at = open_below(root, Path::new(""))?;
    let mut so_far = PathBuf::new();
    for name in path.components() {
        so_far.push(name);
        at = match open_below(root, &so_far) {
            Ok(next) => next,
            Err(nix::errno::Errno::ENOENT) => {
                let made = match mkdirat(at.as_fd(), name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) => true,
                    Err(nix::errno::Errno::EEXIST) => false,
                    Err(error) => return Err(error.into()),
                };
                let next = open_below(root, &so_far)?;
                if made {
                    // By what was opened: the name may lead elsewhere by now.
                    fs::set_permissions(format!("/proc/self/fd/{}", next.as_raw_fd()), permissions.clone())?;
                }
                next
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Dir {
            let dir = std::env::temp_dir().join(format!("skiff-mounts-{:x}", rand::random::<u64>()));
            fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = remove_tree(&self.0);
        }
    }

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let dir = Dir::new();
        let (volume, outside, target) = (dir.0.join("volume"), dir.0.join("outside"), dir.0.join("target"));
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("evil")).unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("evil2")).unwrap();
        fs::create_dir(volume.join("real")).unwrap();
        fs::write(volume.join("real/file"), "good").unwrap();
        std::os::unix::fs::symlink("real", volume.join("link")).unwrap();
        for evil in ["evil", "evil2", "evil/secret", "../outside", "evil2/new/dir"] {
            assert!(bind_sub_path(&volume, Path::new(evil), &target).is_err(), "{evil}");
        }
        assert!(!outside.join("new").exists());
        bind_sub_path(&volume, Path::new("link"), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "good");
        bind_sub_path(&volume, Path::new("made/below"), &dir.0.join("made")).unwrap();
        assert!(volume.join("made/below").is_dir());
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
        bind_sub_path(&volume, Path::new("open"), &dir.0.join("open")).unwrap();
        assert_eq!(fs::metadata(volume.join("open")).unwrap().permissions().mode() & 0o777, 0o777);
        bind_sub_path(&volume, Path::new("real/file"), &dir.0.join("one")).unwrap();
        assert_eq!(fs::read_to_string(dir.0.join("one")).unwrap(), "good");
    }

    #[test]
    fn a_tree_with_mounts_is_removed_without_what_is_behind_them() {
        let (dir, kept) = (Dir::new(), Dir::new());
        fs::write(kept.0.join("file"), "kept").unwrap();
        let mount_point = dir.0.join("a b/mount");
        fs::create_dir_all(&mount_point).unwrap();
        tmpfs(&mount_point, Some(1 << 20)).unwrap();
        tmpfs(&mount_point, None).unwrap();
        bind_sub_path(&kept.0, Path::new(""), &mount_point.join("bound")).unwrap();
        remove_tree(&dir.0).unwrap();
        assert!(!dir.0.exists());
        assert_eq!(fs::read_to_string(kept.0.join("file")).unwrap(), "kept");
    }
}
