//! What the root of the cgroup tree says of the use of everything below it, in both versions of cgroups.

use std::{fs, path::Path};

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a key of a file such as `memory.stat`.
fn of_key(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key)?.1.trim().parse().ok())
}

/// Nanoseconds of CPU and bytes of memory in use that cannot be had back at once. The root of version 2 does not tell
/// of memory on a real machine.
pub(super) fn usage(root: &Path) -> (Option<u64>, Option<u64>) {
    if root.join("cgroup.controllers").exists() {
        let cpu = of_key(&root.join("cpu.stat"), "usage_usec").map(|us| us * 1000);
        let memory = number(&root.join("memory.current"));
        let inactive = of_key(&root.join("memory.stat"), "inactive_file").unwrap_or(0);
        return (cpu, memory.map(|m| m.saturating_sub(inactive)));
    }
    // The two controllers are mounted together, or each at its own place.
    let cpu = ["cpuacct", "cpu,cpuacct"].iter().find_map(|c| number(&root.join(c).join("cpuacct.usage")));
    let memory = number(&root.join("memory/memory.usage_in_bytes"));
    let inactive = of_key(&root.join("memory/memory.stat"), "total_inactive_file").unwrap_or(0);
    (cpu, memory.map(|m| m.saturating_sub(inactive)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read from these files.
    fn of(files: &[(&str, &str)]) -> (Option<u64>, Option<u64>) {
        let dir = std::env::temp_dir().join(format!("skiff-node-cgroup-{:x}", rand::random::<u64>()));
        for (name, text) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let usage = usage(&dir);
        fs::remove_dir_all(&dir).unwrap();
        usage
    }

    #[test]
    fn both_versions() {
        let v1 = of(&[
            ("cpuacct/cpuacct.usage", "123\n"),
            ("memory/memory.usage_in_bytes", "1000\n"),
            ("memory/memory.stat", "cache 1\ntotal_inactive_file 300\n"),
        ]);
        assert_eq!(v1, (Some(123), Some(700)));
        let v2 = of(&[
            ("cgroup.controllers", "cpu memory"),
            ("cpu.stat", "usage_usec 5\nuser_usec 1\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 1\ninactive_file 300\n"),
        ]);
        assert_eq!(v2, (Some(5000), Some(700)));
        // The root of a real machine.
        let root = of(&[("cgroup.controllers", ""), ("cpu.stat", "usage_usec 5\n")]);
        assert_eq!(root, (Some(5000), None));
    }
}
