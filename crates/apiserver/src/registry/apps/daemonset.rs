//! DaemonSet.

use serde_json::{Value, json};
use skiff_api::validation::Faults;

use super::{immutable, validate_part, validate_workload, workload_defaults};
use crate::registry::{
    core::{default_field, object_mut},
    strategy::{Strategy, col, int_col, name_col, wide},
    table,
};

/// How often the template changed, which older clients read.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults,
    prepare_create: |o| {
        o["status"] = json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
        });
        set_template_generation(o, 1);
    },
    prepare_update: |new, old| {
        let before = old["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().and_then(|n| n.parse().ok());
        let changed = i64::from(new["spec"]["template"] != old["spec"]["template"]);
        set_template_generation(new, before.unwrap_or(1) + changed);
    },
    validate: |o, faults| {
        validate_workload(o, faults);
        validate_strategy(o, faults);
    },
    validate_update: |new, old, faults| immutable(new, old, "selector", faults),
    validate_status: |new, _, faults| {
        for field in [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ] {
            faults.non_negative(&format!("status.{field}"), new["status"][field].as_i64().unwrap_or(0));
        }
    },
    columns: &[
        name_col(),
        int_col("Desired"),
        int_col("Current"),
        int_col("Ready"),
        int_col("Up-to-date"),
        int_col("Available"),
        col("Node Selector"),
        col("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o| {
        let (names, images) = table::containers(&o["spec"]["template"]);
        let status = &o["status"];
        vec![
            o["metadata"]["name"].clone(),
            table::int(&status["desiredNumberScheduled"]),
            table::int(&status["currentNumberScheduled"]),
            table::int(&status["numberReady"]),
            table::int(&status["updatedNumberScheduled"]),
            table::int(&status["numberAvailable"]),
            table::pairs(&o["spec"]["template"]["spec"]["nodeSelector"]),
            table::created(o),
            names,
            images,
            table::selector(&o["spec"]["selector"]),
        ]
    },
    ..Strategy::DEFAULT
};

fn set_template_generation(o: &mut Value, generation: i64) {
    object_mut(&mut o["metadata"], "annotations")[TEMPLATE_GENERATION] = generation.to_string().into();
}

fn defaults(o: &mut Value) {
    workload_defaults(o, |spec| {
        default_field(spec, "revisionHistoryLimit", 10);
        let strategy = object_mut(spec, "updateStrategy");
        default_field(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = object_mut(strategy, "rollingUpdate");
            default_field(rolling, "maxUnavailable", 1);
            default_field(rolling, "maxSurge", 0);
        }
    });
}

fn validate_strategy(o: &Value, faults: &mut Faults) {
    let strategy = &o["spec"]["updateStrategy"];
    let kind = strategy["type"].as_str().unwrap_or_default();
    faults.one_of("spec.updateStrategy.type", kind, &["RollingUpdate", "OnDelete"]);
    if kind != "RollingUpdate" {
        return;
    }
    let at = "spec.updateStrategy.rollingUpdate";
    let rolling = &strategy["rollingUpdate"];
    if !rolling.is_object() {
        faults.required(at, "");
        return;
    }
    let unavailable = validate_part(&rolling["maxUnavailable"], &format!("{at}.maxUnavailable"), faults);
    let surge = validate_part(&rolling["maxSurge"], &format!("{at}.maxSurge"), faults);
    match (unavailable.unwrap_or(0), surge.unwrap_or(0)) {
        (0, 0) => faults.required(format!("{at}.maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        (_, 0) | (0, _) => {}
        _ => {
            let why = "may not be set when maxUnavailable is non-zero";
            faults.invalid(format!("{at}.maxSurge"), rolling["maxSurge"].clone(), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(strategy: Value) -> Vec<String> {
        let mut o = json!({"spec": {"updateStrategy": strategy}});
        defaults(&mut o);
        let mut faults = Faults::default();
        validate_strategy(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_of_the_two_limits_is_set() {
        assert_eq!(faults(json!({})), [""; 0]);
        assert_eq!(faults(json!({"type": "OnDelete"})), [""; 0]);
        let rolling = |u: i64, s: i64| json!({"rollingUpdate": {"maxUnavailable": u, "maxSurge": s}});
        assert_eq!(faults(rolling(0, 1)), [""; 0]);
        assert!(faults(rolling(0, 0))[0].contains("cannot be 0 when maxSurge is 0"));
        assert!(faults(rolling(1, 1))[0].contains("may not be set when maxUnavailable is non-zero"));
    }

    #[test]
    fn changes_of_the_template_are_counted() {
        let mut o = json!({"metadata": {"name": "d"}, "spec": {"template": {"a": 1}}});
        (STRATEGY.prepare_create)(&mut o);
        let mut new = o.clone();
        (STRATEGY.prepare_update)(&mut new, &o);
        assert_eq!(new["metadata"]["annotations"][TEMPLATE_GENERATION], "1");
        new["spec"]["template"]["a"] = 2.into();
        (STRATEGY.prepare_update)(&mut new, &o);
        assert_eq!(new["metadata"]["annotations"][TEMPLATE_GENERATION], "2");
    }
}
