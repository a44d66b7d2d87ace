//! Role-based access control: allowed is what a role that is bound to the user allows; nothing is denied.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    auth::{MASTERS, User},
    registry::Registry,
};

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// With the subresource: `pods/log`.
    pub resource: &'a str,
    pub name: &'a str,
    pub namespace: &'a str,
    /// For paths that are no resources.
    pub path: &'a str,
    pub is_resource: bool,
}

/// One rule of a role.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

impl PolicyRule {
    /// Whether the rule allows what is asked.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => a.path.starts_with(prefix),
                None => url == a.path,
            });
        }
        let subresource = a.resource.split_once('/').map(|(_, sub)| sub);
        has(&self.api_groups, a.group)
            && self.resources.iter().any(|r| {
                r == "*" || r == a.resource || subresource.is_some_and(|sub| r.strip_prefix("*/") == Some(sub))
            })
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == a.name))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

/// What a binding binds and where; shared by all its subjects.
struct Grant {
    /// Empty for the whole cluster.
    namespace: String,
    /// `ClusterRoleBinding "x" of ClusterRole "y"`, for the reason that reviews show.
    text: String,
    rules: Vec<PolicyRule>,
}

/// A grant to one subject, by its place among the subjects: `User "jane"`.
struct Held {
    subject: String,
    grant: Arc<Grant>,
}

/// Answers from the roles and bindings in the watch caches; they are compiled anew when one of them changed.
pub struct Authorizer {
    registry: Arc<Registry>,
    compiled: ArcSwap<Compiled>,
}

/// What everybody holds, found by name, so that a request looks only at what concerns its user.
#[derive(Default)]
struct Compiled {
    /// Revision and number of objects of each of the four caches when this was made.
    made_of: [(u64, usize); 4],
    /// Service accounts are under their user names.
    users: HashMap<String, Vec<Held>>,
    groups: HashMap<String, Vec<Held>>,
}

impl Compiled {
    fn held<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Held> {
        let groups = user.groups.iter().filter_map(|g| self.groups.get(g));
        self.users.get(&user.name).into_iter().chain(groups).flatten()
    }

    fn add(&mut self, subject: Subject, grant: &Arc<Grant>) {
        let Subject { kind, name, namespace } = subject;
        let (text, list) = match kind.as_str() {
            "User" => (format!("User {name:?}"), self.users.entry(name)),
            "Group" => (format!("Group {name:?}"), self.groups.entry(name)),
            "ServiceAccount" => {
                let text = format!("ServiceAccount \"{name}/{namespace}\"");
                (text, self.users.entry(format!("system:serviceaccount:{namespace}:{name}")))
            }
            _ => return,
        };
        list.or_default().push(Held { subject: text, grant: grant.clone() });
    }
}

const GROUP: &str = "rbac.authorization.k8s.io";

impl Authorizer {
    pub fn new(registry: Arc<Registry>) -> Authorizer {
        Authorizer { registry, compiled: ArcSwap::default() }
    }

    /// Waits until every role and binding that was acknowledged before this call counts. Upstream's authorizer
    /// lags behind a little; here the next request already sees what was granted or taken away.
    pub async fn settle(&self) {
        for plural in ["roles", "clusterroles", "rolebindings", "clusterrolebindings"] {
            if let Err(error) = self.registry.builtin(GROUP, plural).cache.settled().await {
                tracing::warn!(%error, plural, "authorization: the roles may be out of date");
            }
        }
    }

    /// Whether the user may, and by which binding.
    pub fn allows(&self, user: &User, a: &Attributes<'_>) -> Option<String> {
        if user.in_group(MASTERS) {
            return Some(String::new());
        }
        let compiled = self.compiled();
        compiled
            .held(user)
            .filter(|h| h.grant.namespace.is_empty() || (a.is_resource && h.grant.namespace == a.namespace))
            .find(|h| h.grant.rules.iter().any(|r| r.allows(a)))
            .map(|h| format!("RBAC: allowed by {} to {}", h.grant.text, h.subject))
    }

    /// All rules that apply to a user in a namespace.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        if user.in_group(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.push(PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() });
            rules.push(PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() });
        }
        let compiled = self.compiled();
        let here = compiled.held(user).filter(|h| h.grant.namespace.is_empty() || h.grant.namespace == namespace);
        rules.extend(here.flat_map(|h| h.grant.rules.iter().cloned()));
        rules
    }

    /// The rules of a role, for checking that nobody grants more than he has.
    pub fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<Vec<PolicyRule>> {
        let resource = self.registry.builtin(GROUP, if kind == "Role" { "roles" } else { "clusterroles" });
        let role = resource.cache.peek(&resource.key(namespace, name))?;
        Some(rules_of(&role.value()))
    }

    fn compiled(&self) -> Arc<Compiled> {
        let resources =
            ["roles", "clusterroles", "rolebindings", "clusterrolebindings"].map(|p| self.registry.builtin(GROUP, p));
        let made_of = resources.map(|r| r.cache.version());
        let compiled = self.compiled.load();
        if compiled.made_of == made_of {
            return Arc::clone(&compiled);
        }
        let mut compiled = Compiled { made_of, ..Compiled::default() };
        for (resource, kind) in [(resources[2], "RoleBinding"), (resources[3], "ClusterRoleBinding")] {
            for object in resource.cache.peek_all() {
                let value = object.value();
                let role = &value["roleRef"];
                let (role_kind, role_name) =
                    (role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default());
                let Some(rules) = self.role_rules(role_kind, &object.namespace, role_name) else { continue };
                let slash = if object.namespace.is_empty() { String::new() } else { format!("/{}", object.namespace) };
                let grant = Arc::new(Grant {
                    text: format!("{kind} \"{}{slash}\" of {role_kind} {role_name:?}", object.name),
                    namespace: object.namespace.to_string(),
                    rules,
                });
                let subjects: Vec<Subject> = serde_json::from_value(value["subjects"].clone()).unwrap_or_default();
                for mut subject in subjects {
                    // An account of the binding's own namespace need not say so.
                    if subject.namespace.is_empty() {
                        subject.namespace = object.namespace.to_string();
                    }
                    compiled.add(subject, &grant);
                }
            }
        }
        let compiled = Arc::new(compiled);
        self.compiled.store(compiled.clone());
        compiled
    }
}

/// The rules of a role object.
pub fn rules_of(role: &Value) -> Vec<PolicyRule> {
    role["rules"].as_array().into_iter().flatten().filter_map(|r| serde_json::from_value(r.clone()).ok()).collect()
}

/// Whether `held` covers all that `rule` allows: each verb on each resource of each group and name.
pub fn covers(held: &[PolicyRule], rule: &PolicyRule) -> bool {
    let one = |list: &[String]| if list.is_empty() { vec![String::new()] } else { list.to_vec() };
    let includes = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            let ok = held.iter().any(|h| {
                includes(&h.verbs, verb)
                    && h.non_resource_urls
                        .iter()
                        .any(|u| u == url || u.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix)))
            });
            if !ok {
                return false;
            }
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let sub = resource.split_once('/').map(|(_, s)| format!("*/{s}"));
                for name in one(&rule.resource_names) {
                    let ok = held.iter().any(|h| {
                        includes(&h.verbs, verb)
                            && includes(&h.api_groups, group)
                            && (includes(&h.resources, resource)
                                || sub.as_ref().is_some_and(|s| h.resources.contains(s)))
                            && (h.resource_names.is_empty() || (!name.is_empty() && h.resource_names.contains(&name)))
                    });
                    if !ok {
                        return false;
                    }
                }
            }
        }
    }
    true
}

/// Upstream's words for a refusal.
pub fn refusal(user: &User, a: &Attributes<'_>) -> String {
    if !a.is_resource {
        return format!("forbidden: User {:?} cannot {} path {:?}", user.name, a.verb, a.path);
    }
    let base = format!("User {:?} cannot {} resource {:?} in API group {:?}", user.name, a.verb, a.resource, a.group);
    if a.namespace.is_empty() {
        format!("{base} at the cluster scope")
    } else {
        format!("{base} in the namespace {:?}", a.namespace)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(v: Value) -> PolicyRule {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn rules_allow_what_they_name() {
        let r = rule(
            json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/log"], "resourceNames": ["a"]}),
        );
        let a = |verb, resource, name| Attributes {
            verb,
            resource,
            name,
            namespace: "d",
            is_resource: true,
            ..Attributes::default()
        };
        assert!(r.allows(&a("get", "pods", "a")));
        assert!(!r.allows(&a("get", "pods", "b")));
        assert!(!r.allows(&a("delete", "pods", "a")));
        assert!(r.allows(&a("get", "pods/log", "a")));
        assert!(!r.allows(&a("get", "pods/exec", "a")));
        let r = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]}));
        let p = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(r.allows(&p("/healthz/etcd")) && r.allows(&p("/version")) && !r.allows(&p("/metrics")));
    }

    #[test]
    fn escalation_is_seen() {
        let held = [rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}))];
        assert!(covers(&held, &held[0]));
        assert!(covers(
            &held,
            &rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]}))
        ));
        assert!(!covers(&held, &rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}))));
        assert!(!covers(&held, &rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}))));
    }
}
