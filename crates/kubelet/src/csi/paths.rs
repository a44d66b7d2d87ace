//! Where the kubelet keeps what it knows of CSI volumes: upstream's paths and files, so that drivers find what they
//! know, and so that a kubelet that starts finds what the one before has mounted.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use skiff_api::csi;

use crate::pod::PodUid;

/// The file that tells of a volume, beside its mount point.
const DATA_FILE: &str = "vol_data.json";
/// More than that nobody has written there.
const DATA_LIMIT: u64 = 64 << 10;

/// The kubelet's directory.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(super) fn new(root: &Path) -> Paths {
        Paths { root: root.to_owned() }
    }

    /// Sockets of plugins that want to be known.
    pub(super) fn registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// Drivers' own sockets.
    pub(super) fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    fn plugin(&self) -> PathBuf {
        self.plugins().join("kubernetes.io/csi")
    }

    /// What belongs to a staged file system: the data file and [`GLOBAL_MOUNT`].
    pub(super) fn staging(&self, driver: &str, handle: &str) -> PathBuf {
        self.plugin().join(driver).join(csi::sha256(&[handle]))
    }

    /// All of those, of whatever driver.
    pub(super) fn all_staging(&self) -> Vec<PathBuf> {
        // This one is of block volumes.
        let drivers = children(&self.plugin()).into_iter().filter(|d| !d.ends_with("volumeDevices"));
        drivers.flat_map(|driver| children(&driver)).collect()
    }

    /// What belongs to a pod's mount of a volume: the data file and `mount`.
    pub(super) fn pod_volume(&self, uid: &PodUid, spec_name: &str) -> PathBuf {
        self.pod_volumes(uid).join(spec_name)
    }

    fn pod_volumes(&self, uid: &PodUid) -> PathBuf {
        self.root.join("pods").join(uid.as_str()).join("volumes/kubernetes.io~csi")
    }

    pub(super) fn all_pod_volumes(&self, uid: &PodUid) -> Vec<PathBuf> {
        children(&self.pod_volumes(uid))
    }

    /// Links to the devices that a pod has.
    pub(super) fn pod_devices(&self, uid: &PodUid) -> PathBuf {
        self.root.join("pods").join(uid.as_str()).join("volumeDevices/kubernetes.io~csi")
    }

    pub(super) fn all_pod_devices(&self, uid: &PodUid) -> Vec<PathBuf> {
        children(&self.pod_devices(uid))
    }

    pub(super) fn pods(&self) -> Vec<PodUid> {
        let names = children(&self.root.join("pods")).into_iter();
        names.filter_map(|p| Some(PodUid::new(p.file_name()?.to_str()?))).collect()
    }

    fn devices(&self) -> PathBuf {
        self.plugin().join("volumeDevices")
    }

    /// Where the data file of a block volume is.
    pub(super) fn device_data(&self, spec_name: &str) -> PathBuf {
        self.devices().join(spec_name).join("data")
    }

    pub(super) fn device_staging(&self, spec_name: &str) -> PathBuf {
        self.devices().join("staging").join(spec_name)
    }

    /// Where the driver puts a pod's device.
    pub(super) fn device_publish(&self, spec_name: &str, uid: &PodUid) -> PathBuf {
        self.devices().join("publish").join(spec_name).join(uid.as_str())
    }

    /// The data files of all block volumes.
    pub(super) fn all_device_data(&self) -> Vec<PathBuf> {
        let volumes = children(&self.devices()).into_iter();
        volumes.filter(|v| !v.ends_with("staging") && !v.ends_with("publish")).map(|v| v.join("data")).collect()
    }
}

/// Name of the mount point of a staged volume.
pub(super) const GLOBAL_MOUNT: &str = "globalmount";
/// Name of the mount point in a pod's directory.
pub(super) const MOUNT: &str = "mount";

fn children(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.sort();
    found
}

/// Whether a name is one component of a path.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/') && !name.contains('\0')
}

/// Makes a directory that only the kubelet and its group may enter.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

/// What is known of a mounted volume, with upstream's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VolumeData(pub(super) BTreeMap<String, String>);

impl VolumeData {
    pub(super) fn driver(&self) -> &str {
        self.get("driverName")
    }

    pub(super) fn handle(&self) -> &str {
        self.get("volumeHandle")
    }

    pub(super) fn is_ephemeral(&self) -> bool {
        self.get("volumeLifecycleMode") == "Ephemeral"
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    /// Writes it into a directory, as a whole or not at all.
    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        let draft = dir.join(format!(".{DATA_FILE}.new"));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(&draft)?.write_all(&serde_json::to_vec(&self.0)?)?;
        fs::rename(draft, dir.join(DATA_FILE))
    }

    /// Reads it; `None` if there is none. What cannot be of the kubelet's writing is an error.
    pub(super) fn load(dir: &Path) -> io::Result<Option<VolumeData>> {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(dir.join(DATA_FILE));
        let file = match file {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            file => file?,
        };
        let mut text = Vec::new();
        file.take(DATA_LIMIT).read_to_end(&mut text)?;
        let data = VolumeData(serde_json::from_slice(&text)?);
        match csi::is_driver_name(data.driver()) && !data.handle().is_empty() {
            true => Ok(Some(data)),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the data of a volume names no driver or volume")),
        }
    }

    /// Takes the file and its directory away.
    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        remove_file(&dir.join(DATA_FILE))?;
        remove_file(&dir.join(format!(".{DATA_FILE}.new")))?;
        remove_dir(dir)
    }
}

/// Removes a file or link that may be gone.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    gone_is_fine(fs::remove_file(path))
}

/// Removes a directory that may be gone, and must be empty: what is in it is not the kubelet's.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    gone_is_fine(fs::remove_dir(path))
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survives_and_links_are_not_followed() {
        let dir = std::env::temp_dir().join(format!("skiff-csi-{:x}", rand::random::<u64>()));
        let paths = Paths::new(&dir);
        let uid = PodUid::new("u");
        let of_pod = paths.pod_volume(&uid, "pv");
        make_dir(&of_pod).unwrap();
        assert_eq!(VolumeData::load(&of_pod).unwrap(), None);
        let data = |driver: &str| {
            VolumeData(
                [("driverName", driver), ("volumeHandle", "h")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            )
        };
        data("a.b").save(&of_pod).unwrap();
        assert_eq!(VolumeData::load(&of_pod).unwrap(), Some(data("a.b")));
        assert_eq!(paths.all_pod_volumes(&uid), std::slice::from_ref(&of_pod));
        assert_eq!(paths.pods(), [uid]);
        data("../../etc").save(&of_pod).unwrap();
        assert!(VolumeData::load(&of_pod).is_err());
        fs::remove_file(of_pod.join(DATA_FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", of_pod.join(DATA_FILE)).unwrap();
        assert!(VolumeData::load(&of_pod).is_err());
        // Somebody's data is not removed.
        fs::write(of_pod.join("precious"), "x").unwrap();
        assert!(VolumeData::remove(&of_pod).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn upstreams_paths() {
        let paths = Paths::new(Path::new("/k"));
        let hash = csi::sha256(&["h"]);
        assert_eq!(paths.staging("d", "h"), Path::new(&format!("/k/plugins/kubernetes.io/csi/d/{hash}")));
        assert_eq!(paths.pod_volume(&PodUid::new("u"), "pv"), Path::new("/k/pods/u/volumes/kubernetes.io~csi/pv"));
        assert_eq!(
            paths.device_publish("pv", &PodUid::new("u")),
            Path::new("/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv/u")
        );
        assert!(!is_plain("..") && !is_plain("a/b") && is_plain("pvc-1.x"));
    }
}
