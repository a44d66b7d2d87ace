//! CronJob.

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
    defaults: |o| {
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
    },
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
