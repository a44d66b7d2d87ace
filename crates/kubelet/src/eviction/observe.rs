//! What the node has left, from the kernel. Cheap, because it is looked at all the time.

use std::{collections::BTreeMap, fs, path::Path};

use super::{Observation, thresholds::Signal};

/// Everything that can be seen. What cannot be read is left out, and so is no reason to evict.
pub(super) fn observe(
    root_dir: &Path,
    images_dir: Option<&Path>,
    memory_capacity: i64,
) -> BTreeMap<Signal, Observation> {
    let mut seen = BTreeMap::new();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if let Some(available) = memory_available(&read, memory_capacity) {
        seen.insert(Signal::MemoryAvailable, Observation { available, capacity: memory_capacity });
    }
    if let Some(pids) = pids(&read) {
        seen.insert(Signal::PidAvailable, pids);
    }
    let mut disk = |path: &Path, bytes: Signal, inodes: Signal| {
        let Ok(fs) = nix::sys::statvfs::statvfs(path) else { return };
        let size = |blocks: u64| i64::try_from(u128::from(blocks) * u128::from(fs.fragment_size())).unwrap_or(i64::MAX);
        seen.insert(bytes, Observation { available: size(fs.blocks_available()), capacity: size(fs.blocks()) });
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        // File systems without a fixed number of inodes tell zero.
        if fs.files() > 0 {
            seen.insert(inodes, Observation { available: count(fs.files_available()), capacity: count(fs.files()) });
        }
    };
    disk(root_dir, Signal::NodefsAvailable, Signal::NodefsInodesFree);
    disk(images_dir.unwrap_or(root_dir), Signal::ImagefsAvailable, Signal::ImagefsInodesFree);
    seen
}

fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

/// The kernel's own estimate for the machine, or what the node's cgroup leaves, whichever is less.
fn memory_available(read: &impl Fn(&str) -> String, capacity: i64) -> Option<i64> {
    let meminfo = read("/proc/meminfo");
    let line = meminfo.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let machine = number(line.split_whitespace().nth(1)?)? << 10;
    // What can be given back at once is not in use.
    let used = |usage: &str, stat: &str, key: &str| {
        let stat = read(stat);
        let inactive = stat.lines().find_map(|l| number(l.strip_prefix(key)?))?;
        Some((number(&read(usage))? - inactive).max(0))
    };
    let v2 = used("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file ");
    let v1 = || {
        used("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file ")
    };
    Some(v2.or_else(v1).map_or(machine, |used| machine.min(capacity - used)).max(0))
}

fn pids(read: &impl Fn(&str) -> String) -> Option<Observation> {
    let capacity = number(&read("/proc/sys/kernel/pid_max"))?.min(number(&read("/proc/sys/kernel/threads-max"))?);
    // `0.00 0.01 0.05 1/234 5678`: the second of the fourth is the number of tasks.
    let loadavg = read("/proc/loadavg");
    let running = number(loadavg.split_whitespace().nth(3)?.split_once('/')?.1)?;
    Some(Observation { available: capacity - running, capacity })
}

/// Bytes and entries below a directory, without following links or entering other file systems' trees.
pub(super) fn disk_usage(path: &Path) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = fs::symlink_metadata(path) else { return (0, 0) };
    let mut sum = (i64::try_from(meta.blocks()).unwrap_or(0) * 512, 1);
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let same_device = entry.metadata().is_ok_and(|m| m.dev() == meta.dev());
            if same_device {
                let (bytes, entries) = disk_usage(&entry.path());
                sum = (sum.0 + bytes, sum.1 + entries);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_lesser_of_machine_and_cgroup() {
        let read = |path: &str| {
            match path {
                "/proc/meminfo" => "MemTotal: 4096 kB\nMemAvailable: 2048 kB\n",
                "/sys/fs/cgroup/memory.current" => "1048576\n",
                "/sys/fs/cgroup/memory.stat" => "anon 1\ninactive_file 524288\n",
                _ => "",
            }
            .to_owned()
        };
        assert_eq!(memory_available(&read, 1 << 20), Some(512 << 10));
        assert_eq!(memory_available(&read, 1 << 30), Some(2 << 20));
    }

    #[test]
    fn this_machine_is_seen() {
        let seen = observe(Path::new("/"), None, i64::MAX);
        for signal in [Signal::MemoryAvailable, Signal::PidAvailable, Signal::NodefsAvailable, Signal::ImagefsAvailable]
        {
            assert!(seen[&signal].capacity > 0 && seen[&signal].available >= 0, "{signal}: {:?}", seen[&signal]);
        }
    }

    #[test]
    fn disk_use_is_counted() {
        let dir = std::env::temp_dir().join(format!("skiff-du-{:x}", rand::random::<u64>()));
        fs::create_dir_all(dir.join("a")).unwrap();
        fs::write(dir.join("a/b"), vec![1; 100_000]).unwrap();
        let (bytes, entries) = disk_usage(&dir);
        assert!(bytes >= 100_000, "{bytes}");
        assert_eq!(entries, 3);
        fs::remove_dir_all(dir).unwrap();
    }
}
