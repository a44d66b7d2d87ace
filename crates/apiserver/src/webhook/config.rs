//! `clientConfig`: what is missing in it and what is wrong with it.

use serde_json::Value;
use skiff_api::{names, validation::Faults};

use crate::registry::default_field;

/// The versions of `AdmissionReview` and `ConversionReview` that are known.
pub(crate) const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

const FORM: &str = "; desired format: https://host[/path]";

/// The port of a Service that names none.
pub(crate) fn default_config(config: &mut Value) {
    if let Some(service) = config.get_mut("service").filter(|s| s.is_object()) {
        default_field(service, "port", 443);
    }
}

/// Checks a `clientConfig`.
pub(crate) fn validate_config(config: &Value, at: &str, faults: &mut Faults) {
    match (config["url"].as_str(), config["service"].is_object()) {
        (Some(url), false) => validate_url(url, &format!("{at}.url"), faults),
        (None, true) => validate_service(&config["service"], &format!("{at}.service"), faults),
        _ => faults.required(at, "exactly one of url or service is required"),
    }
}

fn validate_url(url: &str, at: &str, faults: &mut Faults) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        faults.invalid(at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() {
        faults.invalid(at, host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        faults.invalid(at, user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        faults.invalid(at, fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        faults.invalid(at, query, "query parameters are not permitted in the URL");
    }
    if !host.is_empty() && url.parse::<http::Uri>().is_err() {
        faults.required(at, format!("url must be a valid URL: parse {url:?}: invalid character in URL{FORM}"));
    }
}

fn validate_service(service: &Value, at: &str, faults: &mut Faults) {
    for field in ["name", "namespace"] {
        if service[field].as_str().is_none_or(str::is_empty) {
            faults.required(format!("{at}.{field}"), "");
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        faults.invalid(format!("{at}.port"), port, format!("port is not valid: {}", wrong.join(", ")));
    }
    let path = service["path"].as_str().unwrap_or_default();
    let at = format!("{at}.path");
    if path.is_empty() || path == "/" {
        return;
    }
    if path == "//" {
        return faults.invalid(at, path, "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        faults.invalid(at.clone(), path, "must start with a '/'");
    }
    let inner: String = path.chars().skip(1).collect();
    for (i, step) in inner.strip_suffix('/').unwrap_or(&inner).split('/').enumerate() {
        if step.is_empty() {
            faults.invalid(at.clone(), path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for why in names::dns1123_subdomain(step) {
            faults.invalid(at.clone(), path, format!("segment[{i}]: {why}"));
        }
    }
}

/// Checks the versions of reviews that a webhook takes; `missing` is said where there are none.
pub(crate) fn validate_reviews(versions: &Value, at: &str, missing: &str, faults: &mut Faults) {
    let list: Vec<&str> = versions.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if list.is_empty() {
        return faults.required(at, missing);
    }
    for (i, version) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if list[..i].contains(version) {
            faults.invalid(at, *version, "duplicate version");
            continue;
        }
        faults.rule(&at, version, names::dns1035_label(version));
    }
    if !list.iter().any(|v| REVIEWS.contains(v)) {
        faults.invalid(at, versions.clone(), format!("must include at least one of {}", REVIEWS.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_services() {
        let said = |path: &str| {
            let mut faults = Faults::default();
            let config = json!({"service": {"name": "s", "namespace": "n", "port": 443, "path": path}});
            validate_config(&config, "c", &mut faults);
            faults.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(said("/a/b").is_empty() && said("/").is_empty() && said("/a/").is_empty());
        assert_eq!(said("/a//b"), ["c.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"]);
        assert!(said("a")[0].ends_with("must start with a '/'"));
    }
}
