//! Rules of how a pod resolves names.

use serde_json::Value;
use skiff_api::{names, validation::Faults};

use crate::registry::core::list;

const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

/// Rules of `dnsPolicy` with `dnsConfig`; `at` is the path of the latter.
pub(super) fn validate(policy: &str, config: &Value, at: &str, faults: &mut Faults) {
    if policy == "None" {
        if !config.is_object() {
            faults.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if list(&config["nameservers"]).is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            faults.required(format!("{at}.nameservers"), why);
            return;
        }
    }
    let here = format!("{at}.nameservers");
    if list(&config["nameservers"]).len() > NAMESERVERS {
        let why = format!("must not have more than {NAMESERVERS} nameservers");
        faults.invalid(here.clone(), config["nameservers"].clone(), why);
    }
    for (i, address) in list(&config["nameservers"]).iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        faults.rule(&format!("{here}[{i}]"), address, names::ip_address(address));
    }
    let here = format!("{at}.searches");
    let searches: Vec<&str> = list(&config["searches"]).iter().filter_map(Value::as_str).collect();
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
    for (i, option) in list(&config["options"]).iter().enumerate() {
        if option["name"].as_str().is_none_or(str::is_empty) {
            faults.required(format!("{at}.options[{i}]"), "must not be empty");
        }
    }
}

/// Rules of `hostAliases`.
pub(super) fn validate_host_aliases(aliases: &Value, at: &str, faults: &mut Faults) {
    for (i, alias) in aliases.as_array().into_iter().flatten().enumerate() {
        let address = alias["ip"].as_str().unwrap_or_default();
        faults.rule(&format!("{at}[{i}].ip"), address, names::ip_address(address));
        for (j, name) in alias["hostnames"].as_array().into_iter().flatten().enumerate() {
            let name = name.as_str().unwrap_or_default();
            faults.rule(&format!("{at}[{i}].hostnames[{j}]"), name, names::dns1123_subdomain(name));
        }
    }
}
