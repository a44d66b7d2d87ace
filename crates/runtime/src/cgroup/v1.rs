//! cgroups v1: a hierarchy per controller, or per group of them mounted together.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{DeviceRule, Limits, Usage, join, read_key, read_number, write};
use crate::spec::CgroupSpec;

/// Controllers that containers are put into, where they are mounted. A container's place in the others
/// stays that of its supervisor: each hierarchy costs time at every start.
const USED: [&str; 8] = ["cpu", "cpuacct", "memory", "devices", "pids", "cpuset", "hugetlb", "freezer"];

/// Values at and above this mean that there is no limit.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

/// Where the controllers are mounted.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchies {
    /// By controller.
    mounts: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    pub(super) fn find(root: &Path) -> io::Result<Hierarchies> {
        let mut mounts = BTreeMap::new();
        for controller in USED {
            let dir = root.join(controller);
            // `cpu` may be a link to `cpu,cpuacct`: one directory then serves both.
            if dir.join("cgroup.procs").exists() {
                mounts.insert(controller.to_owned(), fs::canonicalize(dir)?);
            }
        }
        if !mounts.contains_key("memory") {
            let text = format!("no cgroup hierarchies are mounted below {}", root.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(Hierarchies { mounts })
    }

    /// The directories of a cgroup, each once.
    pub(super) fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let mut dirs: Vec<_> = self.mounts.values().map(|mount| join(mount, path)).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        self.mounts.get(controller).map(|mount| join(mount, path))
    }

    pub(super) fn create(&self, path: &str, limits: &Limits, devices: &[DeviceRule]) -> io::Result<CgroupSpec> {
        let dirs = self.dirs(path);
        for dir in &dirs {
            fs::create_dir_all(dir)?;
        }
        if let Some(mount) = self.mounts.get("cpuset") {
            inherit_cpuset(mount, path)?;
        }
        self.update(path, limits)?;
        if let Some(dir) = self.dir("devices", path) {
            write(&dir, "devices.deny", "a")?;
            for rule in devices {
                write(&dir, "devices.allow", &rule.to_string())?;
            }
        }
        let memory = self.dir("memory", path);
        let show = self.mounts.keys().filter_map(|name| Some((name.clone(), self.dir(name, path)?))).collect();
        Ok(CgroupSpec {
            // Not cgroup.procs: moving oneself as a single thread needs no lock over all processes,
            // which costs milliseconds.
            join: dirs.iter().map(|dir| dir.join("tasks")).collect(),
            procs_dir: memory.clone(),
            oom_file: memory.map(|dir| dir.join("memory.oom_control")),
            show,
        })
    }

    pub(super) fn update(&self, path: &str, limits: &Limits) -> io::Result<()> {
        let dir = |controller: &str| {
            self.dir(controller, path).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("the {controller} cgroup controller is not mounted"))
            })
        };
        if let Some(shares) = limits.cpu_shares {
            write(&dir("cpu")?, "cpu.shares", &shares.clamp(2, 262_144).to_string())?;
        }
        if let Some(period) = limits.cpu_period {
            write(&dir("cpu")?, "cpu.cfs_period_us", &period.to_string())?;
        }
        if let Some(quota) = limits.cpu_quota {
            write(&dir("cpu")?, "cpu.cfs_quota_us", &quota.max(-1).to_string())?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            write(&dir("cpuset")?, "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            write(&dir("cpuset")?, "cpuset.mems", mems)?;
        }
        self.update_memory(path, limits)?;
        for (size, bytes) in &limits.hugepages {
            let Some(dir) = self.dir("hugetlb", path) else { continue };
            write(&dir, &format!("hugetlb.{size}.limit_in_bytes"), &bytes.to_string())?;
        }
        Ok(())
    }

    /// Memory alone may never exceed memory with swap, so the order depends on the direction.
    fn update_memory(&self, path: &str, limits: &Limits) -> io::Result<()> {
        let (memory, both) = (limits.memory, limits.memory_and_swap);
        let Some(dir) = self.dir("memory", path) else { return Ok(()) };
        const MEMORY: &str = "memory.limit_in_bytes";
        const BOTH: &str = "memory.memsw.limit_in_bytes";
        let both = both.filter(|_| dir.join(BOTH).exists());
        let set = |file, value: Option<i64>| match value {
            Some(value) => write(&dir, file, &value.max(-1).to_string()),
            None => Ok(()),
        };
        let grows = match (both, read_number(&dir, MEMORY)?) {
            (Some(new), Some(now)) => new < 0 || new as u64 >= now,
            _ => false,
        };
        if grows {
            set(BOTH, both)?;
            set(MEMORY, memory)
        } else {
            set(MEMORY, memory)?;
            set(BOTH, both)
        }
    }

    pub(super) fn usage(&self, path: &str) -> io::Result<Usage> {
        let mut usage = Usage::default();
        if let Some(dir) = self.dir("cpuacct", path) {
            usage.cpu_nanoseconds = read_number(&dir, "cpuacct.usage")?.unwrap_or(0);
        }
        if let Some(dir) = self.dir("memory", path) {
            let stat = dir.join("memory.stat");
            let key = |key| read_key(&stat, key).map(|value| value.unwrap_or(0));
            usage.memory = read_number(&dir, "memory.usage_in_bytes")?.unwrap_or(0);
            usage.working_set = usage.memory.saturating_sub(key("total_inactive_file")?);
            usage.rss = key("total_rss")?;
            usage.page_faults = key("pgfault")?;
            usage.major_page_faults = key("pgmajfault")?;
            usage.memory_limit = read_number(&dir, "memory.limit_in_bytes")?.filter(|limit| *limit < NO_LIMIT);
        }
        if let Some(dir) = self.dir("pids", path) {
            usage.pids = read_number(&dir, "pids.current")?.unwrap_or(0);
        }
        Ok(usage)
    }
}

/// A new cpuset has neither processors nor memory, and nothing can join it: it takes its parent's.
fn inherit_cpuset(mount: &Path, path: &str) -> io::Result<()> {
    let mut parent = mount.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let dir = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(dir.join(file))?.trim().is_empty() {
                let value = fs::read_to_string(parent.join(file))?;
                write(&dir, file, value.trim())?;
            }
        }
        parent = dir;
    }
    Ok(())
}
