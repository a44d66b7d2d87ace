//! Autoscalers, disruption budgets, priority classes.

use serde_json::Value;

use super::{
    array, date, int, labels, or_none, selector, show, str,
    text::{Text, line},
};

pub(super) fn horizontal_pod_autoscaler(w: &mut Text, hpa: &Value) {
    let (metadata, spec, status) = (&hpa["metadata"], &hpa["spec"], &hpa["status"]);
    line!(w, 0, "Name:\t{}", str(&metadata["name"]));
    line!(w, 0, "Namespace:\t{}", str(&metadata["namespace"]));
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    line!(w, 0, "CreationTimestamp:\t{}", date(&metadata["creationTimestamp"]));
    let target = &spec["scaleTargetRef"];
    line!(w, 0, "Reference:\t{}/{}", str(&target["kind"]), str(&target["name"]));
    line!(w, 0, "Metrics:\t( current / target )");
    for (i, metric) in array(&spec["metrics"]).iter().enumerate() {
        self::metric(w, metric, &status["currentMetrics"][i]);
    }
    let minimum = spec["minReplicas"].as_i64().map_or("<unset>".to_owned(), |n| n.to_string());
    line!(w, 0, "Min replicas:\t{minimum}");
    line!(w, 0, "Max replicas:\t{}", int(&spec["maxReplicas"]));
    if spec["behavior"].is_object() {
        line!(w, 0, "Behavior:");
        behavior(w, "Scale Up", &spec["behavior"]["scaleUp"]);
        behavior(w, "Scale Down", &spec["behavior"]["scaleDown"]);
    }
    line!(
        w,
        0,
        "{} pods:\t{} current / {} desired",
        str(&target["kind"]),
        int(&status["currentReplicas"]),
        int(&status["desiredReplicas"])
    );
    let conditions = array(&status["conditions"]);
    if !conditions.is_empty() {
        line!(w, 0, "Conditions:");
        line!(w, 1, "Type\tStatus\tReason\tMessage");
        line!(w, 1, "----\t------\t------\t-------");
    }
    for condition in conditions {
        let text = |field: &str| str(&condition[field]);
        line!(w, 1, "{}\t{}\t{}\t{}", text("type"), text("status"), text("reason"), text("message"));
    }
}

fn metric(w: &mut Text, metric: &Value, current: &Value) {
    let unknown = |value: &Value| if value.is_null() { "<unknown>".to_owned() } else { show(value) };
    let kind = str(&metric["type"]);
    let field = match kind {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => {
            line!(w, 1, "<unknown metric type {kind:?}>");
            return;
        }
    };
    let (source, now) = (&metric[field], &current[field]["current"]);
    let (target, name) = (&source["target"], str(&source["metric"]["name"]));
    let average = !target["averageValue"].is_null();
    let (value, word) = if average { ("averageValue", "target average value") } else { ("value", "target value") };
    let pair = format!("{} / {}", unknown(&now[value]), show(&target[value]));
    match field {
        "pods" => {
            line!(w, 1, "{name:?} on pods:\t{} / {}", unknown(&now["averageValue"]), show(&target["averageValue"]))
        }
        "object" => {
            let object = &source["describedObject"];
            line!(w, 1, "{name:?} on {}/{} ({word}):\t{pair}", str(&object["kind"]), str(&object["name"]));
        }
        "external" => line!(w, 1, "{name:?} ({word}):\t{pair}"),
        _ => {
            let container = match field {
                "containerResource" => format!(" of container {:?}", str(&source["container"])),
                _ => String::new(),
            };
            let title = format!("resource {}{container} on pods", str(&source["name"]));
            if average {
                line!(w, 1, "{title}:\t{pair}");
                return;
            }
            let used = match now["averageUtilization"].as_i64() {
                Some(percent) => format!("{percent}% ({})", show(&now["averageValue"])),
                None => "<unknown>".to_owned(),
            };
            let wanted = target["averageUtilization"].as_i64().map_or("<auto>".to_owned(), |n| format!("{n}%"));
            line!(w, 1, "{title}  (as a percentage of request):\t{used} / {wanted}");
        }
    }
}

fn behavior(w: &mut Text, title: &str, rules: &Value) {
    if !rules.is_object() {
        return;
    }
    line!(w, 1, "{title}:");
    if let Some(seconds) = rules["stabilizationWindowSeconds"].as_i64() {
        line!(w, 2, "Stabilization Window: {seconds} seconds");
    }
    if array(&rules["policies"]).is_empty() {
        return;
    }
    line!(w, 2, "Select Policy: {}", rules["selectPolicy"].as_str().unwrap_or("Max"));
    line!(w, 2, "Policies:");
    for policy in array(&rules["policies"]) {
        let (value, period) = (int(&policy["value"]), int(&policy["periodSeconds"]));
        line!(w, 3, "- Type: {}\tValue: {value}\tPeriod: {period} seconds", str(&policy["type"]));
    }
}

pub(super) fn disruption_budget(w: &mut Text, budget: &Value) {
    let (spec, status) = (&budget["spec"], &budget["status"]);
    line!(w, 0, "Name:\t{}", str(&budget["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&budget["metadata"]["namespace"]));
    if !spec["minAvailable"].is_null() {
        line!(w, 0, "Min available:\t{}", show(&spec["minAvailable"]));
    } else if !spec["maxUnavailable"].is_null() {
        line!(w, 0, "Max unavailable:\t{}", show(&spec["maxUnavailable"]));
    }
    match spec["selector"].is_object() {
        true => line!(w, 0, "Selector:\t{}", or_none(&selector(&spec["selector"]))),
        false => line!(w, 0, "Selector:\t<unset>"),
    }
    line!(w, 0, "Status:");
    for (title, field) in [
        ("Allowed disruptions", "disruptionsAllowed"),
        ("Current", "currentHealthy"),
        ("Desired", "desiredHealthy"),
        ("Total", "expectedPods"),
    ] {
        line!(w, 2, "{title}:\t{}", int(&status[field]));
    }
}

pub(super) fn priority_class(w: &mut Text, class: &Value) {
    line!(w, 0, "Name:\t{}", str(&class["metadata"]["name"]));
    line!(w, 0, "Value:\t{}", int(&class["value"]));
    line!(w, 0, "GlobalDefault:\t{}", class["globalDefault"] == true);
    line!(w, 0, "PreemptionPolicy:\t{}", str(&class["preemptionPolicy"]));
    line!(w, 0, "Description:\t{}", str(&class["description"]));
    line!(w, 0, "Annotations:\t{}", labels(&class["metadata"]["annotations"]));
}
