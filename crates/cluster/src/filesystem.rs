//! The file system of a node.
//!
//! Its root is a directory of the node's, kept over stops: `/var`, `/tmp`, `/mnt`, and whatever pods
//! write with hostPath. The programs of the host are seen read-only; `/etc` is the host's with the
//! node's own changes on top, which are forgotten when the node stops.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::pivot_root,
};

use crate::{
    cgroup::{self, Hierarchy},
    node_config::PROGRAM,
    spec::ExtraMount,
};

/// Directories of programs and libraries, on every layout of distributions that we know.
const PROGRAM_DIRECTORIES: [&str; 9] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"];
const OWN_DIRECTORIES: [&str; 16] = [
    "dev",
    "proc",
    "sys",
    "run",
    "etc",
    "home",
    "media",
    "mnt",
    "opt/cni/bin",
    "opt/skiff/bin",
    "root",
    "srv",
    "var/lib/skiff",
    "var/log",
    "var/cache",
    "var/lib/kubelet",
];
const NO_DATA: Option<&str> = None;

/// What the root is made of.
pub(crate) struct NodeFilesystem<'a> {
    /// The directory that becomes the root.
    pub(crate) rootfs: &'a Path,
    /// An empty directory for the changes to /etc.
    pub(crate) etc: &'a Path,
    pub(crate) program: &'a Path,
    pub(crate) mounts: &'a [ExtraMount],
    pub(crate) hierarchies: &'a [Hierarchy],
    /// The content of /etc/resolv.conf.
    pub(crate) resolv_conf: &'a str,
    pub(crate) hosts: &'a str,
    pub(crate) hostname: &'a str,
}

type Step = Result<(), (String, io::Error)>;

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> (String, io::Error) {
    move |error| (what.into(), error)
}

impl NodeFilesystem<'_> {
    /// Builds the root and makes it the caller's. The caller is the first process of new mount, PID,
    /// network and cgroup namespaces. The error names the step.
    pub(crate) fn enter(&self) -> Step {
        // Changes of the host's mounts still arrive, ours do not leave.
        let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(NO_DATA, "/", NO_DATA, slave, NO_DATA)
            .map_err(|e| ("detach from the host's mounts".to_owned(), e.into()))?;
        self.create_directories().map_err(step("create the node's directories"))?;
        // Before the next mount, because links do not cross mounts.
        let linked = self.link_program();
        bind(self.rootfs, self.rootfs, true).map_err(step("mount the node's directory"))?;
        for name in PROGRAM_DIRECTORIES {
            self.share_programs(name).map_err(step(format!("share /{name}")))?;
        }
        self.mount_etc().map_err(step("mount /etc"))?;
        let own = |name: &str| self.rootfs.join(name);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), &own("proc"), Some("proc"), flags, NO_DATA)
            .map_err(|e| ("mount /proc".to_owned(), e.into()))?;
        mount(Some("sysfs"), &own("sys"), Some("sysfs"), flags, NO_DATA)
            .map_err(|e| ("mount /sys".to_owned(), e.into()))?;
        cgroup::mount_inside(self.hierarchies, &own("sys/fs/cgroup")).map_err(step("mount the cgroups"))?;
        bind(Path::new("/dev"), &own("dev"), true).map_err(step("share /dev"))?;
        if !linked {
            let program = own(PROGRAM.trim_start_matches('/'));
            fs::File::create(&program)
                .and_then(|_| bind(self.program, &program, false))
                .map_err(step(format!("share {}", self.program.display())))?;
        }
        for extra in self.mounts {
            self.mount_extra(extra).map_err(step(format!("mount {}", extra.host_path.display())))?;
        }
        self.switch_root().map_err(step("change the root"))
    }

    fn create_directories(&self) -> io::Result<()> {
        for name in OWN_DIRECTORIES {
            fs::create_dir_all(self.rootfs.join(name))?;
        }
        for name in ["tmp", "var/tmp"] {
            let directory = self.rootfs.join(name);
            fs::create_dir_all(&directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o1777))?;
        }
        fs::create_dir_all(self.etc)?;
        // Sockets and process files of the previous run.
        let run = self.rootfs.join("run");
        fs::remove_dir_all(&run)?;
        fs::create_dir_all(run.join("skiff"))?;
        ensure_link(Path::new("/run"), &self.rootfs.join("var/run"))?;
        ensure_link(Path::new(PROGRAM), &self.rootfs.join("opt/cni/bin").join(skiff_network::cni::PLUGIN_TYPE))
    }

    /// Puts the program into the node as a hard link, so that the node can link it on into the image of
    /// the system pods instead of copying it. Not possible from another file system.
    fn link_program(&self) -> bool {
        let inside = self.rootfs.join(PROGRAM.trim_start_matches('/'));
        match fs::remove_file(&inside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => false,
            _ => fs::hard_link(self.program, inside).is_ok(),
        }
    }

    /// Links stay links (merged /usr), directories are bound read-only.
    fn share_programs(&self, name: &str) -> io::Result<()> {
        let host = Path::new("/").join(name);
        let inside = self.rootfs.join(name);
        match fs::symlink_metadata(&host) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_symlink() => ensure_link(&fs::read_link(&host)?, &inside),
            Ok(_) => {
                fs::create_dir_all(&inside)?;
                bind(&host, &inside, false)?;
                read_only(&inside)
            }
        }
    }

    fn mount_etc(&self) -> io::Result<()> {
        mount(Some("tmpfs"), self.etc, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=16m"))?;
        let (upper, work) = (self.etc.join("upper"), self.etc.join("work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
        let etc = self.rootfs.join("etc");
        mount(Some("overlay"), &etc, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        for (name, content) in [("resolv.conf", self.resolv_conf), ("hosts", self.hosts), ("hostname", self.hostname)] {
            let path = etc.join(name);
            // It may be a link into the host's /run.
            if fs::symlink_metadata(&path).is_ok() {
                fs::remove_file(&path)?;
            }
            fs::write(path, content)?;
        }
        fs::create_dir_all(etc.join("cni/net.d"))
    }

    fn mount_extra(&self, extra: &ExtraMount) -> io::Result<()> {
        let relative = extra.container_path.strip_prefix("/").unwrap_or(&extra.container_path);
        let inside = self.rootfs.join(relative);
        // As with kind, a missing host directory is made.
        if !extra.host_path.exists() {
            fs::create_dir_all(&extra.host_path)?;
        }
        if extra.host_path.is_dir() {
            fs::create_dir_all(&inside)?;
        } else {
            fs::create_dir_all(inside.parent().unwrap_or(self.rootfs))?;
            fs::File::options().create(true).append(true).open(&inside)?;
        }
        bind(&extra.host_path, &inside, true)?;
        match extra.read_only {
            true => read_only(&inside),
            false => Ok(()),
        }
    }

    fn switch_root(&self) -> io::Result<()> {
        nix::unistd::chdir(self.rootfs)?;
        // The old root ends up on top of the new one and is taken off again.
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")?;
        // Mounts of pods with bidirectional propagation have to reach the node.
        mount(NO_DATA, "/", NO_DATA, MsFlags::MS_REC | MsFlags::MS_SHARED, NO_DATA)?;
        Ok(())
    }
}

fn bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    let flags = match recursive {
        true => MsFlags::MS_BIND | MsFlags::MS_REC,
        false => MsFlags::MS_BIND,
    };
    Ok(mount(Some(source), target, NO_DATA, flags, NO_DATA)?)
}

fn read_only(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(mount(NO_DATA, target, NO_DATA, flags, NO_DATA)?)
}

fn ensure_link(target: &Path, link: &Path) -> io::Result<()> {
    match symlink(target, link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The host's resolvers that a node can reach: not those on a loopback address, for which
/// systemd-resolved keeps a list of the real ones.
pub(crate) fn node_resolv_conf(isolated: bool) -> String {
    if isolated {
        return "# This cluster has no way out, so there is no resolver.\n".to_owned();
    }
    let candidates = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let reachable = |text: &String| {
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).any(|server| {
            let address: Option<std::net::IpAddr> = server.trim().parse().ok();
            address.is_some_and(|address| !address.is_loopback())
        })
    };
    let texts = candidates.into_iter().filter_map(|path| fs::read_to_string(PathBuf::from(path)).ok());
    let mut texts = texts.filter(reachable);
    texts.next().unwrap_or_else(|| "# The host has no resolver that a node could reach.\n".to_owned())
}
