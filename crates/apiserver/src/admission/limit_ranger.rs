//! What the LimitRanges of a namespace write into pods, and what they refuse of pods and claims (LimitRanger).

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_api::{Status, quantity::Quantity};

use super::{Admission, Attributes, Operation};
use crate::object::{Filter, meta_str};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The limits of all LimitRanges of the namespace.
async fn limits(admission: &Admission, a: &Attributes<'_>) -> Result<Vec<Value>, Status> {
    let ranges = admission.registry.builtin("", "limitranges");
    let filter = Filter { namespace: a.namespace.clone(), ..Filter::default() };
    let listed = ranges.cache.list(&filter, 0, None).await.map_err(Status::internal)?;
    let items = |range: Value| range["spec"]["limits"].as_array().cloned().unwrap_or_default();
    Ok(listed.objects.iter().flat_map(|o| items(o.value())).collect())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers"].into_iter().flat_map(|l| pod["spec"][l].as_array().into_iter().flatten())
}

/// Completes what the containers of a new pod ask for.
pub(super) async fn default(admission: &Admission, a: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    for limit in limits(admission, a).await?.iter().filter(|l| l["type"] == "Container") {
        complete(pod, limit);
    }
    Ok(())
}

fn complete(pod: &mut Value, limit: &Value) {
    let mut told = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
            let name = meta_name(container);
            for (of, field, what) in [("defaultRequest", "requests", "request"), ("default", "limits", "limit")] {
                let mut set = Vec::new();
                for (resource, quantity) in limit[of].as_object().into_iter().flatten() {
                    if container["resources"][field][resource].is_null() {
                        container["resources"][field][resource] = quantity.clone();
                        set.push(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    told.push(format!("{} {what} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

fn meta_name(container: &Value) -> String {
    container["name"].as_str().unwrap_or_default().to_owned()
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(name, q)| Some((name.clone(), q.as_str()?.parse().ok()?))).collect()
}

/// What is asked for, and at most allowed.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

fn of_container(container: &Value) -> Asked {
    let resources = &container["resources"];
    Asked { requests: amounts(&resources["requests"]), limits: amounts(&resources["limits"]) }
}

/// A pod as a whole: its containers together, or the greediest of those that start it.
fn of_pod(pod: &Value) -> Asked {
    let sum = |list: &str| {
        let of = |c: &Value| amounts(&c["resources"][list]);
        let mut total = Amounts::new();
        let inits = || pod["spec"]["initContainers"].as_array().into_iter().flatten();
        let stays = |c: &&Value| c["restartPolicy"] == "Always";
        for container in pod["spec"]["containers"].as_array().into_iter().flatten().chain(inits().filter(stays)) {
            for (name, q) in of(container) {
                let at = total.entry(name).or_insert(Quantity::ZERO);
                *at = *at + q;
            }
        }
        for container in inits().filter(|c| !stays(c)) {
            for (name, q) in of(container) {
                let at = total.entry(name).or_insert(q);
                *at = (*at).max(q);
            }
        }
        total
    };
    Asked { requests: sum("requests"), limits: sum("limits") }
}

/// Refuses a pod or a claim that asks for too little or too much.
pub(super) async fn validate(
    admission: &Admission,
    a: &Attributes<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let pods = a.creates("", "pods") || (a.is("", "pods") && a.subresource == "resize");
    let claims = a.is("", "persistentvolumeclaims") && a.subresource.is_empty() && a.operation != Operation::Delete;
    if !(pods || claims) || (claims && old.is_some_and(|o| o["spec"]["resources"] == object["spec"]["resources"])) {
        return Ok(());
    }
    let mut faults = Vec::new();
    for limit in &limits(admission, a).await? {
        match limit["type"].as_str() {
            Some("Container") if pods => {
                containers(object).for_each(|c| check(limit, "Container", &of_container(c), &mut faults));
            }
            Some("Pod") if pods => check(limit, "Pod", &of_pod(object), &mut faults),
            Some("PersistentVolumeClaim") if claims => check_claim(limit, object, &mut faults),
            _ => {}
        }
    }
    let why = match faults.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    let name = meta_str(object, "name");
    Err(Status::forbidden("", a.resource.plural, if a.name.is_empty() { name } else { &a.name }, why))
}

fn check(limit: &Value, of: &str, asked: &Asked, faults: &mut Vec<String>) {
    let (requests, limits) = (&asked.requests, &asked.limits);
    for (name, min) in amounts(&limit["min"]) {
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => faults.push(format!("minimum {name} usage per {of} is {min}.  No request is specified")),
            (Some(r), _) if *r < min => {
                faults.push(format!("minimum {name} usage per {of} is {min}, but request is {r}"))
            }
            (_, Some(l)) if *l < min => {
                faults.push(format!("minimum {name} usage per {of} is {min}, but limit is {l}"))
            }
            _ => {}
        }
    }
    for (name, max) in amounts(&limit["max"]) {
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => faults.push(format!("maximum {name} usage per {of} is {max}.  No limit is specified")),
            (_, Some(l)) if *l > max => {
                faults.push(format!("maximum {name} usage per {of} is {max}, but limit is {l}"))
            }
            (Some(r), _) if *r > max => {
                faults.push(format!("maximum {name} usage per {of} is {max}, but request is {r}"))
            }
            _ => {}
        }
    }
    for (name, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {of} is {ratio}");
        let given = |amounts: &Amounts| amounts.get(&name).filter(|q| !q.is_zero()).map(|q| q.millis() as f64);
        match (given(requests), given(limits)) {
            (None, _) => faults.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => faults.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) if l / r > ratio.millis() as f64 / 1000.0 => {
                faults.push(format!("{head}, but provided ratio is {:.6}", l / r));
            }
            _ => {}
        }
    }
}

fn check_claim(limit: &Value, claim: &Value, faults: &mut Vec<String>) {
    let of = "PersistentVolumeClaim";
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for (name, min) in amounts(&limit["min"]) {
        match requests.get(&name) {
            None => faults.push(format!("minimum {name} usage per {of} is {min}.  No request is specified")),
            Some(r) if *r < min => faults.push(format!("minimum {name} usage per {of} is {min}, but request is {r}")),
            _ => {}
        }
    }
    for (name, max) in amounts(&limit["max"]) {
        match requests.get(&name) {
            None => faults.push(format!("maximum {name} usage per {of} is {max}.  No request is specified")),
            Some(r) if *r > max => faults.push(format!("maximum {name} usage per {of} is {max}, but request is {r}")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_completed() {
        let mut pod =
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1m"}}}]}});
        let limit = json!({"type": "Container", "default": {"memory": "2Mi", "cpu": "1"}, "defaultRequest": {"memory": "1Mi", "cpu": "5m"}});
        complete(&mut pod, &limit);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "2Mi", "cpu": "1"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory request for container a; cpu, memory limit for container a"
        );
    }

    #[test]
    fn limits_are_kept() {
        let asked = |requests: Value, limits: Value| Asked { requests: amounts(&requests), limits: amounts(&limits) };
        let faults = |limit: Value, asked: Asked| {
            let mut faults = Vec::new();
            check(&limit, "Container", &asked, &mut faults);
            faults
        };
        let limit = json!({"min": {"cpu": "100m"}, "max": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "2"}});
        assert_eq!(faults(limit.clone(), asked(json!({"cpu": "250m"}), json!({"cpu": "500m"}))), [""; 0]);
        assert_eq!(
            faults(limit, asked(json!({"cpu": "50m"}), json!({"cpu": "1"}))),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum cpu usage per Container is 500m, but limit is 1",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 20.000000",
            ]
        );
        assert_eq!(
            faults(json!({"max": {"memory": "1Gi"}}), asked(json!({}), json!({}))),
            ["maximum memory usage per Container is 1Gi.  No limit is specified"]
        );
    }
}
