//! Making a volume ready for a pod: attached, staged once on the node, published for the pod.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Node, Pod},
    storage::v1::{CSIDriverSpec, VolumeAttachment},
};
use kube::Api;
use skiff_api::csi::attachment_name;
use skiff_csi::v1;

use super::{
    Failure,
    driver::{CallError, Capabilities, Driver},
    paths::{GLOBAL_MOUNT, MOUNT, VolumeData, make_dir, remove_dir, remove_file},
    tokens,
    unmount::nothing_mounted,
    users::Key,
    volume::{Secret, Volume},
};
use crate::{
    kubelet::Kubelet,
    pod::{PodExt, PodUid},
    volumes::{api_message, ownership},
};

/// A volume and how a pod wants it.
pub(crate) struct Request {
    pub(crate) volume: Volume,
    pub(crate) fs_group: Option<u32>,
    /// Files are given to the group only if the volume's directory is not yet its.
    pub(crate) on_root_mismatch: bool,
}

/// One volume on its way to a pod.
struct Mount {
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    uid: PodUid,
    request: Request,
    key: Key,
}

const SET_UP: &str = "MountVolume.SetUp";
const MOUNT_DEVICE: &str = "MountVolume.MountDevice";
const SET_UP_DEVICE: &str = "MapVolume.SetUpDevice";

fn failed(step: &'static str) -> impl Fn(String) -> Failure {
    move |message| Failure { step, message }
}

/// The error of upstream's plugin, which names itself.
fn own(step: &'static str, what: &'static str) -> impl Fn(String) -> Failure {
    move |why| Failure { step, message: format!("kubernetes.io/csi: {what}: {why}") }
}

/// Does all of it; what was done before is not done again. Returns where the volume is on the node, the mount point
/// or the device.
pub(crate) async fn set_up(kubelet: Arc<Kubelet>, pod: Arc<Pod>, request: Request) -> Result<PathBuf, Failure> {
    let key = Key::new(&request.volume.driver, &request.volume.handle);
    let mount = Mount { uid: pod.uid(), kubelet, pod, request, key };
    match (mount.request.volume.ephemeral, mount.request.volume.block) {
        (true, _) => mount.ephemeral().await,
        (false, false) => mount.file_system().await,
        (false, true) => mount.device().await,
    }
}

impl Mount {
    fn volume(&self) -> &Volume {
        &self.request.volume
    }

    async fn object(&self, step: &'static str) -> Result<Option<CSIDriverSpec>, Failure> {
        self.kubelet.csi.object(&self.volume().driver).await.map_err(failed(step))
    }

    async fn ephemeral(&self) -> Result<PathBuf, Failure> {
        let object = self.object(SET_UP).await?;
        let modes = object.as_ref().and_then(|o| o.volume_lifecycle_modes.clone()).unwrap_or_default();
        let modes = if modes.is_empty() { vec!["Persistent".to_owned()] } else { modes };
        if !modes.iter().any(|m| m == "Ephemeral") {
            let driver = &self.volume().driver;
            let message =
                format!("volume mode \"Ephemeral\" not supported by driver {driver} (only supports {modes:?})");
            return Err(failed("MountVolume.NewMounter initialization")(message));
        }
        let (driver, can) = self.driver().await.map_err(own(SET_UP, "mounter.SetUpAt failed to get CSI client"))?;
        self.publish(&driver, can, object.as_ref(), "", BTreeMap::new()).await
    }

    async fn file_system(&self) -> Result<PathBuf, Failure> {
        self.enter();
        let object = self.object(MOUNT_DEVICE).await?;
        let context = self.attached(object.as_ref()).await?;
        // Nobody unstages it until it is published.
        let _lock = self.kubelet.csi.users.lock(&self.key).await;
        let (driver, can) = self
            .driver()
            .await
            .map_err(own(MOUNT_DEVICE, "attacher.MountDevice failed to create newCsiDriverClient"))?;
        let staging = self.kubelet.csi.paths.staging(&self.key.driver, &self.key.handle);
        let global = staging.join(GLOBAL_MOUNT);
        if !self.kubelet.csi.users.is_staged(&self.key) {
            self.stage(&driver, can, &staging, &global, &context).await?;
            self.kubelet.csi.users.set_staged(&self.key, true);
        }
        let staged_at = if can.stages { text(&global) } else { String::new() };
        self.publish(&driver, can, object.as_ref(), &staged_at, context).await
    }

    /// The pod uses the volume from now on, which the node's status will say.
    fn enter(&self) {
        if self.kubelet.csi.users.enter(&self.key, &self.uid) {
            self.kubelet.node_changed.notify_one();
        }
    }

    async fn driver(&self) -> Result<(Driver, Capabilities), String> {
        let driver = self.kubelet.csi.driver(&self.volume().driver)?;
        let can = driver.capabilities().await.map_err(|e| e.to_string())?;
        Ok((driver, can))
    }

    /// Waits until the volume is attached, and returns what the driver's controller has to say to its node side.
    async fn attached(&self, object: Option<&CSIDriverSpec>) -> Result<BTreeMap<String, String>, Failure> {
        if object.is_some_and(|o| o.attach_required == Some(false)) {
            return Ok(BTreeMap::new());
        }
        let ended = async {
            match self.kubelet.pods.get(&self.uid) {
                Some(pod) => pod.ended().await,
                None => std::future::pending().await,
            }
        };
        let attached = async {
            // Whoever detaches volumes reads this in the node's status.
            self.kubelet.csi.users.reported(&self.key).await;
            self.said_attached().await;
        };
        const WAIT: &str = "MountVolume.WaitForAttach";
        tokio::select! {
            () = attached => {}
            () = ended => return Err(failed(WAIT)("the pod is to end".to_owned())),
        }
        let (driver, handle) = (&self.key.driver, &self.key.handle);
        let name = attachment_name(driver, handle, &self.kubelet.config.node_name);
        let api: Api<VolumeAttachment> = Api::all(self.kubelet.client.clone());
        let attachment = api.get(&name).await.map_err(|e| {
            failed(WAIT)(format!("volume {handle} has GET error for volume attachment {name}: {}", api_message(&e)))
        })?;
        if attachment.metadata.deletion_timestamp.is_some() {
            return Err(failed(WAIT)("volume attachment is being deleted".to_owned()));
        }
        let status = attachment.status.unwrap_or_default();
        match (status.attached, status.attach_error) {
            (true, _) => Ok(status.attachment_metadata.unwrap_or_default()),
            (false, Some(error)) => Err(failed(WAIT)(error.message.unwrap_or_default())),
            (false, None) => Err(failed(WAIT)(format!("volume {handle} is not attached yet"))),
        }
    }

    /// Waits until the node's status says that the volume is attached.
    async fn said_attached(&self) {
        let name = self.key.unique_name();
        let says = |node: &Node| {
            let attached = node.status.as_ref().and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default();
            attached.iter().any(|v| v.name == name)
        };
        let mut changes = self.kubelet.node.subscribe();
        while !self.kubelet.node.get("", &self.kubelet.config.node_name).is_some_and(|node| says(&node)) {
            if changes.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn capability(&self, can: Capabilities) -> v1::VolumeCapability {
        let group = self.request.fs_group.filter(|_| can.mount_group);
        self.volume().capability(can.single_node_multi_writer, group)
    }

    fn data(&self, more: &[(&str, &str)]) -> VolumeData {
        let known = [("driverName", self.key.driver.as_str()), ("volumeHandle", &self.key.handle)];
        let all = known.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        VolumeData(all.collect())
    }

    async fn stage(
        &self,
        driver: &Driver,
        can: Capabilities,
        dir: &Path,
        target: &Path,
        context: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let io = |e: io::Error| own(MOUNT_DEVICE, "attacher.MountDevice failed to create dir")(e.to_string());
        let secrets = secret(&self.kubelet, &self.uid, self.volume().stage_secret.as_ref()).await.map_err(|why| {
            let (namespace, name) = self.volume().stage_secret.clone().unwrap_or_default();
            failed(MOUNT_DEVICE)(format!("fetching NodeStageSecretRef {namespace}/{name} failed: {why}"))
        })?;
        make_dir(target).map_err(io)?;
        // Before the driver does anything, so that whoever comes next knows what to undo.
        self.data(&[]).save(dir).map_err(io)?;
        if !can.stages {
            return Ok(());
        }
        let request = self.stage_request(target, can, context, secrets);
        let staged = driver.stage(request).await;
        if let Err(error) = &staged
            && error.is_final()
            && let Err(left) = give_up(target, dir)
        {
            tracing::warn!(path = %dir.display(), error = %left, "cannot take away what was made for a volume");
        }
        staged.map_err(|e| failed(MOUNT_DEVICE)(e.to_string()))
    }

    fn stage_request(
        &self,
        target: &Path,
        can: Capabilities,
        context: &BTreeMap<String, String>,
        secrets: BTreeMap<String, String>,
    ) -> v1::NodeStageVolumeRequest {
        v1::NodeStageVolumeRequest {
            volume_id: self.key.handle.clone(),
            publish_context: context.clone(),
            staging_target_path: text(target),
            volume_capability: Some(self.capability(can)),
            secrets,
            volume_context: self.volume().attributes.clone(),
        }
    }

    /// What the pod has to do with it, where the driver wants to know.
    async fn publish_request(
        &self,
        step: &'static str,
        target: &Path,
        can: Capabilities,
        object: Option<&CSIDriverSpec>,
        staged_at: &str,
        publish_context: BTreeMap<String, String>,
    ) -> Result<v1::NodePublishVolumeRequest, Failure> {
        let volume = self.volume();
        let mut secrets = secret(&self.kubelet, &self.uid, volume.publish_secret.as_ref()).await.map_err(|why| {
            let (namespace, name) = volume.publish_secret.clone().unwrap_or_default();
            failed(step)(format!("fetching NodePublishSecretRef {namespace}/{name} failed: {why}"))
        })?;
        let mut volume_context = volume.attributes.clone();
        if object.is_some_and(|o| o.pod_info_on_mount == Some(true)) {
            volume_context.extend(pod_info(&self.pod, volume.ephemeral));
        }
        if let Some(object) = object {
            let tokens = tokens::of(&self.kubelet, &self.pod, object)
                .await
                .map_err(own(step, "mounter.SetUpAt failed to get service accoount token attributes"))?;
            match object.service_account_token_in_secrets == Some(true) {
                true => secrets.extend(tokens),
                false => volume_context.extend(tokens),
            }
        }
        Ok(v1::NodePublishVolumeRequest {
            volume_id: self.key.handle.clone(),
            publish_context,
            staging_target_path: staged_at.to_owned(),
            target_path: text(target),
            volume_capability: Some(self.capability(can)),
            readonly: volume.read_only,
            secrets,
            volume_context,
        })
    }

    async fn publish(
        &self,
        driver: &Driver,
        can: Capabilities,
        object: Option<&CSIDriverSpec>,
        staged_at: &str,
        publish_context: BTreeMap<String, String>,
    ) -> Result<PathBuf, Failure> {
        let volume = self.volume();
        let dir = self.kubelet.csi.paths.pod_volume(&self.uid, &volume.name);
        let target = dir.join(MOUNT);
        let request = self.publish_request(SET_UP, &target, can, object, staged_at, publish_context).await?;
        let io = |e: io::Error| own(SET_UP, "mounter.SetUpAt failed to create dir")(e.to_string());
        make_dir(&dir).map_err(io)?;
        let node = &self.kubelet.config.node_name;
        let attachment = attachment_name(&self.key.driver, &self.key.handle, node);
        let mode = if volume.ephemeral { "Ephemeral" } else { "Persistent" };
        let data = self.data(&[
            ("specVolID", &volume.name),
            ("nodeName", node),
            ("attachmentID", &attachment),
            ("volumeLifecycleMode", mode),
        ]);
        data.save(&dir).map_err(io)?;
        if let Err(error) = driver.publish(request).await {
            if error.is_final()
                && let Err(left) = give_up(&target, &dir)
            {
                tracing::warn!(path = %dir.display(), error = %left, "cannot take away what was made for a volume");
            }
            return Err(failed(SET_UP)(error.to_string()));
        }
        let policy = object.and_then(|o| o.fs_group_policy.as_deref()).unwrap_or("ReadWriteOnceWithFSType");
        if let Some(group) = self.request.fs_group.filter(|_| !can.mount_group && volume.takes_group(policy)) {
            let (path, on_root_mismatch) = (target.clone(), self.request.on_root_mismatch);
            // There may be many files.
            let given =
                tokio::task::spawn_blocking(move || ownership::set(&path, group, false, on_root_mismatch)).await;
            let given = given.map_err(|e| e.to_string()).and_then(|done| done.map_err(|e| e.to_string()));
            given.map_err(|e| failed(SET_UP)(format!("applyFSGroup failed for vol {}: {e}", self.key.handle)))?;
        }
        Ok(target)
    }

    async fn device(&self) -> Result<PathBuf, Failure> {
        self.enter();
        let object = self.object(SET_UP_DEVICE).await?;
        let context = self.attached(object.as_ref()).await?;
        let _lock = self.kubelet.csi.users.lock(&self.key).await;
        let (driver, can) =
            self.driver().await.map_err(own(SET_UP_DEVICE, "blockMapper.SetUpDevice failed to get CSI client"))?;
        let (paths, name) = (&self.kubelet.csi.paths, self.volume().name.as_str());
        let (data, staging) = (paths.device_data(name), paths.device_staging(name));
        let publish = paths.device_publish(name, &self.uid);
        let link = paths.pod_devices(&self.uid).join(name);
        let io = |e: io::Error| failed(SET_UP_DEVICE)(e.to_string());
        for dir in [Some(&*data), Some(&*staging), publish.parent(), link.parent()].into_iter().flatten() {
            make_dir(dir).map_err(io)?;
        }
        self.data(&[("specVolID", name), ("nodeName", &self.kubelet.config.node_name)]).save(&data).map_err(io)?;
        remove_file(&link).map_err(io)?;
        std::os::unix::fs::symlink(&publish, &link).map_err(io)?;
        let call = |e: CallError| failed(SET_UP_DEVICE)(e.to_string());
        let mut staged_at = String::new();
        if can.stages {
            staged_at = text(&staging);
            if !self.kubelet.csi.users.is_staged(&self.key) {
                let stage = self.volume().stage_secret.as_ref();
                let secrets = secret(&self.kubelet, &self.uid, stage)
                    .await
                    .map_err(|why| failed(SET_UP_DEVICE)(format!("failed to get NodeStageSecretRef: {why}")))?;
                driver.stage(self.stage_request(&staging, can, &context, secrets)).await.map_err(call)?;
                self.kubelet.csi.users.set_staged(&self.key, true);
            }
        }
        let request = self.publish_request(SET_UP_DEVICE, &publish, can, object.as_ref(), &staged_at, context).await?;
        driver.publish(request).await.map_err(call)?;
        match fs::metadata(&publish) {
            Ok(made) if made.file_type().is_block_device() => Ok(publish),
            Ok(_) => Err(failed(SET_UP_DEVICE)(format!("{} is not a block device", publish.display()))),
            Err(error) => Err(io(error)),
        }
    }
}

/// The entries of a secret; none if none is named. The pod is woken when it changes.
pub(super) async fn secret(
    kubelet: &Kubelet,
    uid: &PodUid,
    secret: Option<&Secret>,
) -> Result<BTreeMap<String, String>, String> {
    let Some((namespace, name)) = secret else { return Ok(BTreeMap::new()) };
    let wrapped =
        |why: String| format!("failed to find the secret {name} in the namespace {namespace} with error: {why}");
    let found = kubelet.secrets.get(namespace, name, uid).await.map_err(|e| wrapped(e.to_string()))?;
    let found = found.ok_or_else(|| wrapped(format!("secrets {name:?} not found")))?;
    let data = found.data.clone().unwrap_or_default().into_iter();
    Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
}

/// What upstream tells of a pod.
fn pod_info(pod: &Pod, ephemeral: bool) -> impl Iterator<Item = (String, String)> {
    let account = PodExt::spec(pod).service_account_name.clone().unwrap_or_default();
    [
        ("pod.name", pod.name().to_owned()),
        ("pod.namespace", pod.namespace().to_owned()),
        ("pod.uid", pod.uid().to_string()),
        ("serviceAccount.name", account),
        ("ephemeral", ephemeral.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
}

/// Takes away what was made for a driver that has then refused.
fn give_up(target: &Path, dir: &Path) -> io::Result<()> {
    nothing_mounted(dir)?;
    remove_dir(target)?;
    VolumeData::remove(dir)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
