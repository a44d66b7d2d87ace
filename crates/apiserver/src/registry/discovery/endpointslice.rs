//! EndpointSlice.

use serde_json::Value;
use skiff_api::validation::Faults;

use crate::{
    registry::{
        core::{default_field, each},
        strategy::{Strategy, col, name_col},
        table,
    },
    services::is_ip,
};

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
        let addresses = e["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            faults.required(format!("endpoints[{i}].addresses"), "must contain at least 1 address");
        }
        for (j, a) in addresses.iter().enumerate() {
            let a = a.as_str().unwrap_or_default();
            if kind != "FQDN" && !is_ip(a) {
                faults.invalid(
                    format!("endpoints[{i}].addresses[{j}]"),
                    a,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                );
            }
        }
    }
}
