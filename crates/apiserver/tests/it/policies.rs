//! ValidatingAdmissionPolicy: rules that a cluster has of its own.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, pod};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec})
}

fn binding(name: &str, policy: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["policyName"] = policy.into();
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name}, "spec": spec})
}

fn about(resource: &str) -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource]}]})
}

#[tokio::test]
async fn pods_must_have_labels() {
    let api = Api::start().await;
    let rules = json!({
        "matchConstraints": about("pods"),
        "validations": [
            {"expression": "has(object.metadata.labels) && has(object.metadata.labels.environment)", "message": "Pod must have environment label"},
            {"expression": "object.metadata.labels.environment in ['dev', 'staging', 'prod']", "message": "Environment label must be dev, staging, or prod"},
        ],
    });
    api.created(POLICIES, policy("require-labels", rules)).await;
    // Without a binding it says nothing.
    api.created(PODS, pod("free")).await;
    api.created(BINDINGS, binding("everywhere", "require-labels", json!({"validationActions": ["Deny"]}))).await;
    let (code, status) = api.post(PODS, pod("a")).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    assert_eq!(
        status["message"],
        "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'require-labels' with binding 'everywhere' denied request: Pod must have environment label"
    );
    let mut good = pod("a");
    good["metadata"]["labels"]["environment"] = "dev".into();
    api.created(PODS, good).await;
    let (code, status) =
        api.patch(&format!("{PODS}/a"), "merge", json!({"metadata": {"labels": {"environment": "x"}}})).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().ends_with("Environment label must be dev, staging, or prod"));
    // Others are none of its business.
    api.created(CONFIG_MAPS, config_map("c")).await;
    assert_eq!(api.delete(&format!("{BINDINGS}/everywhere"), Value::Null).await.0, 200);
    api.created(PODS, pod("b")).await;
}

#[tokio::test]
async fn warnings_variables_conditions_and_parameters() {
    let api = Api::start().await;
    let rules = json!({
        "matchConstraints": about("configmaps"),
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('skip')"}],
        "variables": [{"name": "size", "expression": "size(object.data)"}],
        "validations": [{"expression": "variables.size <= int(params.data.max)", "messageExpression": "'at most ' + params.data.max", "reason": "Forbidden"}],
    });
    api.created(POLICIES, policy("small", rules)).await;
    let mut limits = config_map("limits");
    limits["data"] = json!({"max": "1"});
    api.created(CONFIG_MAPS, limits).await;
    let params = json!({"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"});
    let warn = json!({"validationActions": ["Warn"], "paramRef": params});
    api.created(BINDINGS, binding("b", "small", warn)).await;
    let mut large = config_map("large");
    large["data"] = json!({"a": "1", "b": "2"});
    let reply = api.send("POST", CONFIG_MAPS, "application/json", large.to_string()).await;
    assert_eq!(reply.code, 201);
    assert_eq!(
        reply.warnings(),
        ["299 - \"Validation failed for ValidatingAdmissionPolicy 'small' with binding 'b': at most 1\""]
    );
    let (code, _) =
        api.patch(&format!("{BINDINGS}/b"), "merge", json!({"spec": {"validationActions": ["Deny"]}})).await;
    assert_eq!(code, 200);
    large["metadata"]["name"] = "larger".into();
    let (code, status) = api.post(CONFIG_MAPS, large.clone()).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    large["metadata"]["name"] = "skipped".into();
    api.created(CONFIG_MAPS, large).await;
}

#[tokio::test]
async fn what_cannot_be_compiled_is_refused() {
    let api = Api::start().await;
    let rules = json!({"matchConstraints": about("pods"), "validations": [{"expression": "object.metadata ="}]});
    let (code, status) = api.post(POLICIES, policy("bad", rules)).await;
    assert_eq!(code, 422, "{status}");
    // The version of the guides is gone.
    let old = "/apis/admissionregistration.k8s.io/v1alpha1/validatingadmissionpolicies";
    assert_eq!(api.get(old).await.0, 404);
}
