//! CronJob.

use serde_json::Value;
use skiff_api::{cron, validation::Faults};

use super::job;
use crate::registry::{
    core::{default_field, object_mut},
    strategy::{Strategy, col, int_col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    names: |name| {
        let mut faults = skiff_api::names::dns1123_subdomain(name);
        // Jobs get eleven more characters.
        if name.len() > 52 {
            faults.push("must be no more than 52 characters".into());
        }
        faults
    },
    defaults,
    validate,
    columns: &[
        name_col(),
        col("Schedule"),
        col("Timezone"),
        col("Suspend"),
        int_col("Active"),
        col("Last Schedule"),
        col("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o| {
        let spec = &o["spec"];
        let (names, images) = table::containers(&spec["jobTemplate"]["spec"]["template"]);
        let last = &o["status"]["lastScheduleTime"];
        let suspended = if spec["suspend"] == true { "True" } else { "False" };
        vec![
            o["metadata"]["name"].clone(),
            spec["schedule"].clone(),
            table::text_or(&spec["timeZone"], "<none>"),
            suspended.into(),
            o["status"]["active"].as_array().map_or(0, Vec::len).into(),
            if last.is_string() { table::age(last) } else { "<none>".into() },
            table::created(o),
            names,
            images,
            table::selector(&spec["jobTemplate"]["spec"]["selector"]),
        ]
    },
    ..Strategy::DEFAULT
};

fn defaults(o: &mut Value) {
    let spec = &mut o["spec"];
    if !spec.is_object() {
        return;
    }
    default_field(spec, "concurrencyPolicy", "Allow");
    default_field(spec, "suspend", false);
    default_field(spec, "successfulJobsHistoryLimit", 3);
    default_field(spec, "failedJobsHistoryLimit", 1);
    let job = object_mut(object_mut(spec, "jobTemplate"), "spec");
    if job["template"].is_object() {
        crate::registry::core::pod_spec::template_defaults(&mut job["template"]);
    }
    if let Some(job) = job.as_object_mut() {
        job.retain(|_, v| !v.is_null());
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let schedule = spec["schedule"].as_str().unwrap_or_default();
    if schedule.is_empty() {
        faults.required("spec.schedule", "");
    } else if schedule.contains("TZ=") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        faults.invalid("spec.schedule", schedule, why);
    } else if let Err(error) = cron::Schedule::parse(schedule) {
        faults.invalid("spec.schedule", schedule, error.to_string());
    }
    if let Some(zone) = spec["timeZone"].as_str() {
        let at = "spec.timeZone";
        if zone.is_empty() {
            faults.invalid(at, zone, "timeZone must be nil or non-empty string");
        } else if zone.eq_ignore_ascii_case("Local") {
            let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            faults.invalid(at, zone, why);
        } else if cron::time_zone(zone).is_none() {
            faults.invalid(at, zone, format!("unknown time zone {zone}"));
        }
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        faults.non_negative(&format!("spec.{field}"), spec[field].as_i64().unwrap_or(0));
    }
    match spec["concurrencyPolicy"].as_str().unwrap_or_default() {
        "" => faults.required("spec.concurrencyPolicy", ""),
        policy => faults.one_of("spec.concurrencyPolicy", policy, &["Allow", "Forbid", "Replace"]),
    }
    job::validate_spec(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", faults);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(fields: Value) -> Vec<String> {
        let mut o = json!({"metadata": {"name": "tick"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec":
            {"template": {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}}}});
        for (key, value) in fields.as_object().unwrap() {
            o["spec"][key] = value.clone();
        }
        defaults(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_are_upstreams() {
        assert_eq!(faults(json!({})), [""; 0]);
        assert_eq!(
            faults(json!({"schedule": "* * * *"})),
            ["spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]"]
        );
        assert_eq!(
            faults(json!({"timeZone": "No/Where"})),
            ["spec.timeZone: Invalid value: \"No/Where\": unknown time zone No/Where"]
        );
        assert_eq!(faults(json!({"timeZone": "Europe/Berlin"})), [""; 0]);
        assert_eq!(
            faults(json!({"concurrencyPolicy": "Maybe"})),
            [
                "spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\""
            ]
        );
    }
}
