//! Control groups, both versions, laid out as the `cgroupfs` driver does: plain directories below the
//! parent that CRI names.

mod devices;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use devices::{Access, DeviceRule};

use crate::spec::CgroupSpec;

/// Limits of a container or pod; what is `None` is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Relative weight, 2 to 262144.
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds per period; negative for no limit.
    pub(crate) cpu_quota: Option<i64>,
    /// Microseconds.
    pub(crate) cpu_period: Option<u64>,
    /// Bytes; negative for no limit.
    pub(crate) memory: Option<i64>,
    /// Bytes of memory and swap together; negative for no limit.
    pub(crate) memory_and_swap: Option<i64>,
    /// Processors it may run on.
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes it may use.
    pub(crate) cpuset_mems: Option<String>,
    /// Bytes of huge pages by size (`2MB`).
    pub(crate) hugepages: Vec<(String, u64)>,
    /// Files of a v2 cgroup and what to write to them.
    pub(crate) unified: Vec<(String, String)>,
}

/// What a cgroup uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processor time.
    pub(crate) cpu_nanoseconds: u64,
    /// Memory with page cache.
    pub(crate) memory: u64,
    /// Memory without inactive page cache.
    pub(crate) working_set: u64,
    /// Anonymous memory.
    pub(crate) rss: u64,
    /// Page faults.
    pub(crate) page_faults: u64,
    /// Page faults that read from disk.
    pub(crate) major_page_faults: u64,
    /// Limit, if there is one.
    pub(crate) memory_limit: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: u64,
}

/// The hierarchies of this node.
#[derive(Clone, Debug)]
pub(crate) enum Cgroups {
    /// One hierarchy per controller.
    V1(v1::Hierarchies),
    /// One for all.
    V2(PathBuf),
}

/// Magic number of the v2 file system.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

impl Cgroups {
    /// Finds the hierarchies below `root`, usually `/sys/fs/cgroup`.
    pub(crate) fn detect(root: &Path) -> io::Result<Cgroups> {
        let stat = rustix::fs::statfs(root)?;
        if stat.f_type as u64 == CGROUP2_MAGIC {
            return Ok(Cgroups::V2(root.to_owned()));
        }
        Ok(Cgroups::V1(v1::Hierarchies::find(root)?))
    }

    /// Whether there is only the v2 hierarchy.
    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Cgroups::V2(_))
    }

    /// Makes a container's cgroup with its limits and devices. `path` is relative to the hierarchies'
    /// root and starts with a slash.
    pub(crate) fn create(&self, path: &str, limits: &Limits, devices: &[DeviceRule]) -> io::Result<CgroupSpec> {
        match self {
            Cgroups::V1(hierarchies) => hierarchies.create(path, limits, devices),
            Cgroups::V2(root) => v2::create(root, path, limits, devices),
        }
    }

    /// Changes limits.
    pub(crate) fn update(&self, path: &str, limits: &Limits) -> io::Result<()> {
        match self {
            Cgroups::V1(hierarchies) => hierarchies.update(path, limits),
            Cgroups::V2(root) => v2::update(&join(root, path), limits),
        }
    }

    /// What it uses now.
    pub(crate) fn usage(&self, path: &str) -> io::Result<Usage> {
        match self {
            Cgroups::V1(hierarchies) => hierarchies.usage(path),
            Cgroups::V2(root) => v2::usage(&join(root, path)),
        }
    }

    /// Removes a cgroup, killing what is left in it. One that is not there is no error.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        self.dirs(path).iter().try_for_each(|dir| remove_tree(dir))
    }

    /// The directories of a cgroup; none for the empty path.
    pub(crate) fn dirs(&self, path: &str) -> Vec<PathBuf> {
        match self {
            _ if path.trim_matches('/').is_empty() => Vec::new(),
            Cgroups::V1(hierarchies) => hierarchies.dirs(path),
            Cgroups::V2(root) => vec![join(root, path)],
        }
    }
}

/// A path below a hierarchy's root.
fn join(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Kills all processes of a cgroup and those below it. Returns whether there were any.
pub(crate) fn kill_all(dir: &Path) -> io::Result<bool> {
    match fs::write(dir.join("cgroup.kill"), "1") {
        Ok(()) => {}
        // A v1 cgroup, or a kernel before 5.14.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
        Err(e) => return Err(e),
    }
    let mut any = false;
    for pid in processes(dir)? {
        any = true;
        match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    for entry in children(dir)? {
        any |= kill_all(&entry)?;
    }
    Ok(any)
}

/// The processes of a cgroup itself.
pub(crate) fn processes(dir: &Path) -> io::Result<Vec<nix::unistd::Pid>> {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        text => text?,
    };
    let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0);
    Ok(pids.map(nix::unistd::Pid::from_raw).collect())
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.push(entry.path());
        }
    }
    Ok(out)
}

fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

/// How long processes may take to go after SIGKILL; those in a broken file system's hands never do.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

fn remove_tree(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        for child in children(dir)? {
            remove_tree(&child)?;
        }
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                kill_all(dir)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e),
        }
    }
}

/// Writes a control file; errors say which.
fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = dir.join(file);
    fs::write(&path, value)
        .map_err(|e| io::Error::new(e.kind(), format!("failed to write {value:?} to {}: {e}", path.display())))
}

/// Reads a file that holds one number; `max` is no number.
fn read_number(dir: &Path, file: &str) -> io::Result<Option<u64>> {
    Ok(fs::read_to_string(dir.join(file))?.trim().parse().ok())
}

/// The value of a key in a file of `key value` lines.
pub(crate) fn read_key(path: &Path, key: &str) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

#[cfg(test)]
mod tests;
