//! What is left of pods that are gone from the API: sandboxes, directories, cgroups.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use skiff_cri::v1;

use crate::{cri::RuntimeError, kubelet::Kubelet, names, pod::PodUid, volumes::mounts};

/// Ends and removes everything that is of no pod in `live` and of none that has a worker.
pub(crate) async fn clean(kubelet: &Arc<Kubelet>, live: &HashSet<PodUid>) {
    let is_live = |uid: &PodUid| live.contains(uid) || kubelet.pods.get(uid).is_some();
    let sandboxes = match kubelet.runtime.all_sandboxes().await {
        Ok(sandboxes) => sandboxes,
        Err(error) => {
            tracing::warn!(%error, "cannot look for sandboxes without pods");
            return;
        }
    };
    let mut orphans: BTreeMap<PodUid, Vec<v1::PodSandbox>> = BTreeMap::new();
    for sandbox in sandboxes {
        // Others than the kubelet may use the runtime too.
        let Some(uid) = sandbox.labels.get(names::POD_UID) else { continue };
        let uid = PodUid::new(uid);
        if !is_live(&uid) {
            orphans.entry(uid).or_default().push(sandbox);
        }
    }
    let ended = futures::future::join_all(orphans.into_iter().map(|(uid, sandboxes)| {
        let kubelet = kubelet.clone();
        async move {
            if let Err(error) = end(&kubelet, &uid, &sandboxes).await {
                tracing::warn!(pod = %uid, %error, "cannot remove what is left of a pod");
            }
        }
    }));
    ended.await;
    let directory = kubelet.config.root_dir.join("pods");
    let Ok(entries) = std::fs::read_dir(&directory) else { return };
    for entry in entries.flatten() {
        let uid = PodUid::new(&entry.file_name().to_string_lossy());
        if is_live(&uid) {
            continue;
        }
        // Drivers take their volumes away themselves; what is mounted there is theirs.
        if let Err(error) = kubelet.csi.tear_down(&uid).await {
            tracing::warn!(pod = %uid, error, "cannot take away the volumes of a pod that is gone");
            continue;
        }
        if let Err(error) = mounts::remove_tree(&entry.path()) {
            tracing::warn!(pod = %uid, %error, "cannot remove the directory of a pod that is gone");
        }
    }
}

async fn end(kubelet: &Kubelet, uid: &PodUid, sandboxes: &[v1::PodSandbox]) -> Result<(), RuntimeError> {
    tracing::info!(pod = %uid, "ending a pod that is gone from the API");
    let containers = kubelet.runtime.containers_of(uid).await?;
    let running = containers.iter().filter(|c| c.state == v1::ContainerState::Running as i32);
    let stops = running.map(|c| {
        let grace = c.annotations.get(names::POD_GRACE_PERIOD).and_then(|g| g.parse().ok()).unwrap_or(30);
        kubelet.runtime.stop_container(&c.id, grace)
    });
    futures::future::try_join_all(stops).await?;
    for sandbox in sandboxes {
        kubelet.runtime.stop_sandbox(&sandbox.id).await?;
        kubelet.runtime.remove_sandbox(&sandbox.id).await?;
        if let Some(meta) = &sandbox.metadata {
            let logs = kubelet.config.pod_log_dir(&meta.namespace, &meta.name, &meta.uid);
            remove_logs(&logs);
        }
    }
    kubelet.cgroups.remove(uid);
    Ok(())
}

/// Removes a pod's logs.
pub(crate) fn remove_logs(directory: &std::path::Path) {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "cannot remove a pod's logs");
        }
        _ => {}
    }
}
