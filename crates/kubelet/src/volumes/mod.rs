//! A pod's volumes: directories on the node that hold what the volume's source says, kept up to date.
//!
//! [`PodVolumes::prepare`] is called whenever something may have changed. It makes what is missing and rewrites what
//! differs, so it can be called at any time, also by a kubelet that was started anew.

mod atomic;
mod claims;
mod host_path;
pub(crate) mod mounts;
pub(crate) mod ownership;
mod payload;
pub(crate) mod tokens;

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fs,
    hash::{Hash as _, Hasher as _},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount,
};
use skiff_api::quantity::Quantity;
use skiff_cri::v1;

use self::{
    atomic::{File, Payload},
    payload::DEFAULT_MODE,
};
use crate::{
    csi,
    expansion::expand,
    fields::Addresses,
    kubelet::Kubelet,
    pod::{PodExt, PodUid},
};

/// The share of its life after which a token is replaced.
const TOKEN_RENEWAL: f64 = 0.8;

/// A volume that cannot be used yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Something is wrong with it.
    #[error("{step} failed for volume \"{volume}\" : {message}")]
    Failed {
        /// As upstream names it.
        step: &'static str,
        volume: String,
        message: String,
    },
    /// It is being made ready; the pod is woken when that is over.
    #[error("volumes are being made ready")]
    Pending {
        /// Since when, that of the last try.
        since: Instant,
    },
}

/// The volumes of one pod.
#[derive(Default)]
pub(crate) struct PodVolumes {
    ready: HashMap<String, Ready>,
    /// By volume and path.
    tokens: HashMap<(String, String), Token>,
    csi: csi::PodVolumes,
}

struct Ready {
    path: PathBuf,
    /// Of what was written last, for those that are written.
    written: Option<u64>,
    /// The source itself cannot be written to.
    read_only: bool,
    /// It is a device, not a directory.
    device: bool,
}

struct Token {
    token: String,
    renew_at: Timestamp,
}

/// What every source needs to know.
struct Context<'a> {
    kubelet: &'a Arc<Kubelet>,
    pod: &'a Arc<Pod>,
    uid: PodUid,
    fs_group: Option<u32>,
    /// The user of all containers, if it is the same.
    fs_user: Option<u32>,
}

impl PodVolumes {
    /// Makes all volumes ready and up to date. Volumes that can be made are, whatever is wrong with others.
    pub(crate) async fn prepare(&mut self, kubelet: &Arc<Kubelet>, pod: &Arc<Pod>) -> Result<(), VolumeError> {
        let security = PodExt::spec(&**pod).security_context.as_ref();
        let fs_group = security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
        let context = Context { kubelet, pod, uid: pod.uid(), fs_group, fs_user: common_user(pod) };
        let mut first_error = None;
        for volume in PodExt::spec(&**pod).volumes.iter().flatten() {
            let known = self.ready.contains_key(&volume.name);
            let prepared = self.prepare_one(&context, volume).await;
            if let Err(error) = prepared {
                if known {
                    // It goes on with what it has.
                    tracing::debug!(pod = %context.uid, %error, "a volume cannot be brought up to date");
                    continue;
                }
                // What is wrong comes before what only takes its time.
                if first_error.as_ref().is_none_or(|e| matches!(e, VolumeError::Pending { .. })) {
                    first_error = Some(error);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// When a token has to be renewed, if there is any.
    pub(crate) fn next_renewal(&self) -> Option<Timestamp> {
        self.tokens.values().map(|t| t.renew_at).min()
    }

    async fn prepare_one(&mut self, context: &Context<'_>, volume: &Volume) -> Result<(), VolumeError> {
        let failed =
            |message: String| VolumeError::Failed { step: "MountVolume.SetUp", volume: volume.name.clone(), message };
        if let Some(wanted) = csi::Volume::inline(volume, context.pod.namespace(), &context.uid) {
            return self.prepare_csi(context, &volume.name, wanted.map_err(failed)?).await;
        }
        if let Some(source) = claims::Source::of(context.pod, volume) {
            // What a volume is does not change while a pod has it.
            if let Some(wanted) = self.csi.known(&volume.name) {
                return self.prepare_csi(context, &volume.name, wanted).await;
            }
            if self.ready.contains_key(&volume.name) {
                return Ok(());
            }
            return match source.prepare(&context.kubelet.client, context.pod).await.map_err(failed)? {
                claims::Claimed::Csi(wanted) => self.prepare_csi(context, &volume.name, *wanted).await,
                claims::Claimed::Directory { path, read_only, takes_group } => {
                    if let Some(group) = context.fs_group.filter(|_| !read_only && takes_group) {
                        ownership::set(&path, group, false, context.on_root_mismatch())
                            .map_err(|e| failed(e.to_string()))?;
                    }
                    self.insert(&volume.name, path, None, read_only);
                    Ok(())
                }
                claims::Claimed::Device { path, read_only } => {
                    self.ready.insert(volume.name.clone(), Ready { path, written: None, read_only, device: true });
                    Ok(())
                }
            };
        }
        self.prepare_own(context, volume).await.map_err(failed)
    }

    async fn prepare_csi(&mut self, context: &Context<'_>, name: &str, wanted: csi::Volume) -> Result<(), VolumeError> {
        let request = csi::Request {
            volume: wanted.clone(),
            fs_group: context.fs_group,
            on_root_mismatch: context.on_root_mismatch(),
        };
        let path = self.csi.prepare(context.kubelet, context.pod, name, request).await?;
        let ready = Ready { path, written: None, read_only: wanted.read_only, device: wanted.block };
        self.ready.insert(name.to_owned(), ready);
        Ok(())
    }

    /// How long until a volume is to be published anew, if any is.
    pub(crate) fn next_republish(&self) -> Option<Duration> {
        self.csi.next_republish()
    }

    /// Waits for work on volumes that is under way, before they are taken away.
    pub(crate) async fn finish(&mut self) {
        self.csi.finish().await;
    }

    /// Upstream's words for volumes that take too long.
    pub(crate) fn timed_out(&self) -> String {
        let waiting = self.csi.waiting().join(" ");
        format!(
            "Unable to attach or mount volumes: unmounted volumes=[{waiting}], unattached volumes=[], failed to process volumes=[]: context deadline exceeded"
        )
    }

    /// A volume of which nobody else than the kubelet has to be asked.
    async fn prepare_own(&mut self, context: &Context<'_>, volume: &Volume) -> Result<(), String> {
        let name = volume.name.as_str();
        if let Some(source) = &volume.empty_dir {
            if !self.ready.contains_key(name) {
                let path = context.volume_dir("empty-dir", name);
                empty_dir(&path, source, context.fs_group).map_err(|e| e.to_string())?;
                self.insert(name, path, None, false);
            }
            return Ok(());
        }
        if let Some(source) = &volume.host_path {
            host_path::check(&source.path, source.type_.as_deref().unwrap_or_default())?;
            self.insert(name, PathBuf::from(&source.path), None, false);
            return Ok(());
        }
        if let Some(source) = &volume.config_map {
            let payload =
                context.config_map(&source.name, source.items.as_deref(), source.optional, source.default_mode).await?;
            return self.write(context, "configmap", name, payload);
        }
        if let Some(source) = &volume.secret {
            let secret = source.secret_name.as_deref().unwrap_or_default();
            let payload = context.secret(secret, source.items.as_deref(), source.optional, source.default_mode).await?;
            return self.write(context, "secret", name, payload);
        }
        if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            let payload = context.downward(items, source.default_mode)?;
            return self.write(context, "downward-api", name, payload);
        }
        if let Some(source) = &volume.projected {
            let payload = self.projected(context, name, source).await?;
            return self.write(context, "projected", name, payload);
        }
        Err(format!("no volume plugin matched: volumes of type {} are not supported on this node", kind_of(volume)))
    }

    fn insert(&mut self, name: &str, path: PathBuf, written: Option<u64>, read_only: bool) {
        self.ready.insert(name.to_owned(), Ready { path, written, read_only, device: false });
    }

    /// Writes what a volume of files should hold, if it holds anything else.
    fn write(&mut self, context: &Context<'_>, kind: &str, name: &str, payload: Payload) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        payload.hash(&mut hasher);
        let hash = hasher.finish();
        if self.ready.get(name).is_some_and(|ready| ready.written == Some(hash)) {
            return Ok(());
        }
        let path = context.volume_dir(kind, name);
        let written = (|| -> io::Result<()> {
            fs::create_dir_all(&path)?;
            // Secrets are not to reach a disk.
            if kind != "configmap" {
                mounts::tmpfs(&path, None)?;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
            atomic::write(&path, &payload, |dir| match context.fs_group {
                Some(group) => ownership::set(dir, group, false, false),
                None => Ok(()),
            })
        })();
        written.map_err(|e| e.to_string())?;
        self.insert(name, path, Some(hash), false);
        Ok(())
    }

    async fn projected(
        &mut self,
        context: &Context<'_>,
        volume: &str,
        source: &ProjectedVolumeSource,
    ) -> Result<Payload, String> {
        let mode = source.default_mode;
        let mut payload = Payload::new();
        for source in source.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                payload.extend(context.config_map(&map.name, map.items.as_deref(), map.optional, mode).await?);
            }
            if let Some(secret) = &source.secret {
                payload.extend(context.secret(&secret.name, secret.items.as_deref(), secret.optional, mode).await?);
            }
            if let Some(downward) = &source.downward_api {
                payload.extend(context.downward(downward.items.as_deref().unwrap_or_default(), mode)?);
            }
            if let Some(token) = &source.service_account_token {
                let content = self.token(context, volume, token).await?;
                let private = context.fs_user.is_some() || context.fs_group.is_some();
                let mode = if private { 0o600 } else { u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) };
                payload.insert(token.path.clone(), File { content, mode, uid: context.fs_user });
            }
            if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
                return Err("this kind of projection is not supported on this node".to_owned());
            }
        }
        Ok(payload)
    }

    /// A token of the pod's service account, kept until it is to be renewed.
    async fn token(
        &mut self,
        context: &Context<'_>,
        volume: &str,
        source: &ServiceAccountTokenProjection,
    ) -> Result<Vec<u8>, String> {
        let key = (volume.to_owned(), source.path.clone());
        let now = Timestamp::now();
        let known = self.tokens.get(&key);
        if let Some(known) = known.filter(|t| now < t.renew_at) {
            return Ok(known.token.clone().into_bytes());
        }
        match tokens::request(context.kubelet, context.pod, source.audience.as_deref(), source.expiration_seconds).await
        {
            Ok((token, expires)) => {
                let life = expires.duration_since(now).as_secs_f64().max(1.0);
                let renew_at = now.checked_add(Duration::from_secs_f64(life * TOKEN_RENEWAL)).unwrap_or(expires);
                self.tokens.insert(key, Token { token: token.clone(), renew_at });
                Ok(token.into_bytes())
            }
            Err(message) => match self.tokens.get_mut(&key) {
                // It is good for a while still.
                Some(known) => {
                    known.renew_at = now.checked_add(Duration::from_secs(30)).unwrap_or(now);
                    tracing::warn!(pod = %context.uid, message, "cannot renew a service account token");
                    Ok(known.token.clone().into_bytes())
                }
                None => Err(message),
            },
        }
    }

    /// A container's mounts. `$(NAME)` in `subPathExpr` is looked up in `env`.
    pub(crate) fn container_mounts(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        container: &Container,
        env: &[(String, Vec<u8>)],
    ) -> Result<Vec<v1::Mount>, String> {
        let mounts = container.volume_mounts.iter().flatten().enumerate();
        mounts.map(|(index, mount)| self.container_mount(kubelet, pod, container, env, index, mount)).collect()
    }

    /// A container's devices.
    pub(crate) fn container_devices(&self, container: &Container) -> Result<Vec<v1::Device>, String> {
        let devices = container.volume_devices.iter().flatten().map(|device| {
            let name = &device.name;
            let ready = self
                .ready
                .get(name)
                .ok_or_else(|| format!("cannot find volume {name:?} to pass into container {:?}", container.name))?;
            if !ready.device {
                return Err(format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices"));
            }
            Ok(v1::Device {
                container_path: device.device_path.clone(),
                host_path: ready.path.to_string_lossy().into_owned(),
                permissions: if ready.read_only { "r" } else { "mrw" }.to_owned(),
            })
        });
        devices.collect()
    }

    fn container_mount(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        container: &Container,
        env: &[(String, Vec<u8>)],
        index: usize,
        mount: &VolumeMount,
    ) -> Result<v1::Mount, String> {
        let ready = self.ready.get(&mount.name).ok_or_else(|| {
            format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
        })?;
        if ready.device {
            return Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", mount.name));
        }
        let mut sub_path = mount.sub_path.clone().unwrap_or_default();
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            let missing = std::cell::Cell::new(false);
            sub_path = expand(expression, |name| {
                let found = env.iter().find(|(k, _)| k == name);
                missing.set(missing.get() || found.is_none());
                found.map(|(_, v)| String::from_utf8_lossy(v).into_owned())
            });
            if missing.get() {
                return Err(format!("missing value for {expression:?}"));
            }
        }
        let mut host_path = ready.path.clone();
        if !sub_path.is_empty() {
            let dir = kubelet.config.pod_dir(pod.uid().as_str()).join("volume-subpaths");
            let target = dir.join(&mount.name).join(&container.name).join(index.to_string());
            mounts::bind_sub_path(&ready.path, Path::new(&sub_path), &target).map_err(|e| {
                format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {e}",
                    mount.name, container.name
                )
            })?;
            host_path = target;
        }
        let read_only = mount.read_only == Some(true) || ready.read_only;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => v1::MountPropagation::HostToContainer,
            Some("Bidirectional") => v1::MountPropagation::Bidirectional,
            _ => v1::MountPropagation::Private,
        };
        Ok(v1::Mount {
            container_path: match mount.mount_path.starts_with('/') {
                true => mount.mount_path.clone(),
                false => format!("/{}", mount.mount_path),
            },
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            recursive_read_only: read_only
                && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
                && propagation == v1::MountPropagation::Private,
            propagation: propagation as i32,
            ..Default::default()
        })
    }
}

impl Context<'_> {
    fn volume_dir(&self, kind: &str, name: &str) -> PathBuf {
        self.kubelet.config.pod_dir(self.uid.as_str()).join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
    }

    fn on_root_mismatch(&self) -> bool {
        let security = PodExt::spec(&**self.pod).security_context.as_ref();
        security.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
        optional: Option<bool>,
        mode: Option<i32>,
    ) -> Result<Payload, String> {
        let object =
            self.kubelet.config_maps.get(self.pod.namespace(), name, &self.uid).await.map_err(|e| e.to_string())?;
        payload::config_map(name, object.as_deref(), items, optional == Some(true), mode.unwrap_or(DEFAULT_MODE))
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
        optional: Option<bool>,
        mode: Option<i32>,
    ) -> Result<Payload, String> {
        let object =
            self.kubelet.secrets.get(self.pod.namespace(), name, &self.uid).await.map_err(|e| e.to_string())?;
        payload::secret(name, object.as_deref(), items, optional == Some(true), mode.unwrap_or(DEFAULT_MODE))
    }

    fn downward(
        &self,
        items: &[k8s_openapi::api::core::v1::DownwardAPIVolumeFile],
        mode: Option<i32>,
    ) -> Result<Payload, String> {
        let addresses = Addresses { pod_ips: Vec::new(), host_ips: self.kubelet.config.host_ips() };
        payload::downward(
            self.pod,
            items,
            mode.unwrap_or(DEFAULT_MODE),
            &addresses,
            &self.kubelet.capacity.allocatable(),
        )
    }
}

/// What the API server said, without what the client library wraps around it.
pub(crate) fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The user that all containers run as.
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = PodExt::spec(pod).security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users =
        pod.all_containers().into_iter().map(|(_, c)| c.security_context.and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next().flatten()?;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, fs_group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    match source.medium.as_deref() {
        Some("Memory") => {
            let limit = source.size_limit.as_ref().and_then(|q| q.0.parse::<Quantity>().ok()).map(|q| q.units());
            mounts::tmpfs(path, limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0))?;
        }
        Some(medium) if medium.starts_with("HugePages") => {
            return Err(io::Error::other(format!("emptyDir with medium {medium} is not supported on this node")));
        }
        _ => {}
    }
    // For everybody: who writes depends on the containers' users.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    match fs_group {
        Some(group) => ownership::set(path, group, false, false),
        None => Ok(()),
    }
}

fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let kind = value.as_object().and_then(|o| o.keys().find(|k| *k != "name").cloned());
    kind.unwrap_or_else(|| "unknown".to_owned())
}
