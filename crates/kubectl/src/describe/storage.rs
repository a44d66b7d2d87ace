//! Volumes, claims and their classes.

use serde_json::Value;

use super::{
    Describer, array, go_list, labels, show, str,
    text::{Text, line},
    truth, volumes,
};
use crate::{error::Result, time};

/// `RWO,ROX`: the short names, in upstream's order.
fn access_modes(modes: &Value) -> String {
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let there = known.iter().filter(|(mode, _)| array(modes).iter().any(|known| known == mode));
    there.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn status(w: &mut Text, object: &Value) {
    match object["metadata"]["deletionTimestamp"].as_str() {
        Some(when) => line!(w, 0, "Status:\tTerminating (lasts {})", time::age(when)),
        None => line!(w, 0, "Status:\t{}", str(&object["status"]["phase"])),
    }
}

pub(super) fn persistent_volume(w: &mut Text, volume: &Value) {
    let (metadata, spec) = (&volume["metadata"], &volume["spec"]);
    line!(w, 0, "Name:\t{}", str(&metadata["name"]));
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    line!(w, 0, "Finalizers:\t{}", go_list(&metadata["finalizers"]));
    line!(w, 0, "StorageClass:\t{}", str(&spec["storageClassName"]));
    status(w, volume);
    let claim = &spec["claimRef"];
    match claim.is_object() {
        true => line!(w, 0, "Claim:\t{}/{}", str(&claim["namespace"]), str(&claim["name"])),
        false => line!(w, 0, "Claim:\t"),
    }
    line!(w, 0, "Reclaim Policy:\t{}", str(&spec["persistentVolumeReclaimPolicy"]));
    line!(w, 0, "Access Modes:\t{}", access_modes(&spec["accessModes"]));
    if spec["volumeMode"].is_string() {
        line!(w, 0, "VolumeMode:\t{}", str(&spec["volumeMode"]));
    }
    line!(w, 0, "Capacity:\t{}", show(&spec["capacity"]["storage"]));
    let required = &spec["nodeAffinity"]["required"];
    match required.is_object() {
        true => {
            line!(w, 0, "Node Affinity:\t");
            let terms = array(&required["nodeSelectorTerms"]);
            line!(w, 1, "Required Terms:\t{}", if terms.is_empty() { "<none>" } else { "" });
            for (i, term) in terms.iter().enumerate() {
                let texts: Vec<String> = array(&term["matchExpressions"]).iter().map(requirement).collect();
                w.entries("    ", &format!("Term {i}"), &texts);
            }
        }
        false => line!(w, 0, "Node Affinity:\t<none>"),
    }
    line!(w, 0, "Message:\t{}", str(&volume["status"]["message"]));
    line!(w, 0, "Source:");
    volumes::source(w, spec);
}

fn requirement(requirement: &Value) -> String {
    let text = format!("{} {}", str(&requirement["key"]), str(&requirement["operator"]).to_lowercase());
    match array(&requirement["values"]) {
        [] => text,
        values => format!("{text} [{}]", values.iter().map(str).collect::<Vec<_>>().join(", ")),
    }
}

pub(super) async fn claim(describer: &Describer<'_>, w: &mut Text, claim: &Value) -> Result<()> {
    let (metadata, spec) = (&claim["metadata"], &claim["spec"]);
    let name = str(&metadata["name"]);
    line!(w, 0, "Name:\t{name}");
    line!(w, 0, "Namespace:\t{}", str(&metadata["namespace"]));
    line!(w, 0, "StorageClass:\t{}", str(&spec["storageClassName"]));
    status(w, claim);
    let volume = str(&spec["volumeName"]);
    line!(w, 0, "Volume:\t{volume}");
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    line!(w, 0, "Finalizers:\t{}", go_list(&metadata["finalizers"]));
    let bound = !volume.is_empty();
    let capacity = if bound { show(&claim["status"]["capacity"]["storage"]) } else { String::new() };
    line!(w, 0, "Capacity:\t{}", if bound && capacity.is_empty() { "0" } else { &capacity });
    let modes = if bound { access_modes(&claim["status"]["accessModes"]) } else { String::new() };
    line!(w, 0, "Access Modes:\t{modes}");
    if spec["volumeMode"].is_string() {
        line!(w, 0, "VolumeMode:\t{}", str(&spec["volumeMode"]));
    }
    let source = &spec["dataSource"];
    if source.is_object() {
        line!(w, 0, "DataSource:");
        for (title, field) in [("APIGroup", "apiGroup"), ("Kind", "kind"), ("Name", "name")] {
            if field != "apiGroup" || source[field].is_string() {
                line!(w, 1, "{title}:\t{}", str(&source[field]));
            }
        }
    }
    let pods = describer.list("pods", metadata["namespace"].as_str(), "", "").await?;
    let uses = |pod: &&Value| {
        let mut volumes = array(&pod["spec"]["volumes"]).iter();
        volumes.any(|volume| volume["persistentVolumeClaim"]["claimName"] == name)
    };
    let mut users: Vec<String> = pods.iter().filter(uses).map(|pod| str(&pod["metadata"]["name"]).to_owned()).collect();
    users.sort();
    w.entries("", "Used By", &users);
    let conditions = array(&claim["status"]["conditions"]);
    if !conditions.is_empty() {
        line!(w, 0, "Conditions:");
        line!(w, 1, "Type\tStatus\tLastProbeTime\tLastTransitionTime\tReason\tMessage");
        line!(w, 1, "----\t------\t-----------------\t------------------\t------\t-------");
    }
    for condition in conditions {
        let text = |field: &str| str(&condition[field]);
        let (probe, change) = (super::date(&condition["lastProbeTime"]), super::date(&condition["lastTransitionTime"]));
        line!(
            w,
            1,
            "{} \t{} \t{probe} \t{change} \t{} \t{}",
            text("type"),
            text("status"),
            text("reason"),
            text("message")
        );
    }
    Ok(())
}

pub(super) fn class(w: &mut Text, class: &Value) {
    let annotations = &class["metadata"]["annotations"];
    let is_default = annotations["storageclass.kubernetes.io/is-default-class"] == "true";
    line!(w, 0, "Name:\t{}", str(&class["metadata"]["name"]));
    line!(w, 0, "IsDefaultClass:\t{}", if is_default { "Yes" } else { "No" });
    line!(w, 0, "Annotations:\t{}", labels(annotations));
    line!(w, 0, "Provisioner:\t{}", str(&class["provisioner"]));
    line!(w, 0, "Parameters:\t{}", labels(&class["parameters"]));
    let expansion = &class["allowVolumeExpansion"];
    line!(w, 0, "AllowVolumeExpansion:\t{}", if expansion.is_null() { "<unset>" } else { truth(expansion) });
    match array(&class["mountOptions"]) {
        [] => line!(w, 0, "MountOptions:\t<none>"),
        options => {
            line!(w, 0, "MountOptions:");
            options.iter().for_each(|option| line!(w, 1, "{}", str(option)));
        }
    }
    for (title, field) in [("ReclaimPolicy", "reclaimPolicy"), ("VolumeBindingMode", "volumeBindingMode")] {
        if class[field].is_string() {
            line!(w, 0, "{title}:\t{}", str(&class[field]));
        }
    }
    let topologies = array(&class["allowedTopologies"]);
    if !topologies.is_empty() {
        line!(w, 0, "AllowedTopologies:\t");
    }
    for (i, term) in topologies.iter().enumerate() {
        let texts: Vec<String> = array(&term["matchLabelExpressions"])
            .iter()
            .map(|e| format!("{} in [{}]", str(&e["key"]), super::joined(&e["values"], ", ")))
            .collect();
        w.entries("  ", &format!("Term {i}"), &texts);
    }
}
