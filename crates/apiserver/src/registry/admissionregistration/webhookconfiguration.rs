//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration.

use serde_json::Value;
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::matching;
use crate::{
    registry::{
        core::{default_field, each},
        strategy::{Strategy, col, int_col, name_col},
        table,
    },
    webhook,
};

pub(crate) static MUTATING: Strategy = Strategy {
    defaults: |o| {
        defaults(o);
        for hook in each(o, "webhooks") {
            default_field(hook, "reinvocationPolicy", "Never");
        }
    },
    ..VALIDATING
};

pub(crate) static VALIDATING: Strategy = BASE;

const BASE: Strategy = Strategy {
    generation: true,
    defaults,
    validate,
    columns: &[name_col(), int_col("Webhooks"), col("Age")],
    row: |o| {
        let webhooks = o["webhooks"].as_array().map_or(0, Vec::len);
        vec![o["metadata"]["name"].clone(), webhooks.into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};

/// What a webhook may do beside answering.
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

fn defaults(o: &mut Value) {
    for hook in each(o, "webhooks") {
        default_field(hook, "failurePolicy", "Fail");
        default_field(hook, "timeoutSeconds", 10);
        matching::match_defaults(hook);
        webhook::default_config(&mut hook["clientConfig"]);
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let mut seen = Vec::new();
    for (i, hook) in o["webhooks"].as_array().into_iter().flatten().enumerate() {
        let at = format!("webhooks[{i}]");
        let name = hook["name"].as_str().unwrap_or_default();
        validate_name(name, &format!("{at}.name"), faults);
        validate_hook(hook, &at, faults);
        let reviews = &hook["admissionReviewVersions"];
        let missing = format!("must specify one of {}", webhook::REVIEWS.join(", "));
        webhook::validate_reviews(reviews, &format!("{at}.admissionReviewVersions"), &missing, faults);
        if !name.is_empty() && seen.contains(&name) {
            faults.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        seen.push(name);
    }
}

fn validate_name(name: &str, at: &str, faults: &mut Faults) {
    let wrong = names::dns1123_subdomain(name);
    if name.is_empty() {
        faults.required(at, "");
    } else if !wrong.is_empty() {
        faults.invalid(at, name, wrong.join(","));
    } else if name.split('.').count() < 3 {
        faults.invalid(at, name, "should be a domain with at least three segments separated by dots");
    }
}

fn validate_hook(hook: &Value, at: &str, faults: &mut Faults) {
    for (i, rule) in hook["rules"].as_array().into_iter().flatten().enumerate() {
        matching::rule(rule, &format!("{at}.rules[{i}]"), faults);
    }
    if let Some(policy) = hook["failurePolicy"].as_str() {
        faults.one_of(&format!("{at}.failurePolicy"), policy, &["Fail", "Ignore"]);
    }
    match hook["sideEffects"].as_str() {
        Some(effects) => faults.one_of(&format!("{at}.sideEffects"), effects, &SIDE_EFFECTS),
        None => {
            faults.required(format!("{at}.sideEffects"), format!("must specify one of {}", SIDE_EFFECTS.join(", ")))
        }
    }
    if let Some(seconds) = hook["timeoutSeconds"].as_i64().filter(|s| !(1..=30).contains(s)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        faults.invalid(format!("{at}.timeoutSeconds"), seconds, why);
    }
    matching::selectors(hook, at, faults);
    if let Some(policy) = hook["reinvocationPolicy"].as_str() {
        faults.one_of(&format!("{at}.reinvocationPolicy"), policy, &["IfNeeded", "Never"]);
    }
    webhook::validate_config(&hook["clientConfig"], &format!("{at}.clientConfig"), faults);
    let variables = ["object", "oldObject", "request", "namespaceObject", "authorizer"];
    matching::conditions(&hook["matchConditions"], &format!("{at}.matchConditions"), &variables, faults);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(hook: Value) -> Vec<String> {
        let mut o = json!({"webhooks": [hook]});
        (MUTATING.defaults)(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    fn hook() -> Value {
        json!({
            "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "n", "name": "s"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        })
    }

    #[test]
    fn a_webhook_is_completed() {
        let mut o = json!({"webhooks": [hook()]});
        (MUTATING.defaults)(&mut o);
        let made = &o["webhooks"][0];
        assert_eq!((&made["failurePolicy"], &made["timeoutSeconds"]), (&json!("Fail"), &json!(10)));
        assert_eq!((&made["matchPolicy"], &made["reinvocationPolicy"]), (&json!("Equivalent"), &json!("Never")));
        assert_eq!((&made["namespaceSelector"], &made["rules"][0]["scope"]), (&json!({}), &json!("*")));
        assert_eq!(made["clientConfig"]["service"]["port"], 443);
        assert_eq!(said(hook()), [""; 0]);
    }

    #[test]
    fn faults_are_worded_as_upstream_words_them() {
        let mut bad = hook();
        bad["name"] = "short".into();
        bad["sideEffects"] = "Unknown".into();
        bad["timeoutSeconds"] = 31.into();
        bad["admissionReviewVersions"] = json!(["v2"]);
        bad["rules"][0]["operations"] = json!(["*", "CREATE"]);
        bad["rules"][0]["resources"] = json!(["pods/*", "pods/exec"]);
        bad["matchConditions"] = json!([{"name": "x", "expression": "object."}]);
        bad["clientConfig"] = json!({"url": "http://u@host/?q"});
        let said = said(bad);
        let expected = [
            "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
            "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
            "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/exec\": if 'pods/*' is present, must not specify pods/exec",
            "webhooks[0].sideEffects: Unsupported value: \"Unknown\": supported values: \"None\", \"NoneOnDryRun\"",
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            "webhooks[0].clientConfig.url: Invalid value: \"u\": user information is not permitted in the URL",
            "webhooks[0].clientConfig.url: Invalid value: \"q\": query parameters are not permitted in the URL",
        ];
        assert_eq!(said[..8], expected);
        assert!(
            said[8].contains("matchConditions[0].expression") && said[8].contains("compilation failed"),
            "{said:?}"
        );
        assert!(said[9].ends_with("must include at least one of v1, v1beta1"), "{said:?}");
        let mut none = hook();
        none["clientConfig"] = json!({});
        assert_eq!(
            self::said(none),
            ["webhooks[0].clientConfig: Required value: exactly one of url or service is required"]
        );
    }
}
