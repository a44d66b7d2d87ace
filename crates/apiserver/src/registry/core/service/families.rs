//! The address families of a Service: what is filled in, and how a Service gets a second family or loses it.
//!
//! Follows upstream: [`init`] runs before every other rule and with the cluster's families at hand, so that what it
//! refuses is told alone. A Service that prefers two families never gets or loses one by itself when the cluster
//! changes; only a write of its policy, families or addresses does that.

use std::net::IpAddr;

use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::{is_external_name, remove};
use crate::{registry::core::list, services::Family};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None"
}

fn has_selector(spec: &Value) -> bool {
    spec["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

fn same(field: &str, new: &Value, old: &Value) -> bool {
    list(&new["spec"][field]) == list(&old["spec"][field])
}

fn shorten(spec: &mut Value, field: &str) {
    if let Some(values) = spec[field].as_array_mut() {
        values.truncate(1);
    }
}

/// Brings the one address and the list of addresses in step before anybody looks at them.
pub(super) fn normalize(new: &mut Value, old: Option<&Value>) {
    let text = |o: &Value| o["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let now = text(new);
    let Some(old) = old else {
        if !now.is_empty() && list(&new["spec"]["clusterIPs"]).is_empty() {
            new["spec"]["clusterIPs"] = json!([now]);
        }
        return;
    };
    let before = text(old);
    let given = list(&new["spec"]["clusterIPs"]);
    if given.is_empty() && before == now && !old["spec"]["clusterIPs"].is_null() {
        new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    } else if before != now && same("clusterIPs", new, old) {
        // A client that knows only the one address.
        if now.is_empty() {
            remove(&mut new["spec"], "clusterIPs");
        } else {
            new["spec"]["clusterIPs"] = json!([now]);
        }
    }
}

/// A Service that becomes an ExternalName gives back what it did not ask for anew.
pub(super) fn drop_of_external_name(new: &mut Value, old: &Value) {
    if !is_external_name(new) || is_external_name(old) {
        return;
    }
    if same("clusterIPs", new, old) {
        remove(&mut new["spec"], "clusterIP");
        remove(&mut new["spec"], "clusterIPs");
    }
    if same("ipFamilies", new, old) {
        remove(&mut new["spec"], "ipFamilies");
    }
    if new["spec"]["ipFamilyPolicy"] == old["spec"]["ipFamilyPolicy"] {
        remove(&mut new["spec"], "ipFamilyPolicy");
    }
}

/// Fills in policy and families by what the client says, what the Service was, and what the cluster has. `cluster`: the
/// families of the Service ranges, the default one first.
pub(crate) fn init(new: &mut Value, old: Option<&Value>, cluster: &[Family], faults: &mut Faults) {
    if is_external_name(new) || old.is_some_and(|old| is_unchanged_preference(new, old)) {
        return;
    }
    if new["spec"]["ipFamilyPolicy"].is_null() {
        let before = old.and_then(|old| old["spec"]["ipFamilyPolicy"].as_str());
        let policy = match before {
            Some(before) => before,
            None if is_headless(&new["spec"]) && !has_selector(&new["spec"]) => REQUIRE,
            None => SINGLE,
        };
        new["spec"]["ipFamilyPolicy"] = policy.into();
    }
    validate(&new["spec"], faults);
    if !faults.0.is_empty() {
        return;
    }
    let policy = new["spec"]["ipFamilyPolicy"].as_str().unwrap_or_default().to_owned();
    if let Some(old) = old {
        of_update(new, old, &policy, faults);
    }
    if policy == SINGLE {
        let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if list(&new["spec"][field]).len() == 2 {
                faults.invalid("spec.ipFamilyPolicy", SINGLE, format!("{why} {what} are specified"));
            }
        }
    }
    infer(&mut new["spec"], cluster, faults);
    if !faults.0.is_empty() {
        return;
    }
    let spec = &mut new["spec"];
    // Whose endpoints are made by hand may have any families, also those that the cluster does not have.
    let by_hand = is_headless(spec) && !has_selector(spec);
    if !by_hand {
        if policy == REQUIRE && cluster.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            faults.invalid("spec.ipFamilyPolicy", REQUIRE, why);
        }
        for (i, family) in list(&spec["ipFamilies"]).iter().enumerate() {
            if !cluster.iter().any(|known| family == known.name()) {
                faults.invalid(format!("spec.ipFamilies[{i}]"), family.clone(), "not configured on this cluster");
            }
        }
        if !faults.0.is_empty() {
            return;
        }
    }
    let default = cluster.first().copied().unwrap_or(Family::V4);
    if list(&spec["ipFamilies"]).is_empty() {
        spec["ipFamilies"] = json!([default.name()]);
    }
    if policy != SINGLE
        && (by_hand || cluster.len() == 2)
        && let Some(families) = spec["ipFamilies"].as_array_mut()
        && let [only] = families.as_slice()
    {
        let other = if only == Family::V4.name() { Family::V6 } else { Family::V4 };
        families.push(other.name().into());
    }
}

/// Whether a Service that prefers two families says nothing new about them.
fn is_unchanged_preference(new: &Value, old: &Value) -> bool {
    let prefers = |o: &Value| o["spec"]["ipFamilyPolicy"] == PREFER;
    new["spec"]["type"] == old["spec"]["type"]
        && prefers(new)
        && prefers(old)
        && same("clusterIPs", new, old)
        && same("ipFamilies", new, old)
}

/// A single-stack policy lets the second family go; without one it may not be left out.
fn of_update(new: &mut Value, old: &Value, policy: &str, faults: &mut Faults) {
    let fields = [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")];
    if policy == SINGLE {
        for (field, _) in fields {
            if same(field, new, old) {
                shorten(&mut new["spec"], field);
            }
        }
        return;
    }
    for (field, what) in fields {
        let (now, before) = (list(&new["spec"][field]), list(&old["spec"][field]));
        // An empty list is one that was not sent.
        if !now.is_empty() && now.len() < before.len() {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            faults.invalid("spec.ipFamilyPolicy", policy, why);
        }
    }
}

/// Families that are not named follow from the addresses that are.
fn infer(spec: &mut Value, cluster: &[Family], faults: &mut Faults) {
    let addresses = list(&spec["clusterIPs"]).to_vec();
    let mut families = list(&spec["ipFamilies"]).to_vec();
    for (i, address) in addresses.iter().enumerate().skip(families.len()) {
        let Some(family) = address.as_str().and_then(Family::of_text) else { break };
        if cluster.contains(&family) {
            families.push(family.name().into());
        } else {
            let why = format!("{} is not configured on this cluster", family.name());
            faults.invalid(format!("spec.clusterIPs[{i}]"), json!(addresses), why);
        }
    }
    if !families.is_empty() {
        spec["ipFamilies"] = families.into();
    }
}

/// What holds of policy, families and addresses whatever the cluster has.
pub(super) fn validate(spec: &Value, faults: &mut Faults) {
    let addresses = list(&spec["clusterIPs"]);
    let families = list(&spec["ipFamilies"]);
    let single = spec["clusterIP"].as_str().unwrap_or_default();
    let at = "spec.clusterIPs";
    match (single, addresses.first()) {
        ("", None) => {}
        ("", Some(_)) => faults.invalid(at, json!(addresses), "must be empty when `clusterIP` is not specified"),
        (_, None) => faults.required(at, ""),
        (one, Some(first)) if first != one => {
            faults.invalid(at, json!(addresses), "first value must match `clusterIP`");
        }
        _ => {}
    }
    for (i, family) in families.iter().enumerate() {
        let here = format!("spec.ipFamilies[{i}]");
        faults.one_of(&here, family.as_str().unwrap_or_default(), &["IPv4", "IPv6"]);
        if families[..i].contains(family) {
            faults.push(FieldError::duplicate(here, family.clone()));
        }
    }
    if let Some(policy) = spec["ipFamilyPolicy"].as_str() {
        faults.one_of("spec.ipFamilyPolicy", policy, &[PREFER, REQUIRE, SINGLE]);
    }
    let mut wrong = false;
    for (i, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        if i == 0 && address == "None" {
            if addresses.len() > 1 {
                faults.invalid(at, json!(addresses), "'None' must be the first and only value");
                wrong = true;
            }
            continue;
        }
        let messages = names::ip_address(address);
        wrong |= !messages.is_empty();
        faults.rule(&format!("{at}[{i}]"), address, messages);
    }
    if addresses.len() > 2 {
        faults.invalid(at, json!(addresses), "may only hold up to 2 values");
    }
    // What follows would only add to the confusion.
    if wrong {
        return;
    }
    let of_address = |address: &Value| address.as_str().and_then(Family::of_text);
    if addresses.len() > 1 {
        let all: Vec<_> = addresses.iter().map(of_address).collect();
        if all.len() != 2 || all[0] == all[1] {
            faults.invalid(at, json!(addresses), "may specify no more than one IP for each IP family");
        }
    }
    if is_headless(spec) {
        return;
    }
    for (i, (address, family)) in addresses.iter().zip(families).enumerate() {
        let (Some(found), Some(wanted)) = (of_address(address), family.as_str()) else { continue };
        if found.name() != wanted && ["IPv4", "IPv6"].contains(&wanted) {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{i}]`");
            faults.invalid(format!("{at}[{i}]"), address.clone(), why);
        }
    }
}

/// What an ExternalName may not have.
pub(super) fn forbid(spec: &Value, faults: &mut Faults) {
    let mut forbid = |field: &str, given: bool| {
        if given {
            faults.push(FieldError::forbidden(format!("spec.{field}"), "may not be set for ExternalName services"));
        }
    };
    forbid("clusterIPs", !list(&spec["clusterIPs"]).is_empty());
    forbid("ipFamilies", !list(&spec["ipFamilies"]).is_empty());
    forbid("ipFamilyPolicy", !spec["ipFamilyPolicy"].is_null());
}

/// A second address and family may come and go; what is there may not be exchanged.
pub(super) fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    if is_external_name(new) || is_external_name(old) {
        return;
    }
    let (new, old) = (&new["spec"], &old["spec"]);
    let headless = (is_headless(new), is_headless(old));
    if headless == (true, true) {
        return;
    }
    let policy = new["ipFamilyPolicy"].as_str().unwrap_or_default();
    let mut compare = |field: &str, unset: &str, releasing: &str| {
        let (now, before) = (list(&new[field]), list(&old[field]));
        let mut changed = |i: usize| {
            faults.invalid(format!("spec.{field}[{i}]"), json!(now), "may not change once set");
        };
        if now.len() == before.len() {
            (0..now.len()).filter(|i| now[*i] != before[*i]).for_each(&mut changed);
            return;
        }
        if let (Some(a), Some(b)) = (now.first(), before.first())
            && a != b
        {
            changed(0);
        }
        if now.is_empty() {
            faults.invalid(format!("spec.{field}[0]"), json!(now), unset);
        }
        if before.len() > now.len() && now.len() == 1 && policy != SINGLE {
            let why = format!("must be set to 'SingleStack' when releasing the secondary {releasing}");
            faults.invalid("spec.ipFamilyPolicy", policy, why);
        }
    };
    compare("clusterIPs", "primary clusterIP can not be unset", "clusterIP");
    if headless == (false, false) {
        compare("ipFamilies", "primary ipFamily can not be unset", "ipFamily");
    }
}

impl Family {
    /// As `spec.ipFamilies` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    fn of_text(address: &str) -> Option<Family> {
        address.parse::<IpAddr>().ok().map(Family::of)
    }
}

#[cfg(test)]
mod tests;
