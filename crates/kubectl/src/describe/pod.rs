//! Pods.

use serde_json::Value;

use super::{
    array, containers, controller, date, int, str,
    text::{Text, line},
    volumes,
};
use crate::time;

pub(super) fn pod(w: &mut Text, pod: &Value) {
    let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    line!(w, 0, "Name:\t{}", str(&metadata["name"]));
    line!(w, 0, "Namespace:\t{}", str(&metadata["namespace"]));
    if let Some(priority) = spec["priority"].as_i64() {
        line!(w, 0, "Priority:\t{priority}");
    }
    for (title, field) in [
        ("Priority Class Name", "priorityClassName"),
        ("Runtime Class Name", "runtimeClassName"),
        ("Service Account", "serviceAccountName"),
    ] {
        if !str(&spec[field]).is_empty() {
            line!(w, 0, "{title}:\t{}", str(&spec[field]));
        }
    }
    match str(&spec["nodeName"]) {
        "" => line!(w, 0, "Node:\t<none>"),
        node => line!(w, 0, "Node:\t{node}/{}", str(&status["hostIP"])),
    }
    if status["startTime"].is_string() {
        line!(w, 0, "Start Time:\t{}", date(&status["startTime"]));
    }
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    let ended = matches!(str(&status["phase"]), "Failed" | "Succeeded");
    match metadata["deletionTimestamp"].as_str().filter(|_| !ended) {
        Some(when) => {
            line!(w, 0, "Status:\tTerminating (lasts {})", time::age(when));
            line!(w, 0, "Termination Grace Period:\t{}s", int(&metadata["deletionGracePeriodSeconds"]));
        }
        None => line!(w, 0, "Status:\t{}", str(&status["phase"])),
    }
    for (title, field) in [("Reason", "reason"), ("Message", "message")] {
        if !str(&status[field]).is_empty() {
            line!(w, 0, "{title}:\t{}", str(&status[field]));
        }
    }
    let profile = &spec["securityContext"]["seccompProfile"];
    if profile.is_object() {
        line!(w, 0, "SeccompProfile:\t{}", str(&profile["type"]));
        if profile["type"] == "Localhost" {
            line!(w, 0, "LocalhostProfile:\t{}", str(&profile["localhostProfile"]));
        }
    }
    line!(w, 0, "IP:\t{}", str(&status["podIP"]));
    match array(&status["podIPs"]) {
        [] => line!(w, 0, "IPs:\t<none>"),
        addresses => {
            line!(w, 0, "IPs:");
            addresses.iter().for_each(|address| line!(w, 1, "IP:\t{}", str(&address["ip"])));
        }
    }
    if let Some(owner) = controller(pod) {
        line!(w, 0, "Controlled By:\t{}/{}", str(&owner["kind"]), str(&owner["name"]));
    }
    if !str(&status["nominatedNodeName"]).is_empty() {
        line!(w, 0, "NominatedNodeName:\t{}", str(&status["nominatedNodeName"]));
    }
    if spec["resources"].is_object() {
        line!(w, 0, "Resources:");
        containers::resources(w, 1, &spec["resources"]);
    }
    for (title, field, statuses) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        if field == "containers" || !array(&spec[field]).is_empty() {
            containers::containers(w, title, &spec[field], &status[statuses], Some(pod), "");
        }
    }
    let conditions = array(&status["conditions"]);
    if !array(&spec["readinessGates"]).is_empty() {
        line!(w, 0, "Readiness Gates:");
        line!(w, 0, "  Type\tStatus");
        for gate in array(&spec["readinessGates"]) {
            let found = conditions.iter().find(|condition| condition["type"] == gate["conditionType"]);
            let status = found.map_or("<none>", |condition| str(&condition["status"]));
            line!(w, 1, "{} \t{status} ", str(&gate["conditionType"]));
        }
    }
    if !conditions.is_empty() {
        line!(w, 0, "Conditions:");
        line!(w, 0, "  Type\tStatus");
        for condition in conditions {
            line!(w, 1, "{} \t{} ", str(&condition["type"]), str(&condition["status"]));
        }
    }
    volumes::volumes(w, &spec["volumes"], "");
    line!(w, 0, "QoS Class:\t{}", str(&status["qosClass"]));
    w.labels("Node-Selectors", &spec["nodeSelector"]);
    containers::tolerations(w, "Tolerations", &spec["tolerations"]);
    containers::spread_constraints(w, &spec["topologySpreadConstraints"], "");
}
