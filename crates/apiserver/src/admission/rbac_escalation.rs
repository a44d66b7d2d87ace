//! Nobody grants more than he has: roles and bindings are checked against their writer's own rules, unless he has
//! the verb `escalate` or `bind`.

use serde_json::Value;
use skiff_api::Status;

use super::{Admission, Attributes, Operation};
use crate::rbac::{self, Attributes as Asked};

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
            if old.is_some_and(|old| old["rules"] == value["rules"]) || may("escalate", a.resource.plural, &a.name) {
                return Ok(());
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

fn quoted(list: &[String]) -> String {
    list.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" ")
}
