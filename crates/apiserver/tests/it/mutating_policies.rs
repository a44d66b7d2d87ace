//! MutatingAdmissionPolicy: changes that a cluster makes of its own.

use serde_json::{Value, json};

use crate::api::{Api, CONFIG_MAPS, PODS, config_map, deployment, pod, text};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings";

fn policy(name: &str, resource: &str, mutations: Value, more: Value) -> Value {
    let group = if resource == "deployments" { "apps" } else { "" };
    let mut spec = json!({
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}]},
        "mutations": mutations, "reinvocationPolicy": "Never",
    });
    for (k, v) in more.as_object().into_iter().flatten() {
        spec[k] = v.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

async fn bound(api: &Api, policy: Value) {
    let name = text(&policy["metadata"]["name"]);
    api.created(POLICIES, policy).await;
    api.created(BINDINGS, json!({"metadata": {"name": name}, "spec": {"policyName": name}})).await;
}

#[tokio::test]
async fn configurations_are_merged_and_patches_applied() {
    let api = Api::start().await;
    let sidecar = "Object{spec: Object.spec{initContainers: [Object.spec.initContainers{name: 'mesh', image: 'mesh:1', restartPolicy: 'Always'}]}}";
    let conditions = json!({"matchConditions": [{"name": "none-yet", "expression": "!has(object.spec.initContainers) || !object.spec.initContainers.exists(c, c.name == 'mesh')"}]});
    bound(&api, policy("sidecar", "pods", json!([apply(sidecar)]), conditions)).await;
    let label = "[JSONPatch{op: 'test', path: '/metadata/labels/app', value: 'p'}, JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/env'), value: variables.env}]";
    let variables = json!({"variables": [{"name": "env", "expression": "'test'"}]});
    bound(&api, policy("label", "pods", json!([patch(label)]), variables)).await;
    let made = api.created(PODS, pod("p")).await;
    let container = &made["spec"]["initContainers"][0];
    assert_eq!((&container["image"], &container["terminationMessagePolicy"]), (&json!("mesh:1"), &json!("File")));
    assert_eq!(made["spec"]["containers"][0]["name"], "c");
    assert_eq!(made["metadata"]["labels"], json!({"app": "p", "example.com/env": "test"}));
    // A test that fails is no refusal.
    let made = api.created(PODS, pod("q")).await;
    assert_eq!(made["metadata"]["labels"], json!({"app": "q"}));
    let scale = "Object{spec: Object.spec{replicas: object.spec.replicas + 1}}";
    bound(&api, policy("scale", "deployments", json!([apply(scale), apply(scale)]), Value::Null)).await;
    let made = api.created("/apis/apps/v1/namespaces/default/deployments", deployment("d")).await;
    assert_eq!(made["spec"]["replicas"], 3);
    // Nobody owns what a policy has set but whoever writes the object.
    assert!(!made["metadata"]["managedFields"].to_string().contains("admission"));
    let (_, table) = api.with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io").get(POLICIES).await;
    assert_eq!(table["rows"][2]["cells"].as_array().unwrap()[..3], [json!("sidecar"), json!(1), json!("<unset>")]);
}

#[tokio::test]
async fn faults_refuse_unless_they_are_ignored() {
    let api = Api::start().await;
    let bad = "Object{data: Object.data{k: object.data.missing}}";
    bound(&api, policy("bad", "configmaps", json!([apply(bad)]), Value::Null)).await;
    let (code, status) = api.post(CONFIG_MAPS, config_map("c")).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Invalid")));
    assert_eq!(
        status["message"],
        format!(
            "policy 'bad' with binding 'bad' denied request: expression '{bad}' resulted in error: no such key: missing"
        )
    );
    let ignore = json!({"spec": {"failurePolicy": "Ignore"}});
    assert_eq!(api.patch(&format!("{POLICIES}/bad"), "merge", ignore).await.0, 200);
    api.created(CONFIG_MAPS, config_map("c")).await;
    // Replacing a whole list would lose what is in it.
    let atomic = "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'c', args: ['x']}]}}";
    bound(&api, policy("atomic", "pods", json!([apply(atomic)]), Value::Null)).await;
    let (_, status) = api.post(PODS, pod("p")).await;
    let why = "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.containers[0].args";
    assert!(text(&status["message"]).ends_with(why), "{status}");
    let unknown = policy("unknown", "pods", json!([apply("Object{sepc: Object.sepc{a: 1}}")]), Value::Null);
    assert_eq!(api.delete(&format!("{BINDINGS}/atomic"), Value::Null).await.0, 200);
    bound(&api, unknown).await;
    let (_, status) = api.post(PODS, pod("p")).await;
    assert!(text(&status["message"]).ends_with(".sepc: field not declared in schema"), "{status}");
    let (code, _) = api.post(POLICIES, policy("none", "pods", json!([]), Value::Null)).await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn parameters_and_reinvocation() {
    let api = Api::start().await;
    let mut values = config_map("values");
    values["data"] = json!({"team": "blue"});
    api.created(CONFIG_MAPS, values).await;
    let set = "Object{metadata: Object.metadata{labels: Object.metadata.labels{team: params.data.team}}}";
    let kind = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}});
    api.created(POLICIES, policy("team", "pods", json!([apply(set)]), kind)).await;
    let reference = json!({"name": "values", "namespace": "default", "parameterNotFoundAction": "Deny"});
    api.created(BINDINGS, json!({"metadata": {"name": "team"}, "spec": {"policyName": "team", "paramRef": reference}}))
        .await;
    // Comes first by its name, and wants to see what the other one has done.
    let seen = "Object{metadata: Object.metadata{annotations: Object.metadata.annotations{teams: 'team' in object.metadata.labels ? object.metadata.labels.team : 'none'}}}";
    bound(&api, policy("after", "pods", json!([apply(seen)]), json!({"reinvocationPolicy": "IfNeeded"}))).await;
    let made = api.created(PODS, pod("p")).await;
    assert_eq!(made["metadata"]["labels"]["team"], "blue");
    assert_eq!(made["metadata"]["annotations"]["teams"], "blue");
}
