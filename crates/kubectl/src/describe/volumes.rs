//! Volumes of pods, and the sources of PersistentVolumes.

use serde_json::Value;

use super::{
    array, int, keys, show, str,
    text::{Text, line},
};

/// Values of a CSI driver are cut at this length.
const MAX_ATTRIBUTE: usize = 140;

pub(super) fn volumes(w: &mut Text, volumes: &Value, space: &str) {
    let volumes = array(volumes);
    if volumes.is_empty() {
        line!(w, 0, "{space}Volumes:\t<none>");
        return;
    }
    line!(w, 0, "{space}Volumes:");
    let indent = if space.is_empty() { "" } else { " " };
    for volume in volumes {
        line!(w, 1, "{indent}{}:", str(&volume["name"]));
        source(w, volume);
    }
}

/// What a volume is made of.
pub(super) fn source(w: &mut Text, volume: &Value) {
    let optional = |source: &Value| source["optional"] == true;
    let kind = ["hostPath", "emptyDir", "secret", "configMap", "nfs", "persistentVolumeClaim", "ephemeral"];
    let more = ["downwardAPI", "projected", "csi", "image", "local", "iscsi", "fc"];
    let Some(kind) = kind.into_iter().chain(more).find(|kind| volume[*kind].is_object()) else {
        line!(w, 1, "<unknown>");
        return;
    };
    let source = &volume[kind];
    match kind {
        "hostPath" => {
            line!(w, 2, "Type:\tHostPath (bare host directory volume)");
            line!(w, 2, "Path:\t{}", str(&source["path"]));
            line!(w, 2, "HostPathType:\t{}", source["type"].as_str().unwrap_or("<none>"));
        }
        "emptyDir" => {
            line!(w, 2, "Type:\tEmptyDir (a temporary directory that shares a pod's lifetime)");
            line!(w, 2, "Medium:\t{}", str(&source["medium"]));
            let limit = show(&source["sizeLimit"]);
            line!(w, 2, "SizeLimit:\t{}", if matches!(limit.as_str(), "" | "0") { "<unset>" } else { &limit });
        }
        "secret" => {
            line!(w, 2, "Type:\tSecret (a volume populated by a Secret)");
            line!(w, 2, "SecretName:\t{}", str(&source["secretName"]));
            line!(w, 2, "Optional:\t{}", optional(source));
        }
        "configMap" => {
            line!(w, 2, "Type:\tConfigMap (a volume populated by a ConfigMap)");
            line!(w, 2, "Name:\t{}", str(&source["name"]));
            line!(w, 2, "Optional:\t{}", optional(source));
        }
        "nfs" => {
            line!(w, 2, "Type:\tNFS (an NFS mount that lasts the lifetime of a pod)");
            line!(w, 2, "Server:\t{}", str(&source["server"]));
            line!(w, 2, "Path:\t{}", str(&source["path"]));
            line!(w, 2, "ReadOnly:\t{}", source["readOnly"] == true);
        }
        "persistentVolumeClaim" => {
            line!(w, 2, "Type:\tPersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)");
            line!(w, 2, "ClaimName:\t{}", str(&source["claimName"]));
            line!(w, 2, "ReadOnly:\t{}", source["readOnly"] == true);
        }
        "ephemeral" => ephemeral(w, source),
        "downwardAPI" => {
            line!(w, 2, "Type:\tDownwardAPI (a volume populated by information about the pod)");
            line!(w, 2, "Items:");
            for item in array(&source["items"]) {
                let from = match item["fieldRef"].is_object() {
                    true => str(&item["fieldRef"]["fieldPath"]),
                    false => str(&item["resourceFieldRef"]["resource"]),
                };
                line!(w, 3, "{from} -> {}", str(&item["path"]));
            }
        }
        "projected" => projected(w, source),
        "csi" => csi(w, source),
        "image" => {
            line!(w, 2, "Type:\tImage (a container image or OCI artifact)");
            line!(w, 2, "Reference:\t{}", str(&source["reference"]));
            line!(w, 2, "PullPolicy:\t{}", str(&source["pullPolicy"]));
        }
        "local" => {
            line!(w, 2, "Type:\tLocalVolume (a persistent volume backed by local storage on a node)");
            line!(w, 2, "Path:\t{}", str(&source["path"]));
        }
        // Kinds that only some machines have are named, with their fields as they are.
        kind => {
            line!(w, 2, "Type:\t{kind}");
            keys(source).into_iter().for_each(|key| line!(w, 2, "{key}:\t{}", show(&source[key])));
        }
    }
}

fn ephemeral(w: &mut Text, source: &Value) {
    line!(
        w,
        2,
        "Type:\tEphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)"
    );
    let template = &source["volumeClaimTemplate"];
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    line!(w, 2, "StorageClass:\t{}", str(&spec["storageClassName"]));
    line!(w, 2, "Volume:\t{}", str(&spec["volumeName"]));
    w.labels_at("    ", "Labels", &metadata["labels"]);
    w.annotations("    Annotations", &metadata["annotations"]);
    line!(w, 2, "Capacity:\t");
    line!(w, 2, "Access Modes:\t");
    if spec["volumeMode"].is_string() {
        line!(w, 2, "VolumeMode:\t{}", str(&spec["volumeMode"]));
    }
}

fn projected(w: &mut Text, source: &Value) {
    line!(w, 2, "Type:\tProjected (a volume that contains injected data from multiple sources)");
    for part in array(&source["sources"]) {
        if part["secret"].is_object() {
            line!(w, 2, "SecretName:\t{}", str(&part["secret"]["name"]));
            line!(w, 2, "Optional:\t{}", part["secret"]["optional"] == true);
        } else if part["downwardAPI"].is_object() {
            line!(w, 2, "DownwardAPI:\ttrue");
        } else if part["configMap"].is_object() {
            line!(w, 2, "ConfigMapName:\t{}", str(&part["configMap"]["name"]));
            line!(w, 2, "Optional:\t{}", part["configMap"]["optional"] == true);
        } else if part["serviceAccountToken"].is_object() {
            line!(w, 2, "TokenExpirationSeconds:\t{}", int(&part["serviceAccountToken"]["expirationSeconds"]));
        }
    }
}

fn csi(w: &mut Text, source: &Value) {
    line!(w, 2, "Type:\tCSI (a Container Storage Interface (CSI) volume source)");
    line!(w, 2, "Driver:\t{}", str(&source["driver"]));
    line!(w, 2, "FSType:\t{}", str(&source["fsType"]));
    if source["volumeHandle"].is_string() {
        line!(w, 2, "VolumeHandle:\t{}", str(&source["volumeHandle"]));
    }
    line!(w, 2, "ReadOnly:\t{}", source["readOnly"] == true);
    let attributes = &source["volumeAttributes"];
    let cut = |text: String| match text.char_indices().nth(MAX_ATTRIBUTE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    };
    // Further lines stand at the level of the first and then at that of the value, as upstream's do.
    for (i, key) in keys(attributes).into_iter().enumerate() {
        let text = cut(format!("{key}={}", show(&attributes[key])));
        match i {
            0 => line!(w, 2, "VolumeAttributes:\t    {text}"),
            _ => line!(w, 4, "\t    {text}"),
        }
    }
    if keys(attributes).is_empty() {
        line!(w, 2, "VolumeAttributes:\t<none>");
    }
}
