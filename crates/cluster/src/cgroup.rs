//! The cgroups of nodes, on v1, v2 and hybrid machines.
//!
//! A node is one cgroup in every hierarchy. Its first process joins it and then takes a new cgroup
//! namespace, so that inside the node that cgroup is the root.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use crate::{Error, Home, Result};

/// What a node may take of the machine. Nothing said: all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Of memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// The kernel counts processor time in periods of this many microseconds.
const CPU_PERIOD_US: u32 = 100_000;

impl Limits {
    /// The controller, its file on v2 and on v1, and what is written to it.
    fn files(&self) -> Vec<(&'static str, [(&'static str, String); 2])> {
        let cpu = self.cpu_millis.map(|millis| {
            let quota = u64::from(millis) * u64::from(CPU_PERIOD_US) / 1000;
            ("cpu", [("cpu.max", format!("{quota} {CPU_PERIOD_US}")), ("cpu.cfs_quota_us", quota.to_string())])
        });
        let memory = self
            .memory_bytes
            .map(|bytes| ("memory", [("memory.max", bytes.to_string()), ("memory.limit_in_bytes", bytes.to_string())]));
        cpu.into_iter().chain(memory).collect()
    }
}

/// One mounted hierarchy of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    /// The options that mount it again: controllers or a name. Empty for v2.
    pub(crate) options: String,
    pub(crate) v2: bool,
}

/// Reads the hierarchies from a mountinfo file.
pub(crate) fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let path = PathBuf::from(mount.split(' ').nth(4)?);
        let mut fields = filesystem.split(' ');
        let kind = fields.next()?;
        let options = fields.nth(1)?;
        let v2 = kind == "cgroup2";
        if !v2 && kind != "cgroup" {
            return None;
        }
        // What is not a controller or a name is a property of the mount.
        let ours = |option: &&str| {
            !["rw", "ro", "xattr", "noprefix", "clone_children", "none", "all"].contains(option)
                && !option.starts_with("release_agent=")
        };
        let options: Vec<&str> = options.split(',').filter(ours).collect();
        Some(Hierarchy { path, options: if v2 { String::new() } else { options.join(",") }, v2 })
    };
    let mut all: Vec<Hierarchy> = Vec::new();
    for hierarchy in mountinfo.lines().filter_map(parse) {
        // A hierarchy may be mounted in several places; the first is the usual one.
        if !all.iter().any(|other| other.v2 == hierarchy.v2 && other.options == hierarchy.options) {
            all.push(hierarchy);
        }
    }
    all
}

pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read /proc/self/mountinfo"))?;
    Ok(parse_hierarchies(&text))
}

/// The node's cgroup below each hierarchy.
pub(crate) fn node_cgroup(home: &Home, cluster: &str, node: &str) -> PathBuf {
    cluster_cgroup(home, cluster).join(node)
}

/// Clusters of the same name in other homes have others: cgroups are the machine's.
fn cluster_cgroup(home: &Home, cluster: &str) -> PathBuf {
    // FNV-1a: all that matters is that it stays the same.
    let hash = home
        .state
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    Path::new("skiff").join(format!("{cluster}-{:08x}", hash >> 32))
}

/// Creates the cgroup in every hierarchy and puts the calling process into it.
pub(crate) fn create_and_join(hierarchies: &[Hierarchy], cgroup: &Path) -> Result<()> {
    for hierarchy in hierarchies {
        let mut directory = hierarchy.path.clone();
        for part in cgroup {
            if hierarchy.v2 {
                enable_controllers(&directory);
            }
            let parent = directory.clone();
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(format!("create the cgroup {}", directory.display()))(error));
                }
                _ => {}
            }
            if hierarchy.options.split(',').any(|option| option == "cpuset") {
                inherit_cpuset(&parent, &directory)?;
            }
        }
        let procs = directory.join("cgroup.procs");
        fs::write(&procs, "0").map_err(Error::io(format!("join the cgroup {}", directory.display())))?;
    }
    Ok(())
}

/// Limits a node's cgroup.
///
/// Errors: a controller that no hierarchy has.
pub(crate) fn limit(hierarchies: &[Hierarchy], cgroup: &Path, limits: &Limits) -> Result<()> {
    for (controller, [v2, v1]) in limits.files() {
        let has = |hierarchy: &&Hierarchy| match hierarchy.v2 {
            true => hierarchy.path.join(cgroup).join(v2.0).exists(),
            false => hierarchy.options.split(',').any(|option| option == controller),
        };
        let action = format!("limit {controller} of the node");
        let missing =
            || Error::io(&action)(io::Error::other(format!("this machine has no cgroup controller {controller}")));
        let hierarchy = hierarchies.iter().find(has).ok_or_else(missing)?;
        let (file, value) = if hierarchy.v2 { v2 } else { v1 };
        fs::write(hierarchy.path.join(cgroup).join(file), value).map_err(Error::io(&action))?;
    }
    Ok(())
}

/// A new v1 cpuset is empty, and no process can join it until it has processors and memory nodes.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let copy = || {
            if !fs::read_to_string(child.join(file))?.trim().is_empty() {
                return Ok(());
            }
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())
        };
        copy().map_err(Error::io(format!("set {}", child.join(file).display())))?;
    }
    Ok(())
}

/// Lets the children of a v2 cgroup use every controller that it has. Where that is refused (the
/// cgroup holds processes, or is not ours), the controller is not available to the node.
fn enable_controllers(directory: &Path) {
    let Ok(controllers) = fs::read_to_string(directory.join("cgroup.controllers")) else {
        return;
    };
    for controller in controllers.split_whitespace() {
        if let Err(error) = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::debug!(%error, controller, directory = %directory.display(), "controller not enabled");
        }
    }
}

/// Mounts the hierarchies on `target` inside a node, after its cgroup namespace was made. Hybrid
/// machines keep their layout: a tmpfs with a directory for each hierarchy.
pub(crate) fn mount_inside(hierarchies: &[Hierarchy], target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let [only] = hierarchies
        && only.v2
    {
        mount(Some("cgroup2"), target, Some("cgroup2"), flags, None::<&str>)?;
        return Ok(());
    }
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=755,size=1m"))?;
    for hierarchy in hierarchies {
        let Some(name) = hierarchy.path.file_name() else {
            continue;
        };
        let directory = target.join(name);
        fs::create_dir_all(&directory)?;
        if hierarchy.v2 {
            mount(Some("cgroup2"), &directory, Some("cgroup2"), flags, None::<&str>)?;
            continue;
        }
        let options = match hierarchy.options.starts_with("name=") {
            true => format!("none,{}", hierarchy.options),
            false => hierarchy.options.clone(),
        };
        mount(Some("cgroup"), &directory, Some("cgroup"), flags, Some(options.as_str()))?;
        // cpu and cpuacct are usually mounted together and known by both names.
        for single in hierarchy.options.split(',') {
            let link = target.join(single);
            if hierarchy.options.contains(',') && !link.exists() {
                std::os::unix::fs::symlink(name, link)?;
            }
        }
    }
    Ok(())
}

/// On v2 a cgroup with processes cannot give controllers to its children, so the node's own processes
/// move into a leaf, and its root gets ready for the pods.
pub(crate) fn make_room_for_pods(hierarchies: &[Hierarchy], mounted: &Path) -> io::Result<()> {
    let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.v2) else {
        return Ok(());
    };
    let root = match (hierarchies.len(), hierarchy.path.file_name()) {
        (1, _) | (_, None) => mounted.to_owned(),
        (_, Some(name)) => mounted.join(name),
    };
    let leaf = root.join("init");
    fs::create_dir_all(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0")?;
    enable_controllers(&root);
    Ok(())
}

/// Removes a cgroup and those below it from every hierarchy, waiting for the last processes to be gone.
pub(crate) fn remove(hierarchies: &[Hierarchy], cgroup: &Path, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    for hierarchy in hierarchies {
        let directory = hierarchy.path.join(cgroup);
        loop {
            match remove_tree(&directory) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => {
                    return Err(Error::io(format!("remove the cgroup {}", directory.display()))(error));
                }
            }
        }
    }
    Ok(())
}

/// Removes cgroups that no cluster uses any more; those in use are refused by the kernel.
pub(crate) fn remove_parents(hierarchies: &[Hierarchy], home: &Home, cluster: &str) {
    for hierarchy in hierarchies {
        for parent in [cluster_cgroup(home, cluster), PathBuf::from("skiff")] {
            // Another cluster in it is the normal case.
            let _ = fs::remove_dir(hierarchy.path.join(parent));
        }
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match remove_tree(&entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_other_homes_have_other_cgroups() {
        let home = |path: &str| Home::below(Path::new(path), PathBuf::new()).unwrap();
        let of = |path: &str| node_cgroup(&home(path), "dev", "dev-worker");
        assert_eq!(of("/a"), of("/a"));
        assert_ne!(of("/a"), of("/b"));
        assert!(of("/a").starts_with("skiff") && of("/a").ends_with("dev-worker"));
    }

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 27 0:29 / /somewhere/else rw - cgroup cgroup rw,cpu,cpuacct
";
        let read: Vec<_> = parse_hierarchies(hybrid).into_iter().map(|h| (h.options, h.v2)).collect();
        let expected = [("cpu,cpuacct", false), ("name=systemd", false), ("", true)];
        assert_eq!(read, expected.map(|(options, v2)| (options.to_owned(), v2)));
        let unified = "25 23 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(
            parse_hierarchies(unified),
            [Hierarchy { path: "/sys/fs/cgroup".into(), options: String::new(), v2: true }]
        );
    }
}
