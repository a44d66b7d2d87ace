//! Taking volumes away, by what is on the disk: any kubelet can undo what the one before it did.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use skiff_csi::v1;

use super::{
    Csi,
    driver::Driver,
    paths::{GLOBAL_MOUNT, MOUNT, VolumeData, remove_dir, remove_file},
    users::Key,
};
use crate::{kubelet::Kubelet, pod::PodUid, volumes::mounts};

/// Before a volume that could not be unstaged is tried again: doubled from the first to the last.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// Refuses if something is mounted below a directory.
pub(super) fn nothing_mounted(dir: &Path) -> io::Result<()> {
    match mounts::mounts_below(dir)?.first() {
        Some(path) => Err(io::Error::other(format!("{} is still mounted", path.display()))),
        None => Ok(()),
    }
}

impl Csi {
    /// Unpublishes all volumes of a pod whose containers have ended. Volumes that can be are, whatever is wrong with
    /// others. The last pod's volumes are unstaged afterwards by [`unstage_unused`].
    pub(crate) async fn tear_down(&self, uid: &PodUid) -> Result<(), String> {
        let mut wrong = Vec::new();
        for dir in self.paths.all_pod_volumes(uid) {
            if let Err(why) = self.unpublish(uid, &dir).await {
                wrong.push(format!("{}: {why}", dir.display()));
            }
        }
        for link in self.paths.all_pod_devices(uid) {
            if let Err(why) = self.unpublish_device(uid, &link).await {
                wrong.push(format!("{}: {why}", link.display()));
            }
        }
        // Those for which it never came to anything on the disk.
        if wrong.is_empty() {
            for key in self.users.all() {
                self.users.leave(&key, uid);
            }
            self.mounted.write().remove(uid);
            self.unused.notify_one();
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    async fn unpublish(&self, uid: &PodUid, dir: &Path) -> Result<(), String> {
        let text = |e: io::Error| e.to_string();
        let target = dir.join(MOUNT);
        let Some(data) = VolumeData::load(dir).map_err(text)? else {
            nothing_mounted(dir).map_err(text)?;
            remove_dir(&target).map_err(text)?;
            return remove_dir(dir).map_err(text);
        };
        let key = Key::new(data.driver(), data.handle());
        let driver = self.client(data.driver())?;
        {
            let _lock = self.users.lock(&key).await;
            unpublish(&driver, &key, &target).await?;
            nothing_mounted(dir).map_err(text)?;
            remove_dir(&target).map_err(text)?;
            VolumeData::remove(dir).map_err(text)?;
            self.users.leave(&key, uid);
            if data.is_ephemeral() {
                self.users.forget(&key);
            }
        }
        self.unused.notify_one();
        Ok(())
    }

    async fn unpublish_device(&self, uid: &PodUid, link: &Path) -> Result<(), String> {
        let text = |e: io::Error| e.to_string();
        let name = link.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(data) = VolumeData::load(&self.paths.device_data(name)).map_err(text)? else {
            return remove_file(link).map_err(text);
        };
        let key = Key::new(data.driver(), data.handle());
        let target = self.paths.device_publish(name, uid);
        let driver = self.client(data.driver())?;
        {
            let _lock = self.users.lock(&key).await;
            unpublish(&driver, &key, &target).await?;
            nothing_mounted(&target).map_err(text)?;
            remove_file(&target).map_err(text)?;
            remove_file(link).map_err(text)?;
            self.users.leave(&key, uid);
        }
        self.unused.notify_one();
        Ok(())
    }

    fn client(&self, driver: &str) -> Result<Driver, String> {
        self.driver(driver).map_err(|e| format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {e}"))
    }

    /// Takes a volume off the node if no pod has it any more.
    async fn unstage(&self, key: &Key) -> Result<(), String> {
        let text = |e: io::Error| e.to_string();
        let _lock = self.users.lock(key).await;
        if self.users.is_used(key) {
            return Ok(());
        }
        let staging = self.paths.staging(&key.driver, &key.handle);
        if fs::symlink_metadata(&staging).is_ok() {
            let target = staging.join(GLOBAL_MOUNT);
            self.unstage_at(key, &target).await?;
            nothing_mounted(&staging).map_err(text)?;
            remove_dir(&target).map_err(text)?;
            VolumeData::remove(&staging).map_err(text)?;
        }
        for data in self.paths.all_device_data() {
            let of = VolumeData::load(&data).map_err(text)?;
            let Some(volume) = of.filter(|d| d.driver() == key.driver && d.handle() == key.handle) else { continue };
            let name = volume.0.get("specVolID").cloned().unwrap_or_default();
            let target = self.paths.device_staging(&name);
            self.unstage_at(key, &target).await?;
            nothing_mounted(&target).map_err(text)?;
            // What a driver keeps there is its own; upstream removes it too.
            if fs::symlink_metadata(&target).is_ok() {
                fs::remove_dir_all(&target).map_err(text)?;
            }
            VolumeData::remove(&data).map_err(text)?;
            if let Some(dir) = data.parent() {
                remove_dir(dir).map_err(text)?;
            }
        }
        self.users.set_staged(key, false);
        self.users.forget(key);
        Ok(())
    }

    async fn unstage_at(&self, key: &Key, target: &Path) -> Result<(), String> {
        let driver = self.client(&key.driver)?;
        if !driver.capabilities().await.map_err(|e| e.to_string())?.stages {
            return Ok(());
        }
        let staging_target_path = target.to_string_lossy().into_owned();
        let request = v1::NodeUnstageVolumeRequest { volume_id: key.handle.clone(), staging_target_path };
        driver.unstage(request).await.map_err(|e| e.to_string())
    }
}

async fn unpublish(driver: &Driver, key: &Key, target: &Path) -> Result<(), String> {
    let target_path = target.to_string_lossy().into_owned();
    let request = v1::NodeUnpublishVolumeRequest { volume_id: key.handle.clone(), target_path };
    driver.unpublish(request).await.map_err(|e| format!("kubernetes.io/csi: mounter.TearDownAt failed: {e}"))
}

/// Unstages volumes that no pod has any more, until it is dropped. Only then may they be detached.
pub(crate) async fn unstage_unused(kubelet: Arc<Kubelet>) {
    let csi = &kubelet.csi;
    let mut delay = RETRY;
    loop {
        let mut left = false;
        for key in csi.users.unused() {
            if let Err(error) = csi.unstage(&key).await {
                tracing::warn!(driver = key.driver, volume = key.handle, error, "cannot take a volume off the node");
                left = true;
            }
            kubelet.node_changed.notify_one();
        }
        if !left {
            delay = RETRY;
            csi.unused.notified().await;
            continue;
        }
        tokio::select! {
            () = csi.unused.notified() => {}
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(RETRY_MAX);
    }
}
