//! Where everything is.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

const STATE: &str = "/var/lib/skiff";
const RUN: &str = "/run/skiff";

/// The directories of all clusters.
///
/// ```text
/// STATE/clusters/NAME/cluster.json             what was created
/// STATE/clusters/NAME/nodes/NODE/rootfs        the node's file system
/// STATE/clusters/NAME/nodes/NODE/init.json     what its first process is told
/// RUN/clusters/NAME/fabric                     the cluster's network namespace
/// RUN/clusters/NAME/NODE.json                  the node's first process
/// ```
#[derive(Debug, Clone)]
pub struct Home {
    pub state: PathBuf,
    pub run: PathBuf,
    /// The program that nodes run: this one.
    pub program: PathBuf,
}

impl Home {
    /// The usual places, or those below `$SKIFF_HOME`.
    pub fn from_environment() -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::io("find the running program"))?;
        let home = std::env::var_os("SKIFF_HOME").filter(|value| !value.is_empty());
        Ok(match home {
            Some(home) => Self::below(&PathBuf::from(home), program)?,
            None => Self { state: PathBuf::from(STATE), run: PathBuf::from(RUN), program },
        })
    }

    /// Everything in one directory.
    pub fn below(directory: &Path, program: PathBuf) -> Result<Self> {
        let directory = std::path::absolute(directory).map_err(Error::io("resolve SKIFF_HOME"))?;
        Ok(Self { run: directory.join("run"), state: directory, program })
    }

    pub fn clusters(&self) -> PathBuf {
        self.state.join("clusters")
    }

    pub fn cluster(&self, name: &str) -> PathBuf {
        self.clusters().join(name)
    }

    pub fn node(&self, cluster: &str, node: &str) -> PathBuf {
        self.cluster(cluster).join("nodes").join(node)
    }

    /// The node's file system as seen from outside.
    pub fn rootfs(&self, cluster: &str, node: &str) -> PathBuf {
        self.node(cluster, node).join("rootfs")
    }

    /// A path inside the node as seen from outside.
    pub fn inside(&self, cluster: &str, node: &str, path: &str) -> PathBuf {
        self.rootfs(cluster, node).join(path.trim_start_matches('/'))
    }

    pub(crate) fn run_dir(&self, cluster: &str) -> PathBuf {
        self.run.join("clusters").join(cluster)
    }

    pub(crate) fn fabric(&self, cluster: &str) -> PathBuf {
        self.run_dir(cluster).join("fabric")
    }
}

/// Writes a file so that readers see the old or the new content, never a part.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let write = || {
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&draft)))
}
