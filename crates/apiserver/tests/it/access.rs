//! Who may do what: authentication, authorization, impersonation and the kinds that ask about them.

use serde_json::{Value, json};
use skiff_apiserver::User;

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, pod, text};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";

fn jane() -> User {
    User::known("jane", &["devs"])
}

/// Lets jane do this in the default namespace.
async fn allow(api: &Api, name: &str, rule: Value) {
    api.created(ROLES, json!({"metadata": {"name": name}, "rules": [rule]})).await;
    let binding = json!({
        "metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
    });
    api.created(&format!("{RBAC}/namespaces/default/rolebindings"), binding).await;
}

#[tokio::test]
async fn nobody_in_particular_gets_401() {
    let api = Api::start().await;
    let anonymous = api.without_certificate();
    let (code, status) = anonymous.get(CONFIG_MAPS).await;
    assert_eq!((code, &status["reason"], &status["message"]), (401, &json!("Unauthorized"), &json!("Unauthorized")));
    let (code, _) = anonymous.with("authorization", "Bearer nope").get(CONFIG_MAPS).await;
    assert_eq!(code, 401);
    // Health is public; a wrong token is wrong there as well.
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(anonymous.get(path).await.0, 200, "{path}");
    }
    assert_eq!(anonymous.with("authorization", "Bearer nope").get("/livez").await.0, 401);
    assert_eq!(anonymous.get("/metrics").await.0, 401);
}

#[tokio::test]
async fn what_is_not_allowed_is_forbidden_in_upstreams_words() {
    let api = Api::start().await;
    let jane = api.by(jane());
    let (code, status) = jane.get(CONFIG_MAPS).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    assert_eq!(
        status["message"],
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let (_, status) = jane.get("/apis/apps/v1/deployments").await;
    assert_eq!(
        status["message"],
        "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
    );
    let (_, status) = jane.delete(&format!("{PODS}/x"), Value::Null).await;
    assert_eq!(
        status["message"],
        "pods \"x\" is forbidden: User \"jane\" cannot delete resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let (code, status) = jane.get("/metrics").await;
    assert_eq!((code, &status["message"]), (403, &json!("forbidden: User \"jane\" cannot get path \"/metrics\"")));
    assert_eq!(jane.get("/api").await.0, 200);

    allow(
        &api,
        "read",
        json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"], "resourceNames": ["a"]}),
    )
    .await;
    api.created(CONFIG_MAPS, config_map("a")).await;
    assert_eq!(jane.get(&format!("{CONFIG_MAPS}/a")).await.0, 200);
    assert_eq!(jane.get(&format!("{CONFIG_MAPS}/b")).await.0, 403);
    assert_eq!(jane.get(CONFIG_MAPS).await.0, 403);
    assert_eq!(jane.get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Da")).await.0, 200);
    assert_eq!(jane.get("/api/v1/namespaces/kube-system/configmaps/a").await.0, 403);
    // What is taken away is gone at once.
    api.delete(&format!("{ROLES}/read"), Value::Null).await;
    assert_eq!(jane.get(&format!("{CONFIG_MAPS}/a")).await.0, 403);
}

/// Argo CD's bindings are written so.
#[tokio::test]
async fn an_account_without_a_namespace_is_of_the_bindings() {
    let api = Api::start().await;
    let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]});
    api.created(ROLES, json!({"metadata": {"name": "read"}, "rules": [rule]})).await;
    let binding = json!({
        "metadata": {"name": "read"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "read"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot"}],
    });
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let made = api.created(&bindings, binding).await;
    assert_eq!(made["subjects"], json!([{"kind": "ServiceAccount", "name": "robot"}]));
    let robot = |namespace: &str| User::known(format!("system:serviceaccount:{namespace}:robot"), &[]);
    assert_eq!(api.by(robot("default")).get(CONFIG_MAPS).await.0, 200);
    assert_eq!(api.by(robot("kube-system")).get(CONFIG_MAPS).await.0, 403);
    let table = api.with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io").get(&bindings).await.1;
    assert_eq!(table["rows"][0]["cells"][5], "/robot");
}

#[tokio::test]
async fn nobody_grants_more_than_he_has() {
    let api = Api::start().await;
    allow(
        &api,
        "roles",
        json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["*"], }),
    )
    .await;
    // `*` holds `escalate` and `bind`; narrower rights do not.
    api.patch(&format!("{ROLES}/roles"), "merge", json!({"rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["create", "update", "patch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    ]})).await;
    let jane = api.by(jane());
    let role = |name: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]});
    let (code, status) = jane.post(ROLES, role("more", "secrets")).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    let message = text(&status["message"]);
    assert!(message.starts_with("roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"), "{message}");
    assert_eq!(jane.post(ROLES, role("less", "configmaps")).await.0, 201);
    let binding = json!({
        "metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
    });
    assert_eq!(jane.post(&format!("{RBAC}/namespaces/default/rolebindings"), binding).await.0, 403);
}

#[tokio::test]
async fn roles_gather_others() {
    let api = Api::start().await;
    let roles = format!("{RBAC}/clusterroles");
    let label = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
    for (name, gathered_by) in [("admin", None), ("edit", Some("admin")), ("view", Some("edit"))] {
        let (_, role) = api.get(&format!("{roles}/{name}")).await;
        let selectors = json!([{"matchLabels": {label(name): "true"}}]);
        assert_eq!(role["aggregationRule"], json!({"clusterRoleSelectors": selectors}));
        let labels = role["metadata"]["labels"].as_object().unwrap();
        assert_eq!(labels.len(), 1 + gathered_by.iter().count());
        assert!(gathered_by.is_none_or(|by| labels[&label(by)] == "true"), "{labels:?}");
        let (_, role) = api.get(&format!("{roles}/system:aggregate-to-{name}")).await;
        assert_eq!(role["metadata"]["labels"][label(name)], "true");
    }
    // Who may write roles may not thereby have all that there are.
    let write = json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["*"]});
    api.created(&roles, json!({"metadata": {"name": "writer"}, "rules": [write]})).await;
    let binding = json!({
        "metadata": {"name": "writer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "writer"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
    });
    api.created(&format!("{RBAC}/clusterrolebindings"), binding).await;
    // `escalate` is among all verbs, so these are fewer.
    let fewer = json!([{"op": "replace", "path": "/rules/0/verbs", "value": ["create", "update", "patch"]}]);
    assert_eq!(api.patch(&format!("{roles}/writer"), "json", fewer).await.0, 200);
    let greedy = json!({"metadata": {"name": "greedy"}, "aggregationRule": {"clusterRoleSelectors": [{}]}});
    let (code, status) = api.by(jane()).post(&roles, greedy.clone()).await;
    assert_eq!(code, 403);
    let message = status["message"].as_str().unwrap();
    assert!(message.ends_with("must have cluster-admin privileges to use the aggregationRule"), "{message}");
    api.created(&roles, greedy).await;
}

#[tokio::test]
async fn impersonation() {
    let api = Api::start().await;
    let as_jane = api.with("impersonate-user", "jane").with("impersonate-group", "devs");
    let (code, status) = as_jane.get(CONFIG_MAPS).await;
    assert_eq!(code, 403);
    assert!(text(&status["message"]).contains("User \"jane\" cannot list"), "{status}");
    let (code, review) = as_jane.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!((code, &review["status"]["userInfo"]["username"]), (201, &json!("jane")), "{review}");
    assert_eq!(review["status"]["userInfo"]["groups"], json!(["devs", "system:authenticated"]));
    let (code, status) = api.by(jane()).with("impersonate-user", "admin").get(CONFIG_MAPS).await;
    assert_eq!(
        (code, &status["message"]),
        (
            403,
            &json!(
                "users \"admin\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
            )
        )
    );
    assert_eq!(api.with("impersonate-group", "devs").get(CONFIG_MAPS).await.0, 500);
}

#[tokio::test]
async fn tokens_of_service_accounts() {
    let api = Api::start().await;
    api.created("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "robot"}})).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let (code, answer) = api.post(path, json!({"spec": {"expirationSeconds": 3600}})).await;
    assert_eq!((code, &answer["kind"]), (201, &json!("TokenRequest")), "{answer}");
    let token = text(&answer["status"]["token"]);
    assert!(answer["status"]["expirationTimestamp"].is_string());
    let (code, status) = api.post(path, json!({"spec": {"expirationSeconds": 10}})).await;
    assert_eq!(code, 422);
    assert!(text(&status["message"]).contains("may not specify a duration less than 10 minutes"), "{status}");

    let review = async |token: &str| {
        api.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}})).await.1
    };
    let known = review(&token).await;
    assert_eq!(known["status"]["authenticated"], true, "{known}");
    assert_eq!(known["status"]["user"]["username"], "system:serviceaccount:default:robot");
    assert_eq!(review("nope").await["status"]["authenticated"], Value::Null);

    let robot = api.without_certificate().with("authorization", &format!("Bearer {token}"));
    let (code, status) = robot.get(CONFIG_MAPS).await;
    assert_eq!(code, 403);
    assert!(text(&status["message"]).contains("User \"system:serviceaccount:default:robot\" cannot list"));
    // The token ends with its account.
    api.delete("/api/v1/namespaces/default/serviceaccounts/robot", Value::Null).await;
    assert_eq!(robot.get(CONFIG_MAPS).await.0, 401);

    // A token bound to a pod ends with the pod.
    api.created(PODS, pod("p")).await;
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let (code, answer) = api.post("/api/v1/namespaces/default/serviceaccounts/default/token", bound).await;
    assert_eq!(code, 201, "{answer}");
    let token = text(&answer["status"]["token"]);
    assert_eq!(review(&token).await["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    api.delete(&format!("{PODS}/p"), Value::Null).await;
    assert_eq!(review(&token).await["status"]["authenticated"], Value::Null);
}

#[tokio::test]
async fn access_reviews() {
    let api = Api::start().await;
    allow(&api, "read", json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]})).await;
    const REVIEWS: &str = "/apis/authorization.k8s.io/v1";
    let attributes = |verb: &str| json!({"namespace": "default", "verb": verb, "resource": "configmaps"});
    for (verb, want) in [("get", true), ("delete", false)] {
        let spec = json!({"spec": {"user": "jane", "resourceAttributes": attributes(verb)}});
        let (code, review) = api.post(&format!("{REVIEWS}/subjectaccessreviews"), spec.clone()).await;
        assert_eq!((code, &review["status"]["allowed"]), (201, &json!(want)));
        let (_, review) = api.post(&format!("{REVIEWS}/namespaces/default/localsubjectaccessreviews"), spec).await;
        assert_eq!(review["status"]["allowed"], want);
        let own = json!({"spec": {"resourceAttributes": attributes(verb)}});
        let (_, review) = api.by(jane()).post(&format!("{REVIEWS}/selfsubjectaccessreviews"), own).await;
        assert_eq!(review["status"]["allowed"], want);
        if want {
            assert_eq!(
                review["status"]["reason"],
                "RBAC: allowed by RoleBinding \"read/default\" of Role \"read\" to User \"jane\""
            );
        }
    }
    let (code, _) = api.post(&format!("{REVIEWS}/subjectaccessreviews"), json!({"spec": {"user": "jane"}})).await;
    assert_eq!(code, 422);
    let (code, rules) = api
        .by(jane())
        .post(&format!("{REVIEWS}/selfsubjectrulesreviews"), json!({"spec": {"namespace": "default"}}))
        .await;
    assert_eq!(code, 201);
    assert!(
        rules["status"]["resourceRules"].as_array().unwrap().iter().any(|r| r["resources"] == json!(["configmaps"]))
    );
}

#[tokio::test]
async fn servers_of_further_apis_have_roles() {
    let api = Api::start().await;
    let subject = json!([{"kind": "ServiceAccount", "name": "server", "namespace": "default"}]);
    let bind = |kind: &str, role: &str| json!({"metadata": {"name": "server"}, "subjects": subject, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let reader = bind("Role", "extension-apiserver-authentication-reader");
    api.created(&format!("{rbac}/namespaces/kube-system/rolebindings"), reader).await;
    api.created(&format!("{rbac}/clusterrolebindings"), bind("ClusterRole", "system:auth-delegator")).await;
    let server = api.by(User::known("system:serviceaccount:default:server", &[]));
    let maps = "/api/v1/namespaces/kube-system/configmaps";
    // It may be read, and is not there without a front proxy.
    assert_eq!(server.get(&format!("{maps}/extension-apiserver-authentication")).await.0, 404);
    assert_eq!(server.get(&format!("{maps}/other")).await.0, 403);
    let review = json!({"spec": {"user": "jane", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    assert_eq!(server.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await.0, 201);
}
