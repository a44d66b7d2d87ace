//! `kubectl create role`, `clusterrole`, `rolebinding`, `clusterrolebinding`.

use serde_json::{Map, Value, json};

use super::{MAKE, make, name, required};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
};

const RULES: &[Flag] = &[
    Flag::list("verb", "Verb that applies to the resources contained in the rule"),
    Flag::list("resource", "Resource that the rule applies to"),
    Flag::array(
        "resource-name",
        "Resource in the white list that the rule applies to, repeat this flag for multiple items",
    ),
];
const CLUSTER_RULES: &[Flag] = &[
    Flag::list("non-resource-url", "A partial url that user should have access to."),
    Flag::list("aggregation-rule", "An aggregation label selector for combining ClusterRoles."),
];
const SUBJECTS: &[Flag] = &[
    Flag::text("clusterrole", "ClusterRole this binding should reference"),
    Flag::array("user", "Usernames to bind to the role."),
    Flag::array("group", "Groups to bind to the role."),
    Flag::array("serviceaccount", "Service accounts to bind to the role, in the format <namespace>:<name>."),
];

pub(super) const ROLE: Command = Command {
    name: "role",
    about: "Create a role with single rule",
    usage: "NAME --verb=verb --resource=resource.group/subresource [--resource-name=resourcename]",
    flags: &[RULES, MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(role(cli, "Role"))),
};
pub(super) const CLUSTER_ROLE: Command = Command {
    name: "clusterrole",
    about: "Create a cluster role",
    usage: "NAME --verb=verb --resource=resource.group [--resource-name=resourcename]",
    flags: &[RULES, CLUSTER_RULES, MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(role(cli, "ClusterRole"))),
};
pub(super) const ROLE_BINDING: Command = Command {
    name: "rolebinding",
    about: "Create a role binding for a particular role or cluster role",
    usage: "NAME --clusterrole=NAME|--role=NAME [--user=username] [--group=groupname] [--serviceaccount=namespace:serviceaccountname]",
    flags: &[&[Flag::text("role", "Role this RoleBinding should reference")], SUBJECTS, MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(binding(cli, "RoleBinding"))),
};
pub(super) const CLUSTER_ROLE_BINDING: Command = Command {
    name: "clusterrolebinding",
    about: "Create a cluster role binding for a particular cluster role",
    usage: "NAME --clusterrole=NAME [--user=username] [--group=groupname] [--serviceaccount=namespace:serviceaccountname]",
    flags: &[SUBJECTS, MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(binding(cli, "ClusterRoleBinding"))),
};

const RBAC: &str = "rbac.authorization.k8s.io/v1";

async fn role(cli: &Cli, kind: &str) -> Result<()> {
    let name = name(cli)?;
    let flags = &cli.flags;
    let mut object = json!({"apiVersion": RBAC, "kind": kind, "metadata": {"name": name}});
    if flags.given("aggregation-rule") {
        let labels: Map<String, Value> = flags
            .list("aggregation-rule")
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        object["rules"] = json!([]);
        return make(cli, object).await;
    }
    let mut verbs: Vec<&String> = Vec::new();
    for verb in flags.list("verb") {
        if verb == "*" {
            verbs = vec![verb];
            break;
        }
        if !verbs.contains(&verb) {
            verbs.push(verb);
        }
    }
    if verbs.is_empty() {
        return Err(Error::text("at least one verb must be specified"));
    }
    if flags.given("non-resource-url") {
        object["rules"] = json!([{"nonResourceURLs": flags.list("non-resource-url"), "verbs": verbs}]);
        return make(cli, object).await;
    }
    if !flags.given("resource") {
        let what = if kind == "Role" {
            "at least one resource must be specified"
        } else {
            "one of resource or nonResourceURL must be specified"
        };
        return Err(Error::text(what));
    }
    // A rule for each group, in the order in which they come.
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for text in flags.list("resource") {
        let (name, sub) = text.split_once('/').map_or((text.as_str(), None), |(name, sub)| (name, Some(sub)));
        let (group, plural) = match name {
            "*" => (String::new(), "*".to_owned()),
            name => {
                let found = cli.resource(name).await?;
                (found.group.clone(), found.plural.clone())
            }
        };
        let full = sub.map_or(plural.clone(), |sub| format!("{plural}/{sub}"));
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, resources)) if !resources.contains(&full) => resources.push(full),
            Some(_) => {}
            None => groups.push((group, vec![full])),
        }
    }
    groups.sort();
    let names = flags.list("resource-name");
    let rules: Vec<Value> = groups
        .into_iter()
        .map(|(group, resources)| {
            let mut rule = json!({"apiGroups": [group]});
            if !names.is_empty() {
                rule["resourceNames"] = names.into();
            }
            rule["resources"] = resources.into();
            rule["verbs"] = json!(verbs);
            rule
        })
        .collect();
    object["rules"] = rules.into();
    make(cli, object).await
}

async fn binding(cli: &Cli, kind: &str) -> Result<()> {
    let name = name(cli)?;
    let flags = &cli.flags;
    let (role, cluster_role) = (flags.text("role"), flags.text("clusterrole"));
    let (role_kind, role_name) = match kind {
        "ClusterRoleBinding" => {
            required(cli, &["clusterrole"])?;
            ("ClusterRole", cluster_role)
        }
        _ if role.is_empty() == cluster_role.is_empty() => {
            return Err(Error::text("exactly one of clusterrole or role must be specified"));
        }
        _ if role.is_empty() => ("ClusterRole", cluster_role),
        _ => ("Role", role),
    };
    let group = "rbac.authorization.k8s.io";
    let mut subjects = Vec::new();
    for (flag, subject) in [("user", "User"), ("group", "Group")] {
        let named = flags.list(flag).iter().flat_map(|list| list.split(','));
        subjects.extend(named.map(|name| json!({"kind": subject, "apiGroup": group, "name": name})));
    }
    for account in flags.list("serviceaccount").iter().flat_map(|list| list.split(',')) {
        let Some((namespace, name)) = account.split_once(':').filter(|(a, b)| !a.is_empty() && !b.is_empty()) else {
            return Err(Error::text("serviceaccount must be <namespace>:<name>"));
        };
        subjects.push(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}));
    }
    let mut object = json!({
        "apiVersion": RBAC, "kind": kind, "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": role_kind, "name": role_name},
    });
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    make(cli, object).await
}
