//! The spec of a pod, which pods and the templates of workloads share: defaults and rules.

use serde_json::{Value, json};
use skiff_api::{
    names,
    quantity::Quantity,
    validation::{Faults, FieldError},
};

use super::{default_field, each, object_mut};
use crate::registry::meta;

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
    for constraint in each(spec, "topologySpreadConstraints") {
        default_field(constraint, "nodeAffinityPolicy", "Honor");
        default_field(constraint, "nodeTaintsPolicy", "Ignore");
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
    // What is limited is also asked for.
    if let Some(limits) = c["resources"]["limits"].as_object().cloned() {
        let requests = object_mut(&mut c["resources"], "requests");
        for (name, quantity) in limits {
            default_field(requests, &name, quantity);
        }
    }
    if let Some(resources) = c["resources"].as_object_mut() {
        resources.retain(|_, v| !v.is_null());
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
fn is_latest(image: &str) -> bool {
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
    if volume.as_object().is_some_and(|m| m.len() == 1 && m.contains_key("name")) {
        volume["emptyDir"] = json!({});
    }
    if volume.get("ephemeral").is_some_and(Value::is_object)
        && volume["ephemeral"]["volumeClaimTemplate"]["spec"].is_object()
    {
        default_field(&mut volume["ephemeral"]["volumeClaimTemplate"]["spec"], "volumeMode", "Filesystem");
    }
}

/// Rules of a pod's spec; `at` is its path, such as `spec` or `spec.template.spec`.
pub(crate) fn validate(spec: &Value, at: &str, faults: &mut Faults) {
    let volumes = validate_volumes(spec, at, faults);
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        faults.required(format!("{at}.containers"), "");
    }
    let mut seen: Vec<&str> = Vec::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, c) in spec[list].as_array().into_iter().flatten().enumerate() {
            validate_container(c, &format!("{at}.{list}[{i}]"), list, &volumes, &mut seen, faults);
        }
    }
    validate_host_ports(spec, at, faults);
    let policy = spec["restartPolicy"].as_str().unwrap_or_default();
    faults.one_of(&format!("{at}.restartPolicy"), policy, &["Always", "OnFailure", "Never"]);
    let dns = spec["dnsPolicy"].as_str().unwrap_or_default();
    faults.one_of(&format!("{at}.dnsPolicy"), dns, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    if dns == "None" && spec["dnsConfig"]["nameservers"].as_array().is_none_or(Vec::is_empty) {
        faults.required(
            format!("{at}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    faults.non_negative(
        &format!("{at}.terminationGracePeriodSeconds"),
        spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(0),
    );
    if let Some(deadline) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&deadline)
    {
        faults.invalid(format!("{at}.activeDeadlineSeconds"), deadline, "must be between 1 and 2147483647, inclusive");
    }
    meta::labels(&spec["nodeSelector"], &format!("{at}.nodeSelector"), faults);
    for (field, rule) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        if let Some(s) = spec[field].as_str().filter(|s| !s.is_empty()) {
            faults.rule(&format!("{at}.{field}"), s, rule(s));
        }
    }
    validate_tolerations(spec, at, faults);
    validate_node_affinity(spec, at, faults);
}

fn validate_volumes<'a>(spec: &'a Value, at: &str, faults: &mut Faults) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (i, v) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.volumes[{i}]");
        let name = v["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            faults.required(format!("{here}.name"), "");
        } else {
            faults.rule(&format!("{here}.name"), name, names::dns1123_label(name));
            if seen.contains(&name) {
                faults.push(FieldError::duplicate(format!("{here}.name"), name));
            }
        }
        seen.push(name);
        let sources: Vec<&String> =
            v.as_object().into_iter().flatten().map(|(k, _)| k).filter(|k| *k != "name").collect();
        match sources.as_slice() {
            [] => faults.required(here.clone(), "must specify a volume type"),
            [_] => {}
            [_, more @ ..] => {
                for source in more {
                    faults.push(FieldError::forbidden(
                        format!("{here}.{source}"),
                        "may not specify more than 1 volume type",
                    ));
                }
            }
        }
        for (source, field, required) in [
            ("configMap", "name", "name"),
            ("secret", "secretName", "secretName"),
            ("persistentVolumeClaim", "claimName", "claimName"),
            ("hostPath", "path", "path"),
        ] {
            if v[source].is_object() && v[source][field].as_str().is_none_or(str::is_empty) {
                faults.required(format!("{here}.{source}.{required}"), "");
            }
        }
        if v["csi"].is_object() {
            let at = format!("{here}.csi");
            super::persistentvolume::validate_csi_driver_name(&v["csi"]["driver"], &format!("{at}.driver"), faults);
            let secret = &v["csi"]["nodePublishSecretRef"];
            if secret.is_object() && secret["name"].as_str().is_none_or(str::is_empty) {
                faults.required(format!("{at}.nodePublishSecretRef.name"), "");
            }
        }
        if v["ephemeral"].is_object() {
            let at = format!("{here}.ephemeral.volumeClaimTemplate");
            match &v["ephemeral"]["volumeClaimTemplate"] {
                Value::Object(template) => {
                    let claim = template.get("spec").unwrap_or(&Value::Null);
                    super::persistentvolumeclaim::validate_spec(claim, &format!("{at}.spec"), faults);
                }
                _ => faults.required(at, ""),
            }
        }
        if let Some(path) = v["hostPath"]["path"].as_str()
            && path.split('/').any(|p| p == "..")
        {
            faults.invalid(format!("{here}.hostPath.path"), path, "must not contain '..'");
        }
        if let Some(kind) = v["hostPath"]["type"].as_str() {
            let kinds =
                ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            faults.one_of(&format!("{here}.hostPath.type"), kind, &kinds);
        }
        for source in ["configMap", "secret", "downwardAPI"] {
            validate_items(&v[source], &format!("{here}.{source}"), faults);
        }
        for (j, p) in v["projected"]["sources"].as_array().into_iter().flatten().enumerate() {
            for source in ["configMap", "secret", "downwardAPI"] {
                validate_items(&p[source], &format!("{here}.projected.sources[{j}].{source}"), faults);
            }
        }
    }
    seen
}

fn validate_items(source: &Value, at: &str, faults: &mut Faults) {
    if let Some(mode) = source["defaultMode"].as_i64()
        && !(0..=0o777).contains(&mode)
    {
        faults.invalid(
            format!("{at}.defaultMode"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
    for (i, item) in source["items"].as_array().into_iter().flatten().enumerate() {
        let path = item["path"].as_str().unwrap_or_default();
        let here = format!("{at}.items[{i}].path");
        if path.is_empty() {
            faults.required(here, "");
        } else if path.starts_with('/') {
            faults.invalid(here, path, "must be a relative path");
        } else if path.split('/').any(|p| p == "..") {
            faults.invalid(here, path, "must not contain '..'");
        } else if path.starts_with("..") {
            faults.invalid(here, path, "must not start with '..'");
        }
    }
}

fn validate_container<'a>(
    c: &'a Value,
    at: &str,
    list: &str,
    volumes: &[&str],
    seen: &mut Vec<&'a str>,
    faults: &mut Faults,
) {
    let name = c["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        faults.required(format!("{at}.name"), "");
    } else {
        faults.rule(&format!("{at}.name"), name, names::dns1123_label(name));
        if seen.contains(&name) {
            faults.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        seen.push(name);
    }
    let image = c["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        faults.required(format!("{at}.image"), "");
    } else if image != image.trim() {
        faults.invalid(format!("{at}.image"), image, "must not have leading or trailing whitespace");
    }
    let pull = c["imagePullPolicy"].as_str().unwrap_or_default();
    faults.one_of(&format!("{at}.imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"]);
    let message = c["terminationMessagePolicy"].as_str().unwrap_or_default();
    faults.one_of(&format!("{at}.terminationMessagePolicy"), message, &["FallbackToLogsOnError", "File"]);
    validate_container_ports(c, at, faults);
    validate_env(c, at, faults);
    let mut mounted: Vec<&str> = Vec::new();
    for (i, m) in c["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.volumeMounts[{i}]");
        let name = m["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            faults.required(format!("{here}.name"), "");
        } else if !volumes.contains(&name) {
            faults.push(FieldError::not_found(format!("{here}.name"), name));
        }
        let path = m["mountPath"].as_str().unwrap_or_default();
        if path.is_empty() {
            faults.required(format!("{here}.mountPath"), "");
        } else if mounted.contains(&path) {
            faults.invalid(format!("{here}.mountPath"), path, "must be unique");
        }
        mounted.push(path);
        for field in ["subPath", "subPathExpr"] {
            if let Some(sub) = m[field].as_str() {
                if sub.starts_with('/') {
                    faults.invalid(format!("{here}.{field}"), sub, "must be a relative path");
                }
                if sub.split('/').any(|p| p == "..") {
                    faults.invalid(format!("{here}.{field}"), sub, "must not contain '..'");
                }
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !c[probe].is_object() {
            continue;
        }
        if list == "initContainers" && c["restartPolicy"] != "Always" {
            let why = "may not be set for init containers without restartPolicy=Always";
            faults.push(FieldError::forbidden(format!("{at}.{probe}"), why));
        }
        validate_probe(&c[probe], &format!("{at}.{probe}"), probe != "readinessProbe", faults);
    }
    for hook in ["postStart", "preStop"] {
        let handler = &c["lifecycle"][hook];
        if handler.is_object() {
            validate_handler(
                handler,
                &format!("{at}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                faults,
            );
        }
    }
    validate_resources(&c["resources"], &format!("{at}.resources"), faults);
    let security = &c["securityContext"];
    if security["privileged"] == true && security["allowPrivilegeEscalation"] == false {
        faults.invalid(
            format!("{at}.securityContext"),
            security.clone(),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
}

fn validate_container_ports(c: &Value, at: &str, faults: &mut Faults) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, p) in c["ports"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.ports[{i}]");
        if let Some(name) = p["name"].as_str().filter(|n| !n.is_empty()) {
            faults.rule(&format!("{here}.name"), name, names::port_name(name));
            if seen.contains(&name) {
                faults.push(FieldError::duplicate(format!("{here}.name"), name));
            }
            seen.push(name);
        }
        match p["containerPort"].as_i64().unwrap_or(0) {
            0 => faults.required(format!("{here}.containerPort"), ""),
            n => {
                for m in names::port_number(n) {
                    faults.invalid(format!("{here}.containerPort"), n, m);
                }
            }
        }
        if let Some(n) = p["hostPort"].as_i64().filter(|n| *n != 0) {
            for m in names::port_number(n) {
                faults.invalid(format!("{here}.hostPort"), n, m);
            }
        }
        let protocol = p["protocol"].as_str().unwrap_or_default();
        faults.one_of(&format!("{here}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
}

fn validate_host_ports(spec: &Value, at: &str, faults: &mut Faults) {
    let mut seen: Vec<String> = Vec::new();
    for (i, c) in spec["containers"].as_array().into_iter().flatten().enumerate() {
        for (j, p) in c["ports"].as_array().into_iter().flatten().enumerate() {
            let Some(port) = p["hostPort"].as_i64().filter(|n| *n != 0) else { continue };
            let text = format!(
                "{}/{}/{port}",
                p["protocol"].as_str().unwrap_or("TCP"),
                p["hostIP"].as_str().unwrap_or_default()
            );
            if seen.contains(&text) {
                faults.push(FieldError::duplicate(format!("{at}.containers[{i}].ports[{j}].hostPort"), text.clone()));
            }
            seen.push(text);
        }
    }
}

fn validate_env(c: &Value, at: &str, faults: &mut Faults) {
    for (i, e) in c["env"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.env[{i}]");
        let name = e["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            faults.required(format!("{here}.name"), "");
        } else {
            faults.rule(&format!("{here}.name"), name, names::env_name(name));
        }
        let from = &e["valueFrom"];
        if !from.is_object() {
            continue;
        }
        if e["value"].as_str().is_some_and(|v| !v.is_empty()) {
            faults.invalid(format!("{here}.valueFrom"), "", "may not be specified when `value` is not empty");
        }
        let sources = from.as_object().map_or(0, serde_json::Map::len);
        if sources != 1 {
            let what = if sources == 0 {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            faults.invalid(format!("{here}.valueFrom"), "", what);
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if from[source].is_object() {
                for field in ["name", "key"] {
                    if from[source][field].as_str().is_none_or(str::is_empty) {
                        faults.required(format!("{here}.valueFrom.{source}.{field}"), "");
                    }
                }
            }
        }
    }
}

fn validate_probe(probe: &Value, at: &str, one_success: bool, faults: &mut Faults) {
    validate_handler(probe, at, &["exec", "httpGet", "tcpSocket", "grpc"], faults);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        faults.non_negative(&format!("{at}.{field}"), probe[field].as_i64().unwrap_or(0));
    }
    if one_success && probe["successThreshold"].as_i64().unwrap_or(1) > 1 {
        faults.invalid(format!("{at}.successThreshold"), probe["successThreshold"].clone(), "must be 1");
    }
}

fn validate_handler(handler: &Value, at: &str, kinds: &[&str], faults: &mut Faults) {
    let present: Vec<&str> = kinds.iter().copied().filter(|k| handler[*k].is_object()).collect();
    match present.as_slice() {
        [] => faults.required(at, "must specify a handler type"),
        [_] => {}
        [_, more @ ..] => {
            for kind in more {
                faults.push(FieldError::forbidden(format!("{at}.{kind}"), "may not specify more than 1 handler type"));
            }
        }
    }
    if handler["exec"].is_object() && handler["exec"]["command"].as_array().is_none_or(Vec::is_empty) {
        faults.required(format!("{at}.exec.command"), "");
    }
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        if !handler[kind].is_object() {
            continue;
        }
        match &handler[kind]["port"] {
            Value::String(s) => faults.rule(&format!("{at}.{kind}.port"), s, names::port_name(s)),
            v => {
                let n = v.as_i64().unwrap_or(0);
                for m in names::port_number(n) {
                    faults.invalid(format!("{at}.{kind}.port"), n, m);
                }
            }
        }
    }
    if let Some(scheme) = handler["httpGet"]["scheme"].as_str() {
        faults.one_of(&format!("{at}.httpGet.scheme"), scheme, &["HTTP", "HTTPS"]);
    }
}

fn validate_resources(resources: &Value, at: &str, faults: &mut Faults) {
    let quantity = |v: &Value| v.as_str().and_then(|s| s.parse::<Quantity>().ok());
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let here = format!("{at}.{list}.{name}");
            faults.rule(&format!("{at}.{list}"), name, names::qualified_name(name));
            if !name.contains('/')
                && !["cpu", "memory", "ephemeral-storage"].contains(&name.as_str())
                && !name.starts_with("hugepages-")
            {
                faults.invalid(
                    format!("{at}.{list}"),
                    name.as_str(),
                    "must be a standard resource type or fully qualified",
                );
                faults.invalid(format!("{at}.{list}"), name.as_str(), "must be a standard resource for containers");
            }
            let Some(q) = quantity(value) else { continue };
            if q.is_negative() {
                faults.invalid(here.clone(), value.clone(), "must be greater than or equal to 0");
            }
            if list == "requests"
                && let Some(limit) = quantity(&resources["limits"][name.as_str()])
                && q > limit
            {
                faults.invalid(
                    format!("{at}.requests"),
                    value.clone(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                );
            }
        }
    }
}

fn validate_tolerations(spec: &Value, at: &str, faults: &mut Faults) {
    for (i, t) in spec["tolerations"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}.tolerations[{i}]");
        let key = t["key"].as_str().unwrap_or_default();
        let operator = t["operator"].as_str().unwrap_or_default();
        let effect = t["effect"].as_str().unwrap_or_default();
        if !key.is_empty() {
            faults.rule(&format!("{here}.key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            faults.invalid(
                format!("{here}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !["", "Equal", "Exists", "Lt", "Gt"].contains(&operator) {
            faults.push(FieldError::not_supported(format!("{here}.operator"), operator, &["Equal", "Exists"]));
        }
        if operator == "Exists" && t["value"].as_str().is_some_and(|v| !v.is_empty()) {
            faults.invalid(
                format!("{here}.operator"),
                t["value"].clone(),
                "value must be empty when `operator` is 'Exists'",
            );
        }
        if !["", "NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            faults.push(FieldError::not_supported(
                format!("{here}.effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
        if t["tolerationSeconds"].is_i64() && effect != "NoExecute" {
            faults.invalid(
                format!("{here}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}

fn validate_node_affinity(spec: &Value, at: &str, faults: &mut Faults) {
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_object() {
        return;
    }
    let here = format!("{at}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    let terms = required["nodeSelectorTerms"].as_array().map(Vec::as_slice).unwrap_or_default();
    if terms.is_empty() {
        faults.required(here.clone(), "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        for (j, e) in term["matchExpressions"].as_array().into_iter().flatten().enumerate() {
            let path = format!("{here}[{i}].matchExpressions[{j}]");
            meta::operator(e, &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"], &path, faults);
        }
    }
}

/// Rules of a workload's selector and template: they must fit, and pods must be restarted always.
pub(crate) fn validate_template(template: &Value, selector: &Value, faults: &mut Faults) {
    let at = "spec.template";
    meta::labels(&template["metadata"]["labels"], &format!("{at}.metadata.labels"), faults);
    // A selector that is left out matches nothing, not even these.
    let matches = match skiff_api::selector::LabelSelector::from_value(selector) {
        _ if selector.is_null() => false,
        Ok(s) => s.is_empty() || s.matches_value(template["metadata"].get("labels")),
        // Reported where selectors are validated.
        Err(_) => true,
    };
    if !matches {
        let labels = template["metadata"]["labels"].clone();
        let labels = if labels.is_null() { json!({}) } else { labels };
        faults.invalid(format!("{at}.metadata.labels"), labels, "`selector` does not match template `labels`");
    }
    validate(&template["spec"], &format!("{at}.spec"), faults);
}

/// Templates of workloads that run for ever restart their containers always.
pub(crate) fn validate_always_restarts(template: &Value, faults: &mut Faults) {
    let policy = template["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if policy != "Always" && ["OnFailure", "Never"].contains(&policy) {
        faults.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut spec = spec;
        defaults(&mut spec);
        let mut f = Faults::default();
        validate(&spec, "spec", &mut f);
        f.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let mut spec = json!({
            "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}],
        });
        defaults(&mut spec);
        let c = &spec["containers"][0];
        assert_eq!(c["imagePullPolicy"], "Always");
        assert_eq!(c["livenessProbe"]["httpGet"], json!({"port": 80, "path": "/", "scheme": "HTTP"}));
        assert_eq!(c["livenessProbe"]["failureThreshold"], 3);
        assert_eq!(c["resources"], json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}));
        assert!(c.get("readinessProbe").is_none() && c.get("lifecycle").is_none(), "{c}");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 420);
        assert!(faults(spec).is_empty());
        for (image, latest) in
            [("a:1", false), ("a", true), ("r:5000/a", true), ("r:5000/a:2", false), ("a@sha256:0", false)]
        {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn faults_have_their_paths() {
        assert_eq!(faults(json!({})), ["spec.containers: Required value"]);
        assert_eq!(faults(json!({"containers": [{"name": "a"}]})), ["spec.containers[0].image: Required value"]);
        assert_eq!(
            faults(
                json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]})
            ),
            ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
        );
        assert_eq!(
            faults(
                json!({"containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]})
            ),
            [
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
            ]
        );
        assert_eq!(
            faults(json!({"containers": [{"name": "a", "image": "x"}], "restartPolicy": "Sometimes"})),
            [
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\""
            ]
        );
    }
}
