//! What many tests use: made when the first one wants it, taken away after the last.

use std::{path::Path, sync::OnceLock};

use parking_lot::{Mutex, MutexGuard};
use skiff_e2e::{Cluster, Kubectl, Server, leftovers};

use crate::runner::Test;

static SERVER: OnceLock<Mutex<Option<Server>>> = OnceLock::new();
static CLUSTER: OnceLock<Mutex<Option<Cluster>>> = OnceLock::new();

/// The nodes of the shared cluster.
pub(crate) const CONTROL_PLANE: &str = "shared-control-plane";
pub(crate) const WORKER: &str = "shared-worker";

/// kubectl in a new namespace of a control plane without nodes.
pub(crate) fn server(namespace: &str) -> Kubectl {
    let server = SERVER.get_or_init(|| Mutex::new(Some(Server::start())));
    let kubectl = server.lock().as_ref().expect("taken only after the last test").kubectl();
    kubectl.in_new(namespace)
}

/// kubectl, without a namespace, for a cluster of two nodes that has the images nginx and busybox.
pub(crate) fn cluster() -> Kubectl {
    the_cluster().lock().as_ref().expect("taken only after the last test").kubectl()
}

/// Loads further images into that cluster.
pub(crate) fn load(images: &[&str]) {
    the_cluster().lock().as_ref().expect("taken only after the last test").load(images);
}

/// Loads the images of an archive into that cluster.
pub(crate) fn load_archive(archive: &Path) {
    the_cluster().lock().as_ref().expect("taken only after the last test").load_archive(archive);
}

/// Port 80 of this machine: one test at a time may have it.
pub(crate) fn port_80() -> MutexGuard<'static, ()> {
    static PORT: Mutex<()> = Mutex::new(());
    PORT.lock()
}

fn the_cluster() -> &'static Mutex<Option<Cluster>> {
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::create("shared", &["--nodes", "2"]);
        cluster.load(&["nginx", "busybox"]);
        Mutex::new(Some(cluster))
    })
}

/// Takes everything away, and tells what is left.
pub(crate) fn clear() -> Vec<String> {
    let mut left = Vec::new();
    if let Some(server) = SERVER.get().and_then(|server| server.lock().take()) {
        drop(server);
    }
    if let Some(cluster) = CLUSTER.get().and_then(|cluster| cluster.lock().take()) {
        left.extend(cluster.delete());
    }
    left.extend(leftovers::devices().into_iter().map(|device| format!("network device {device}")));
    left
}

/// The last test.
pub(crate) const END: Test = Test { name: "nothing_is_left_behind", run: nothing_is_left_behind };

fn nothing_is_left_behind() {
    let left = clear();
    assert!(left.is_empty(), "{left:#?}");
}
