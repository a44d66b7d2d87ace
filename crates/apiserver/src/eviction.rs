//! `pods/eviction`: a deletion that respects disruption budgets.

use http::Response;
use serde_json::{Value, json};
use skiff_api::{Status, decode, selector::LabelSelector};

use crate::{
    auth::{MASTERS, User},
    http::{Body, json as json_response},
    object::{Filter, meta_str},
    registry::engine::{Context, Engine, Part, cache_status},
    request::WriteOptions,
    resources::{Asked, delete_options},
    subresources::{now, set_condition},
};

/// So many evictions may be under way that the controller has not confirmed.
const MOST_DISRUPTED: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Deletes the pod if its budget allows it.
pub(crate) async fn evict(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let body: Value =
        decode::json(&asked.body).map_err(|e| Status::bad_request(format!("error decoding request body: {e}")))?.value;
    let name = meta_str(&body, "name");
    if !name.is_empty() && name != asked.info.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = delete_options(asked, &body["deleteOptions"])?;
    // What is asked about is the eviction, and not the deletion that it leads to.
    let mut write = asked.plain_options()?;
    write.dry_run |= options.dry_run;
    asked.admitted(engine, &write, body).await?;
    write.past_hooks = true;
    let pod = engine.get(asked.resource, asked.namespace(), &asked.info.name).await?;
    let value = pod.value();
    // What is over, going or not yet running is nobody's loss.
    let phase = value["status"]["phase"].as_str().unwrap_or_default();
    let free = matches!(phase, "Succeeded" | "Failed" | "Pending");
    if !free && !value["metadata"]["deletionTimestamp"].is_string() {
        take_disruption(engine, asked, &value, options.dry_run).await?;
        if !options.dry_run {
            mark(engine, asked).await?;
        }
    }
    options.uid.get_or_insert_with(|| pod.uid.to_string());
    let cx = Context { user: asked.user, options: &write };
    engine.delete(&cx, asked.resource, asked.namespace(), &asked.info.name, &options).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(json_response(201, &success))
}

/// Says in the pod's status why it goes.
async fn mark(engine: &Engine, asked: &Asked<'_>) -> Result<(), Status> {
    let user = User::known("system:apiserver", &[MASTERS]);
    let options = WriteOptions { past_hooks: true, ..WriteOptions::default() };
    let cx = Context { user: &user, options: &options };
    let change = |old: &Value| {
        let mut new = old.clone();
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now()});
        set_condition(&mut new, condition);
        Ok(new)
    };
    engine
        .update(&cx, asked.resource, asked.namespace(), &asked.info.name, Part::Status, "status", &change)
        .await
        .map(|_| ())
}

/// Counts the eviction against the budget that covers the pod, or refuses it.
async fn take_disruption(engine: &Engine, asked: &Asked<'_>, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let budgets = engine.registry.builtin("policy", "poddisruptionbudgets");
    let filter = Filter { namespace: asked.namespace().to_owned(), ..Filter::default() };
    let mut covering = budgets.cache.list(&filter, 0, None).await.map_err(|e| cache_status(&e))?.objects;
    covering.retain(|b| {
        let selector = &b.value()["spec"]["selector"];
        selector.is_object()
            && LabelSelector::from_value(selector).is_ok_and(|s| s.matches_value(pod["metadata"].get("labels")))
    });
    let budget = match covering.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    if is_spared(&budget.value(), pod) {
        return Ok(());
    }
    let user = User::known("system:apiserver", &[MASTERS]);
    let options = WriteOptions { dry_run, past_hooks: true, ..WriteOptions::default() };
    let cx = Context { user: &user, options: &options };
    let change = |old: &Value| take(old, &asked.info.name);
    engine.update(&cx, budgets, &budget.namespace, &budget.name, Part::Status, "status", &change).await?;
    Ok(())
}

/// Whether a pod that is not ready may go without being counted.
fn is_spared(budget: &Value, pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    if conditions.any(|c| c["type"] == "Ready" && c["status"] == "True") {
        return false;
    }
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}

/// 429 with the budget as its cause.
fn refused(message: String, retry_after_s: Option<u32>) -> Status {
    let mut status = Status::too_many_requests(REFUSED, retry_after_s.unwrap_or(0));
    let causes = json!([{"reason": "DisruptionBudget", "message": message}]);
    status.details = match retry_after_s {
        Some(seconds) => json!({"causes": causes, "retryAfterSeconds": seconds}),
        None => json!({"causes": causes}),
    }
    .into();
    status
}

/// The budget with one disruption less.
fn take(budget: &Value, pod: &str) -> Result<Value, Status> {
    let name = meta_str(budget, "name");
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(why, Some(10)));
    }
    let disrupted = status["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
    let allowed = number("disruptionsAllowed");
    if allowed < 0 || disrupted > MOST_DISRUPTED {
        let why = if allowed < 0 {
            "pdb disruptions allowed is negative"
        } else {
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller"
        };
        return Err(Status::forbidden("policy", "poddisruptionbudgets", name, why));
    }
    if allowed == 0 {
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let failed = conditions.find(|c| c["type"] == "DisruptionAllowed" && c["reason"] == "SyncFailed");
        let why = match failed {
            Some(c) => {
                let why = c["message"].as_str().unwrap_or_default();
                format!(
                    "The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}"
                )
            }
            None => {
                let (desired, current) = (number("desiredHealthy"), number("currentHealthy"));
                format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
            }
        };
        return Err(refused(why, None));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods",
            "message": "", "observedGeneration": budget["metadata"]["generation"], "lastTransitionTime": now()});
        set_condition(&mut new, condition);
    }
    new["status"]["disruptedPods"][pod] = now();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Value {
        json!({"metadata": {"name": "b", "generation": 1}, "spec": {}, "status": status})
    }

    #[test]
    fn disruptions_are_taken_or_refused() {
        let taken = take(&budget(json!({"observedGeneration": 1, "disruptionsAllowed": 1})), "p").unwrap();
        assert_eq!(taken["status"]["disruptionsAllowed"], 0);
        assert!(taken["status"]["disruptedPods"]["p"].is_string());
        let none = json!({"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 2, "currentHealthy": 2});
        let refused = take(&budget(none), "p").unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (429, REFUSED));
        assert_eq!(
            refused.details["causes"][0],
            json!({"reason": "DisruptionBudget", "message": "The disruption budget b needs 2 healthy pods and has 2 currently"})
        );
        let early = take(&budget(json!({"disruptionsAllowed": 1})), "p").unwrap_err();
        assert_eq!(early.details["retryAfterSeconds"], 10);
    }

    #[test]
    fn pods_that_are_not_ready_may_go() {
        let ready = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let with = |policy: &str, current: i64| json!({"spec": {"unhealthyPodEvictionPolicy": policy}, "status": {"currentHealthy": current, "desiredHealthy": 2}});
        assert!(!is_spared(&with("AlwaysAllow", 2), &ready("True")));
        assert!(is_spared(&with("AlwaysAllow", 0), &ready("False")));
        assert!(is_spared(&with("IfHealthyBudget", 2), &ready("False")));
        assert!(!is_spared(&with("IfHealthyBudget", 1), &ready("False")));
    }
}
