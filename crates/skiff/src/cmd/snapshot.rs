//! `skiff snapshot …`: a cluster's state from a backup.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use skiff_cluster::{Clusters, Home, node_config::DATA_DIR};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Make the state of a stopped control plane from a file of `etcdctl snapshot save`; what was there is set aside
    Restore(Restore),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    file: PathBuf,
    /// A local cluster, which must be stopped
    #[arg(long, value_name = "NAME", conflicts_with = "data_dir")]
    cluster: Option<String>,
    /// Where the server keeps its state
    #[arg(long, default_value = DATA_DIR)]
    data_dir: PathBuf,
}

pub(crate) fn run(command: SnapshotCommand) -> Result<()> {
    let SnapshotCommand::Restore(restore) = command;
    let data_dir = match &restore.cluster {
        None => restore.data_dir.clone(),
        Some(name) => {
            let home = Home::from_environment()?;
            let status = Clusters::new(home.clone()).get(name)?;
            let node = status.record.control_plane().context("the cluster has no control plane")?;
            if status.running.contains(&node.name) {
                bail!("cluster {name:?} is running: stop it first (skiff cluster stop {name})");
            }
            home.inside(name, &node.name, DATA_DIR)
        }
    };
    let contents = replace(&restore.file, &data_dir.join("db"))?;
    let out = &mut std::io::stdout().lock();
    writeln!(
        out,
        "Restored {} keys of revision {} from {}.",
        contents.keys,
        contents.revision,
        restore.file.display()
    )?;
    Ok(())
}

/// Puts a restored store in the place of the one that is there.
fn replace(snapshot: &Path, db: &Path) -> Result<skiff_etcd::snapshot::Contents> {
    fs::create_dir_all(db).with_context(|| format!("cannot make {}", db.display()))?;
    let (store, restored) = (db.join("state.redb"), db.join("restored.redb"));
    let beside = |path: &Path, end: &str| PathBuf::from(format!("{}.{end}", path.display()));
    let lock_path = beside(&store, "lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
    let lock = lock.with_context(|| format!("cannot open {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        bail!("a server uses {}: stop it first", store.display());
    }
    let remove = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    };
    // Of a try that was broken off.
    remove(&restored)?;
    remove(&beside(&restored, "mark"))?;
    let contents = skiff_etcd::snapshot::restore(snapshot, &restored)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let moved = |from: &Path, to: &Path| match fs::rename(from, to) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot rename {}", from.display()))
        }
        _ => Ok(()),
    };
    moved(&store, &beside(&store, &format!("before-{now}")))?;
    moved(&beside(&store, "mark"), &beside(&store, &format!("before-{now}.mark")))?;
    moved(&restored, &store)?;
    moved(&beside(&restored, "mark"), &beside(&store, "mark"))?;
    remove(&beside(&restored, "lock"))?;
    Ok(contents)
}
