//! The spec of a pod, which pods and the templates of workloads share: defaults and rules.

mod container;
mod defaults;
mod dns;
mod placement;
mod security;
mod volumes;

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use self::container::Given;
pub(crate) use self::defaults::{defaults, request_what_is_limited, template_defaults};
use crate::registry::{core::list, meta};

/// Rules of a pod's spec; `at` is its path, such as `spec` or `spec.template.spec`.
pub(crate) fn validate(spec: &Value, at: &str, faults: &mut Faults) {
    let volumes = volumes::validate(spec, at, faults);
    if list(&spec["containers"]).is_empty() {
        faults.required(format!("{at}.containers"), "");
    }
    let grace = spec["terminationGracePeriodSeconds"].as_i64();
    let mut seen: Vec<&str> = Vec::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, c) in spec[list].as_array().into_iter().flatten().enumerate() {
            let given = Given { list, grace, volumes: &volumes };
            container::validate(c, &format!("{at}.{list}[{i}]"), &given, &mut seen, faults);
        }
        if list == "containers" {
            container::validate_host_ports(spec, at, faults);
        }
    }
    let policy = spec["restartPolicy"].as_str().unwrap_or_default();
    faults.one_of(&format!("{at}.restartPolicy"), policy, &["Always", "OnFailure", "Never"]);
    let dns_policy = spec["dnsPolicy"].as_str().unwrap_or_default();
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    faults.one_of(&format!("{at}.dnsPolicy"), dns_policy, &policies);
    meta::labels(&spec["nodeSelector"], &format!("{at}.nodeSelector"), faults);
    security::validate_pod(&spec["securityContext"], &format!("{at}.securityContext"), faults);
    placement::validate_affinity(&spec["affinity"], &format!("{at}.affinity"), faults);
    dns::validate(dns_policy, &spec["dnsConfig"], &format!("{at}.dnsConfig"), faults);
    for list in ["readinessGates", "schedulingGates"] {
        let field = if list == "readinessGates" { "conditionType" } else { "name" };
        for (i, gate) in spec[list].as_array().into_iter().flatten().enumerate() {
            let name = gate[field].as_str().unwrap_or_default();
            let at = match list {
                "readinessGates" => format!("{at}.{list}[{i}].{field}"),
                _ => format!("{at}.{list}[{i}]"),
            };
            faults.rule(&at, name, names::qualified_name(name));
        }
    }
    let spread = format!("{at}.topologySpreadConstraints");
    placement::validate_spread(&spec["topologySpreadConstraints"], &spread, faults);
    for (field, rule) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
    ] {
        validate_name(spec, field, rule, at, faults);
    }
    if let Some(deadline) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&deadline)
    {
        faults.invalid(format!("{at}.activeDeadlineSeconds"), deadline, "must be between 1 and 2147483647, inclusive");
    }
    validate_name(spec, "hostname", names::dns1123_label, at, faults);
    validate_name(spec, "subdomain", names::dns1123_label, at, faults);
    placement::validate_tolerations(spec, at, faults);
    dns::validate_host_aliases(&spec["hostAliases"], &format!("{at}.hostAliases"), faults);
    validate_name(spec, "priorityClassName", names::dns1123_subdomain, at, faults);
    validate_name(spec, "runtimeClassName", names::dns1123_subdomain, at, faults);
    if let Some(policy) = spec["preemptionPolicy"].as_str() {
        faults.one_of(&format!("{at}.preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
}

fn validate_name(spec: &Value, field: &str, rule: fn(&str) -> Vec<String>, at: &str, faults: &mut Faults) {
    if let Some(name) = spec[field].as_str().filter(|name| !name.is_empty()) {
        faults.rule(&format!("{at}.{field}"), name, rule(name));
    }
}

/// Rules of a workload's selector and template: they must fit, and pods must be restarted always.
pub(crate) fn validate_template(template: &Value, selector: &Value, faults: &mut Faults) {
    let at = "spec.template";
    // A selector that is left out matches nothing, not even these.
    let matches = match skiff_api::selector::LabelSelector::from_value(selector) {
        _ if selector.is_null() => false,
        Ok(s) => s.is_empty() || s.matches_value(template["metadata"].get("labels")),
        // Reported where selectors are validated.
        Err(_) => true,
    };
    if !matches {
        let labels = template["metadata"]["labels"].clone();
        faults.invalid(format!("{at}.metadata.labels"), labels, "`selector` does not match template `labels`");
    }
    // Upstream leaves out "metadata" here.
    meta::labels(&template["metadata"]["labels"], &format!("{at}.labels"), faults);
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
    use serde_json::json;

    use super::{defaults::is_latest, *};

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
        assert_eq!(c["resources"], json!({"limits": {"cpu": "1"}}));
        assert!(c.get("readinessProbe").is_none() && c.get("lifecycle").is_none(), "{c}");
        let mut pod = spec.clone();
        request_what_is_limited(&mut pod);
        assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}));
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
