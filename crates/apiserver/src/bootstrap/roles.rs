//! The roles that every cluster has, and who is bound to them.

use serde_json::{Value, json};
use skiff_api::Status;

use super::ensure_fields;
use crate::registry::engine::Engine;

const GROUP: &str = "rbac.authorization.k8s.io";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources})
}

fn urls(urls: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": urls})
}

/// What users of a namespace may see (`view`) and what they may change (`edit`), by group.
const NAMESPACED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "serviceaccounts",
            "services",
            "services/status",
        ],
    ),
    (
        "apps",
        &[
            "daemonsets",
            "deployments",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
    ),
    ("autoscaling", &["horizontalpodautoscalers"]),
    ("batch", &["cronjobs", "jobs"]),
    ("policy", &["poddisruptionbudgets"]),
    ("networking.k8s.io", &["ingresses", "networkpolicies"]),
    ("discovery.k8s.io", &["endpointslices"]),
];

fn view() -> Vec<Value> {
    let mut rules: Vec<Value> = NAMESPACED.iter().map(|(group, resources)| rule(READ, &[group], resources)).collect();
    rules.push(rule(
        READ,
        &[""],
        &[
            "bindings",
            "events",
            "limitranges",
            "namespaces",
            "namespaces/status",
            "pods/log",
            "pods/status",
            "replicationcontrollers/status",
            "resourcequotas",
            "resourcequotas/status",
        ],
    ));
    rules.push(rule(
        READ,
        &["apps"],
        &[
            "controllerrevisions",
            "daemonsets/status",
            "deployments/status",
            "replicasets/status",
            "statefulsets/status",
        ],
    ));
    rules.push(rule(READ, &["autoscaling"], &["horizontalpodautoscalers/status"]));
    rules.push(rule(READ, &["batch"], &["cronjobs/status", "jobs/status"]));
    rules.push(rule(READ, &["policy"], &["poddisruptionbudgets/status"]));
    rules.push(rule(READ, &["networking.k8s.io"], &["ingresses/status"]));
    rules.push(metrics_reader());
    rules
}

/// What nodes and pods use.
fn metrics_reader() -> Value {
    rule(READ, &["metrics.k8s.io"], &["nodes", "pods"])
}

/// What [`view`] lacks.
fn edit() -> Vec<Value> {
    let mut rules = Vec::new();
    // Endpoints are not for users to write: they could lead traffic anywhere.
    for (group, resources) in NAMESPACED.iter().filter(|(g, _)| *g != "discovery.k8s.io") {
        let resources: Vec<&str> = resources.iter().copied().filter(|r| *r != "endpoints").collect();
        rules.push(rule(WRITE, &[group], &resources));
    }
    rules.push(rule(
        READ,
        &[""],
        &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"],
    ));
    rules.push(rule(&["impersonate"], &[""], &["serviceaccounts"]));
    rules.push(rule(
        WRITE,
        &[""],
        &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"],
    ));
    rules.push(rule(&["create"], &[""], &["pods/eviction", "serviceaccounts/token"]));
    rules.push(rule(
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        &["coordination.k8s.io"],
        &["leases"],
    ));
    rules
}

/// What [`edit`] lacks.
fn admin() -> Vec<Value> {
    let all: Vec<&str> = READ.iter().chain(WRITE).copied().collect();
    vec![
        rule(&all, &[GROUP], &["rolebindings", "roles"]),
        rule(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews"]),
    ]
}

/// The roles that gather the rules of others: name, which roles they gather, which role gathers them, and the rules that
/// they begin with, until a controller looks after them.
fn gathering() -> [(&'static str, &'static str, Option<&'static str>, Vec<Value>); 3] {
    let edit = [edit(), view()].concat();
    let admin = [edit.clone(), admin()].concat();
    [("admin", "admin", None, admin), ("edit", "edit", Some("admin"), edit), ("view", "view", Some("edit"), view())]
}

/// The label of a role whose rules another one gathers.
fn aggregate_to(role: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{role}")
}

fn node() -> Vec<Value> {
    vec![
        rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
        rule(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews", "subjectaccessreviews"]),
        rule(READ, &[""], &["services"]),
        rule(&["create", "get", "list", "watch"], &[""], &["nodes"]),
        rule(&["patch", "update"], &[""], &["nodes", "nodes/status"]),
        rule(&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
        rule(READ, &[""], &["pods"]),
        rule(&["create", "delete"], &[""], &["pods"]),
        rule(&["patch", "update"], &[""], &["pods/status"]),
        rule(&["create"], &[""], &["pods/eviction"]),
        rule(READ, &[""], &["configmaps", "secrets"]),
        rule(READ, &[""], &["persistentvolumeclaims", "persistentvolumes"]),
        // Directories of local volumes are removed by their node.
        rule(&["patch"], &[""], &["persistentvolumes"]),
        rule(&["patch", "update", "get"], &[""], &["persistentvolumeclaims/status"]),
        rule(&["get"], &[""], &["endpoints"]),
        rule(&["create", "get", "list", "watch"], &["certificates.k8s.io"], &["certificatesigningrequests"]),
        rule(&["create", "delete", "get", "patch", "update"], &["coordination.k8s.io"], &["leases"]),
        rule(READ, &["storage.k8s.io"], &["volumeattachments", "csidrivers"]),
        rule(&["create", "delete", "get", "patch", "update"], &["storage.k8s.io"], &["csinodes"]),
        rule(&["create"], &[""], &["serviceaccounts/token"]),
        rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
        // The proxy and the node's network run as the node.
        rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
        rule(READ, &["networking.k8s.io"], &["networkpolicies"]),
        rule(READ, &[""], &["namespaces"]),
    ]
}

/// Name and rules of every ClusterRole.
fn cluster_roles() -> Vec<(&'static str, Vec<Value>)> {
    let health: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery: &[&str] = &[
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    vec![
        ("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({"verbs": ["*"], "nonResourceURLs": ["*"]})]),
        ("system:aggregate-to-admin", admin()),
        ("system:aggregate-to-edit", edit()),
        ("system:aggregate-to-view", view()),
        ("system:aggregated-metrics-reader", vec![metrics_reader()]),
        // For servers that ask this one who somebody is and what he may do.
        (
            "system:auth-delegator",
            vec![
                rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
                rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
            ],
        ),
        ("system:discovery", vec![urls(discovery)]),
        ("system:public-info-viewer", vec![urls(health)]),
        (
            "system:monitoring",
            vec![urls(&[
                "/healthz",
                "/healthz/*",
                "/livez",
                "/livez/*",
                "/metrics",
                "/metrics/slis",
                "/readyz",
                "/readyz/*",
            ])],
        ),
        (
            "system:basic-user",
            vec![
                rule(&["create"], &["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
                rule(&["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]),
            ],
        ),
        (
            "system:service-account-issuer-discovery",
            vec![urls(&["/.well-known/openid-configuration", "/openid/v1/jwks"])],
        ),
        ("system:node", node()),
        (
            "system:node-bootstrapper",
            vec![rule(&["create", "get", "list", "watch"], &["certificates.k8s.io"], &["certificatesigningrequests"])],
        ),
        (
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            vec![rule(&["create"], &["certificates.k8s.io"], &["certificatesigningrequests/nodeclient"])],
        ),
        (
            "system:kubelet-api-admin",
            vec![
                rule(&["get", "list", "watch"], &[""], &["nodes"]),
                rule(&["proxy"], &[""], &["nodes"]),
                rule(&["*"], &[""], &["nodes/log", "nodes/metrics", "nodes/proxy", "nodes/stats"]),
            ],
        ),
        (
            "system:kube-scheduler",
            vec![
                rule(&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
                rule(&["create", "get", "list", "watch", "update"], &["coordination.k8s.io"], &["leases"]),
                rule(
                    READ,
                    &[""],
                    &[
                        "namespaces",
                        "nodes",
                        "persistentvolumeclaims",
                        "persistentvolumes",
                        "pods",
                        "replicationcontrollers",
                        "services",
                    ],
                ),
                rule(&["delete", "get", "list", "watch"], &[""], &["pods"]),
                rule(&["create"], &[""], &["bindings", "pods/binding"]),
                rule(&["patch", "update"], &[""], &["pods/status"]),
                rule(READ, &["apps"], &["replicasets", "statefulsets"]),
                rule(READ, &["policy"], &["poddisruptionbudgets"]),
                rule(
                    READ,
                    &["storage.k8s.io"],
                    &["csidrivers", "csinodes", "csistoragecapacities", "storageclasses", "volumeattachments"],
                ),
                rule(&["patch", "update"], &[""], &["persistentvolumeclaims", "persistentvolumes"]),
            ],
        ),
        // One process runs all controllers; what each may do is in its own code.
        (
            "system:kube-controller-manager",
            vec![rule(&["*"], &["*"], &["*"]), json!({"verbs": ["get"], "nonResourceURLs": ["*"]})],
        ),
        (
            "system:coredns",
            vec![
                rule(&["list", "watch"], &[""], &["endpoints", "namespaces", "pods", "services"]),
                rule(&["list", "watch"], &["discovery.k8s.io"], &["endpointslices"]),
            ],
        ),
        (
            "system:skiff-ingress",
            vec![
                rule(&["list", "watch"], &[""], &["services", "secrets"]),
                rule(&["list", "watch"], &["discovery.k8s.io"], &["endpointslices"]),
                rule(&["list", "watch"], &["networking.k8s.io"], &["ingresses", "ingressclasses"]),
                rule(&["patch", "update"], &["networking.k8s.io"], &["ingresses/status"]),
                rule(&["create", "patch"], &["", "events.k8s.io"], &["events"]),
            ],
        ),
    ]
}

/// Name, role and subjects of every ClusterRoleBinding.
fn bindings() -> Vec<(&'static str, &'static str, Value)> {
    let group = |name: &str| json!({"kind": "Group", "apiGroup": GROUP, "name": name});
    let user = |name: &str| json!({"kind": "User", "apiGroup": GROUP, "name": name});
    vec![
        ("cluster-admin", "cluster-admin", json!([group("system:masters")])),
        ("system:discovery", "system:discovery", json!([group("system:authenticated")])),
        ("system:basic-user", "system:basic-user", json!([group("system:authenticated")])),
        (
            "system:public-info-viewer",
            "system:public-info-viewer",
            json!([group("system:authenticated"), group("system:unauthenticated")]),
        ),
        ("system:monitoring", "system:monitoring", json!([group("system:monitoring")])),
        (
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            json!([group("system:serviceaccounts")]),
        ),
        ("system:node", "system:node", json!([group("system:nodes")])),
        ("system:node-bootstrapper", "system:node-bootstrapper", json!([group("system:bootstrappers")])),
        (
            "system:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            json!([group("system:bootstrappers")]),
        ),
        ("system:kube-scheduler", "system:kube-scheduler", json!([user("system:kube-scheduler")])),
        (
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            json!([user("system:kube-controller-manager")]),
        ),
        ("system:kubelet-api-admin", "system:kubelet-api-admin", json!([user("kube-apiserver-kubelet-client")])),
        (
            "system:coredns",
            "system:coredns",
            json!([{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]),
        ),
        (
            "system:skiff-ingress",
            "system:skiff-ingress",
            json!([{"kind": "ServiceAccount", "name": "ingress", "namespace": "kube-system"}]),
        ),
    ]
}

/// Brings all roles and bindings up to date.
pub(super) async fn ensure(engine: &Engine) -> Result<(), Status> {
    let meta = |name: &str| {
        json!({
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        })
    };
    let cluster_role = |name: &str, rules: &[Value], gathered_by: Option<&str>| {
        let mut meta = meta(name);
        if let Some(role) = gathered_by {
            meta["labels"][aggregate_to(role)] = "true".into();
        }
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": meta, "rules": rules})
    };
    for (name, rules) in cluster_roles() {
        let role = cluster_role(name, &rules, name.strip_prefix("system:aggregate-to-"));
        ensure_fields(engine, GROUP, "clusterroles", "", role, &["rules"]).await?;
    }
    for (name, gathers, gathered_by, rules) in gathering() {
        let mut role = cluster_role(name, &rules, gathered_by);
        let selector = json!({"matchLabels": {aggregate_to(gathers): "true"}});
        role["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
        ensure_fields(engine, GROUP, "clusterroles", "", role, &["aggregationRule"]).await?;
    }
    for (name, role, subjects) in bindings() {
        let binding = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": meta(name),
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}, "subjects": subjects,
        });
        ensure_fields(engine, GROUP, "clusterrolebindings", "", binding, &["subjects"]).await?;
    }
    authentication_reader(engine, &meta).await
}

/// The Role by which servers of aggregated APIs read how to tell who asks them.
async fn authentication_reader(engine: &Engine, meta: &dyn Fn(&str) -> Value) -> Result<(), Status> {
    const ROLE: &str = "extension-apiserver-authentication-reader";
    const NAMESPACE: &str = "kube-system";
    let mut map = rule(READ, &[""], &["configmaps"]);
    map["resourceNames"] = json!(["extension-apiserver-authentication"]);
    let mut role = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Role", "metadata": meta(ROLE), "rules": [map]});
    role["metadata"]["namespace"] = NAMESPACE.into();
    ensure_fields(engine, GROUP, "roles", NAMESPACE, role, &["rules"]).await?;
    let user = |name: &str| json!({"kind": "User", "apiGroup": GROUP, "name": name});
    let mut binding = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "RoleBinding", "metadata": meta(&format!("system::{ROLE}")),
        "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": ROLE},
        "subjects": [user("system:kube-controller-manager"), user("system:kube-scheduler")],
    });
    binding["metadata"]["namespace"] = NAMESPACE.into();
    ensure_fields(engine, GROUP, "rolebindings", NAMESPACE, binding, &["subjects"]).await
}
