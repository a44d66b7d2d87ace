//! Ingress. What it leads to is the ingress controller's matter.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use crate::registry::{
    core::list,
    strategy::{Strategy, col, name_col},
    table,
};

/// How a class was named before there were classes.
pub(crate) const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    prepare_create: |o| o["status"] = serde_json::json!({"loadBalancer": {}}),
    validate,
    validate_create: |o, faults| {
        let annotation = &o["metadata"]["annotations"][CLASS_ANNOTATION];
        let class = &o["spec"]["ingressClassName"];
        if let (Some(annotation), Some(class)) = (annotation.as_str(), class.as_str())
            && annotation != class
        {
            let why = "must match `ingressClassName` when both are specified";
            faults.invalid(format!("annotations.{CLASS_ANNOTATION}"), annotation, why);
        }
    },
    columns: &[name_col(), col("Class"), col("Hosts"), col("Address"), col("Ports"), col("Age")],
    row: |o| {
        let rules = o["spec"]["rules"].as_array().into_iter().flatten();
        let hosts: Vec<&str> = rules.filter_map(|r| r["host"].as_str()).filter(|h| !h.is_empty()).collect();
        let hosts = match hosts.len() {
            0 => "*".to_owned(),
            n if n > 3 => format!("{} + {} more...", hosts[..3].join(","), n - 3),
            _ => hosts.join(","),
        };
        let addresses = o["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let addresses: Vec<&str> =
            addresses.filter_map(|i| i["ip"].as_str().or_else(|| i["hostname"].as_str())).collect();
        let tls = o["spec"]["tls"].as_array().is_some_and(|t| !t.is_empty());
        let class = match o["spec"]["ingressClassName"].as_str() {
            Some(class) => class.into(),
            None => table::text_or(&o["metadata"]["annotations"][CLASS_ANNOTATION], "<none>"),
        };
        let cells: [Value; 6] = [
            o["metadata"]["name"].clone(),
            class,
            hosts.into(),
            addresses.join(",").into(),
            if tls { "80, 443".into() } else { "80".into() },
            table::created(o),
        ];
        cells.to_vec()
    },
    ..Strategy::DEFAULT
};

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let backend = &spec["defaultBackend"];
    if list(&spec["rules"]).is_empty() && !backend.is_object() {
        faults.invalid("spec", spec["rules"].clone(), "either `defaultBackend` or `rules` must be specified");
    }
    if backend.is_object() {
        validate_backend(backend, "spec.defaultBackend", faults);
    }
    for (i, rule) in list(&spec["rules"]).iter().enumerate() {
        validate_rule(rule, &format!("spec.rules[{i}]"), faults);
    }
    for (i, tls) in list(&spec["tls"]).iter().enumerate() {
        for (j, host) in list(&tls["hosts"]).iter().enumerate() {
            let at = format!("spec.tls[{i}].hosts[{j}]");
            validate_host(host.as_str().unwrap_or_default(), &at, faults);
        }
        if let Some(name) = tls["secretName"].as_str().filter(|name| !name.is_empty()) {
            faults.rule(&format!("spec.tls[{i}].secretName"), name, names::dns1123_subdomain(name));
        }
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        faults.rule("spec.ingressClassName", class, names::dns1123_subdomain(class));
    }
}

fn validate_host(host: &str, at: &str, faults: &mut Faults) {
    match host.contains('*') {
        true => faults.rule(at, host, wildcard(host)),
        false => faults.rule(at, host, names::dns1123_subdomain(host)),
    }
}

/// Names whose first label is `*`.
fn wildcard(host: &str) -> Vec<String> {
    let rest = host.strip_prefix("*.").unwrap_or_default();
    match names::dns1123_subdomain(rest).is_empty() {
        true => Vec::new(),
        false => vec![
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
             of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
             '*.example.com', regex used for validation is \
             '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        ],
    }
}

fn validate_rule(rule: &Value, at: &str, faults: &mut Faults) {
    if let Some(host) = rule["host"].as_str().filter(|host| !host.is_empty()) {
        let at = format!("{at}.host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            faults.invalid(&at, host, "must be a DNS name, not an IP address");
        }
        validate_host(host, &at, faults);
    }
    if !rule["http"].is_object() {
        return;
    }
    let paths = list(&rule["http"]["paths"]);
    if paths.is_empty() {
        faults.required(format!("{at}.http.paths"), "");
    }
    for (i, path) in paths.iter().enumerate() {
        validate_path(path, &format!("{at}.http.paths[{i}]"), faults);
    }
}

fn validate_path(path: &Value, at: &str, faults: &mut Faults) {
    let text = path["path"].as_str().unwrap_or_default();
    let path_at = format!("{at}.path");
    match path["pathType"].as_str() {
        None => return faults.required(format!("{at}.pathType"), "pathType must be specified"),
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                faults.invalid(&path_at, text, "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|bad| text.contains(**bad)) {
                faults.invalid(&path_at, text, format!("must not contain '{bad}'"));
            }
            for bad in ["/..", "/."].iter().filter(|bad| text.ends_with(**bad)) {
                faults.invalid(&path_at, text, format!("cannot end with '{bad}'"));
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                faults.invalid(&path_at, text, "must be an absolute path");
            }
        }
        Some(other) => {
            faults.one_of(&format!("{at}.pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    validate_backend(&path["backend"], &format!("{at}.backend"), faults);
}

fn validate_backend(backend: &Value, at: &str, faults: &mut Faults) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_object(), resource.is_object()) {
        (true, true) => faults.invalid(at, "", "cannot set both resource and service backends"),
        (false, false) => faults.invalid(at, "", "resource or service backend is required"),
        (false, true) => {
            for field in ["kind", "name"].iter().filter(|field| resource[**field].as_str().is_none_or(str::is_empty)) {
                faults.required(format!("{at}.resource.{field}"), format!("{field} is required"));
            }
        }
        (true, false) => {
            let name = service["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                faults.required(format!("{at}.service.name"), "");
            } else {
                faults.rule(&format!("{at}.service.name"), name, names::dns1123_label(name));
            }
            validate_backend_port(&service["port"], at, faults);
        }
    }
}

fn validate_backend_port(port: &Value, at: &str, faults: &mut Faults) {
    let name = port["name"].as_str().unwrap_or_default();
    let number = port["number"].as_i64().unwrap_or(0);
    match (name.is_empty(), number == 0) {
        (false, false) => faults.invalid(at, "", "cannot set both port name & port number"),
        (true, true) => faults.push(FieldError::required(at, "port name or number is required")),
        (false, true) => faults.rule(&format!("{at}.service.port.name"), name, names::port_name(name)),
        (true, false) => {
            for message in names::port_number(number) {
                faults.invalid(format!("{at}.service.port.number"), number, message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(&json!({"spec": spec}), &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_are_upstreams() {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        assert_eq!(faults(json!({"defaultBackend": backend})), [""; 0]);
        assert_eq!(
            faults(json!({})),
            ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
        );
        let path = |path: Value| faults(json!({"rules": [{"http": {"paths": [path]}}]}));
        let at = "spec.rules[0].http.paths[0]";
        assert_eq!(path(json!({"path": "/a", "pathType": "Prefix", "backend": backend})), [""; 0]);
        assert_eq!(
            path(json!({"path": "/a", "backend": backend})),
            [format!("{at}.pathType: Required value: pathType must be specified")]
        );
        assert_eq!(
            path(json!({"path": "a", "pathType": "Exact", "backend": backend})),
            [format!("{at}.path: Invalid value: \"a\": must be an absolute path")]
        );
        assert_eq!(
            path(json!({"path": "/a", "pathType": "Exact", "backend": {"service": {"name": "web", "port": {}}}})),
            [format!("{at}.backend: Required value: port name or number is required")]
        );
        let host = |host: &str| faults(json!({"rules": [{"host": host}]}));
        assert_eq!(host("*.example.com"), [""; 0]);
        assert_eq!(host("example.com"), [""; 0]);
        assert!(host("10.0.0.1")[0].ends_with("must be a DNS name, not an IP address"));
        assert!(host("a.*.com")[0].contains("a wildcard DNS-1123 subdomain must start with '*.'"));
    }
}
