//! The kinds of the group `admissionregistration.k8s.io`.

pub(crate) mod validatingadmissionpolicy;
pub(crate) mod validatingadmissionpolicybinding;

use serde_json::{Value, json};

use crate::registry::core::default_field;

/// What rules and selectors are when nothing is said of them.
fn match_defaults(constraints: &mut Value) {
    if !constraints.is_object() {
        return;
    }
    default_field(constraints, "matchPolicy", "Equivalent");
    default_field(constraints, "namespaceSelector", json!({}));
    default_field(constraints, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in crate::registry::core::each(constraints, list) {
            default_field(rule, "scope", "*");
        }
    }
}
