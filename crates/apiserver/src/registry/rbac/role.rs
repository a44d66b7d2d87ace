//! Role and ClusterRole.

use serde_json::Value;
use skiff_api::{names, validation::Faults};

use crate::registry::strategy::Strategy;

pub(crate) static STRATEGY: Strategy = Strategy { names: names::path_segment, validate, ..Strategy::DEFAULT };

fn validate(o: &Value, faults: &mut Faults) {
    for (i, rule) in o["rules"].as_array().into_iter().flatten().enumerate() {
        let at = format!("rules[{i}]");
        let empty = |f: &str| rule[f].as_array().is_none_or(Vec::is_empty);
        if empty("verbs") {
            faults.required(format!("{at}.verbs"), "verbs must contain at least one value");
        }
        if !empty("nonResourceURLs") {
            if o["kind"] == "Role" {
                faults.invalid(
                    format!("{at}.nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
                faults.invalid(
                    format!("{at}.nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if empty("apiGroups") {
            faults.required(format!("{at}.apiGroups"), "resource rules must supply at least one api group");
        }
        if empty("resources") {
            faults.required(format!("{at}.resources"), "resource rules must supply at least one resource");
        }
    }
}
