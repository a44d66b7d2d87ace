//! Nodes, with the pods on them and what those ask for.

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_api::quantity::Quantity;

use super::{
    Describer, array, date, joined, keys, or_none, show, str,
    text::{Text, line},
};
use crate::{error::Result, time};

pub(super) async fn node(describer: &Describer<'_>, w: &mut Text, node: &Value) -> Result<()> {
    let (metadata, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
    let name = str(&metadata["name"]);
    line!(w, 0, "Name:\t{name}");
    line!(w, 0, "Roles:\t{}", or_none(&roles(&metadata["labels"]).join(",")));
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    line!(w, 0, "CreationTimestamp:\t{}", date(&metadata["creationTimestamp"]));
    taints(w, &spec["taints"]);
    line!(w, 0, "Unschedulable:\t{}", spec["unschedulable"] == true);
    match describer
        .cli
        .rest()?
        .get(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"))
        .await
    {
        Ok(lease) => {
            line!(w, 0, "Lease:");
            let unset = |field: &str| match lease["spec"][field].is_string() {
                true => date(&lease["spec"][field]),
                false => "<unset>".to_owned(),
            };
            line!(w, 1, "HolderIdentity:\t{}", lease["spec"]["holderIdentity"].as_str().unwrap_or("<unset>"));
            line!(w, 1, "AcquireTime:\t{}", unset("acquireTime"));
            line!(w, 1, "RenewTime:\t{}", unset("renewTime"));
        }
        Err(error) => line!(w, 0, "Lease:\tFailed to get lease: {error}"),
    }
    let conditions = array(&status["conditions"]);
    if !conditions.is_empty() {
        line!(w, 0, "Conditions:");
        line!(w, 0, "  Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
        line!(w, 1, "----\t------\t-----------------\t------------------\t------\t-------");
    }
    for condition in conditions {
        let text = |field: &str| str(&condition[field]);
        let (beat, change) = (date(&condition["lastHeartbeatTime"]), date(&condition["lastTransitionTime"]));
        line!(
            w,
            1,
            "{} \t{} \t{beat} \t{change} \t{} \t{}",
            text("type"),
            text("status"),
            text("reason"),
            text("message")
        );
    }
    line!(w, 0, "Addresses:");
    for address in array(&status["addresses"]) {
        line!(w, 1, "{}:\t{}", str(&address["type"]), str(&address["address"]));
    }
    for (title, list) in [("Capacity", &status["capacity"]), ("Allocatable", &status["allocatable"])] {
        if !keys(list).is_empty() {
            line!(w, 0, "{title}:");
            keys(list).into_iter().for_each(|key| line!(w, 1, "{key}:\t{}", show(&list[key])));
        }
    }
    line!(w, 0, "System Info:");
    for (title, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
    ] {
        line!(w, 1, "{title}:\t{}", str(&status["nodeInfo"][field]));
    }
    if !str(&spec["podCIDR"]).is_empty() {
        line!(w, 0, "PodCIDR:\t{}", str(&spec["podCIDR"]));
    }
    if !array(&spec["podCIDRs"]).is_empty() {
        line!(w, 0, "PodCIDRs:\t{}", joined(&spec["podCIDRs"], ","));
    }
    if !str(&spec["providerID"]).is_empty() {
        line!(w, 0, "ProviderID:\t{}", str(&spec["providerID"]));
    }
    let fields = format!("spec.nodeName={name},status.phase!=Succeeded,status.phase!=Failed");
    match describer.list("pods", None, "", &fields).await {
        Ok(pods) => allocated(w, &pods, status),
        Err(error) if error.reason() == "Forbidden" => line!(w, 0, "Pods:\tnot authorized"),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn roles(labels: &Value) -> Vec<String> {
    let mut roles: Vec<String> = keys(labels)
        .into_iter()
        .filter_map(|key| match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") => None,
            Some(role) => Some(role.to_owned()),
            None if key == "kubernetes.io/role" => Some(show(&labels[key])).filter(|role| !role.is_empty()),
            None => None,
        })
        .collect();
    roles.sort();
    roles.dedup();
    roles
}

fn taints(w: &mut Text, taints: &Value) {
    let mut taints: Vec<&Value> = array(taints).iter().collect();
    taints.sort_by_key(|taint| format!("{},{}", str(&taint["effect"]), str(&taint["key"])));
    let texts: Vec<String> = taints.into_iter().map(taint).collect();
    w.entries("", "Taints", &texts);
}

/// `key=value:Effect`.
fn taint(taint: &Value) -> String {
    let (key, value, effect) = (str(&taint["key"]), str(&taint["value"]), str(&taint["effect"]));
    match (value, effect) {
        ("", "") => key.to_owned(),
        ("", effect) => format!("{key}:{effect}"),
        (value, "") => format!("{key}={value}:"),
        (value, effect) => format!("{key}={value}:{effect}"),
    }
}

type Resources = BTreeMap<String, Quantity>;

/// The pods of the node, and the sums of what they ask for.
fn allocated(w: &mut Text, pods: &[Value], status: &Value) {
    line!(w, 0, "Non-terminated Pods:\t({} in total)", pods.len());
    line!(w, 1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    line!(w, 1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---");
    let allocatable = match keys(&status["allocatable"]).is_empty() {
        true => quantities(&status["capacity"]),
        false => quantities(&status["allocatable"]),
    };
    let part = |resources: &Resources, name: &str| {
        let (used, all) = (amount(resources, name), amount(&allocatable, name));
        let (used, all) = match name {
            "cpu" => (used.millis(), all.millis()),
            _ => (used.units(), all.units()),
        };
        let percent = if all == 0 { 0 } else { (used as f64 / all as f64 * 100.0) as i64 };
        format!("{} ({percent}%)", amount(resources, name))
    };
    let (mut requests, mut limits) = (Resources::new(), Resources::new());
    for pod in pods {
        let (requested, limited) = (of_pod(&pod["spec"], "requests"), of_pod(&pod["spec"], "limits"));
        let metadata = &pod["metadata"];
        line!(
            w,
            1,
            "{}\t{}\t\t{}\t{}\t{}\t{}\t{}",
            str(&metadata["namespace"]),
            str(&metadata["name"]),
            part(&requested, "cpu"),
            part(&limited, "cpu"),
            part(&requested, "memory"),
            part(&limited, "memory"),
            time::age(str(&metadata["creationTimestamp"])),
        );
        add(&mut requests, &requested);
        add(&mut limits, &limited);
    }
    line!(w, 0, "Allocated resources:");
    line!(w, 0, "  (Total limits may be over 100 percent, i.e., overcommitted.)");
    line!(w, 1, "Resource\tRequests\tLimits");
    line!(w, 1, "--------\t--------\t------");
    for name in ["cpu", "memory", "ephemeral-storage"] {
        line!(w, 1, "{name}\t{}\t{}", part(&requests, name), part(&limits, name));
    }
    for name in allocatable.keys().filter(|name| name.starts_with("hugepages-")) {
        line!(w, 1, "{name}\t{}\t{}", part(&requests, name), part(&limits, name));
    }
    for name in allocatable.keys() {
        let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pods");
        if !standard && !name.starts_with("hugepages-") {
            line!(w, 1, "{name}\t{}\t{}", amount(&requests, name), amount(&limits, name));
        }
    }
}

fn amount(resources: &Resources, name: &str) -> Quantity {
    resources.get(name).copied().unwrap_or(Quantity::from_units(0))
}

fn quantities(list: &Value) -> Resources {
    let parsed = keys(list).into_iter().filter_map(|key| Some((key.clone(), show(&list[key]).parse().ok()?)));
    parsed.collect()
}

fn add(sum: &mut Resources, more: &Resources) {
    for (name, quantity) in more {
        let slot = sum.entry(name.clone()).or_insert(Quantity::from_units(0));
        *slot = *slot + *quantity;
    }
}

fn at_least(sum: &mut Resources, other: &Resources) {
    for (name, quantity) in other {
        let slot = sum.entry(name.clone()).or_insert(*quantity);
        if *slot < *quantity {
            *slot = *quantity;
        }
    }
}

/// What a pod asks for: its containers together, or an init container beside the sidecars started before it.
fn of_pod(spec: &Value, field: &str) -> Resources {
    let of = |container: &Value| quantities(&container["resources"][field]);
    let mut sum = Resources::new();
    for container in array(&spec["containers"]) {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut start) = (Resources::new(), Resources::new());
    for container in array(&spec["initContainers"]) {
        let mut own = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        at_least(&mut start, &own);
    }
    at_least(&mut sum, &start);
    for (name, quantity) in quantities(&spec["resources"][field]) {
        sum.insert(name, quantity);
    }
    for (name, quantity) in quantities(&spec["overhead"]) {
        // Limits that are not there stay so.
        if field == "requests" || sum.contains_key(&name) {
            let slot = sum.entry(name).or_insert(Quantity::from_units(0));
            *slot = *slot + quantity;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_requests_are_those_of_its_hungriest_moment() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = "Always".into();
        let spec =
            json!({"containers": [container("200m"), container("100m")], "initContainers": [sidecar, container("1")]});
        assert_eq!(amount(&of_pod(&spec, "requests"), "cpu").to_string(), "1100m");
    }
}
