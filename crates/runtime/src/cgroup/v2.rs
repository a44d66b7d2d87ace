//! cgroups v2: one hierarchy.

use std::fs;
use std::io;
use std::path::Path;

use super::{DeviceRule, Limits, Usage, devices, join, read_key, read_number, write};
use crate::spec::CgroupSpec;

/// Controllers that containers need.
const USED: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "hugetlb", "io"];

pub(super) fn create(root: &Path, path: &str, limits: &Limits, rules: &[DeviceRule]) -> io::Result<CgroupSpec> {
    let dir = join(root, path);
    fs::create_dir_all(&dir)?;
    enable_controllers(root, path)?;
    update(&dir, limits)?;
    devices::attach(&dir, rules)?;
    Ok(CgroupSpec {
        join: vec![dir.join("cgroup.procs")],
        procs_dir: Some(dir.clone()),
        oom_file: Some(dir.join("memory.events")),
        show: vec![(String::new(), dir)],
    })
}

/// Turns the controllers on for the children of every cgroup on the way, as far as there are any.
fn enable_controllers(root: &Path, path: &str) -> io::Result<()> {
    let mut dir = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
        let enabled = fs::read_to_string(dir.join("cgroup.subtree_control"))?;
        let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
        for name in USED.iter().filter(|n| has(&available, n) && !has(&enabled, n)) {
            write(&dir, "cgroup.subtree_control", &format!("+{name}"))?;
        }
        dir = dir.join(part);
    }
    Ok(())
}

/// The v2 weight that stands for these shares: the range 2..=262144 onto 1..=10000.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

pub(super) fn update(dir: &Path, limits: &Limits) -> io::Result<()> {
    let or_max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(shares) = limits.cpu_shares {
        write(dir, "cpu.weight", &weight(shares).to_string())?;
    }
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let quota = or_max(limits.cpu_quota.filter(|quota| *quota != 0).unwrap_or(-1));
        let period = limits.cpu_period.unwrap_or(100_000);
        write(dir, "cpu.max", &format!("{quota} {period}"))?;
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        write(dir, "cpuset.cpus", cpus)?;
    }
    if let Some(mems) = &limits.cpuset_mems {
        write(dir, "cpuset.mems", mems)?;
    }
    if let Some(both) = limits.memory_and_swap {
        // v2 counts swap by itself.
        let swap = match limits.memory {
            Some(memory) if both >= 0 && memory >= 0 => (both - memory).max(0),
            _ => both,
        };
        if dir.join("memory.swap.max").exists() {
            write(dir, "memory.swap.max", &or_max(swap))?;
        }
    }
    if let Some(memory) = limits.memory {
        write(dir, "memory.max", &or_max(memory))?;
    }
    for (size, bytes) in &limits.hugepages {
        let file = format!("hugetlb.{size}.max");
        if dir.join(&file).exists() {
            write(dir, &file, &bytes.to_string())?;
        }
    }
    for (file, value) in &limits.unified {
        if file.contains('/') || file.starts_with('.') {
            let text = format!("invalid cgroup file name {file:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        write(dir, file, value)?;
    }
    Ok(())
}

pub(super) fn usage(dir: &Path) -> io::Result<Usage> {
    let key = |file: &str, key: &str| match read_key(&dir.join(file), key) {
        // A controller that is not enabled here.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        value => value.map(|value| value.unwrap_or(0)),
    };
    let number = |file: &str| match read_number(dir, file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        value => value,
    };
    let memory = number("memory.current")?.unwrap_or(0);
    Ok(Usage {
        cpu_nanoseconds: key("cpu.stat", "usage_usec")? * 1000,
        memory,
        working_set: memory.saturating_sub(key("memory.stat", "inactive_file")?),
        rss: key("memory.stat", "anon")?,
        page_faults: key("memory.stat", "pgfault")?,
        major_page_faults: key("memory.stat", "pgmajfault")?,
        memory_limit: number("memory.max")?,
        pids: number("pids.current")?.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!([2, 1024, 262_144, 0, 1 << 40].map(weight), [1, 39, 10_000, 1, 10_000]);
    }
}
