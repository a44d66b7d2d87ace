//! APIService.

use serde_json::{Value, json};
use skiff_api::{names, validation::Faults};

use crate::{
    registry::{
        core::{default_field, object_mut},
        strategy::{Strategy, col, name_col},
        table,
    },
    subresources::{now, set_condition},
};

pub(crate) static STRATEGY: Strategy = Strategy {
    names: names::path_segment,
    defaults: |o| {
        let service = &mut object_mut(o, "spec")["service"];
        if service.is_object() {
            default_field(service, "port", 443);
        }
    },
    prepare_create: |o| {
        o["status"] = json!({});
        mark_local(o);
    },
    prepare_update: |new, _| mark_local(new),
    validate,
    validate_status: |new, _, faults| {
        for (i, condition) in new["status"]["conditions"].as_array().into_iter().flatten().enumerate() {
            let at = format!("status.conditions[{i}].status");
            faults.one_of(&at, condition["status"].as_str().unwrap_or_default(), &["True", "False", "Unknown"]);
        }
    },
    selectable: &["spec.group", "spec.version"],
    columns: &[name_col(), col("Service"), col("Available"), col("Age")],
    row: |o| {
        let service = &o["spec"]["service"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let leads = match service.is_object() {
            true => format!("{}/{}", text(&service["namespace"]), text(&service["name"])),
            false => "Local".to_owned(),
        };
        vec![o["metadata"]["name"].clone(), leads.into(), availability(o).into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};

/// The condition that says whether an API is served.
pub(crate) fn available(service: &Value) -> Option<&Value> {
    service["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Available")
}

fn availability(service: &Value) -> String {
    let Some(condition) = available(service) else { return "Unknown".to_owned() };
    let (status, reason) = (condition["status"].as_str().unwrap_or_default(), &condition["reason"]);
    match reason.as_str().filter(|r| status != "True" && !r.is_empty()) {
        Some(reason) => format!("{status} ({reason})"),
        None => status.to_owned(),
    }
}

/// What this server serves itself is always there.
fn mark_local(o: &mut Value) {
    let local = available(o).is_some_and(|c| c["reason"] == "Local");
    if o["spec"]["service"].is_null() && !local {
        set_condition(
            o,
            json!({"type": "Available", "status": "True", "lastTransitionTime": now(), "reason": "Local",
                "message": "Local APIServices are always available"}),
        );
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (name, group, version) = (text(&o["metadata"]["name"]), text(&spec["group"]), text(&spec["version"]));
    let wanted = format!("{version}.{group}");
    if name != wanted {
        faults.invalid("metadata.name", name, format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
    }
    if group.is_empty() && version != "v1" {
        faults.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
    }
    if !group.is_empty() {
        faults.rule("spec.group", &group, names::dns1123_subdomain(&group));
    }
    faults.rule("spec.version", &version, names::dns1035_label(&version));
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = spec[field].as_i64().unwrap_or(0);
        if !(1..=most).contains(&priority) {
            faults.invalid(format!("spec.{field}"), priority, format!("must be positive and less than {most}"));
        }
    }
    let (bundle, skips) = (text(&spec["caBundle"]), spec["insecureSkipTLSVerify"] == true);
    let service = &spec["service"];
    if !service.is_object() {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            faults.invalid("spec.caBundle", shown, "local APIServices may not have a caBundle");
        }
        if skips {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            faults.invalid("spec.insecureSkipTLSVerify", true, why);
        }
        return;
    }
    for field in ["namespace", "name"] {
        if text(&service[field]).is_empty() {
            faults.required(format!("spec.service.{field}"), "");
        }
    }
    let port = service["port"].as_i64().unwrap_or(0);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        faults.invalid("spec.service.port", port, format!("port is not valid: {}", wrong.join(", ")));
    }
    if skips && !bundle.is_empty() {
        faults.invalid("spec.insecureSkipTLSVerify", true, "may not be true if caBundle is present");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1", "groupPriorityMinimum": 100,
            "versionPriority": 10, "service": {"namespace": "n", "name": "s"}}})
    }

    #[test]
    fn columns_are_upstreams() {
        let mut o = service();
        (STRATEGY.defaults)(&mut o);
        assert_eq!(o["spec"]["service"]["port"], 443);
        assert_eq!((STRATEGY.row)(&o)[1..3], [json!("n/s"), json!("Unknown")]);
        o["status"] = json!({"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]});
        assert_eq!((STRATEGY.row)(&o)[2], "False (MissingEndpoints)");
        let mut local = service();
        local["spec"]["service"] = Value::Null;
        (STRATEGY.prepare_create)(&mut local);
        assert_eq!((STRATEGY.row)(&local)[1..3], [json!("Local"), json!("True")]);
    }

    #[test]
    fn faults_are_named() {
        let mut o = service();
        o["metadata"]["name"] = "x".into();
        o["spec"]["versionPriority"] = 0.into();
        o["spec"]["insecureSkipTLSVerify"] = true.into();
        o["spec"]["caBundle"] = "YQ==".into();
        (STRATEGY.defaults)(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        let said: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.a.b\"",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ]
        );
    }
}
