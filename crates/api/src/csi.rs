//! Names that the parts of CSI agree on: the controller that attaches, the node that mounts, and drivers' sidecars.

use sha2::{Digest as _, Sha256};

/// Annotation of a node: its identity for each driver, as a JSON object.
pub const NODE_ID_ANNOTATION: &str = "csi.volume.kubernetes.io/nodeid";

/// How a node's status names a volume.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Driver and handle of a volume that is named so.
pub fn of_unique_name(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("kubernetes.io/csi/")?.split_once('^')
}

/// The VolumeAttachment of a volume and a node.
pub fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    format!("csi-{}", sha256(&[handle, driver, node]))
}

/// The handle of a volume that is written in a pod.
pub fn inline_handle(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", sha256(&[pod_uid, volume]))
}

/// The hash of the parts in a row, in hexadecimal digits.
pub fn sha256(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part.as_bytes()));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether this can be a driver's name: letters, digits, `-` and `.`, so never a path.
pub fn is_driver_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    name.len() <= 63 && inside && edge(name.chars().next()) && edge(name.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(unique_name("d", "h"), "kubernetes.io/csi/d^h");
        assert_eq!(of_unique_name("kubernetes.io/csi/d^h/^x"), Some(("d", "h/^x")));
        assert_eq!(of_unique_name("kubernetes.io/other/d"), None);
        // echo -n hdn | sha256sum
        let hash = sha256(&["hdn"]);
        assert_eq!(attachment_name("d", "h", "n"), format!("csi-{hash}"));
        assert_eq!(inline_handle("h", "dn"), format!("csi-{hash}"));
        assert_eq!(sha256(&["a", "bc"]), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(is_driver_name("hostpath.csi.k8s.io"));
        for bad in ["", "..", "a/b", ".a", "a-", "a b", &"a".repeat(64)] {
            assert!(!is_driver_name(bad), "{bad}");
        }
    }
}
