//! Endpoints.

use std::net::IpAddr;

use serde_json::Value;
use skiff_api::{names, validation::Faults};

use super::{default_field, each, list};
use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    create_on_update: true,
    defaults: |o| {
        for subset in each(o, "subsets") {
            for port in each(subset, "ports") {
                default_field(port, "protocol", "TCP");
            }
        }
    },
    validate,
    warnings: |_| vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()],
    columns: &[name_col(), col("Endpoints"), col("Age")],
    row: |o| vec![o["metadata"]["name"].clone(), addresses(o).into(), table::created(o)],
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    for (i, subset) in o["subsets"].as_array().into_iter().flatten().enumerate() {
        let at = format!("subsets[{i}]");
        if list(&subset["addresses"]).is_empty() && list(&subset["notReadyAddresses"]).is_empty() {
            faults.required(at.clone(), "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(&subset[field]).iter().enumerate() {
                validate_address(address, &format!("{at}.{field}[{j}]"), faults);
            }
        }
        let ports = list(&subset["ports"]);
        for (j, port) in ports.iter().enumerate() {
            let at = format!("{at}.ports[{j}]");
            match port["name"].as_str().unwrap_or_default() {
                "" if ports.len() > 1 => faults.required(format!("{at}.name"), ""),
                "" => {}
                name => faults.rule(&format!("{at}.name"), name, names::dns1123_label(name)),
            }
            let number = port["port"].as_i64().unwrap_or(0);
            for why in names::port_number(number) {
                faults.invalid(format!("{at}.port"), number, why);
            }
            validate_protocol(port, &at, faults);
        }
    }
}

fn validate_address(address: &Value, at: &str, faults: &mut Faults) {
    let ip = address["ip"].as_str().unwrap_or_default();
    faults.rule(&format!("{at}.ip"), ip, names::ip_address(ip));
    if let Some(host) = address["hostname"].as_str().filter(|host| !host.is_empty()) {
        faults.rule(&format!("{at}.hostname"), host, names::dns1123_label(host));
    }
    if let Some(node) = address["nodeName"].as_str() {
        faults.rule(&format!("{at}.nodeName"), node, names::dns1123_subdomain(node));
    }
    validate_ip(ip, &format!("{at}.ip"), faults);
}

/// Whoever may write endpoints must not make Services of what only a node itself may reach.
pub(crate) fn validate_ip(ip: &str, at: &str, faults: &mut Faults) {
    let Ok(address) = ip.parse::<IpAddr>() else {
        faults.invalid(at, ip, "must be a valid IP address");
        return;
    };
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    for (bad, why) in [
        (address.is_unspecified(), format!("may not be unspecified ({ip})")),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ] {
        if bad {
            faults.invalid(at, ip, why);
        }
    }
}

/// Rules of a port's protocols.
pub(crate) fn validate_protocol(port: &Value, at: &str, faults: &mut Faults) {
    match port["protocol"].as_str().unwrap_or_default() {
        "" => faults.required(format!("{at}.protocol"), ""),
        protocol => faults.one_of(&format!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]),
    }
    if let Some(protocol) = port["appProtocol"].as_str() {
        faults.rule(&format!("{at}.appProtocol"), protocol, names::qualified_name(protocol));
    }
}

/// The first three endpoints and how many more there are.
fn addresses(o: &Value) -> String {
    const SHOWN: usize = 3;
    let mut list = Vec::new();
    for subset in o["subsets"].as_array().into_iter().flatten() {
        let ports: Vec<i64> =
            subset["ports"].as_array().into_iter().flatten().filter_map(|p| p["port"].as_i64()).collect();
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let ip = address["ip"].as_str().unwrap_or_default();
            if ports.is_empty() {
                list.push(ip.to_owned());
            }
            list.extend(
                ports.iter().map(|p| if ip.contains(':') { format!("[{ip}]:{p}") } else { format!("{ip}:{p}") }),
            );
        }
    }
    match list.len() {
        0 => "<none>".into(),
        n if n > SHOWN => format!("{} + {} more...", list[..SHOWN].join(","), n - SHOWN),
        _ => list.join(","),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_are_nobodys_own_machine() {
        let faults = |ip: &str| {
            let mut faults = Faults::default();
            validate(&json!({"subsets": [{"addresses": [{"ip": ip}]}]}), &mut faults);
            faults.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(faults("10.244.0.7"), [""; 0]);
        assert_eq!(
            faults("127.0.0.1"),
            [
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
            ]
        );
        for bad in ["0.0.0.0", "169.254.169.254", "224.0.0.251", "::1", "fe80::1", "ff02::1", ""] {
            assert!(!faults(bad).is_empty(), "{bad}");
        }
    }
}
