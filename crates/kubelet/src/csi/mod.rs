//! CSI on the node: drivers that register, and volumes that they stage and publish for pods.
//!
//! Flow: [`registration`] finds drivers' sockets and tells the API of them; a pod's worker starts an [`Operation`] for
//! each volume, [`mount`], and goes on when it is over; when the pod has ended [`unmount`] takes its volumes away,
//! from what is on the disk, so that any kubelet can do it. Drivers are other people's programs: names that become
//! paths are checked, links are not followed, and nothing is removed that is not empty.
//!
//! Upstream's paths, files, order of calls and wording are followed throughout; see `docs/storage.md`.

mod driver;
mod expand;
mod mount;
mod node_info;
mod operation;
mod paths;
mod pod_volumes;
pub(crate) mod registration;
pub(crate) mod stats;
mod tokens;
pub(crate) mod unmount;
mod users;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use parking_lot::RwLock;
use skiff_client::Informer;
use tokio::sync::Notify;

use self::operation::{Operation, Outcome};
use self::{
    driver::Driver,
    paths::{Paths, VolumeData},
    users::{Key, Users},
};
pub(crate) use self::{mount::Request, pod_volumes::PodVolumes, volume::Volume};

use crate::pod::PodUid;

/// How long the first list of CSIDriver objects may take.
const FIRST_LIST: Duration = Duration::from_secs(30);

/// A step that failed: what users know from upstream's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `MountVolume.SetUp`, `MountVolume.MountDevice`, ….
    pub(crate) step: &'static str,
    pub(crate) message: String,
}

/// The node's CSI drivers and the volumes that they have mounted.
pub(crate) struct Csi {
    paths: Paths,
    drivers: RwLock<HashMap<String, Driver>>,
    objects: Informer<CSIDriver>,
    users: Users,
    /// What pods have mounted, by their names for it.
    mounted: RwLock<HashMap<PodUid, BTreeMap<String, Volume>>>,
    /// A volume may have lost its last pod, or a driver may be able to do what failed before.
    unused: Notify,
    /// A driver has come: what waits for it goes on.
    pub(crate) registered: Notify,
}

impl Csi {
    /// With what a kubelet before this one has left mounted below `root`, its directory.
    pub(crate) fn new(root: &Path, objects: Informer<CSIDriver>) -> Csi {
        let paths = Paths::new(root);
        let users = Users::new(left_behind(&paths));
        Csi {
            paths,
            drivers: RwLock::default(),
            objects,
            users,
            mounted: RwLock::default(),
            unused: Notify::new(),
            registered: Notify::new(),
        }
    }

    /// The error has upstream's words.
    fn driver(&self, name: &str) -> Result<Driver, String> {
        let found = self.drivers.read().get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// What the cluster says of a driver; `None` if it says nothing.
    async fn object(&self, name: &str) -> Result<Option<CSIDriverSpec>, String> {
        if tokio::time::timeout(FIRST_LIST, self.objects.wait_synced()).await.is_err() {
            return Err("CSIDrivers has not been synced yet".to_owned());
        }
        Ok(self.objects.get("", name).map(|driver| driver.spec.clone()))
    }

    /// The volumes that must not be detached, by the names that the node's status has for them.
    pub(crate) fn in_use(&self) -> Vec<String> {
        // Of drivers that nothing is said of, as upstream takes it, volumes are attached.
        let attached =
            |key: &Key| self.objects.get("", &key.driver).is_none_or(|d| d.spec.attach_required != Some(false));
        self.users.all().iter().filter(|key| attached(key)).map(Key::unique_name).collect()
    }

    /// The node's status says this by now.
    pub(crate) fn reported(&self, in_use: &[String]) {
        self.users.report(in_use.iter().cloned().collect::<BTreeSet<_>>());
    }

    /// Whether a driver wants its volumes to be published again and again.
    fn requires_republish(&self, driver: &str) -> bool {
        self.objects.get("", driver).is_some_and(|d| d.spec.requires_republish == Some(true))
    }

    fn mounted(&self, pod: PodUid, name: &str, volume: &Volume) {
        self.mounted.write().entry(pod).or_default().insert(name.to_owned(), volume.clone());
    }

    /// What a pod has mounted, by its names for it.
    pub(crate) fn mounted_by(&self, pod: &PodUid) -> BTreeMap<String, Volume> {
        self.mounted.read().get(pod).cloned().unwrap_or_default()
    }

    /// Makes the directories that drivers expect to be there.
    pub(crate) fn make_directories(&self) -> Result<(), (PathBuf, std::io::Error)> {
        for dir in [self.paths.registry(), self.paths.plugins()] {
            paths::make_dir(&dir).map_err(|error| (dir, error))?;
        }
        Ok(())
    }
}

/// Volumes on the disk, with the pods that have them.
fn left_behind(paths: &Paths) -> Vec<(Key, Option<PodUid>)> {
    let read = |dir: &Path| match VolumeData::load(dir) {
        Ok(data) => data.filter(|d| !d.is_ephemeral()).map(|d| Key::new(d.driver(), d.handle())),
        Err(error) => {
            tracing::warn!(path = %dir.display(), %error, "cannot read what is known of a volume");
            None
        }
    };
    let mut found: Vec<_> = paths.all_staging().iter().filter_map(|dir| Some((read(dir)?, None))).collect();
    found.extend(paths.all_device_data().iter().filter_map(|dir| Some((read(dir)?, None))));
    for pod in paths.pods() {
        let mounts = paths.all_pod_volumes(&pod).into_iter();
        let devices = paths.all_pod_devices(&pod).into_iter();
        let devices = devices.filter_map(|link| Some(paths.device_data(link.file_name()?.to_str()?)));
        let of_pod = mounts.chain(devices).filter_map(|dir| read(&dir));
        found.extend(of_pod.map(|key| (key, Some(pod.clone()))).collect::<Vec<_>>());
    }
    found
}
