//! Pod.

use serde_json::{Value, json};
use skiff_api::validation::{Faults, FieldError};

use super::{default_field, pod_spec};
use crate::{
    object::plain_field,
    registry::{
        strategy::{Strategy, col, name_col, wide},
        table,
    },
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults: |o| {
        if o["spec"].is_object() {
            pod_spec::defaults(&mut o["spec"]);
            pod_spec::request_what_is_limited(&mut o["spec"]);
            // Upstream gives this one to pods, not to templates.
            default_field(&mut o["spec"], "enableServiceLinks", true);
        }
    },
    prepare_create: |o| {
        let qos = qos_class(o);
        o["status"] = json!({"phase": "Pending", "qosClass": qos});
        if !o["spec"]["schedulingGates"].as_array().is_none_or(Vec::is_empty) {
            o["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null,
            }]);
        }
    },
    validate: |o, faults| {
        let spec = &o["spec"];
        pod_spec::validate(spec, "spec", faults);
    },
    validate_create: |o, faults| {
        if !o["spec"]["ephemeralContainers"].as_array().is_none_or(Vec::is_empty) {
            faults.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
        let gated = !o["spec"]["schedulingGates"].as_array().is_none_or(Vec::is_empty);
        if gated && o["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty()) {
            let why = "cannot be set until all schedulingGates have been cleared";
            faults.push(FieldError::forbidden("spec.nodeName", why));
        }
    },
    validate_update,
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    field: |o, f| match f {
        "spec.hostNetwork" => o["spec"]["hostNetwork"].as_bool().unwrap_or(false).to_string(),
        _ => plain_field(o, f),
    },
    columns: &[
        name_col(),
        col("Ready"),
        col("Status"),
        col("Restarts"),
        col("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    row,
    grace: Some(grace_s),
    ..Strategy::DEFAULT
};

/// How long the pod's end may take. What never ran and what is over needs no time.
fn grace_s(pod: &Value, asked: Option<i64>) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let over = ["Succeeded", "Failed"].iter().any(|p| pod["status"]["phase"] == *p);
    if unscheduled || over {
        return 0;
    }
    let seconds = asked.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    // A negative period means the shortest one that still lets the kubelet end the containers.
    if seconds < 0 { 1 } else { seconds }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from what the containers ask for and are limited to.
fn qos_class(pod: &Value) -> &'static str {
    let mut guaranteed = true;
    let mut any = false;
    let lists = ["initContainers", "containers"];
    for c in lists.iter().flat_map(|l| pod["spec"][*l].as_array().into_iter().flatten()) {
        for resource in ["cpu", "memory"] {
            let request = &c["resources"]["requests"][resource];
            let limit = &c["resources"]["limits"][resource];
            any |= !request.is_null() || !limit.is_null();
            guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let mut allowed = new["spec"].clone();
    let old_spec = &old["spec"];
    for list in ["containers", "initContainers"] {
        let (now, before) = (allowed.get_mut(list).and_then(Value::as_array_mut), old_spec[list].as_array());
        if let (Some(now), Some(before)) = (now, before) {
            if now.len() != before.len() {
                faults.push(FieldError::forbidden(
                    format!("spec.{list}"),
                    "pod updates may not add or remove containers",
                ));
                return;
            }
            for (n, b) in now.iter_mut().zip(before) {
                n["image"] = b["image"].clone();
            }
        }
    }
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "schedulingGates", "ephemeralContainers"] {
        copy(&mut allowed, old_spec, field);
    }
    let names = |spec: &Value| -> Vec<String> {
        let gates = spec["schedulingGates"].as_array().into_iter().flatten();
        gates.filter_map(|g| g["name"].as_str().map(str::to_owned)).collect()
    };
    let known = names(old_spec);
    for gate in names(&new["spec"]).iter().filter(|g| !known.contains(g)) {
        let why = format!("only deletion is allowed, but found new scheduling gate '{gate}'");
        faults.push(FieldError::forbidden("spec.schedulingGates", why));
    }
    let before = old_spec["tolerations"].as_array().cloned().unwrap_or_default();
    let now = new["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    if before.iter().all(|t| now.contains(t)) {
        copy(&mut allowed, old_spec, "tolerations");
    }
    if allowed != *old_spec {
        faults.push(FieldError::forbidden("spec", UPDATABLE));
    }
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    match from.get(field) {
        Some(v) => to[field] = v.clone(),
        None => {
            if let Some(map) = to.as_object_mut() {
                map.shift_remove(field);
            }
        }
    }
}

fn row(o: &Value) -> Vec<Value> {
    let (ready, total, status, restarts) = summary(o);
    let gates = o["spec"]["readinessGates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let gates_text = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|g| {
                o["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|c| c["type"] == g["conditionType"] && c["status"] == "True")
            })
            .count();
        format!("{met}/{}", gates.len())
    };
    vec![
        o["metadata"]["name"].clone(),
        format!("{ready}/{total}").into(),
        status.into(),
        restarts.into(),
        table::created(o),
        table::text_or(&o["status"]["podIP"], "<none>"),
        table::text_or(&o["spec"]["nodeName"], "<none>"),
        table::text_or(&o["status"]["nominatedNodeName"], "<none>"),
        gates_text.into(),
    ]
}

/// Ready and all containers, the status in a word, and the restarts, as `kubectl get pods` shows them.
fn summary(o: &Value) -> (usize, usize, String, String) {
    let status = &o["status"];
    let list = |f: &str| status[f].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    let mut total = o["spec"]["containers"].as_array().map_or(0, Vec::len);
    let mut reason = text(&status["reason"]).or_else(|| text(&status["phase"])).unwrap_or_default();
    let condition = |kind: &str| list("conditions").iter().find(|c| c["type"] == kind);
    if condition("PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let mut restarts = 0;
    let mut last_restart: Option<jiff::Timestamp> = None;
    let mut ready = 0;
    let note_restart = |c: &Value, last: &mut Option<jiff::Timestamp>| {
        let at = c["lastState"]["terminated"]["finishedAt"].as_str().and_then(|t| t.parse().ok());
        *last = (*last).max(at);
    };
    let init_specs = o["spec"]["initContainers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_sidecar = |c: &Value| init_specs.iter().any(|s| s["name"] == c["name"] && s["restartPolicy"] == "Always");
    total += init_specs.iter().filter(|s| s["restartPolicy"] == "Always").count();

    let mut initializing = false;
    let inits = list("initContainerStatuses");
    for (i, c) in inits.iter().enumerate() {
        restarts += c["restartCount"].as_i64().unwrap_or(0);
        note_restart(c, &mut last_restart);
        let (terminated, waiting) = (&c["state"]["terminated"], &c["state"]["waiting"]);
        if terminated.is_object() && terminated["exitCode"] == 0 {
            continue;
        }
        if is_sidecar(c) && c["started"] == true {
            ready += usize::from(c["ready"] == true);
            continue;
        }
        reason = if terminated.is_object() {
            match text(&terminated["reason"]) {
                Some(r) => format!("Init:{r}"),
                None if terminated["signal"].as_i64().unwrap_or(0) != 0 => {
                    format!("Init:Signal:{}", terminated["signal"])
                }
                None => format!("Init:ExitCode:{}", terminated["exitCode"]),
            }
        } else if let Some(r) = text(&waiting["reason"]).filter(|r| r != "PodInitializing") {
            format!("Init:{r}")
        } else {
            format!("Init:{i}/{}", init_specs.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition("Initialized").is_some_and(|c| c["status"] == "True") {
        let mut running = false;
        if !initializing {
            restarts = inits.iter().filter(|c| is_sidecar(c)).map(|c| c["restartCount"].as_i64().unwrap_or(0)).sum();
        }
        for c in list("containerStatuses").iter().rev() {
            restarts += c["restartCount"].as_i64().unwrap_or(0);
            note_restart(c, &mut last_restart);
            let (terminated, waiting) = (&c["state"]["terminated"], &c["state"]["waiting"]);
            if let Some(r) = text(&waiting["reason"]) {
                reason = r;
            } else if let Some(r) = text(&terminated["reason"]) {
                reason = r;
            } else if terminated.is_object() {
                reason = match terminated["signal"].as_i64().unwrap_or(0) {
                    0 => format!("ExitCode:{}", terminated["exitCode"]),
                    signal => format!("Signal:{signal}"),
                };
            } else if c["ready"] == true && c["state"]["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        // One container is done and others run: the pod runs.
        if reason == "Completed" && running {
            let is_ready = condition("Ready").is_some_and(|c| c["status"] == "True");
            reason = if is_ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if o["metadata"]["deletionTimestamp"].is_string() {
        if status["reason"] == "NodeLost" {
            reason = "Unknown".into();
        } else if !["Succeeded", "Failed"].iter().any(|p| status["phase"] == *p) {
            reason = "Terminating".into();
        }
    }
    let restarts = match last_restart {
        Some(at) if restarts > 0 => {
            let ago = jiff::Timestamp::now().duration_since(at).as_secs();
            format!("{restarts} ({} ago)", table::human_duration(ago))
        }
        _ => restarts.to_string(),
    };
    (ready, total, reason, restarts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}, "status": status})
    }

    #[test]
    fn rows_say_what_is_wrong() {
        for (status, want) in [
            (json!({"phase": "Pending"}), "Pending"),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}),
                "Running",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "CrashLoopBackOff",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                "Error",
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                "Completed",
            ),
        ] {
            assert_eq!(summary(&pod(status)).2, want);
        }
        let mut o = pod(
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
        );
        o["spec"]["initContainers"] = json!([{"name": "i"}]);
        assert_eq!(summary(&o).2, "Init:0/1");
    }

    #[test]
    fn quality_of_service() {
        let with = |r: Value| json!({"spec": {"containers": [{"resources": r}]}});
        assert_eq!(qos_class(&with(json!({}))), "BestEffort");
        assert_eq!(qos_class(&with(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&with(json!({"limits": both, "requests": both}))), "Guaranteed");
    }

    #[test]
    fn only_the_image_changes() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "1"}], "nodeName": "n"}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "2".into();
        let mut f = Faults::default();
        validate_update(&new, &old, &mut f);
        assert!(f.0.is_empty());
        new["spec"]["nodeName"] = "m".into();
        validate_update(&new, &old, &mut f);
        assert!(f.0[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields"));
    }

    #[test]
    fn gates_only_go() {
        let old = json!({"spec": {"schedulingGates": [{"name": "a"}, {"name": "b"}]}});
        let mut f = Faults::default();
        validate_update(&json!({"spec": {"schedulingGates": [{"name": "b"}]}}), &old, &mut f);
        validate_update(&json!({"spec": {}}), &old, &mut f);
        assert!(f.0.is_empty(), "{f:?}");
        validate_update(&json!({"spec": {"schedulingGates": [{"name": "c"}]}}), &old, &mut f);
        assert_eq!(
            f.0[0].to_string(),
            "spec.schedulingGates: Forbidden: only deletion is allowed, but found new scheduling gate 'c'"
        );
    }

    #[test]
    fn grace() {
        assert_eq!(grace_s(&json!({"spec": {}}), None), 0);
        let p = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {"phase": "Running"}});
        assert_eq!((grace_s(&p, None), grace_s(&p, Some(0)), grace_s(&p, Some(7))), (5, 0, 7));
    }
}
