//! Services, their endpoints, Ingresses.

use serde_json::Value;

use super::{
    Describer, array, int, joined, labels, or_none, show, str,
    text::{Text, line},
};
use crate::error::Result;

/// More addresses than these are only counted.
const ADDRESSES: usize = 3;

fn head(w: &mut Text, object: &Value) {
    line!(w, 0, "Name:\t{}", str(&object["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&object["metadata"]["namespace"]));
    w.labels("Labels", &object["metadata"]["labels"]);
    w.annotations("Annotations", &object["metadata"]["annotations"]);
}

pub(super) async fn service(describer: &Describer<'_>, w: &mut Text, service: &Value) -> Result<()> {
    let spec = &service["spec"];
    let chosen = format!("kubernetes.io/service-name={}", str(&service["metadata"]["name"]));
    let slices = describer
        .list("endpointslices.discovery.k8s.io", service["metadata"]["namespace"].as_str(), &chosen, "")
        .await?;
    head(w, service);
    line!(w, 0, "Selector:\t{}", labels(&spec["selector"]));
    line!(w, 0, "Type:\t{}", str(&spec["type"]));
    if spec["ipFamilyPolicy"].is_string() {
        line!(w, 0, "IP Family Policy:\t{}", str(&spec["ipFamilyPolicy"]));
    }
    line!(w, 0, "IP Families:\t{}", or_none(&joined(&spec["ipFamilies"], ",")));
    line!(w, 0, "IP:\t{}", str(&spec["clusterIP"]));
    line!(w, 0, "IPs:\t{}", or_none(&joined(&spec["clusterIPs"], ",")));
    if !array(&spec["externalIPs"]).is_empty() {
        line!(w, 0, "External IPs:\t{}", joined(&spec["externalIPs"], ","));
    }
    for (title, field) in [("Desired LoadBalancer IP", "loadBalancerIP"), ("External Name", "externalName")] {
        if !str(&spec[field]).is_empty() {
            line!(w, 0, "{title}:\t{}", str(&spec[field]));
        }
    }
    let ingress = array(&service["status"]["loadBalancer"]["ingress"]);
    if !ingress.is_empty() {
        let texts: Vec<String> = ingress
            .iter()
            .map(|entry| match (str(&entry["ip"]), entry["ipMode"].as_str()) {
                ("", _) => str(&entry["hostname"]).to_owned(),
                (ip, Some(mode)) => format!("{ip} ({mode})"),
                (ip, None) => ip.to_owned(),
            })
            .collect();
        line!(w, 0, "LoadBalancer Ingress:\t{}", texts.join(", "));
    }
    for port in array(&spec["ports"]) {
        let (protocol, name) = (str(&port["protocol"]), str(&port["name"]));
        let shown = if name.is_empty() { "<unset>" } else { name };
        line!(w, 0, "Port:\t{shown}\t{}/{protocol}", int(&port["port"]));
        line!(w, 0, "TargetPort:\t{}/{protocol}", show(&port["targetPort"]));
        if port["appProtocol"].is_string() {
            line!(w, 0, "AppProtocol:\t{}", str(&port["appProtocol"]));
        }
        if int(&port["nodePort"]) != 0 {
            line!(w, 0, "NodePort:\t{shown}\t{}/{protocol}", int(&port["nodePort"]));
        }
        line!(w, 0, "Endpoints:\t{}", addresses(&slices, name));
    }
    line!(w, 0, "Session Affinity:\t{}", str(&spec["sessionAffinity"]));
    for (title, field) in
        [("External Traffic Policy", "externalTrafficPolicy"), ("Internal Traffic Policy", "internalTrafficPolicy")]
    {
        if !str(&spec[field]).is_empty() {
            line!(w, 0, "{title}:\t{}", str(&spec[field]));
        }
    }
    if int(&spec["healthCheckNodePort"]) != 0 {
        line!(w, 0, "HealthCheck NodePort:\t{}", int(&spec["healthCheckNodePort"]));
    }
    if !array(&spec["loadBalancerSourceRanges"]).is_empty() {
        line!(w, 0, "LoadBalancer Source Ranges:\t{}", joined(&spec["loadBalancerSourceRanges"], ","));
    }
    if spec["trafficDistribution"].is_string() {
        line!(w, 0, "Traffic Distribution:\t{}", str(&spec["trafficDistribution"]));
    }
    Ok(())
}

/// The ready addresses of a port.
fn addresses(slices: &[Value], port_name: &str) -> String {
    if slices.is_empty() {
        return "<none>".to_owned();
    }
    let mut found = Vec::new();
    for slice in slices {
        let ready = array(&slice["endpoints"]).iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
        let ready = ready.map(|endpoint| str(&endpoint["addresses"][0]));
        if array(&slice["ports"]).is_empty() {
            found.extend(ready.map(str::to_owned));
            continue;
        }
        let ready: Vec<&str> = ready.collect();
        for port in array(&slice["ports"]).iter().filter(|port| str(&port["name"]) == port_name) {
            found.extend(ready.iter().map(|address| match address.contains(':') {
                true => format!("[{address}]:{}", int(&port["port"])),
                false => format!("{address}:{}", int(&port["port"])),
            }));
        }
    }
    let shown = found[..found.len().min(ADDRESSES)].join(",");
    match found.len() > ADDRESSES {
        true => format!("{shown} + {} more...", found.len() - ADDRESSES),
        false => shown,
    }
}

pub(super) fn endpoints(w: &mut Text, object: &Value) {
    head(w, object);
    line!(w, 0, "Subsets:");
    for subset in array(&object["subsets"]) {
        for (title, field) in [("Addresses", "addresses"), ("NotReadyAddresses", "notReadyAddresses")] {
            let addresses: Vec<_> = array(&subset[field]).iter().map(|address| str(&address["ip"])).collect();
            line!(w, 1, "{title}:\t{}", or_none(&addresses.join(",")));
        }
        if !array(&subset["ports"]).is_empty() {
            line!(w, 1, "Ports:");
            line!(w, 2, "Name\tPort\tProtocol");
            line!(w, 2, "----\t----\t--------");
        }
        for port in array(&subset["ports"]) {
            let name = port["name"].as_str().unwrap_or("<unset>");
            line!(w, 2, "{name}\t{}\t{}", int(&port["port"]), str(&port["protocol"]));
        }
        line!(w, 0, "");
    }
}

pub(super) fn endpoint_slice(w: &mut Text, slice: &Value) {
    let unset = |value: &Value| match show(value) {
        text if text.is_empty() => "<unset>".to_owned(),
        text => text,
    };
    head(w, slice);
    line!(w, 0, "AddressType:\t{}", str(&slice["addressType"]));
    if array(&slice["ports"]).is_empty() {
        line!(w, 0, "Ports: <unset>");
    } else {
        line!(w, 0, "Ports:");
        line!(w, 1, "Name\tPort\tProtocol");
        line!(w, 1, "----\t----\t--------");
    }
    for port in array(&slice["ports"]) {
        line!(w, 1, "{}\t{}\t{}", unset(&port["name"]), unset(&port["port"]), str(&port["protocol"]));
    }
    if array(&slice["endpoints"]).is_empty() {
        line!(w, 0, "Endpoints: <none>");
        return;
    }
    line!(w, 0, "Endpoints:");
    for endpoint in array(&slice["endpoints"]) {
        line!(w, 1, "- Addresses:\t{}", or_none(&joined(&endpoint["addresses"], ", ")));
        line!(w, 2, "Conditions:");
        line!(w, 3, "Ready:\t{}", unset(&endpoint["conditions"]["ready"]));
        line!(w, 2, "Hostname:\t{}", unset(&endpoint["hostname"]));
        let target = &endpoint["targetRef"];
        if target.is_object() {
            line!(w, 2, "TargetRef:\t{}/{}", str(&target["kind"]), str(&target["name"]));
        }
        line!(w, 2, "NodeName:\t{}", unset(&endpoint["nodeName"]));
        line!(w, 2, "Zone:\t{}", unset(&endpoint["zone"]));
    }
}

pub(super) async fn ingress(describer: &Describer<'_>, w: &mut Text, ingress: &Value) -> Result<()> {
    let (metadata, spec) = (&ingress["metadata"], &ingress["spec"]);
    let namespace = str(&metadata["namespace"]);
    line!(w, 0, "Name:\t{}", str(&metadata["name"]));
    w.labels("Labels", &metadata["labels"]);
    line!(w, 0, "Namespace:\t{namespace}");
    let mut addresses: Vec<&str> = array(&ingress["status"]["loadBalancer"]["ingress"])
        .iter()
        .map(|entry| entry["ip"].as_str().unwrap_or(str(&entry["hostname"])))
        .filter(|address| !address.is_empty())
        .collect();
    addresses.sort();
    addresses.dedup();
    line!(w, 0, "Address:\t{}", addresses.join(","));
    line!(w, 0, "Ingress Class:\t{}", spec["ingressClassName"].as_str().unwrap_or("<none>"));
    let default = match spec["defaultBackend"].is_object() {
        true => backend(describer, namespace, &spec["defaultBackend"]).await?,
        false => "<default>".to_owned(),
    };
    line!(w, 0, "Default backend:\t{default}");
    if !array(&spec["tls"]).is_empty() {
        line!(w, 0, "TLS:");
    }
    for tls in array(&spec["tls"]) {
        let hosts = joined(&tls["hosts"], ",");
        match str(&tls["secretName"]) {
            "" => line!(w, 1, "SNI routes {hosts}"),
            secret => line!(w, 1, "{secret} terminates {hosts}"),
        }
    }
    line!(w, 0, "Rules:");
    line!(w, 0, "  Host\tPath\tBackends");
    line!(w, 1, "----\t----\t--------");
    let mut count = 0;
    for rule in array(&spec["rules"]).iter().filter(|rule| rule["http"].is_object()) {
        count += 1;
        line!(w, 1, "{}\t", rule["host"].as_str().filter(|host| !host.is_empty()).unwrap_or("*"));
        for path in array(&rule["http"]["paths"]) {
            line!(w, 2, "\t{} \t{}", str(&path["path"]), backend(describer, namespace, &path["backend"]).await?);
        }
    }
    if count == 0 {
        line!(w, 1, "*\t*\t{default}");
    }
    w.annotations("Annotations", &metadata["annotations"]);
    Ok(())
}

async fn backend(describer: &Describer<'_>, namespace: &str, backend: &Value) -> Result<String> {
    if backend["resource"].is_object() {
        let resource = &backend["resource"];
        let group = resource["apiGroup"].as_str().unwrap_or("<none>");
        return Ok(format!("APIGroup: {group}, Kind: {}, Name: {}", str(&resource["kind"]), str(&resource["name"])));
    }
    let (name, port) = (str(&backend["service"]["name"]), &backend["service"]["port"]);
    let text =
        format!("{name}:{}", if int(&port["number"]) != 0 { show(&port["number"]) } else { show(&port["name"]) });
    let chosen = format!("kubernetes.io/service-name={name}");
    let slices = describer.list("endpointslices.discovery.k8s.io", Some(namespace), &chosen, "").await?;
    let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
    Ok(match describer.cli.rest()?.get(&path).await {
        Ok(service) => {
            let mut ports = array(&service["spec"]["ports"]).iter();
            let found = ports.find(|known| match int(&port["number"]) {
                0 => known["name"] == port["name"],
                number => int(&known["port"]) == number,
            });
            format!("{text} ({})", addresses(&slices, found.map_or("", |port| str(&port["name"]))))
        }
        Err(error) => format!("{text} (<error: {error}>)"),
    })
}

pub(super) fn ingress_class(w: &mut Text, class: &Value) {
    line!(w, 0, "Name:\t{}", str(&class["metadata"]["name"]));
    w.labels("Labels", &class["metadata"]["labels"]);
    w.annotations("Annotations", &class["metadata"]["annotations"]);
    line!(w, 0, "Controller:\t{}", str(&class["spec"]["controller"]));
    let parameters = &class["spec"]["parameters"];
    if parameters.is_object() {
        line!(w, 0, "Parameters:");
        if parameters["apiGroup"].is_string() {
            line!(w, 1, "APIGroup:\t{}", str(&parameters["apiGroup"]));
        }
        line!(w, 1, "Kind:\t{}", str(&parameters["kind"]));
        line!(w, 1, "Name:\t{}", str(&parameters["name"]));
    }
}
