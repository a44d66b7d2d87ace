//! Deployment.

use serde_json::Value;
use skiff_api::validation::Faults;

use super::{immutable, validate_int_or_percent, validate_part, validate_workload, workload_defaults};
use crate::registry::{
    core::{default_field, object_mut},
    strategy::{Strategy, col, int_col, name_col, wide},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults,
    validate: |o, faults| {
        validate_workload(o, faults);
        validate_strategy(o, faults);
    },
    validate_update: |new, old, faults| immutable(new, old, "selector", faults),
    columns: &[
        name_col(),
        col("Ready"),
        int_col("Up-to-date"),
        int_col("Available"),
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
            format!("{}/{}", table::int(&status["readyReplicas"]), table::int(&o["spec"]["replicas"])).into(),
            table::int(&status["updatedReplicas"]),
            table::int(&status["availableReplicas"]),
            table::created(o),
            names,
            images,
            table::selector(&o["spec"]["selector"]),
        ]
    },
    ..Strategy::DEFAULT
};

fn defaults(o: &mut Value) {
    workload_defaults(o, |spec| {
        default_field(spec, "replicas", 1);
        default_field(spec, "revisionHistoryLimit", 10);
        default_field(spec, "progressDeadlineSeconds", 600);
        let strategy = object_mut(spec, "strategy");
        default_field(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = object_mut(strategy, "rollingUpdate");
            default_field(rolling, "maxUnavailable", "25%");
            default_field(rolling, "maxSurge", "25%");
        }
    });
}

fn validate_strategy(o: &Value, faults: &mut Faults) {
    let strategy = &o["spec"]["strategy"];
    let kind = strategy["type"].as_str().unwrap_or_default();
    faults.one_of("spec.strategy.type", kind, &["Recreate", "RollingUpdate"]);
    let rolling = &strategy["rollingUpdate"];
    if kind == "Recreate" && rolling.is_object() {
        faults.push(skiff_api::validation::FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    }
    if kind == "RollingUpdate" {
        let at = "spec.strategy.rollingUpdate";
        let unavailable = validate_part(&rolling["maxUnavailable"], &format!("{at}.maxUnavailable"), faults);
        let surge = validate_int_or_percent(&rolling["maxSurge"], &format!("{at}.maxSurge"), faults);
        if unavailable == Some(0) && surge == Some(0) {
            faults.invalid(
                format!("{at}.maxUnavailable"),
                rolling["maxUnavailable"].clone(),
                "may not be 0 when `maxSurge` is 0",
            );
        }
    }
    let (deadline, ready) = (
        o["spec"]["progressDeadlineSeconds"].as_i64().unwrap_or(600),
        o["spec"]["minReadySeconds"].as_i64().unwrap_or(0),
    );
    if deadline <= ready {
        faults.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value) -> Vec<String> {
        let mut o = json!({"metadata": {"name": "d"}, "spec": spec});
        defaults(&mut o);
        let mut f = Faults::default();
        (STRATEGY.validate)(&o, &mut f);
        f.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults() {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert!(check(json!({"selector": {"matchLabels": {"a": "b"}}, "template": template})).is_empty());
        assert_eq!(
            check(json!({"selector": {"matchLabels": {"a": "x"}}, "template": template})),
            [
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"
            ]
        );
        assert_eq!(check(json!({"template": template}))[0], "spec.selector: Required value");
        assert_eq!(
            check(json!({"replicas": -1, "selector": {"matchLabels": {"a": "b"}}, "template": template})),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(
            check(
                json!({"selector": {"matchLabels": {"a": "b"}}, "template": template, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}})
            ),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"]
        );
    }
}
