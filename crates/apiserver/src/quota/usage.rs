//! What an object takes of a quota, and which quotas it is about.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skiff_api::{Kind, quantity::Quantity};

/// Amounts by the names that quotas have for them.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// Resources of which a pod must ask for if a quota limits them.
const MUST_BE_ASKED: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const STORAGE: &str = "requests.storage";

/// Amounts of a field of the API, such as `spec.hard`.
pub(super) fn amounts(value: &Value) -> Amounts {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(name, q)| Some((name.clone(), q.as_str()?.parse().ok()?))).collect()
}

pub(super) fn add(to: &mut Amounts, name: impl Into<String>, amount: Quantity) {
    let sum = to.entry(name.into()).or_insert(Quantity::ZERO);
    *sum = *sum + amount;
}

fn one() -> Quantity {
    Quantity::from_units(1)
}

fn items<'a>(value: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    value[list].as_array().into_iter().flatten()
}

/// The name under which objects of a kind are counted: `count/deployments.apps`.
pub(super) fn count_name(kind: &Kind) -> String {
    format!("count/{}", kind.resource_name())
}

/// Kinds that are also counted under their own name.
const COUNTED_BY_NAME: &[&str] =
    &["configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets", "services"];

/// What an object takes.
pub(super) fn usage(kind: &Kind, object: &Value) -> Amounts {
    let mut amounts = Amounts::from([(count_name(kind), one())]);
    if !kind.group.is_empty() {
        return amounts;
    }
    if COUNTED_BY_NAME.contains(&kind.plural) {
        add(&mut amounts, kind.plural, one());
    }
    match kind.plural {
        "pods" if is_over(object) => {}
        "pods" => pod_usage(object, &mut amounts),
        "services" => service_usage(object, &mut amounts),
        "persistentvolumeclaims" => claim_usage(object, &mut amounts),
        _ => {}
    }
    amounts
}

/// Whether a pod has ended, or had to have ended by now.
pub(super) fn is_over(pod: &Value) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let deleted = pod["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    deleted.is_some_and(|at| at < jiff::Timestamp::now())
}

fn merge(into: &mut Amounts, other: &Amounts, how: impl Fn(Quantity, Quantity) -> Quantity) {
    for (name, amount) in other {
        let sum = into.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = how(*sum, *amount);
    }
}

/// What a pod asks for or is limited to, as the scheduler counts it.
pub(super) fn pod_resources(pod: &Value, list: &str) -> Amounts {
    let spec = &pod["spec"];
    let of = |c: &Value| amounts(&c["resources"][list]);
    let mut sum = Amounts::new();
    for container in items(spec, "containers") {
        merge(&mut sum, &of(container), |a, b| a + b);
    }
    // Containers that start the pod run one after another, beside those that stay.
    let (mut stay, mut most) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let mut now = of(container);
        if container["restartPolicy"] == "Always" {
            merge(&mut sum, &now, |a, b| a + b);
            merge(&mut stay, &now, |a, b| a + b);
            now = stay.clone();
        } else {
            merge(&mut now, &stay, |a, b| a + b);
        }
        merge(&mut most, &now, |a, b| if a > b { a } else { b });
    }
    merge(&mut sum, &most, |a, b| if a > b { a } else { b });
    // What is said of the pod as a whole counts instead.
    for (name, amount) in amounts(&spec["resources"][list]) {
        sum.insert(name, amount);
    }
    if list == "requests" || !sum.is_empty() {
        merge(&mut sum, &amounts(&spec["overhead"]), |a, b| a + b);
    }
    sum
}

fn of_requests(name: &str, amount: Quantity, to: &mut Amounts) {
    match name {
        "cpu" | "memory" | "ephemeral-storage" => {
            add(to, name, amount);
            add(to, format!("requests.{name}"), amount);
        }
        _ if name.starts_with("hugepages-") => {
            add(to, name, amount);
            add(to, format!("requests.{name}"), amount);
        }
        // Extended resources are those of a vendor.
        _ if name.contains('/') => add(to, format!("requests.{name}"), amount),
        _ => {}
    }
}

fn pod_usage(pod: &Value, to: &mut Amounts) {
    add(to, "pods", one());
    for (name, amount) in pod_resources(pod, "requests") {
        of_requests(&name, amount, to);
    }
    for (name, amount) in pod_resources(pod, "limits") {
        if ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) {
            add(to, format!("limits.{name}"), amount);
        }
    }
}

fn service_usage(service: &Value, to: &mut Amounts) {
    let spec = &service["spec"];
    let count = |n: usize| Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX));
    let ports = items(spec, "ports").count();
    let given = items(spec, "ports").filter(|p| p["nodePort"].as_i64().is_some_and(|n| n != 0)).count();
    match spec["type"].as_str() {
        Some("NodePort") => add(to, "services.nodeports", count(ports)),
        Some("LoadBalancer") => {
            let ports = if spec["allocateLoadBalancerNodePorts"] == false { given } else { ports };
            add(to, "services.nodeports", count(ports));
            add(to, "services.loadbalancers", one());
        }
        _ => {}
    }
}

fn claim_usage(claim: &Value, to: &mut Amounts) {
    let spec = &claim["spec"];
    let beta = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = beta.as_str().or(spec["storageClassName"].as_str()).filter(|c| !c.is_empty());
    if let Some(class) = class {
        add(to, format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
    }
    let Some(size) = spec["resources"]["requests"]["storage"].as_str().and_then(|s| s.parse::<Quantity>().ok()) else {
        return;
    };
    // A claim that is being made smaller again takes what it may already have.
    let given = claim["status"]["allocatedResources"]["storage"].as_str().and_then(|s| s.parse::<Quantity>().ok());
    let size = given.filter(|given| *given > size).unwrap_or(size);
    add(to, STORAGE, size);
    if let Some(class) = class {
        add(to, format!("{class}.storageclass.storage.k8s.io/requests.storage"), size);
    }
}

/// Whether a quota's name is one of what objects of a kind may take.
fn concerns(kind: &Kind, name: &str) -> bool {
    if name == count_name(kind)
        || (kind.group.is_empty() && COUNTED_BY_NAME.contains(&kind.plural) && name == kind.plural)
    {
        return true;
    }
    match (kind.group, kind.plural) {
        ("", "pods") => {
            let plain = ["pods", "cpu", "memory", "ephemeral-storage"].contains(&name);
            plain
                || name.starts_with("hugepages-")
                || (name != STORAGE && (name.starts_with("requests.") || name.starts_with("limits.")))
        }
        ("", "services") => name.starts_with("services."),
        ("", "persistentvolumeclaims") => name == STORAGE || name.contains(".storageclass.storage.k8s.io/"),
        _ => false,
    }
}

/// The names of a quota that objects of this kind may take of.
pub(super) fn concerned(kind: &Kind, hard: &Amounts) -> BTreeSet<String> {
    hard.keys().filter(|name| concerns(kind, name)).cloned().collect()
}

/// What a pod does not say although a quota needs it: `limits.cpu for: a,b; …`.
pub(super) fn unsaid(pod: &Value, names: &BTreeSet<String>) -> Option<String> {
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let whole = &pod["spec"]["resources"];
    for list in ["containers", "initContainers"] {
        for container in items(&pod["spec"], list) {
            for name in names.iter().map(String::as_str).filter(|n| MUST_BE_ASKED.contains(n)) {
                let (list, resource) = name.split_once('.').unwrap_or(("requests", name));
                if container["resources"][list][resource].is_null() && whole[list][resource].is_null() {
                    missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
                }
            }
        }
    }
    let texts: Vec<String> = missing
        .iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(",")))
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Whether all scopes of a quota are those of the object.
pub(super) fn in_scope(kind: &Kind, quota: &Value, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = items(spec, "scopes").filter_map(Value::as_str).map(|s| (s, "Exists", &Value::Null));
    let selected = items(&spec["scopeSelector"], "matchExpressions");
    let selected = selected.map(|e| {
        (e["scopeName"].as_str().unwrap_or_default(), e["operator"].as_str().unwrap_or_default(), &e["values"])
    });
    plain.chain(selected).all(|(scope, operator, values)| match (kind.group, kind.plural) {
        ("", "pods") => pod_in_scope(scope, operator, values, object),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            selects(operator, values, object["spec"]["volumeAttributesClassName"].as_str())
        }
        _ => false,
    })
}

fn selects(operator: &str, values: &Value, name: Option<&str>) -> bool {
    let name = name.filter(|n| !n.is_empty());
    let among = || values.as_array().into_iter().flatten().any(|v| v.as_str() == name);
    match operator {
        "Exists" => name.is_some(),
        "DoesNotExist" => name.is_none(),
        "In" => name.is_some() && among(),
        "NotIn" => !among(),
        _ => false,
    }
}

fn pod_in_scope(scope: &str, operator: &str, values: &Value, pod: &Value) -> bool {
    let ends = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    let best_effort = || {
        let lists = ["containers", "initContainers"].into_iter().flat_map(|l| items(&pod["spec"], l));
        let said = |o: &Value| {
            ["requests", "limits"].iter().any(|l| ["cpu", "memory"].iter().any(|r| !o["resources"][*l][*r].is_null()))
        };
        !said(&pod["spec"]) && !lists.into_iter().any(said)
    };
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => selects(operator, values, pod["spec"]["priorityClassName"].as_str()),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Whether a pod's affinity looks at pods of other namespaces.
fn crosses_namespaces(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|n| !n.is_empty()) || !term["namespaceSelector"].is_null()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let of = &affinity[*kind];
        items(of, "requiredDuringSchedulingIgnoredDuringExecution").any(crosses)
            || items(of, "preferredDuringSchedulingIgnoredDuringExecution").any(|p| crosses(&p["podAffinityTerm"]))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::kinds::by_resource;

    use super::*;

    fn of(plural: &str, object: Value) -> BTreeMap<String, String> {
        let kind = by_resource("", "v1", plural).unwrap();
        usage(kind, &object).into_iter().map(|(k, v)| (k, v.to_string())).collect()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn pods() {
        let resources =
            json!({"requests": {"cpu": "100m", "example.com/a": "1"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        let init = json!({"name": "i", "resources": {"requests": {"cpu": "300m"}}});
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": resources}, {"name": "b", "resources": resources}],
            "initContainers": [init]}});
        assert_eq!(
            of("pods", pod.clone()),
            map(&[
                ("count/pods", "1"),
                ("cpu", "300m"),
                ("limits.cpu", "2"),
                ("limits.memory", "2Gi"),
                ("pods", "1"),
                ("requests.cpu", "300m"),
                ("requests.example.com/a", "2"),
            ])
        );
        let mut over = pod;
        over["status"] = json!({"phase": "Succeeded"});
        assert_eq!(of("pods", over), map(&[("count/pods", "1")]));
    }

    #[test]
    fn services_and_claims() {
        let service = |ty: &str| json!({"spec": {"type": ty, "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(of("services", service("ClusterIP")), map(&[("count/services", "1"), ("services", "1")]));
        let balanced = of("services", service("LoadBalancer"));
        assert_eq!((&*balanced["services.nodeports"], &*balanced["services.loadbalancers"]), ("2", "1"));
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        let used = of("persistentvolumeclaims", claim);
        assert_eq!(used["gold.storageclass.storage.k8s.io/requests.storage"], "1Gi");
        assert_eq!(used["persistentvolumeclaims"], "1");
    }

    #[test]
    fn scopes() {
        let pods = by_resource("", "v1", "pods").unwrap();
        let quota = |spec: Value| json!({"spec": spec});
        let plain = json!({"spec": {"containers": [{"name": "a"}], "priorityClassName": "high"}});
        let within = |spec: Value| in_scope(pods, &quota(spec), &plain);
        assert!(within(json!({"scopes": ["BestEffort", "NotTerminating"]})));
        assert!(!within(json!({"scopes": ["Terminating"]})));
        let select = |operator: &str| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}});
        assert!(within(select("In")) && within(select("Exists")) && !within(select("NotIn")));
        let secrets = by_resource("", "v1", "secrets").unwrap();
        assert!(!in_scope(secrets, &quota(json!({"scopes": ["BestEffort"]})), &json!({})));
    }

    #[test]
    fn what_is_not_said_is_told() {
        let pod =
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        let names = ["requests.cpu", "limits.cpu", "pods"].map(str::to_owned).into();
        assert_eq!(unsaid(&pod, &names).unwrap(), "limits.cpu for: a,b; requests.cpu for: b");
    }
}
