//! Job.

use serde_json::{Map, Value};
use skiff_api::validation::{Faults, FieldError};

use crate::{
    object::meta_str,
    registry::{
        apps::immutable,
        core::{default_field, each, object_mut, pod_spec},
        strategy::{Strategy, col, name_col, wide},
        table,
    },
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    selectable: &["status.successful"],
    defaults: |o| {
        if o["spec"].is_object() {
            spec_defaults(&mut o["spec"]);
        }
    },
    prepare_create,
    validate,
    validate_update,
    columns: &[
        name_col(),
        col("Status"),
        col("Completions"),
        col("Duration"),
        col("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row,
    ..Strategy::DEFAULT
};

pub(super) fn spec_defaults(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        default_field(spec, "completions", 1);
    }
    default_field(spec, "parallelism", 1);
    default_field(spec, "backoffLimit", if spec["backoffLimitPerIndex"].is_null() { 6 } else { i64::from(i32::MAX) });
    default_field(spec, "completionMode", "NonIndexed");
    default_field(spec, "suspend", false);
    default_field(spec, "manualSelector", false);
    let replacement = if spec["podFailurePolicy"].is_object() { "Failed" } else { "TerminatingOrFailed" };
    default_field(spec, "podReplacementPolicy", replacement);
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in each(policy, "rules") {
            for condition in each(rule, "onPodConditions") {
                default_field(condition, "status", "True");
            }
        }
    }
    if spec["template"].is_object() {
        pod_spec::template_defaults(&mut spec["template"]);
    }
}

/// A Job selects its pods by its own UID, so that no two Jobs share them.
fn prepare_create(o: &mut Value) {
    if o["spec"]["manualSelector"] == true {
        return;
    }
    let uid = meta_str(o, "uid").to_owned();
    let name = meta_str(o, "name").to_owned();
    let template = object_mut(&mut o["spec"], "template");
    let labels = object_mut(object_mut(template, "metadata"), "labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels[key] = value.as_str().into();
    }
    let selector = object_mut(object_mut(&mut o["spec"], "selector"), "matchLabels");
    selector["batch.kubernetes.io/controller-uid"] = uid.into();
    // A Job without labels has its pods'.
    if o["metadata"]["labels"].as_object().is_none_or(Map::is_empty) {
        o["metadata"]["labels"] = o["spec"]["template"]["metadata"]["labels"].clone();
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    if spec["selector"].is_null() {
        faults.required("spec.selector", "");
    }
    validate_spec(spec, "spec", faults);
}

/// Rules of a Job's spec at a path, which a CronJob has as well.
pub(super) fn validate_spec(spec: &Value, at: &str, faults: &mut Faults) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        faults.non_negative(&format!("{at}.{field}"), spec[field].as_i64().unwrap_or(0));
    }
    validate_indexes(spec, at, faults);
    if let Some(manager) = spec["managedBy"].as_str() {
        if !manager.contains('/') {
            faults.invalid(
                format!("{at}.managedBy"),
                manager,
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            );
        }
        if manager.len() > 63 {
            faults.push(FieldError::too_long(format!("{at}.managedBy"), 63));
        }
    }
    let replacement = spec["podReplacementPolicy"].as_str().unwrap_or_default();
    if spec["podFailurePolicy"].is_object() {
        validate_failure_policy(spec, at, faults);
        if !matches!(replacement, "" | "Failed") {
            faults.push(FieldError::not_supported(format!("{at}.podReplacementPolicy"), replacement, &["Failed"]));
        }
    } else if !replacement.is_empty() {
        faults.one_of(&format!("{at}.podReplacementPolicy"), replacement, &["Failed", "TerminatingOrFailed"]);
    }
    if at == "spec" {
        pod_spec::validate_template(&spec["template"], &spec["selector"], faults);
    } else {
        pod_spec::validate(&spec["template"]["spec"], &format!("{at}.template.spec"), faults);
    }
    if spec["template"]["spec"]["restartPolicy"] == "Always" {
        let at = format!("{at}.template.spec.restartPolicy");
        faults.required(at, "valid values: \"OnFailure\", \"Never\"");
    }
}

/// What goes with indexes only.
fn validate_indexes(spec: &Value, at: &str, faults: &mut Faults) {
    let mode = spec["completionMode"].as_str().unwrap_or_default();
    if !mode.is_empty() {
        faults.one_of(&format!("{at}.completionMode"), mode, &["NonIndexed", "Indexed"]);
    }
    let completions = spec["completions"].as_i64();
    if mode == "Indexed" {
        const MOST: i64 = 100_000;
        if completions.is_none() {
            faults.required(format!("{at}.completions"), format!("when completion mode is {mode}"));
        }
        let parallelism = spec["parallelism"].as_i64().unwrap_or(0);
        if parallelism > MOST {
            let why = format!("must be less than or equal to {MOST} when completion mode is {mode}");
            faults.invalid(format!("{at}.parallelism"), parallelism, why);
        }
        if let (Some(failed), Some(n)) = (spec["maxFailedIndexes"].as_i64(), completions)
            && failed > n
        {
            faults.invalid(format!("{at}.maxFailedIndexes"), failed, "must be less than or equal to completions");
        }
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if !spec[field].is_null() {
                faults.invalid(format!("{at}.{field}"), spec[field].clone(), "requires indexed completion mode");
            }
        }
        if spec["successPolicy"].is_object() {
            faults.invalid(
                format!("{at}.successPolicy"),
                spec["successPolicy"].clone(),
                "requires indexed completion mode",
            );
        }
    }
    if !spec["maxFailedIndexes"].is_null() && spec["backoffLimitPerIndex"].is_null() {
        faults.required(format!("{at}.backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if spec["successPolicy"].is_object() && mode == "Indexed" {
        let at = format!("{at}.successPolicy.rules");
        let rules = spec["successPolicy"]["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        if rules.is_empty() {
            faults.required(at.clone(), "at least one rules must be specified when the successPolicy is specified");
        }
        for (i, rule) in rules.iter().enumerate() {
            if rule["succeededCount"].is_null() && rule["succeededIndexes"].is_null() {
                let why = "at least one of succeededCount or succeededIndexes must be specified";
                faults.required(format!("{at}[{i}]"), why);
            }
            if let (Some(count), Some(n)) = (rule["succeededCount"].as_i64(), completions) {
                let at = format!("{at}[{i}].succeededCount");
                if count <= 0 {
                    faults.invalid(at, count, "must be greater than 0");
                } else if count > n {
                    faults.invalid(
                        at,
                        count,
                        format!("must be less than or equal to {n} (the number of specified completions)"),
                    );
                }
            }
        }
    }
}

fn validate_failure_policy(spec: &Value, at: &str, faults: &mut Faults) {
    let policy = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if policy != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        faults.invalid(format!("{at}.template.spec.restartPolicy"), policy, why);
    }
    for (i, rule) in spec["podFailurePolicy"]["rules"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.podFailurePolicy.rules[{i}]");
        match rule["action"].as_str().unwrap_or_default() {
            "" => {
                let why = "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"";
                faults.required(format!("{at}.action"), why);
            }
            "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
                faults.invalid(format!("{at}.action"), "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
            action => faults.one_of(&format!("{at}.action"), action, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let codes = &rule["onExitCodes"];
        let conditions = rule["onPodConditions"].as_array().map_or(0, Vec::len);
        match (codes.is_object(), conditions > 0) {
            (true, true) => {
                let why = "specifying both OnExitCodes and OnPodConditions is not supported";
                faults.invalid(at.clone(), rule.clone(), why);
            }
            (false, false) => {
                faults.invalid(
                    at.clone(),
                    rule.clone(),
                    "specifying one of OnExitCodes and OnPodConditions is required",
                );
            }
            _ => {}
        }
        if !codes.is_object() {
            continue;
        }
        let at = format!("{at}.onExitCodes");
        let operator = codes["operator"].as_str().unwrap_or_default();
        if operator.is_empty() {
            faults.required(format!("{at}.operator"), "valid values: \"In\", \"NotIn\"");
        } else {
            faults.one_of(&format!("{at}.operator"), operator, &["In", "NotIn"]);
        }
        let values = codes["values"].as_array().map(Vec::as_slice).unwrap_or_default();
        if values.is_empty() {
            faults.invalid(format!("{at}.values"), codes["values"].clone(), "at least one value is required");
        }
        for (j, value) in values.iter().enumerate() {
            if operator == "In" && value == 0 {
                faults.invalid(format!("{at}.values[{j}]"), 0, "must not be 0 for the In operator");
            }
        }
    }
}

/// What a Job's update may not change. A Job that has never run may still be told where its pods go.
fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let unstarted = old["spec"]["suspend"] == true && old["status"]["startTime"].is_null();
    let fixed =
        ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "selector", "managedBy", "successPolicy"];
    for field in fixed {
        immutable(new, old, field, faults);
    }
    if unstarted {
        let (mut n, mut o) = (new.clone(), old.clone());
        for spec in [&mut n, &mut o] {
            let template = &mut spec["spec"]["template"];
            for path in ["labels", "annotations"] {
                template["metadata"][path] = Value::Null;
            }
            for path in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                template["spec"][path] = Value::Null;
            }
        }
        immutable(&n, &o, "template", faults);
    } else {
        immutable(new, old, "template", faults);
    }
    // An indexed Job grows and shrinks with its parallelism.
    let completions = &new["spec"]["completions"];
    if *completions != old["spec"]["completions"] {
        if new["spec"]["completionMode"] != "Indexed" {
            immutable(new, old, "completions", faults);
        } else if *completions != new["spec"]["parallelism"] {
            let why = "can only be modified in tandem with spec.parallelism";
            faults.invalid("spec.completions", completions.clone(), why);
        }
    }
}

fn row(o: &Value) -> Vec<Value> {
    let (names, images) = table::containers(&o["spec"]["template"]);
    let status = &o["status"];
    let has = |kind: &str| {
        status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
    };
    let state = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if o["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let succeeded = table::int(&status["succeeded"]);
    let completions = match (o["spec"]["completions"].as_i64(), o["spec"]["parallelism"].as_i64()) {
        (Some(n), _) => format!("{succeeded}/{n}"),
        (None, Some(p)) if p > 1 => format!("{succeeded}/1 of {p}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |f: &str| status[f].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    let duration = match (time("startTime"), time("completionTime")) {
        (Some(start), end) => {
            table::human_duration(end.unwrap_or_else(jiff::Timestamp::now).duration_since(start).as_secs())
        }
        _ => String::new(),
    };
    vec![
        o["metadata"]["name"].clone(),
        state.into(),
        completions.into(),
        duration.into(),
        table::created(o),
        names,
        images,
        table::selector(&o["spec"]["selector"]),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(fields: Value) -> Value {
        let mut o = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template":
            {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}});
        for (key, value) in fields.as_object().unwrap() {
            o["spec"][key] = value.clone();
        }
        spec_defaults(&mut o["spec"]);
        prepare_create(&mut o);
        o
    }

    fn faults(fields: Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(&job(fields), &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_are_upstreams() {
        assert_eq!(faults(json!({})), [""; 0]);
        assert_eq!(
            faults(json!({"completionMode": "Indexed", "parallelism": 2})),
            ["spec.completions: Required value: when completion mode is Indexed"]
        );
        assert_eq!(
            faults(json!({"backoffLimitPerIndex": 1})),
            ["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"]
        );
        assert_eq!(
            faults(json!({"podFailurePolicy": {"rules": [{"action": "FailJob",
                "onExitCodes": {"operator": "In", "values": [0]}}]}})),
            [
                "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator"
            ]
        );
        let always = json!({"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}});
        assert_eq!(
            faults(always),
            ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
        );
    }

    #[test]
    fn what_may_change() {
        let changed = |old: Value, new: Value| {
            let mut faults = Faults::default();
            validate_update(&job(new), &job(old), &mut faults);
            faults.0.iter().map(|f| f.field.clone()).collect::<Vec<_>>()
        };
        assert_eq!(changed(json!({"parallelism": 1}), json!({"parallelism": 3, "suspend": true})), [""; 0]);
        assert_eq!(changed(json!({"completions": 2}), json!({"completions": 3})), ["spec.completions"]);
        let indexed = |n: i64| json!({"completionMode": "Indexed", "completions": n, "parallelism": n});
        assert_eq!(changed(indexed(2), indexed(3)), [""; 0]);
        let elsewhere = json!({"suspend": true, "template": {"spec": {"nodeSelector": {"a": "b"},
            "containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}});
        assert_eq!(changed(json!({"suspend": true}), elsewhere.clone()), [""; 0]);
        assert_eq!(changed(json!({}), elsewhere), ["spec.template"]);
    }
}
