//! Nobody grants more than he has: roles and bindings are checked against their writer's own rules, unless he has
//! the verb `escalate` or `bind`.

use serde_json::Value;
use skiff_api::Status;

use super::{Admission, Attributes, Operation};
use crate::rbac::{self, Attributes as Asked, PolicyRule};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn admit(
    admission: &Admission,
    a: &Attributes<'_>,
    value: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if a.resource.group != GROUP || a.operation == Operation::Delete {
        return Ok(());
    }
    let authorizer = &admission.authorizer;
    let may = |verb: &str, resource: &str, name: &str| {
        let asked = Asked {
            verb,
            group: GROUP,
            resource,
            name,
            namespace: &a.namespace,
            is_resource: true,
            ..Asked::default()
        };
        authorizer.allows(a.user, &asked).is_some()
    };
    let granted = match a.resource.kind {
        "Role" | "ClusterRole" => {
            let same = |old: &Value| ["rules", "aggregationRule"].iter().all(|field| old[*field] == value[*field]);
            if old.is_some_and(same) || may("escalate", a.resource.plural, &a.name) {
                return Ok(());
            }
            // What it gathers may be anything.
            if gathers(value) || old.is_some_and(gathers) {
                let held = authorizer.rules(a.user, "");
                if !everything().iter().all(|rule| rbac::covers(&held, rule)) {
                    return Err(a.refuse("must have cluster-admin privileges to use the aggregationRule".to_owned()));
                }
            }
            rbac::rules_of(value)
        }
        _ => {
            let role = &value["roleRef"];
            let (kind, name) = (role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default());
            let resource = if kind == "Role" { "roles" } else { "clusterroles" };
            if may("bind", resource, name) {
                return Ok(());
            }
            match authorizer.role_rules(kind, &a.namespace, name) {
                Some(rules) => rules,
                None => return Err(Status::not_found(GROUP, resource, name)),
            }
        }
    };
    let held = authorizer.rules(a.user, &a.namespace);
    let missing: Vec<String> = granted
        .iter()
        .filter(|rule| !rbac::covers(&held, rule))
        .map(|rule| {
            format!(
                "{{APIGroups:[{}], Resources:[{}], Verbs:[{}]}}",
                quoted(&rule.api_groups),
                quoted(&rule.resources),
                quoted(&rule.verbs)
            )
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let groups = quoted(&a.user.groups);
    Err(a.refuse(format!(
        "user {:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}",
        a.user.name,
        missing.join("\n")
    )))
}

fn gathers(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|selectors| !selectors.is_empty())
}

/// What an administrator of the cluster may do.
fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    [
        PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() },
        PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() },
    ]
}

fn quoted(list: &[String]) -> String {
    list.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" ")
}
