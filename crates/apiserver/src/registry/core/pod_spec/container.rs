//! Rules of containers.

use serde_json::Value;
use skiff_api::{
    names,
    quantity::Quantity,
    validation::{Faults, FieldError},
};

use super::security;

/// What a container's rules depend on.
pub(super) struct Given<'a> {
    /// `containers`, `initContainers` or `ephemeralContainers`.
    pub(super) list: &'a str,
    /// The pod's grace, in seconds.
    pub(super) grace: Option<i64>,
    /// The volumes that may be mounted.
    pub(super) volumes: &'a [&'a str],
}

/// Rules of one container; `seen` has the names of those before it.
pub(super) fn validate<'a>(c: &'a Value, at: &str, given: &Given<'_>, seen: &mut Vec<&'a str>, faults: &mut Faults) {
    let (list, volumes) = (given.list, given.volumes);
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
        }
        if !volumes.contains(&name) {
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
        let (handler, at) = (&c["lifecycle"][hook], format!("{at}.lifecycle.{hook}"));
        if !handler.is_object() {
            continue;
        }
        validate_handler(handler, &at, &["exec", "httpGet", "tcpSocket", "sleep"], faults);
        if let (Some(grace), Some(sleep)) = (given.grace, handler["sleep"].as_object()) {
            let seconds = sleep.get("seconds").and_then(Value::as_i64).unwrap_or(0);
            // A negative grace is taken for the shortest.
            if !(0..=grace.max(1)).contains(&seconds) {
                let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                faults.invalid(format!("{at}.sleep"), seconds, why);
            }
        }
    }
    validate_resources(&c["resources"], &format!("{at}.resources"), faults);
    security::validate_container(&c["securityContext"], &format!("{at}.securityContext"), faults);
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

/// No two containers want the same port of the node.
pub(super) fn validate_host_ports(spec: &Value, at: &str, faults: &mut Faults) {
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
    for (i, e) in c["envFrom"].as_array().into_iter().flatten().enumerate() {
        let given: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|s| e[*s].is_object()).collect();
        for source in &given {
            let here = format!("{at}.envFrom[{i}].{source}.name");
            match e[*source]["name"].as_str().unwrap_or_default() {
                "" => faults.required(here, ""),
                name => faults.rule(&here, name, names::dns1123_subdomain(name)),
            }
        }
        match given.len() {
            0 => faults.invalid(format!("{at}.envFrom"), "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => {
                let why = "may not have more than one field specified at a time";
                faults.invalid(format!("{at}.envFrom"), "", why);
            }
        }
    }
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
                let name = from[source]["name"].as_str().unwrap_or_default();
                faults.rule(&format!("{here}.valueFrom.{source}.name"), name, names::dns1123_subdomain(name));
                match from[source]["key"].as_str().unwrap_or_default() {
                    "" => faults.required(format!("{here}.valueFrom.{source}.key"), ""),
                    key => faults.rule(&format!("{here}.valueFrom.{source}.key"), key, names::config_key(key)),
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
    if let Some(grace) = probe["terminationGracePeriodSeconds"].as_i64().filter(|grace| *grace <= 0) {
        faults.invalid(format!("{at}.terminationGracePeriodSeconds"), grace, "must be greater than 0");
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
    for header in handler["httpGet"]["httpHeaders"].as_array().into_iter().flatten() {
        let name = header["name"].as_str().unwrap_or_default();
        faults.rule(&format!("{at}.httpGet.httpHeaders"), name, names::http_header(name));
    }
}

fn validate_resources(resources: &Value, at: &str, faults: &mut Faults) {
    let quantity = |v: &Value| v.as_str().and_then(|s| s.parse::<Quantity>().ok());
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let here = format!("{at}.{list}[{name}]");
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
