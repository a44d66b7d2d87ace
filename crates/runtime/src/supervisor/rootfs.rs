//! A container's file system, made by the container's own first process before it becomes the program.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::mounts::{self, Make, Root, attach, clone_tree, clone_tree_at, new_file_system, set_attributes};
use crate::spec::{ContainerSpec, DeviceSpec, MountSpec, Propagation, Rootfs};

/// Propagation of mounts, as in linux/mount.h.
const PRIVATE: u64 = 1 << 18;
const SLAVE: u64 = 1 << 19;
const SHARED: u64 = 1 << 20;

/// Devices every container has: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// The files of procfs that something may be mounted on: those that lxcfs provides.
const PROC_TARGETS: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
];

/// A step that failed, with what it was about.
pub(super) type Result<T> = std::result::Result<T, String>;

/// For `map_err`: says what failed.
pub(super) fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |e| format!("{what}: {e}")
}

/// What has to be opened in the node's mount namespace.
pub(super) struct Sources {
    mounts: Vec<OwnedFd>,
    shm: Option<OwnedFd>,
    cgroups: Vec<(String, OwnedFd)>,
}

impl Sources {
    /// Opens everything; the mounts of the node stay peers of these, which is what propagation needs.
    pub(super) fn open(spec: &ContainerSpec) -> Result<Sources> {
        let open = |mount: &MountSpec| {
            clone_tree(&mount.source, true).map_err(|e| {
                let source = mount.source.display();
                format!("error mounting \"{source}\" to rootfs at \"{}\": {}", mount.target, errno_text(&e))
            })
        };
        Ok(Sources {
            mounts: spec.mounts.iter().map(open).collect::<Result<_>>()?,
            shm: spec
                .shm
                .as_ref()
                .map(|path| clone_tree(path, false))
                .transpose()
                .map_err(failed("error opening shared memory"))?,
            cgroups: spec
                .cgroup
                .show
                .iter()
                .map(|(name, dir)| Ok((name.clone(), clone_tree(dir, false)?)))
                .collect::<io::Result<_>>()
                .map_err(failed("error opening the cgroup"))?,
        })
    }
}

/// The system's text of an error without Rust's number after it.
pub(super) fn errno_text(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => e.to_string(),
    }
}

/// Mounts everything and makes it the root of this mount namespace, which must be new.
pub(super) fn enter(spec: &ContainerSpec, sources: Sources) -> Result<()> {
    let none: Option<&str> = None;
    // From here on nothing that is mounted reaches the node, while the node's mounts still come in.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(failed("error detaching from the node's mounts"))?;
    overlay(&spec.rootfs).map_err(failed("error mounting the root file system"))?;
    let root = Root::open(&spec.rootfs.mountpoint).map_err(failed("error opening the root"))?;
    system_mounts(&root, spec, sources.shm, sources.cgroups)?;
    devices(&root, &spec.devices).map_err(failed("error creating device nodes"))?;
    for (mount, source) in spec.mounts.iter().zip(sources.mounts) {
        bind(&root, mount, source)?;
    }
    for path in &spec.readonly_paths {
        read_only(&root, path).map_err(failed(format!("error making {path} read-only")))?;
    }
    mask(&root, &spec.masked_paths)?;
    pivot(&root).map_err(failed("error changing the root"))?;
    if spec.rootfs.readonly {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        fs::open("/", flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|root| set_attributes(root.as_fd(), mounts::READ_ONLY, 0, false))
            .map_err(failed("error making the root read-only"))?;
    }
    Ok(())
}

/// Directories go in as descriptors: their paths may be long and hold what overlayfs takes for
/// separators, and all options together must fit a page.
fn overlay(rootfs: &Rootfs) -> io::Result<()> {
    let mut open = Vec::new();
    let mut place = |path: &Path| -> io::Result<String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty())
            .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("{}: {e}", path.display())))?;
        let place = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open.push(fd);
        Ok(place)
    };
    let lower: Vec<_> = rootfs.lower.iter().map(|path| place(path)).collect::<io::Result<_>>()?;
    let (upper, work) = (place(&rootfs.upper)?, place(&rootfs.work)?);
    let mut options = format!("lowerdir={},upperdir={upper},workdir={work},index=off", lower.join(":"));
    // What a container wrote is gone after a crash of the machine anyway, so nothing need be synced.
    let _ = write!(options, ",volatile");
    let source = Some("overlay");
    mount(source, &rootfs.mountpoint, source, MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

fn system_mounts(
    root: &Root,
    spec: &ContainerSpec,
    shm: Option<OwnedFd>,
    cgroups: Vec<(String, OwnedFd)>,
) -> Result<()> {
    let strict =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let no_suid_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let place = |path: &str, mount: io::Result<OwnedFd>| -> Result<()> {
        mount
            .and_then(|mount| {
                let target = root.ensure(path, Make::Directory)?;
                attach(mount.as_fd(), target.as_fd())
            })
            .map_err(failed(format!("error mounting {path}")))
    };
    place("/proc", new_file_system(c"proc", &[], strict))?;
    let dev_options = [("mode", "755"), ("size", "65536k")];
    let dev = new_file_system(c"tmpfs", &dev_options, MountAttrFlags::MOUNT_ATTR_NOSUID);
    place("/dev", dev)?;
    let pts_options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    place("/dev/pts", new_file_system(c"devpts", &pts_options, no_suid_exec))?;
    place("/dev/mqueue", new_file_system(c"mqueue", &[], strict))?;
    let shm = match shm {
        Some(shm) => Ok(shm),
        None => clone_tree(Path::new("/dev/shm"), false),
    };
    place("/dev/shm", shm)?;
    let sys = if spec.privileged { strict } else { strict | MountAttrFlags::MOUNT_ATTR_RDONLY };
    place("/sys", new_file_system(c"sysfs", &[], sys))?;
    // What is shown is the container's own cgroup and cannot be written, not even by the privileged,
    // who may mount it anew: raising one's own limits is not among the things containers do.
    let attributes = mounts::READ_ONLY | mounts::NO_SUID | mounts::NO_DEV | mounts::NO_EXEC;
    if cgroups.iter().any(|(name, _)| !name.is_empty()) {
        place("/sys/fs/cgroup", new_file_system(c"tmpfs", &[("mode", "755")], strict))?;
    }
    for (name, mount) in cgroups {
        let path = format!("/sys/fs/cgroup/{name}");
        let mount = set_attributes(mount.as_fd(), attributes, PRIVATE, false).map(|()| mount);
        place(&path, mount)?;
    }
    Ok(())
}

fn devices(root: &Root, extra: &[DeviceSpec]) -> io::Result<()> {
    let dev = root.find("/dev")?;
    // The process may have been started with a narrow mask.
    for (name, major, minor) in DEVICES {
        let device = fs::makedev(major, minor);
        fs::mknodat(&dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)?;
    }
    for (target, name) in LINKS {
        fs::symlinkat(target, &dev, name)?;
    }
    for device in extra {
        let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
        let parent = root.ensure(parent, Make::Directory)?;
        match fs::unlinkat(&parent, name, fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let number = fs::makedev(device.major, device.minor);
        fs::mknodat(&parent, name, kind, Mode::from_raw_mode(device.mode), number)?;
        let (uid, gid) = (rustix::process::Uid::from_raw(device.uid), rustix::process::Gid::from_raw(device.gid));
        fs::chownat(&parent, name, Some(uid), Some(gid), fs::AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn bind(root: &Root, mount: &MountSpec, source: OwnedFd) -> Result<()> {
    let text = |e: io::Error| {
        let (source, target) = (mount.source.display(), &mount.target);
        format!("error mounting \"{source}\" to rootfs at \"{target}\": {}", errno_text(&e))
    };
    let make = match mounts::is_directory(source.as_fd()).map_err(text)? {
        true => Make::Directory,
        false => Make::File,
    };
    let target = root.ensure(&mount.target, make).map_err(text)?;
    if mounts::is_procfs(target.as_fd()).map_err(text)? && !PROC_TARGETS.contains(&mount.target.as_str()) {
        return Err(format!("\"{}\" cannot be mounted because it is inside /proc", mount.target));
    }
    if mounts::is_directory(target.as_fd()).map_err(text)? != (make == Make::Directory) {
        return Err(format!(
            "{}: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type",
            text(io::Error::from_raw_os_error(libc::ENOTDIR))
        ));
    }
    let propagation = match mount.propagation {
        Propagation::Private => PRIVATE,
        Propagation::HostToContainer => SLAVE,
        Propagation::Bidirectional => SHARED,
    };
    set_attributes(source.as_fd(), 0, propagation, true).map_err(text)?;
    if mount.readonly || mount.recursive_readonly {
        set_attributes(source.as_fd(), mounts::READ_ONLY, 0, mount.recursive_readonly).map_err(text)?;
    }
    attach(source.as_fd(), target.as_fd()).map_err(text)
}

fn is_missing(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

fn read_only(root: &Root, path: &str) -> io::Result<()> {
    let target = match root.find(path) {
        Err(e) if is_missing(&e) => return Ok(()),
        target => target?,
    };
    let tree = clone_tree_at(target.as_fd(), true)?;
    set_attributes(tree.as_fd(), mounts::READ_ONLY, PRIVATE, true)?;
    attach(tree.as_fd(), target.as_fd())
}

/// Files are covered by the null device, directories by one empty directory shared by all.
fn mask(root: &Root, paths: &[String]) -> Result<()> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let what = format!("error masking {path}");
        let target = match root.find(path) {
            Err(e) if is_missing(&e) => continue,
            target => target.map_err(failed(&what))?,
        };
        let mut cover = || -> io::Result<()> {
            if !mounts::is_directory(target.as_fd())? {
                let null = root.find("/dev/null")?;
                return attach(clone_tree_at(null.as_fd(), false)?.as_fd(), target.as_fd());
            }
            match &empty {
                Some(place) => {
                    attach(clone_tree_at(place.as_fd(), false)?.as_fd(), target.as_fd())?;
                }
                None => {
                    let mount = new_file_system(
                        c"tmpfs",
                        &[("mode", "555")],
                        MountAttrFlags::MOUNT_ATTR_RDONLY
                            | MountAttrFlags::MOUNT_ATTR_NOSUID
                            | MountAttrFlags::MOUNT_ATTR_NODEV
                            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
                    )?;
                    attach(mount.as_fd(), target.as_fd())?;
                    empty = Some(mount);
                }
            }
            Ok(())
        };
        cover().map_err(failed(what))?;
    }
    Ok(())
}

/// Changes the root and lets go of the old one, of which then nothing can be reached.
fn pivot(root: &Root) -> io::Result<()> {
    rustix::process::fchdir(root.fd())?;
    // Old and new root on the same place: the old one lies on top and is taken off.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// Shows the terminal, which is on the standard streams, at `/dev/console`.
pub(super) fn show_console() -> Result<()> {
    let show = || -> io::Result<()> {
        let name = rustix::termios::ttyname(rustix::stdio::stdin(), Vec::new())?;
        let tree = clone_tree(Path::new(std::ffi::OsStr::new(&*name.to_string_lossy())), false)?;
        let root = Root::open(Path::new("/"))?;
        let place = root.ensure("/dev/console", Make::File)?;
        attach(tree.as_fd(), place.as_fd())
    };
    show().map_err(failed("error showing the terminal at /dev/console"))
}
