//! Job.

use serde_json::Value;
use skiff_api::validation::Faults;

use crate::{
    object::meta_str,
    registry::{
        apps::immutable,
        core::{default_field, object_mut, pod_spec},
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
    validate_update: |new, old, faults| {
        for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "selector", "template"] {
            immutable(new, old, field, faults);
        }
    },
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
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        faults.non_negative(&format!("spec.{field}"), spec[field].as_i64().unwrap_or(0));
    }
    pod_spec::validate_template(&spec["template"], &spec["selector"], faults);
    let policy = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if policy == "Always" {
        faults.push(skiff_api::validation::FieldError::required(
            "spec.template.spec.restartPolicy",
            "valid values: \"OnFailure\", \"Never\"",
        ));
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
