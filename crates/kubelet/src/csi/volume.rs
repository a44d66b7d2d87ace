//! What a pod asks of a CSI volume: from a PersistentVolume, or from the pod itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, SecretReference, Volume as PodVolume};
use skiff_api::csi;
use skiff_csi::v1;

use super::paths::is_plain;
use crate::pod::PodUid;

/// A volume of a driver, as a pod wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// The PersistentVolume's name; of a volume in a pod, its name there.
    pub(crate) name: String,
    pub(crate) read_only: bool,
    pub(super) fs_type: String,
    pub(super) attributes: BTreeMap<String, String>,
    /// As the API names them; empty for those in a pod.
    pub(super) access_modes: Vec<String>,
    pub(super) mount_options: Vec<String>,
    pub(super) stage_secret: Option<Secret>,
    pub(super) publish_secret: Option<Secret>,
    pub(super) expand_secret: Option<Secret>,
    /// It is made for the pod, and goes with it.
    pub(super) ephemeral: bool,
    pub(crate) block: bool,
    /// Namespace and name of the claim.
    pub(crate) claim: Option<(String, String)>,
}

/// Namespace and name.
pub(super) type Secret = (String, String);

fn secret(reference: Option<&SecretReference>) -> Option<Secret> {
    let reference = reference?;
    Some((reference.namespace.clone().unwrap_or_default(), reference.name.clone().unwrap_or_default()))
}

impl Volume {
    /// A volume that a claim is bound to; `None` if it is not of CSI. The error is of names that are none.
    pub(crate) fn persistent(
        volume: &PersistentVolume,
        claim: (&str, &str),
        read_only: bool,
    ) -> Option<Result<Volume, String>> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        let made = Volume {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            name: volume.metadata.name.clone().unwrap_or_default(),
            read_only,
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            stage_secret: secret(source.node_stage_secret_ref.as_ref()),
            publish_secret: secret(source.node_publish_secret_ref.as_ref()),
            expand_secret: secret(source.node_expand_secret_ref.as_ref()),
            ephemeral: false,
            block: spec.volume_mode.as_deref() == Some("Block"),
            claim: Some((claim.0.to_owned(), claim.1.to_owned())),
        };
        Some(made.checked())
    }

    /// A volume that is written in a pod; `None` if it is of another kind.
    pub(crate) fn inline(volume: &PodVolume, namespace: &str, uid: &PodUid) -> Option<Result<Volume, String>> {
        let source = volume.csi.as_ref()?;
        let made = Volume {
            driver: source.driver.clone(),
            handle: csi::inline_handle(uid.as_str(), &volume.name),
            name: volume.name.clone(),
            read_only: source.read_only == Some(true),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            publish_secret: source.node_publish_secret_ref.as_ref().map(|r| (namespace.to_owned(), r.name.clone())),
            ephemeral: true,
            ..Volume::default()
        };
        Some(made.checked())
    }

    /// Names become paths, so they must be names.
    fn checked(self) -> Result<Volume, String> {
        match csi::is_driver_name(&self.driver) && is_plain(&self.name) && !self.handle.is_empty() {
            true => Ok(self),
            false => {
                Err(format!("invalid driver {:?}, volume {:?} or handle {:?}", self.driver, self.name, self.handle))
            }
        }
    }

    /// Whether the kubelet gives the files to the pod's group, by the driver's policy.
    pub(super) fn takes_group(&self, policy: &str) -> bool {
        let single = self.ephemeral || self.access_modes.iter().any(|m| m == "ReadWriteOnce");
        match policy {
            _ if self.read_only => false,
            "None" => false,
            "File" => true,
            _ => !self.fs_type.is_empty() && single,
        }
    }

    /// How it is used, as drivers are told. `single_node_multi_writer`: the driver tells those modes apart;
    /// `group`: the driver gives the files to it.
    pub(super) fn capability(&self, single_node_multi_writer: bool, group: Option<u32>) -> v1::VolumeCapability {
        let mode = match (self.access_modes.first().map_or("ReadWriteOnce", String::as_str), single_node_multi_writer) {
            ("ReadOnlyMany", _) => v1::Mode::MultiNodeReaderOnly,
            ("ReadWriteMany", _) => v1::Mode::MultiNodeMultiWriter,
            ("ReadWriteOncePod", true) => v1::Mode::SingleNodeSingleWriter,
            (_, true) => v1::Mode::SingleNodeMultiWriter,
            (_, false) => v1::Mode::SingleNodeWriter,
        };
        let access_type = match self.block {
            true => v1::AccessType::Block(v1::BlockVolume {}),
            false => v1::AccessType::Mount(v1::MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
            }),
        };
        v1::VolumeCapability { access_type: Some(access_type), access_mode: Some(v1::AccessMode { mode: mode as i32 }) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: serde_json::Value) -> Volume {
        let mut volume = json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "a.b", "volumeHandle": "h"}}});
        for (key, value) in spec.as_object().unwrap() {
            volume["spec"][key] = value.clone();
        }
        let volume = serde_json::from_value(volume).unwrap();
        Volume::persistent(&volume, ("n", "c"), false).unwrap().unwrap()
    }

    #[test]
    fn access() {
        let mode = |modes: serde_json::Value, multi| {
            of(json!({"accessModes": modes})).capability(multi, None).access_mode.unwrap().mode
        };
        assert_eq!(mode(json!(["ReadWriteOnce"]), false), v1::Mode::SingleNodeWriter as i32);
        assert_eq!(mode(json!(["ReadWriteOnce"]), true), v1::Mode::SingleNodeMultiWriter as i32);
        assert_eq!(mode(json!(["ReadWriteMany", "ReadWriteOnce"]), true), v1::Mode::MultiNodeMultiWriter as i32);
        assert_eq!(mode(json!(["ReadWriteOncePod"]), true), v1::Mode::SingleNodeSingleWriter as i32);
    }

    #[test]
    fn groups() {
        let plain = of(json!({"accessModes": ["ReadWriteOnce"]}));
        assert!(!plain.takes_group("ReadWriteOnceWithFSType"));
        assert!(plain.takes_group("File") && !plain.takes_group("None"));
        let typed = Volume { fs_type: "ext4".into(), ..plain };
        assert!(typed.takes_group("ReadWriteOnceWithFSType"));
        assert!(!Volume { read_only: true, ..typed.clone() }.takes_group("File"));
        assert!(!Volume { access_modes: vec!["ReadWriteMany".into()], ..typed }.takes_group("ReadWriteOnceWithFSType"));
    }

    #[test]
    fn names_are_checked() {
        let volume: PodVolume = serde_json::from_value(json!({"name": "v", "csi": {"driver": "../../etc"}})).unwrap();
        assert!(Volume::inline(&volume, "n", &PodUid::new("u")).unwrap().is_err());
    }
}
