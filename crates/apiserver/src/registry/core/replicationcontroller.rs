//! ReplicationController: a ReplicaSet whose selector is a map of labels.

use serde_json::{Value, json};
use skiff_api::validation::Faults;

use super::{default_field, pod_spec};
use crate::registry::{
    apps::{replicaset, validate_lives_forever, workload_defaults},
    strategy::Strategy,
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    defaults,
    validate,
    row: |o| replicaset::row(o, table::pairs(&o["spec"]["selector"])),
    ..replicaset::SHARED
};

/// What is not said of selector and labels is taken from the template.
fn defaults(o: &mut Value) {
    let labels = o["spec"]["template"]["metadata"]["labels"].clone();
    workload_defaults(o, |spec| {
        default_field(spec, "replicas", 1);
        if labels.is_object() && spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
            spec["selector"] = labels.clone();
        }
    });
    if labels.is_object() && o["spec"].is_object() && o["metadata"]["labels"].is_null() {
        o["metadata"]["labels"] = labels;
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    faults.non_negative("spec.minReadySeconds", spec["minReadySeconds"].as_i64().unwrap_or(0));
    if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
        faults.required("spec.selector", "");
    }
    faults.non_negative("spec.replicas", spec["replicas"].as_i64().unwrap_or(0));
    if !spec["template"].is_object() {
        faults.required("spec.template", "");
        return;
    }
    pod_spec::validate_template(&spec["template"], &json!({"matchLabels": spec["selector"]}), faults);
    validate_lives_forever(&spec["template"], "ReplicationController", faults);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(o: &Value) -> Vec<String> {
        let mut faults = Faults::default();
        validate(o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let pod = json!({"containers": [{"name": "c", "image": "i"}]});
        let mut o = json!({"metadata": {"name": "rc"},
            "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}});
        defaults(&mut o);
        assert_eq!(o["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(o["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(faults(&o), [""; 0]);
        o["spec"]["selector"] = json!({"a": "c"});
        assert_eq!(
            faults(&o),
            [
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"
            ]
        );
        o["spec"]["selector"] = Value::Null;
        assert_eq!(faults(&o)[0], "spec.selector: Required value");
    }
}
