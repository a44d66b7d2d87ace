//! Service. Its addresses and node ports come from [`crate::services`], its address families from [`families`].

mod families;

pub(crate) use self::families::init as init_families;

use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::{default_field, each, object_mut};
use crate::registry::{
    meta,
    networking::is_cidr,
    strategy::{Strategy, col, name_col, wide},
    table,
};

/// How long a client stays with its pod, in seconds.
const AFFINITY_TIMEOUT_S: i64 = 10_800;

pub(crate) static STRATEGY: Strategy = Strategy {
    names: names::dns1123_label,
    defaults,
    prepare_create: |o| {
        o["status"] = json!({"loadBalancer": {}});
        families::normalize(o, None);
        clear_unused(o);
    },
    prepare_update: |new, old| {
        keep_addresses(new, old);
        clear_unused(new);
    },
    validate,
    validate_update: families::validate_update,
    selectable: &["spec.clusterIP", "spec.type"],
    columns: &[
        name_col(),
        col("Type"),
        col("Cluster-IP"),
        col("External-IP"),
        col("Port(s)"),
        col("Age"),
        wide("Selector"),
    ],
    row,
    ..Strategy::DEFAULT
};

fn is_external_name(o: &Value) -> bool {
    o["spec"]["type"] == "ExternalName"
}

fn defaults(o: &mut Value) {
    let spec = object_mut(o, "spec");
    default_field(spec, "type", "ClusterIP");
    default_field(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" && spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_S}});
    }
    for port in each(spec, "ports") {
        default_field(port, "protocol", "TCP");
        let number = port["port"].clone();
        if port["targetPort"].is_null() || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = number;
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind == "ExternalName" {
        return;
    }
    default_field(spec, "internalTrafficPolicy", "Cluster");
    if kind == "NodePort" || kind == "LoadBalancer" {
        default_field(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default_field(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn remove(spec: &mut Value, field: &str) {
    if let Some(map) = spec.as_object_mut() {
        map.shift_remove(field);
    }
}

/// An update that does not name the addresses keeps them.
fn keep_addresses(new: &mut Value, old: &Value) {
    if is_external_name(new) {
        return families::drop_of_external_name(new, old);
    }
    if is_external_name(old) {
        return families::normalize(new, Some(old));
    }
    if new["spec"]["clusterIP"].as_str().is_none_or(str::is_empty) && !old["spec"]["clusterIP"].is_null() {
        new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
    }
    families::normalize(new, Some(old));
    if needs_health_check(&new["spec"]) && new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0 {
        new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    } else if !needs_health_check(&new["spec"]) && needs_health_check(&old["spec"]) {
        remove(&mut new["spec"], "healthCheckNodePort");
    }
    // Ports keep their node ports when the update leaves them out.
    let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wants = ["NodePort", "LoadBalancer"].iter().any(|t| new["spec"]["type"] == *t);
    for port in each(&mut new["spec"], "ports").filter(|_| wants) {
        if port["nodePort"].as_i64().unwrap_or(0) == 0
            && let Some(before) =
                old_ports.iter().find(|p| p["port"] == port["port"] && p["protocol"] == port["protocol"])
            && !before["nodePort"].is_null()
        {
            port["nodePort"] = before["nodePort"].clone();
        }
    }
}

/// Removes what has no meaning for the Service's type.
fn clear_unused(o: &mut Value) {
    let kind = o["spec"]["type"].as_str().unwrap_or_default().to_owned();
    let spec = &mut o["spec"];
    let external = kind == "NodePort" || kind == "LoadBalancer";
    if !external {
        for port in each(spec, "ports") {
            remove(port, "nodePort");
        }
        if spec["externalIPs"].is_null() {
            remove(spec, "externalTrafficPolicy");
        }
    }
    if kind != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerIP"] {
            remove(spec, field);
        }
    }
    if spec["healthCheckNodePort"] == 0 {
        remove(spec, "healthCheckNodePort");
    }
    if kind == "ExternalName" {
        remove(spec, "internalTrafficPolicy");
    }
    if spec["sessionAffinity"] == "None" {
        remove(spec, "sessionAffinityConfig");
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let headless = spec["clusterIP"] == "None";
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        faults.required("spec.ports", "");
    }
    faults.one_of("spec.type", kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    if (kind == "LoadBalancer" || kind == "NodePort") && headless {
        faults.invalid("spec.clusterIPs[0]", "None", format!("may not be set to 'None' for {kind} services"));
    }
    if kind == "ExternalName" {
        let name = spec["externalName"].as_str().unwrap_or_default();
        if name.is_empty() {
            faults.required("spec.externalName", "");
        } else {
            faults.rule("spec.externalName", name, names::dns1123_subdomain(name.trim_end_matches('.')));
        }
        families::forbid(spec, faults);
    } else {
        families::validate(spec, faults);
    }
    meta::labels(&spec["selector"], "spec.selector", faults);
    faults.one_of("spec.sessionAffinity", spec["sessionAffinity"].as_str().unwrap_or_default(), &["ClientIP", "None"]);
    if let Some(timeout) = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_i64()
        && !(1..=86_400).contains(&timeout)
    {
        faults.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            timeout,
            "must be greater than 0 and less than 86400",
        );
    }
    for (field, allowed) in
        [("internalTrafficPolicy", ["Cluster", "Local"]), ("externalTrafficPolicy", ["Cluster", "Local"])]
    {
        if let Some(policy) = spec[field].as_str().filter(|s| !s.is_empty()) {
            faults.one_of(&format!("spec.{field}"), policy, &allowed);
        }
    }
    for (i, ip) in spec["externalIPs"].as_array().into_iter().flatten().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        faults.rule(&format!("spec.externalIPs[{i}]"), ip, names::ip_address(ip));
    }
    validate_balancing(spec, kind, faults);
    validate_ports(ports, kind, faults);
}

fn validate_balancing(spec: &Value, kind: &str, faults: &mut Faults) {
    let ranges = spec["loadBalancerSourceRanges"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !ranges.is_empty() && kind != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        faults.push(FieldError::forbidden("spec.loadBalancerSourceRanges", why));
    }
    for (i, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        if !is_cidr(range) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            faults.invalid(format!("spec.loadBalancerSourceRanges[{i}]"), range, why);
        }
    }
    if let Some(port) = spec["healthCheckNodePort"].as_i64().filter(|port| *port != 0)
        && !needs_health_check(spec)
    {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        faults.invalid("spec.healthCheckNodePort", port, why);
    }
    if let Some(distribution) = spec["trafficDistribution"].as_str() {
        const KNOWN: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        faults.one_of("spec.trafficDistribution", distribution, &KNOWN);
    }
}

/// Whether a load balancer asks the nodes which of them have pods.
pub(crate) fn needs_health_check(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn validate_ports(ports: &[Value], kind: &str, faults: &mut Faults) {
    let mut seen_names: Vec<&str> = Vec::new();
    let mut seen_ports: Vec<(i64, &str)> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                faults.required(format!("{at}.name"), "");
            }
        } else {
            faults.rule(&format!("{at}.name"), name, names::dns1123_label(name));
            if seen_names.contains(&name) {
                faults.push(FieldError::duplicate(format!("{at}.name"), name));
            }
            seen_names.push(name);
        }
        let number = port["port"].as_i64().unwrap_or(0);
        for m in names::port_number(number) {
            faults.invalid(format!("{at}.port"), number, m);
        }
        let protocol = port["protocol"].as_str().unwrap_or_default();
        faults.one_of(&format!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        match &port["targetPort"] {
            Value::String(s) => faults.rule(&format!("{at}.targetPort"), s, names::port_name(s)),
            v => {
                let n = v.as_i64().unwrap_or(0);
                for m in names::port_number(n) {
                    faults.invalid(format!("{at}.targetPort"), n, m);
                }
            }
        }
        if port["nodePort"].as_i64().is_some_and(|n| n != 0) && kind == "ClusterIP" {
            faults.push(FieldError::forbidden(format!("{at}.nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
        if seen_ports.contains(&(number, protocol)) {
            let value = json!({"protocol": protocol, "port": number});
            faults.push(FieldError::duplicate(at, value));
        }
        seen_ports.push((number, protocol));
    }
}

fn row(o: &Value) -> Vec<Value> {
    let spec = &o["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let ports: Vec<String> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            match p["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(n) => format!("{}:{n}/{protocol}", p["port"]),
                None => format!("{}/{protocol}", p["port"]),
            }
        })
        .collect();
    vec![
        o["metadata"]["name"].clone(),
        kind.into(),
        table::text_or(&spec["clusterIP"], "<none>"),
        external_ip(o, kind).into(),
        if ports.is_empty() { "<none>".into() } else { ports.join(",").into() },
        table::created(o),
        table::pairs(&spec["selector"]),
    ]
}

fn external_ip(o: &Value, kind: &str) -> String {
    let mut ips: Vec<&str> = Vec::new();
    if kind == "LoadBalancer" {
        for ingress in o["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten() {
            ips.extend(ingress["ip"].as_str().filter(|s| !s.is_empty()).or_else(|| ingress["hostname"].as_str()));
        }
    }
    ips.extend(o["spec"]["externalIPs"].as_array().into_iter().flatten().filter_map(Value::as_str));
    match kind {
        "ExternalName" => o["spec"]["externalName"].as_str().unwrap_or_default().to_owned(),
        "LoadBalancer" if ips.is_empty() => "<pending>".into(),
        _ if ips.is_empty() => "<none>".into(),
        _ => ips.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: Value) -> Vec<String> {
        let mut o = json!({"metadata": {"name": "s"}, "spec": spec});
        defaults(&mut o);
        families::normalize(&mut o, None);
        let mut f = Faults::default();
        validate(&o, &mut f);
        f.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn balancing_is_checked() {
        let ports = json!([{"port": 80}]);
        assert_eq!(
            check(json!({"ports": ports, "loadBalancerSourceRanges": ["10.0.0.0/8"]})),
            ["spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"]
        );
        assert!(
            check(json!({"ports": ports, "type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"]}))[0]
                .contains("spec.loadBalancerSourceRanges[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR value")
        );
        assert!(check(json!({"ports": ports, "healthCheckNodePort": 30000}))[0].contains("may only be set when"));
        assert!(check(json!({"ports": ports, "trafficDistribution": "Far"}))[0].contains("Unsupported value"));
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let mut o = json!({"spec": {"ports": [{"port": 80}], "type": "LoadBalancer"}});
        defaults(&mut o);
        assert_eq!(o["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(o["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(o["spec"]["sessionAffinity"], "None");
    }

    #[test]
    fn faults() {
        assert_eq!(check(json!({})), ["spec.ports: Required value"]);
        assert!(check(json!({"ports": [{"port": 80}], "clusterIP": "x"}))[0].contains("must be a valid IP"));
        assert_eq!(
            check(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "a"}]})),
            [
                "spec.ports[1].name: Duplicate value: \"a\"",
                "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":80}"
            ]
        );
        assert_eq!(
            check(json!({"ports": [{"port": 70000}]}))[0],
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"
        );
        assert!(check(json!({"ports": [{"port": 80}]})).is_empty());
        assert!(check(json!({"clusterIP": "None"})).is_empty());
    }
}
