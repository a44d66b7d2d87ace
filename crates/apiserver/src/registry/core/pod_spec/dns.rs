//! Rules of how a pod resolves names.

use std::net::IpAddr;

use serde_json::Value;
use skiff_api::{names, validation::Faults};

const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

/// Rules of `dnsPolicy` with `dnsConfig`; `at` is the path of the latter.
pub(super) fn validate(policy: &str, config: &Value, at: &str, faults: &mut Faults) {
    let list = |field: &str| config[field].as_array().map(Vec::as_slice).unwrap_or_default();
    if policy == "None" {
        if !config.is_object() {
            faults.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if list("nameservers").is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            faults.required(format!("{at}.nameservers"), why);
            return;
        }
    }
    let here = format!("{at}.nameservers");
    if list("nameservers").len() > NAMESERVERS {
        let why = format!("must not have more than {NAMESERVERS} nameservers");
        faults.invalid(here.clone(), config["nameservers"].clone(), why);
    }
    for (i, address) in list("nameservers").iter().enumerate() {
        validate_address(address.as_str().unwrap_or_default(), &format!("{here}[{i}]"), faults);
    }
    let here = format!("{at}.searches");
    let searches: Vec<&str> = list("searches").iter().filter_map(Value::as_str).collect();
    if searches.len() > SEARCHES {
        let why = format!("must not have more than {SEARCHES} search paths");
        faults.invalid(here.clone(), config["searches"].clone(), why);
    }
    if searches.join(" ").len() > SEARCH_BYTES {
        let why = format!("must not have more than {SEARCH_BYTES} characters (including spaces) in the search list");
        faults.invalid(here.clone(), config["searches"].clone(), why);
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, search)| **search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        faults.rule(&format!("{here}[{i}]"), search, names::dns1123_subdomain_with_underscore(search));
    }
    for (i, option) in list("options").iter().enumerate() {
        if option["name"].as_str().is_none_or(str::is_empty) {
            faults.required(format!("{at}.options[{i}]"), "must not be empty");
        }
    }
}

/// Rules of `hostAliases`.
pub(super) fn validate_host_aliases(aliases: &Value, at: &str, faults: &mut Faults) {
    for (i, alias) in aliases.as_array().into_iter().flatten().enumerate() {
        validate_address(alias["ip"].as_str().unwrap_or_default(), &format!("{at}[{i}].ip"), faults);
        for (j, name) in alias["hostnames"].as_array().into_iter().flatten().enumerate() {
            let name = name.as_str().unwrap_or_default();
            faults.rule(&format!("{at}[{i}].hostnames[{j}]"), name, names::dns1123_subdomain(name));
        }
    }
}

fn validate_address(address: &str, at: &str, faults: &mut Faults) {
    if address.parse::<IpAddr>().is_err() {
        faults.invalid(at, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}
