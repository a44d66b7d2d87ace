//! EndpointSlice.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Fault, Faults, FieldError},
};

use crate::registry::{
    core::{default_field, each, endpoints, list},
    strategy::{Strategy, col, name_col},
    table,
};

/// How many addresses an endpoint has at most.
const MOST_ADDRESSES: usize = 100;

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| {
        for port in each(o, "ports") {
            default_field(port, "name", "");
            default_field(port, "protocol", "TCP");
        }
    },
    validate,
    validate_update: |new, old, faults| {
        if new["addressType"] != old["addressType"] {
            faults.invalid("addressType", new["addressType"].clone(), "field is immutable");
        }
    },
    columns: &[name_col(), col("AddressType"), col("Ports"), col("Endpoints"), col("Age")],
    row: |o| {
        let short = |list: Vec<String>, none: &str| -> Value {
            match list.len() {
                0 => none.into(),
                n if n > 3 => format!("{} + {} more...", list[..3].join(","), n - 3).into(),
                _ => list.join(",").into(),
            }
        };
        let ports = o["ports"].as_array().into_iter().flatten();
        let ports = ports.map(|p| p["port"].as_i64().map_or_else(|| "*".into(), |n| n.to_string())).collect();
        let addresses = o["endpoints"].as_array().into_iter().flatten();
        let addresses = addresses
            .flat_map(|e| e["addresses"].as_array().into_iter().flatten())
            .map(|a| a.as_str().unwrap_or_default().to_owned())
            .collect();
        vec![
            o["metadata"]["name"].clone(),
            o["addressType"].clone(),
            short(ports, "<unset>"),
            short(addresses, "<unset>"),
            table::created(o),
        ]
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let kind = o["addressType"].as_str().unwrap_or_default();
    if kind.is_empty() {
        faults.required("addressType", "");
    } else {
        faults.one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"]);
    }
    for (i, e) in o["endpoints"].as_array().into_iter().flatten().enumerate() {
        let here = format!("endpoints[{i}].addresses");
        let addresses = list(&e["addresses"]);
        match addresses.len() {
            0 => faults.required(here.clone(), "must contain at least 1 address"),
            n if n > MOST_ADDRESSES => {
                let why = format!("must have at most {MOST_ADDRESSES} items");
                faults.push(FieldError::new(Fault::TooMany, here.clone(), n, why));
            }
            _ => {}
        }
        for (j, a) in addresses.iter().enumerate() {
            let (a, here) = (a.as_str().unwrap_or_default(), format!("{here}[{j}]"));
            match kind {
                "IPv4" | "IPv6" => validate_address(a, kind, &here, faults),
                _ => faults.rule(&here, a, names::dns1123_subdomain(a)),
            }
        }
        if let Some(node) = e["nodeName"].as_str() {
            faults.rule(&format!("endpoints[{i}].nodeName"), node, names::dns1123_subdomain(node));
        }
        if let Some(host) = e["hostname"].as_str() {
            faults.rule(&format!("endpoints[{i}].hostname"), host, names::dns1123_label(host));
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in o["ports"].as_array().into_iter().flatten().enumerate() {
        let (name, here) = (port["name"].as_str().unwrap_or_default(), format!("ports[{i}]"));
        if !name.is_empty() {
            faults.rule(&format!("{here}.name"), name, names::dns1123_label(name));
        }
        if seen.contains(&name) {
            faults.push(FieldError::duplicate(format!("{here}.name"), name));
        }
        seen.push(name);
        endpoints::validate_protocol(port, &here, faults);
    }
}

/// An address of the slice's family that is a pod's or another machine's.
fn validate_address(address: &str, family: &str, at: &str, faults: &mut Faults) {
    let wrong = names::ip_address(address);
    if !wrong.is_empty() {
        faults.rule(at, address, wrong);
        return;
    }
    if address.contains(':') != (family == "IPv6") {
        faults.invalid(at, address, format!("must be an {family} address"));
    }
    endpoints::validate_ip(address, at, faults);
}
