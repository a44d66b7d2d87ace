//! What a pod's spec has when nothing is said.

use serde_json::{Value, json};

use crate::registry::core::{default_field, each, object_mut};

/// How long containers may take to end, in seconds.
const GRACE_S: i64 = 30;
/// Mode of files from ConfigMaps, Secrets and the like: 0644.
const FILE_MODE: i64 = 420;

/// Defaults of a template: those of its spec.
pub(crate) fn template_defaults(template: &mut Value) {
    if template.is_object() {
        defaults(object_mut(template, "spec"));
    }
}

/// Defaults of a pod's spec.
pub(crate) fn defaults(spec: &mut Value) {
    default_field(spec, "restartPolicy", "Always");
    default_field(spec, "dnsPolicy", "ClusterFirst");
    default_field(spec, "schedulerName", "default-scheduler");
    default_field(spec, "terminationGracePeriodSeconds", GRACE_S);
    default_field(spec, "securityContext", json!({}));
    // Both names of the account are kept alike.
    if let Some(name) = spec["serviceAccountName"].as_str().or(spec["serviceAccount"].as_str()).map(str::to_owned)
        && !name.is_empty()
    {
        spec["serviceAccountName"] = name.clone().into();
        spec["serviceAccount"] = name.into();
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in each(spec, list) {
            container_defaults(container, host_network);
        }
    }
    for volume in each(spec, "volumes") {
        volume_defaults(volume);
    }
}

fn container_defaults(c: &mut Value, host_network: bool) {
    let image = c["image"].as_str().unwrap_or_default().to_owned();
    default_field(c, "imagePullPolicy", if is_latest(&image) { "Always" } else { "IfNotPresent" });
    default_field(c, "terminationMessagePath", "/dev/termination-log");
    default_field(c, "terminationMessagePolicy", "File");
    default_field(c, "resources", json!({}));
    for port in each(c, "ports") {
        default_field(port, "protocol", "TCP");
        if host_network && port["hostPort"].as_i64().unwrap_or(0) == 0 {
            port["hostPort"] = port["containerPort"].clone();
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if c[probe].is_object() {
            probe_defaults(&mut c[probe]);
        }
    }
    for hook in ["postStart", "preStop"] {
        let get = &mut c["lifecycle"][hook]["httpGet"];
        if get.is_object() {
            default_field(get, "path", "/");
            default_field(get, "scheme", "HTTP");
        }
    }
    // Indexing above may have made nulls where there was nothing.
    for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        prune_nulls(c, field);
    }
    for env in each(c, "env") {
        if env["valueFrom"]["fieldRef"].is_object() {
            default_field(&mut env["valueFrom"]["fieldRef"], "apiVersion", "v1");
        }
        prune_nulls(env, "valueFrom");
    }
}

/// What a pod's containers are limited to they also ask for. Templates are left as they are.
pub(crate) fn request_what_is_limited(spec: &mut Value) {
    for list in ["initContainers", "containers"] {
        for c in each(spec, list) {
            let Some(limits) = c["resources"]["limits"].as_object().cloned() else { continue };
            let requests = object_mut(&mut c["resources"], "requests");
            for (name, quantity) in limits {
                default_field(requests, &name, quantity);
            }
        }
    }
}

/// Removes what indexing for writing left behind: nulls, and objects of nothing but nulls.
fn prune_nulls(object: &mut Value, field: &str) {
    fn empty(v: &Value) -> bool {
        match v {
            Value::Null => true,
            Value::Object(m) => !m.is_empty() && m.values().all(empty),
            _ => false,
        }
    }
    fn prune(v: &mut Value) {
        if let Value::Object(m) = v {
            m.retain(|_, v| !empty(v));
            m.values_mut().for_each(prune);
        }
    }
    let Some(map) = object.as_object_mut() else { return };
    if map.get(field).is_some_and(empty) {
        map.shift_remove(field);
    } else if let Some(v) = map.get_mut(field) {
        prune(v);
    }
}

/// Whether an image's tag is `latest`, said or unsaid.
pub(super) fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe_defaults(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[field].as_i64().unwrap_or(0) == 0 {
            probe[field] = value.into();
        }
    }
    if probe["httpGet"].is_object() {
        default_field(&mut probe["httpGet"], "path", "/");
        default_field(&mut probe["httpGet"], "scheme", "HTTP");
    }
    if probe["grpc"].is_object() {
        default_field(&mut probe["grpc"], "service", "");
    }
    if let Some(map) = probe.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
}

fn volume_defaults(volume: &mut Value) {
    let sources = ["secret", "configMap", "downwardAPI", "projected"];
    for source in sources {
        if volume.get(source).is_some_and(Value::is_object) {
            default_field(&mut volume[source], "defaultMode", FILE_MODE);
        }
    }
    if volume.get("hostPath").is_some_and(Value::is_object) {
        default_field(&mut volume["hostPath"], "type", "");
    }
    let field_refs = |items: &mut Value| {
        for item in each(items, "items") {
            if item.get("fieldRef").is_some_and(Value::is_object) {
                default_field(&mut item["fieldRef"], "apiVersion", "v1");
            }
            if item.get("resourceFieldRef").is_some_and(Value::is_object) {
                default_field(&mut item["resourceFieldRef"], "divisor", "0");
            }
        }
    };
    if let Some(d) = volume.get_mut("downwardAPI") {
        field_refs(d);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in each(projected, "sources") {
            if let Some(d) = source.get_mut("downwardAPI") {
                field_refs(d);
            }
            if source.get("serviceAccountToken").is_some_and(Value::is_object) {
                default_field(&mut source["serviceAccountToken"], "expirationSeconds", 3600);
            }
        }
    }
    // A volume without a source is an empty directory.
    if volume.as_object().is_some_and(|m| m.keys().all(|key| key == "name")) {
        volume["emptyDir"] = json!({});
    }
    if volume.get("ephemeral").is_some_and(Value::is_object)
        && volume["ephemeral"]["volumeClaimTemplate"]["spec"].is_object()
    {
        default_field(&mut volume["ephemeral"]["volumeClaimTemplate"]["spec"], "volumeMode", "Filesystem");
    }
}
