//! How the runtime is set up.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use skiff_images::PullOptions;

/// How the runtime is set up. [`RuntimeConfig::new`] gives what a node uses.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// What survives a reboot: records, container file systems.
    pub root: PathBuf,
    /// What does not: sockets, namespaces, generated files.
    pub run: PathBuf,
    /// Program and arguments that start a supervisor; the program must call
    /// [`supervisor_main`](crate::supervisor_main) first thing.
    pub supervisor: Vec<OsString>,
    /// Where cgroups are mounted.
    pub cgroup_root: PathBuf,
    /// Parent of the cgroups of pods for which CRI names none.
    pub cgroup_parent: String,
    /// Version shown to clients.
    pub version: String,
    /// How to reach registries.
    pub pull: PullOptions,
}

impl RuntimeConfig {
    /// A runtime in these directories, whose supervisors are `skiff runtime-supervisor`.
    pub fn new(root: &Path, run: &Path) -> RuntimeConfig {
        RuntimeConfig {
            root: root.to_owned(),
            run: run.to_owned(),
            supervisor: vec!["/proc/self/exe".into(), "runtime-supervisor".into()],
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            cgroup_parent: "/skiff".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pull: PullOptions::default(),
        }
    }

    pub(crate) fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.root.join("sandboxes").join(id)
    }

    pub(crate) fn sandbox_run_dir(&self, id: &str) -> PathBuf {
        self.run.join("sandboxes").join(id)
    }

    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    pub(crate) fn netns_pin(&self, id: &str) -> PathBuf {
        self.run.join("netns").join(id)
    }

    pub(crate) fn seccomp_cache(&self) -> PathBuf {
        self.run.join("seccomp")
    }
}
