//! The cgroups of pods, in which the runtime makes those of containers: weight and limits of a pod as a whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use skiff_cri::v1::LinuxContainerResources;

use crate::pod::PodUid;

/// Where pods' cgroups are made.
pub(crate) struct Cgroups {
    /// `None`: not at all.
    mount: Option<PathBuf>,
    parent: String,
}

const QOS: [&str; 3] = ["", "burstable", "besteffort"];
const V1: [&str; 2] = ["cpu", "memory"];

impl Cgroups {
    pub(crate) fn new(mount: Option<PathBuf>, parent: &str) -> Cgroups {
        Cgroups { mount, parent: parent.trim_matches('/').to_owned() }
    }

    /// Makes a pod's cgroup with these resources. A node on which that is not possible runs pods without.
    pub(crate) fn ensure(&self, path: &str, resources: &LinuxContainerResources) {
        let Some(mount) = &self.mount else { return };
        let made = if mount.join("cgroup.controllers").exists() {
            ensure_v2(mount, path, resources)
        } else {
            ensure_v1(mount, path, resources)
        };
        if let Err(error) = made {
            tracing::warn!(path, %error, "cannot make a pod's cgroup");
        }
    }

    /// Removes a pod's cgroups; what is still in use stays until the next time.
    pub(crate) fn remove(&self, uid: &PodUid) {
        let Some(mount) = &self.mount else { return };
        let controllers = fs::read_dir(mount).into_iter().flatten().flatten().map(|e| e.path());
        for root in controllers.filter(|p| p.is_dir() && !p.is_symlink()).chain([mount.clone()]) {
            for qos in QOS {
                let path = root.join(&self.parent).join(qos).join(format!("pod{uid}"));
                if path.is_dir()
                    && let Err(error) = remove_tree(&path)
                {
                    tracing::debug!(path = %path.display(), %error, "cannot remove a cgroup");
                }
            }
        }
    }
}

/// Directories of cgroups are empty but for their children, whatever is listed in them.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn ensure_v1(mount: &Path, path: &str, resources: &LinuxContainerResources) -> io::Result<()> {
    for controller in V1 {
        let root = mount.join(controller);
        if !root.is_dir() {
            continue;
        }
        let dir = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir)?;
        let write = |file: &str, value: i64| fs::write(dir.join(file), value.to_string());
        if controller == "cpu" {
            write("cpu.shares", resources.cpu_shares)?;
            if resources.cpu_quota > 0 && dir.join("cpu.cfs_quota_us").exists() {
                write("cpu.cfs_period_us", resources.cpu_period)?;
                write("cpu.cfs_quota_us", resources.cpu_quota)?;
            }
        } else if resources.memory_limit_in_bytes > 0 {
            write("memory.limit_in_bytes", resources.memory_limit_in_bytes)?;
        }
    }
    Ok(())
}

fn ensure_v2(mount: &Path, path: &str, resources: &LinuxContainerResources) -> io::Result<()> {
    let mut dir = mount.to_owned();
    for name in path.split('/').filter(|n| !n.is_empty()) {
        let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
        for controller in ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"] {
            if available.split_whitespace().any(|c| c == controller) {
                fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        dir.push(name);
        fs::create_dir_all(&dir)?;
    }
    // The kernel's mapping of shares 2..262144 to weights 1..10000.
    let weight = 1 + (resources.cpu_shares.max(2) - 2) * 9999 / 262_142;
    if dir.join("cpu.weight").exists() {
        fs::write(dir.join("cpu.weight"), weight.to_string())?;
        if resources.cpu_quota > 0 {
            fs::write(dir.join("cpu.max"), format!("{} {}", resources.cpu_quota, resources.cpu_period))?;
        }
    }
    if resources.memory_limit_in_bytes > 0 && dir.join("memory.max").exists() {
        fs::write(dir.join("memory.max"), resources.memory_limit_in_bytes.to_string())?;
    }
    Ok(())
}
