//! Which rules a role gathers.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt as _;

use crate::pods;

/// The rules that a role should have of all others, each once, by selector and by name; none if it has them, or gathers
/// nothing.
pub(super) fn gathered(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut sorted: Vec<_> = all.iter().filter(|other| other.name_any() != role.name_any()).collect();
    sorted.sort_by_key(|other| other.name_any());
    let mut rules = Vec::<PolicyRule>::new();
    for selector in selectors.iter().filter_map(pods::compile) {
        let selected = sorted.iter().filter(|other| pods::selects(&selector, &****other));
        for rule in selected.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn role(name: &str, labels: Value, resources: &[&str], selectors: Value) -> Arc<ClusterRole> {
        let rules: Vec<_> =
            resources.iter().map(|r| json!({"verbs": ["get"], "apiGroups": [""], "resources": [r]})).collect();
        let mut role = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        if !selectors.is_null() {
            role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        }
        Arc::new(serde_json::from_value(role).unwrap())
    }

    fn resources(rules: &[PolicyRule]) -> Vec<&str> {
        rules.iter().flat_map(|rule| rule.resources.iter().flatten()).map(String::as_str).collect()
    }

    #[test]
    fn rules_are_gathered_by_selector_and_name() {
        let selectors = json!([{"matchLabels": {"to": "b"}}, {"matchLabels": {"to": "a"}}]);
        let wanted = ["pods", "secrets", "events", "nodes"];
        let with = |rules: &[&str]| role("all", json!({"to": "a"}), rules, selectors.clone());
        let others = [
            role("z", json!({"to": "a"}), &["nodes", "pods"], Value::Null),
            role("y", json!({"to": "a"}), &["events"], Value::Null),
            role("x", json!({"to": "b"}), &["pods", "secrets"], Value::Null),
            role("w", json!({"to": "c"}), &["services"], Value::Null),
        ];
        let all = |this: &Arc<ClusterRole>| [&others[..], std::slice::from_ref(this)].concat();
        for has in [&[][..], &["pods"], &["services"]] {
            let this = with(has);
            assert_eq!(resources(&gathered(&this, &all(&this)).unwrap()), wanted, "{has:?}");
        }
        let done = with(&wanted);
        assert_eq!(gathered(&done, &all(&done)), None);
        assert_eq!(gathered(&others[0], &all(&done)), None);
        // Nothing is selected any more.
        assert_eq!(gathered(&done, std::slice::from_ref(&done)), Some(Vec::new()));
    }
}
