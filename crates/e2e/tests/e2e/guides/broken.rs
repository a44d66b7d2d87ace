//! Every manifest of the guides, broken in the ways in which learners break them: the answer is upstream's, and
//! nothing is made of it.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use skiff_e2e::{Kubectl, Server, Version};

use super::{
    manifest,
    manifests::{REFUSED, account_of, namespace_of},
};
use crate::tests;

tests![every_manifest_broken, what_may_not_change];

/// A way to break a manifest.
struct Break {
    what: &'static str,
    /// Breaks it and tells what has to be answered; nothing for manifests that cannot be broken like this.
    apply: fn(&mut Value) -> Option<String>,
}

const BREAKS: &[Break] = &[
    Break { what: "a version that there is not", apply: unknown_version },
    Break { what: "a kind that there is not", apply: unknown_kind },
    Break { what: "no name", apply: no_name },
    Break { what: "a name in capitals", apply: name_in_capitals },
    Break { what: "a label with spaces", apply: label_with_spaces },
    Break { what: "a namespace that there is not", apply: unknown_namespace },
    Break { what: "a field one level too high", apply: field_too_high },
    Break { what: "a misspelt field", apply: misspelt_field },
    Break { what: "a selector that is not the template's", apply: other_selector },
    Break { what: "no selector", apply: no_selector },
    Break { what: "replicas in words", apply: replicas_in_words },
    Break { what: "no containers", apply: no_containers },
    Break { what: "no image", apply: no_image },
    Break { what: "no name of the container", apply: no_container_name },
    Break { what: "two containers of one name", apply: container_twice },
    Break { what: "megabytes", apply: megabytes },
    Break { what: "more requested than allowed", apply: request_above_limit },
    Break { what: "a number as a variable's value", apply: number_in_env },
    Break { what: "a mount of no volume", apply: mount_of_nothing },
    Break { what: "a port above all", apply: port_above_all },
    Break { what: "a port's long name", apply: long_port_name },
    Break { what: "a pull policy that there is not", apply: pull_policy },
    Break { what: "a restart policy that it cannot have", apply: restart_policy },
    Break { what: "a probe of nothing", apply: probe_of_nothing },
    Break { what: "a Service's misspelt type", apply: service_type },
    Break { what: "two ports without names", apply: ports_without_names },
    Break { what: "a low node port", apply: low_node_port },
    Break { what: "a Service without ports", apply: no_ports },
    Break { what: "configuration that is no text", apply: truth_as_data },
    Break { what: "a secret that is not encoded", apply: plain_secret },
    Break { what: "a misspelt access mode", apply: access_mode },
    Break { what: "a claim without a size", apply: no_size },
    Break { what: "a smaller maximum than minimum", apply: maximum_below_minimum },
    Break { what: "a path without a type", apply: no_path_type },
    Break { what: "a policy of a misspelt type", apply: policy_type },
    Break { what: "a binding of nothing", apply: binding_of_nothing },
    Break { what: "a role without verbs", apply: no_verbs },
];

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// The path of a pod's spec in an object.
fn pod_path(object: &Value) -> Option<&'static str> {
    match kind(object) {
        "Pod" => Some("spec"),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => {
            Some("spec.template.spec")
        }
        "CronJob" => Some("spec.jobTemplate.spec.template.spec"),
        _ => None,
    }
}

/// What is at a path, if there is something.
fn at<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    object.pointer_mut(&format!("/{}", path.replace('.', "/"))).filter(|value| !value.is_null())
}

fn container(object: &mut Value) -> Option<(String, &mut Value)> {
    let path = pod_path(object)?;
    Some((format!("{path}.containers[0]"), at(object, &format!("{path}.containers.0"))?))
}

fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut()?.remove(key)
}

fn unknown_version(object: &mut Value) -> Option<String> {
    object["apiVersion"] = json!("example.com/v9");
    Some(format!("no matches for kind \"{}\" in version \"example.com/v9\"", kind(object)))
}

fn unknown_kind(object: &mut Value) -> Option<String> {
    object["kind"] = json!(format!("{}z", kind(object)));
    Some(format!("no matches for kind \"{}\" in version {}", kind(object), object["apiVersion"]))
}

fn no_name(object: &mut Value) -> Option<String> {
    remove(&mut object["metadata"], "name")?;
    Some("resource name may not be empty".to_owned())
}

fn name_in_capitals(object: &mut Value) -> Option<String> {
    // Names of RBAC's kinds are free; a definition's has to be made of its group.
    if object["apiVersion"] == "rbac.authorization.k8s.io/v1" || kind(object) == "CustomResourceDefinition" {
        return None;
    }
    object["metadata"]["name"] = json!("My_App");
    let form = match kind(object) {
        "Service" | "StatefulSet" | "Namespace" => {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
        }
        _ => "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
    };
    Some(format!("metadata.name: Invalid value: \"My_App\": {form}"))
}

fn label_with_spaces(object: &mut Value) -> Option<String> {
    object["metadata"]["labels"] = json!({ "app": "my app" });
    Some(
        "metadata.labels: Invalid value: \"my app\": a valid label must be an empty string or consist of alphanumeric \
         characters, '-', '_' or '.', and must start and end with an alphanumeric character"
            .to_owned(),
    )
}

fn unknown_namespace(object: &mut Value) -> Option<String> {
    let cluster_wide = [
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
        "PersistentVolume",
        "StorageClass",
        "IngressClass",
        "Node",
        "PriorityClass",
        "CustomResourceDefinition",
    ];
    let webhooks = kind(object).ends_with("Configuration") || kind(object).starts_with("ValidatingAdmission");
    if cluster_wide.contains(&kind(object)) || webhooks {
        return None;
    }
    object["metadata"]["namespace"] = json!("nowhere");
    Some("namespaces \"nowhere\" not found".to_owned())
}

fn field_too_high(object: &mut Value) -> Option<String> {
    let spec = at(object, "spec")?.as_object_mut()?;
    let key = spec.keys().next()?.clone();
    let moved = spec.remove(&key)?;
    object[&key] = moved;
    Some(format!("unknown field \"{key}\""))
}

fn misspelt_field(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["img"] = remove(container, "image")?;
    Some(format!("unknown field \"{path}.img\""))
}

fn other_selector(object: &mut Value) -> Option<String> {
    at(object, "spec.selector.matchLabels")?;
    at(object, "spec.template")?["metadata"]["labels"] = json!({ "app": "something-else" });
    let text = "spec.template.metadata.labels: Invalid value: {\"app\":\"something-else\"}: `selector` does not match template `labels`";
    Some(text.to_owned())
}

fn no_selector(object: &mut Value) -> Option<String> {
    if kind(object) == "Service" || at(object, "spec.template").is_none() || kind(object) == "Job" {
        return None;
    }
    remove(&mut object["spec"], "selector")?;
    Some("spec.selector: Required value".to_owned())
}

fn replicas_in_words(object: &mut Value) -> Option<String> {
    *at(object, "spec.replicas")? = json!("three");
    let text = "cannot be handled as a";
    Some(format!(
        "{text} {0}: json: cannot unmarshal string into Go struct field {0}Spec.spec.replicas of type int32",
        kind(object)
    ))
}

fn no_containers(object: &mut Value) -> Option<String> {
    let path = pod_path(object)?;
    remove(at(object, path)?, "containers")?;
    Some(format!("{path}.containers: Required value"))
}

fn no_image(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    remove(container, "image")?;
    Some(format!("{path}.image: Required value"))
}

fn no_container_name(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    remove(container, "name")?;
    Some(format!("{path}.name: Required value"))
}

fn container_twice(object: &mut Value) -> Option<String> {
    let path = pod_path(object)?;
    let containers = at(object, &format!("{path}.containers"))?.as_array_mut()?;
    let last = containers.len();
    containers.push(json!({ "name": containers[0]["name"], "image": "nginx" }));
    Some(format!("{path}.containers[{last}].name: Duplicate value: {}", containers[0]["name"]))
}

fn megabytes(object: &mut Value) -> Option<String> {
    let (_, container) = container(object)?;
    container["resources"] = json!({ "limits": { "memory": "512 MB" } });
    let text = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    Some(format!("cannot be handled as a {}: {text}", kind(object)))
}

fn request_above_limit(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["resources"] = json!({ "requests": { "cpu": "500m" }, "limits": { "cpu": "250m" } });
    Some(format!("{path}.resources.requests: Invalid value: \"500m\": must be less than or equal to cpu limit of 250m"))
}

fn number_in_env(object: &mut Value) -> Option<String> {
    let (_, container) = container(object)?;
    container["env"] = json!([{ "name": "PORT", "value": 8080 }]);
    let field = pod_path(object)?;
    Some(format!(
        "json: cannot unmarshal number into Go struct field EnvVar.{field}.containers.env.value of type string"
    ))
}

fn mount_of_nothing(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["volumeMounts"] = json!([{ "name": "nothing", "mountPath": "/nothing" }]);
    Some(format!("{path}.volumeMounts[0].name: Not found: \"nothing\""))
}

fn port_above_all(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["ports"] = json!([{ "containerPort": 80_000 }]);
    Some(format!("{path}.ports[0].containerPort: Invalid value: 80000: must be between 1 and 65535, inclusive"))
}

fn long_port_name(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["ports"] = json!([{ "containerPort": 80, "name": "the-port-of-the-web" }]);
    Some(format!("{path}.ports[0].name: Invalid value: \"the-port-of-the-web\": must be no more than 15 characters"))
}

fn pull_policy(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["imagePullPolicy"] = json!("Sometimes");
    let text = "Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"";
    Some(format!("{path}.imagePullPolicy: {text}"))
}

fn restart_policy(object: &mut Value) -> Option<String> {
    let path = pod_path(object)?;
    let (policy, supported) = match kind(object) {
        "Pod" => ("Sometimes", "\"Always\", \"OnFailure\", \"Never\""),
        "Job" | "CronJob" => ("Always", "\"Never\", \"OnFailure\""),
        _ => ("Never", "\"Always\""),
    };
    at(object, path)?["restartPolicy"] = json!(policy);
    // Upstream's words for jobs are others when the value is a known one.
    Some(match kind(object) {
        "Job" | "CronJob" => {
            format!("{path}.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"")
        }
        _ => format!("{path}.restartPolicy: Unsupported value: \"{policy}\": supported values: {supported}"),
    })
}

fn probe_of_nothing(object: &mut Value) -> Option<String> {
    let (path, container) = container(object)?;
    container["livenessProbe"] = json!({ "periodSeconds": 5 });
    Some(format!("{path}.livenessProbe: Required value: must specify a handler type"))
}

fn is_a<'a>(object: &'a mut Value, wanted: &str) -> Option<&'a mut Value> {
    (kind(object) == wanted).then_some(object)
}

fn service_type(object: &mut Value) -> Option<String> {
    is_a(object, "Service")?["spec"]["type"] = json!("Loadbalancer");
    let supported = "supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"";
    Some(format!("spec.type: Unsupported value: \"Loadbalancer\": {supported}"))
}

fn ports_without_names(object: &mut Value) -> Option<String> {
    at(is_a(object, "Service")?, "spec.ports")?;
    object["spec"]["ports"] = json!([{ "port": 80 }, { "port": 443 }]);
    Some("spec.ports[1].name: Required value".to_owned())
}

fn low_node_port(object: &mut Value) -> Option<String> {
    at(is_a(object, "Service")?, "spec.ports")?;
    if object["spec"]["clusterIP"] == "None" {
        return None;
    }
    object["spec"]["type"] = json!("NodePort");
    object["spec"]["ports"] = json!([{ "port": 80, "nodePort": 80 }]);
    let text = "provided port is not in the valid range. The range of valid ports is 30000-32767";
    Some(format!("spec.ports[0].nodePort: Invalid value: 80: {text}"))
}

fn no_ports(object: &mut Value) -> Option<String> {
    let service = is_a(object, "Service")?;
    if service["spec"]["clusterIP"] == "None" {
        return None;
    }
    remove(&mut service["spec"], "ports")?;
    Some("spec.ports: Required value".to_owned())
}

fn truth_as_data(object: &mut Value) -> Option<String> {
    is_a(object, "ConfigMap")?["data"] = json!({ "debug": true });
    Some("json: cannot unmarshal bool into Go struct field ConfigMap.data of type string".to_owned())
}

fn plain_secret(object: &mut Value) -> Option<String> {
    is_a(object, "Secret")?["data"] = json!({ "password": "pass-word" });
    Some("Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 4".to_owned())
}

fn access_mode(object: &mut Value) -> Option<String> {
    is_a(object, "PersistentVolumeClaim")?["spec"]["accessModes"] = json!(["ReadWriteonce"]);
    let supported = "\"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"";
    Some(format!("spec.accessModes: Unsupported value: \"ReadWriteonce\": supported values: {supported}"))
}

fn no_size(object: &mut Value) -> Option<String> {
    remove(&mut is_a(object, "PersistentVolumeClaim")?["spec"], "resources")?;
    Some("spec.resources[storage]: Required value".to_owned())
}

fn maximum_below_minimum(object: &mut Value) -> Option<String> {
    let autoscaler = is_a(object, "HorizontalPodAutoscaler")?;
    autoscaler["spec"]["minReplicas"] = json!(5);
    autoscaler["spec"]["maxReplicas"] = json!(2);
    Some("spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`".to_owned())
}

fn no_path_type(object: &mut Value) -> Option<String> {
    let path = at(is_a(object, "Ingress")?, "spec.rules.0.http.paths.0")?;
    remove(path, "pathType")?;
    Some("spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified".to_owned())
}

fn policy_type(object: &mut Value) -> Option<String> {
    is_a(object, "NetworkPolicy")?["spec"]["policyTypes"] = json!(["Inbound"]);
    let text = "Unsupported value: \"Inbound\": supported values: \"Ingress\", \"Egress\"";
    Some(format!("spec.policyTypes[0]: {text}"))
}

fn binding_of_nothing(object: &mut Value) -> Option<String> {
    remove(at(object, "roleRef")?, "name")?;
    Some("roleRef.name: Required value".to_owned())
}

fn no_verbs(object: &mut Value) -> Option<String> {
    if !kind(object).ends_with("Role") {
        return None;
    }
    remove(at(object, "rules.0")?, "verbs")?;
    Some("rules[0].verbs: Required value: verbs must contain at least one value".to_owned())
}

/// The objects of all manifests that are taken as they are, with their namespaces made.
fn objects(kubectl: &Kubectl) -> Vec<Value> {
    let mut files: Vec<PathBuf> = fs::read_dir(manifest("all")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|file| REFUSED.iter().all(|(refused, _)| *refused != file.file_stem().unwrap().to_str().unwrap()));
    let mut objects = Vec::new();
    for file in &files {
        namespace_of(file, kubectl);
        let text = kubectl.run(&["create", "--dry-run=client", "-o", "json", "-f", file.to_str().unwrap()]).ok();
        for object in serde_json::Deserializer::from_str(&text).into_iter() {
            objects.push(object.expect("kubectl prints JSON"));
        }
    }
    objects
}

fn every_manifest_broken() {
    let server = Server::start();
    let kubectl = server.kubectl();
    account_of("default", &kubectl);
    let objects = objects(&kubectl);
    let mut wrong = Vec::new();
    for one in BREAKS {
        let broken: Vec<(Value, String)> = objects
            .iter()
            .filter_map(|object| {
                let mut object = object.clone();
                let answer = (one.apply)(&mut object)?;
                Some((object, answer))
            })
            .collect();
        if broken.is_empty() {
            wrong.push(format!("no manifest could have {}", one.what));
            continue;
        }
        let list: String = broken.iter().map(|(object, _)| format!("{object}\n")).collect();
        for version in Version::ALL {
            let output = kubectl.version(version).feed(&["apply", "--dry-run=server", "-f", "-"], &list);
            if !output.stdout.is_empty() {
                wrong.push(format!("{}: taken:\n{}", one.what, output.stdout));
            }
            for (object, answer) in &broken {
                if !output.stderr.contains(answer.as_str()) {
                    let name = &object["metadata"]["name"];
                    // Its own line, not those of a hundred others.
                    let text = name.as_str().unwrap_or_default();
                    let said: Vec<_> = output.stderr.lines().filter(|line| line.contains(text)).take(3).collect();
                    wrong.push(format!("{}: {} {name}: no {answer:?} in\n{said:#?}", one.what, kind(object)));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What is refused for an object that is there, by kind: what is changed, and what is answered.
fn what_may_not_change() {
    let server = Server::start();
    let kubectl = server.kubectl();
    account_of("default", &kubectl);
    let refused = |kind: &str, change: &str, answer: &str| {
        for version in Version::ALL {
            let patched = kubectl.version(version).run(&["patch", kind, "fixed", "--type=merge", "-p", change]);
            patched.fails_with(answer);
        }
    };
    let template = "template: {metadata: {labels: {app: a}}, spec: {restartPolicy: Never, containers: [{name: main, image: nginx}]}}";
    let always = template.replace("Never", "Always");
    for (kind, spec) in [("Deployment", ""), ("StatefulSet", "serviceName: web, "), ("DaemonSet", "")] {
        let selector = "selector: {matchLabels: {app: a}}";
        kubectl.apply(&format!(
            "{{apiVersion: apps/v1, kind: {kind}, metadata: {{name: fixed}}, spec: {{{spec}{selector}, {always}}}}}"
        ));
    }
    let other = r#"{"spec":{"selector":{"matchLabels":{"app":"b"}},"template":{"metadata":{"labels":{"app":"b"}}}}}"#;
    let selector = "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable";
    refused("deployment", other, selector);
    refused("daemonset", other, selector);
    refused(
        "statefulset",
        r#"{"spec":{"serviceName":"other"}}"#,
        "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
         'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
         forbidden",
    );
    kubectl.apply(&format!("{{apiVersion: batch/v1, kind: Job, metadata: {{name: fixed}}, spec: {{{template}}}}}"));
    refused(
        "job",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"other"}]}}}}"#,
        "field is immutable",
    );
    kubectl.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: fixed}, spec: {containers: [{name: main, image: nginx}]}}",
    );
    refused(
        "pod",
        r#"{"spec":{"containers":[{"name":"main","image":"nginx","command":["sh"]}]}}"#,
        "spec: Forbidden: pod updates may not change fields other than",
    );
    kubectl.apply("{apiVersion: v1, kind: Service, metadata: {name: fixed}, spec: {ports: [{port: 80}]}}");
    refused(
        "service",
        r#"{"spec":{"clusterIP":"10.96.99.99"}}"#,
        "spec.clusterIPs[0]: Invalid value: [\"10.96.99.99\"]: may not change once set",
    );
    kubectl.apply("{apiVersion: v1, kind: Secret, metadata: {name: fixed}, type: Opaque}");
    refused(
        "secret",
        r#"{"type":"example.com/other"}"#,
        "type: Invalid value: \"example.com/other\": field is immutable",
    );
    kubectl.apply("{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: fixed}, spec: {storageClassName: none, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}");
    refused(
        "persistentvolumeclaim",
        r#"{"spec":{"accessModes":["ReadWriteMany"]}}"#,
        "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
    );
    kubectl.apply(
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: fixed}, provisioner: example.com/a}",
    );
    refused(
        "storageclass",
        r#"{"provisioner":"example.com/b"}"#,
        "provisioner: Forbidden: updates to provisioner are forbidden.",
    );
    kubectl.apply("{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: fixed}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: a}}");
    refused("rolebinding", r#"{"roleRef":{"name":"b"}}"#, "cannot change roleRef");
}
