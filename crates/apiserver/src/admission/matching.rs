//! Which requests a webhook or policy is about: rules of operations and resources, and selectors. Read once, when the
//! configuration changes, and not again for each request.

use serde_json::Value;
use skiff_api::{Kind, Status, selector::LabelSelector};

use super::{Attributes, Operation};
use crate::registry::Registry;

/// What webhooks and policies are never asked about: they could lock everybody out.
const EXEMPT: [&str; 6] = [
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
];

/// Whether nobody is asked about a request.
pub(super) fn is_exempt(a: &Attributes<'_>) -> bool {
    a.resource.group == "admissionregistration.k8s.io" && EXEMPT.contains(&a.resource.plural)
}

/// One rule of operations and resources.
#[derive(Debug)]
pub(super) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource; without one it is empty.
    resources: Vec<(String, String)>,
    /// Whether it is about what is in namespaces; both if it does not say.
    namespaced: Option<bool>,
    names: Vec<String>,
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

impl Rule {
    pub(super) fn read(rule: &Value) -> Rule {
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, sub)) => (resource.to_owned(), sub.to_owned()),
            None => (resource, String::new()),
        };
        Rule {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]).into_iter().map(split).collect(),
            namespaced: match rule["scope"].as_str() {
                Some("Namespaced") => Some(true),
                Some("Cluster") => Some(false),
                _ => None,
            },
            names: texts(&rule["resourceNames"]),
        }
    }

    fn matches(&self, kind: &Kind, a: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|v| v == "*" || v == wanted);
        let fits = |pattern: &str, wanted: &str| pattern == "*" || pattern == wanted;
        has(&self.operations, a.operation.as_str())
            && self.resources.iter().any(|(r, sub)| fits(r, kind.plural) && fits(sub, a.subresource))
            && has(&self.groups, kind.group)
            && has(&self.versions, kind.version)
            && self.namespaced.is_none_or(|n| n == kind.namespaced)
            && (self.names.is_empty() || self.names.contains(&a.name))
    }
}

/// `matchConstraints`, `matchResources`, or what a webhook has in their place.
#[derive(Debug)]
pub(super) struct Constraints {
    namespaces: LabelSelector,
    objects: LabelSelector,
    excluded: Vec<Rule>,
    /// `None`: a binding that says nothing of resources is about all.
    rules: Option<Vec<Rule>>,
    equivalent: bool,
}

impl Constraints {
    /// Reads selectors and `matchPolicy`, with the rules of this field.
    pub(super) fn read(constraints: &Value, rules: &str) -> Constraints {
        // Selectors have been validated.
        let selector = |v: &Value| LabelSelector::from_value(v).unwrap_or_default();
        let list = |v: &Value| v.as_array().into_iter().flatten().map(Rule::read).collect::<Vec<_>>();
        let rules = list(&constraints[rules]);
        Constraints {
            namespaces: selector(&constraints["namespaceSelector"]),
            objects: selector(&constraints["objectSelector"]),
            excluded: list(&constraints["excludeResourceRules"]),
            rules: (!rules.is_empty()).then_some(rules),
            equivalent: constraints["matchPolicy"] != "Exact",
        }
    }

    /// The same for a webhook: one without rules is about nothing.
    pub(super) fn of_webhook(webhook: &Value) -> Constraints {
        let read = Constraints::read(webhook, "rules");
        Constraints { rules: Some(read.rules.unwrap_or_default()), ..read }
    }

    /// The version of the resource that the request matches in, if it is meant.
    pub(super) fn choose(&self, registry: &Registry, request: &Asked<'_>) -> Result<Option<&'static Kind>, Status> {
        let a = request.a;
        let Some(kind) = self.version(registry, a) else { return Ok(None) };
        let of = |o: &Value| o.is_object() && self.objects.matches_value(o["metadata"].get("labels"));
        if !self.objects.is_empty() && !of(request.object) && !of(request.old) {
            return Ok(None);
        }
        let about_namespace = a.is("", "namespaces");
        if self.namespaces.is_empty() || (a.namespace.is_empty() && !about_namespace) {
            return Ok(Some(kind));
        }
        // A namespace that is being written has the labels that it will have.
        let written = about_namespace && a.subresource.is_empty() && a.operation != Operation::Delete;
        let namespace = if written { request.object } else { request.namespace };
        if !namespace.is_object() {
            return Err(Status::not_found("", "namespaces", a.hook_namespace()));
        }
        Ok(self.namespaces.matches_value(namespace["metadata"].get("labels")).then_some(kind))
    }

    fn version(&self, registry: &Registry, a: &Attributes<'_>) -> Option<&'static Kind> {
        let any = |rules: &[Rule], kind: &Kind| rules.iter().any(|rule| rule.matches(kind, a));
        let asked = a.requested();
        let others = || registry.versions(a.resource).into_iter().filter(|k| *k != asked);
        if any(&self.excluded, asked) || (self.equivalent && others().any(|k| any(&self.excluded, k))) {
            return None;
        }
        let Some(rules) = &self.rules else { return Some(asked) };
        if any(rules, asked) {
            return Some(asked);
        }
        if !self.equivalent {
            return None;
        }
        // Rules that come first count first.
        rules.iter().find_map(|rule| others().find(|kind| rule.matches(kind, a)))
    }
}

/// A request as rules, selectors and expressions see it.
pub(super) struct Asked<'a> {
    pub(super) a: &'a Attributes<'a>,
    pub(super) object: &'a Value,
    pub(super) old: &'a Value,
    /// The namespace of the object, or that it is; null for what is in none.
    pub(super) namespace: &'a Value,
}

/// The namespace that a request is about; null if there is none.
pub(super) async fn namespace_of(registry: &Registry, a: &Attributes<'_>) -> Result<Value, Status> {
    let name = a.hook_namespace();
    if name.is_empty() {
        return Ok(Value::Null);
    }
    let namespaces = registry.builtin("", "namespaces");
    let found = namespaces.cache.get(&namespaces.key("", name)).await.map_err(Status::internal)?;
    Ok(found.map(|n| n.value()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::kinds::by_resource;

    use super::*;
    use crate::{auth::User, request::WriteOptions};

    #[test]
    fn rules_choose() {
        let (user, options) = (User::anonymous(), WriteOptions::default());
        let pods = by_resource("", "v1", "pods").unwrap();
        let a = |operation, subresource| Attributes {
            namespace: "n".into(),
            name: "p".into(),
            ..Attributes::new(&user, operation, pods, subresource, &options)
        };
        let rule = |operations: &str, resources: &str, scope: &str| {
            Rule::read(
                &json!({"operations": [operations], "apiGroups": [""], "apiVersions": ["v1"], "resources": [resources], "scope": scope}),
            )
        };
        let create = a(Operation::Create, "");
        assert!(rule("CREATE", "pods", "*").matches(pods, &create));
        assert!(rule("*", "*", "Namespaced").matches(pods, &create));
        assert!(rule("*", "*/*", "*").matches(pods, &create));
        assert!(rule("*", "pods/*", "*").matches(pods, &create));
        assert!(!rule("CREATE", "pods", "Cluster").matches(pods, &create));
        assert!(!rule("UPDATE", "pods", "*").matches(pods, &create));
        let exec = a(Operation::Connect, "exec");
        assert!(rule("CONNECT", "pods/exec", "*").matches(pods, &exec));
        assert!(rule("CONNECT", "*/exec", "*").matches(pods, &exec));
        assert!(!rule("CONNECT", "pods", "*").matches(pods, &exec));
        assert!(!rule("CONNECT", "*", "*").matches(pods, &exec));
    }
}
