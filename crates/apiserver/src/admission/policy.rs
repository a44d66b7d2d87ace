//! ValidatingAdmissionPolicy: rules in CEL that every cluster may have of its own.
//!
//! A policy does nothing until a binding says where it holds. Nothing is looked at while there are no bindings.

use std::sync::Arc;

use cel::Value as CelValue;
use serde_json::{Value, json};
use skiff_api::{Status, selector::LabelSelector};

use super::{Admission, Attributes, Operation};
use crate::{cel as expressions, object::Object, registry::Resource, reviews};

const GROUP: &str = "admissionregistration.k8s.io";

/// What policies and webhooks are never asked about: they could lock everybody out.
const EXEMPT: [&str; 6] = [
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
];

/// What a request is, as rules and selectors see it.
struct Asked<'a> {
    a: &'a Attributes<'a>,
    object: &'a Value,
    old: &'a Value,
    /// The namespace of the object, if it is in one.
    namespace: Value,
}

/// Lets all policies that are bound say what they think.
pub(super) async fn admit(
    admission: &Admission,
    a: &Attributes<'_>,
    value: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let registry = &admission.registry;
    let bindings = registry.builtin(GROUP, "validatingadmissionpolicybindings");
    bindings.cache.fresh().await.map_err(Status::internal)?;
    if bindings.cache.is_empty() || (a.resource.group == GROUP && EXEMPT.contains(&a.resource.plural)) {
        return Ok(());
    }
    let policies = registry.builtin(GROUP, "validatingadmissionpolicies");
    policies.cache.fresh().await.map_err(Status::internal)?;
    let namespace = namespace_of(admission, a).await?;
    let null = Value::Null;
    let asked = Asked { a, object: value, old: old.unwrap_or(&null), namespace };
    let mut denied = Vec::new();
    for binding in bindings.cache.peek_all() {
        let binding = binding.value();
        let name = binding["spec"]["policyName"].as_str().unwrap_or_default();
        let Some(policy) = policies.cache.peek(&policies.key("", name)) else { continue };
        judge(admission, &asked, &policy, &binding, &mut denied).await;
    }
    match denied.into_iter().next() {
        None => Ok(()),
        Some((reason, message)) => Err(refusal(a, &reason, &message)),
    }
}

async fn namespace_of(admission: &Admission, a: &Attributes<'_>) -> Result<Value, Status> {
    let name = match a.is("", "namespaces") {
        true => a.name.as_str(),
        false => a.namespace.as_str(),
    };
    if name.is_empty() {
        return Ok(Value::Null);
    }
    let namespaces = admission.registry.builtin("", "namespaces");
    let found = namespaces.cache.get(&namespaces.key("", name)).await.map_err(Status::internal)?;
    Ok(found.map(|n| n.value()).unwrap_or_default())
}

/// A policy's refusal: forbidden by its words, with the code of its reason.
fn refusal(a: &Attributes<'_>, reason: &str, message: &str) -> Status {
    let mut status = a.refuse(message);
    (status.code, status.reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    status.details["causes"] = json!([{"message": message}]);
    status
}

/// Whether rules of resources and selectors choose this request.
fn matches(constraints: &Value, asked: &Asked<'_>) -> bool {
    let selected = |selector: &Value, labels: &Value| {
        selector.is_null()
            || LabelSelector::from_value(selector)
                .is_ok_and(|s| s.matches(|key| labels.get(key).and_then(Value::as_str)))
    };
    let within = asked.namespace.is_object() || asked.a.resource.namespaced;
    if within && !selected(&constraints["namespaceSelector"], &asked.namespace["metadata"]["labels"]) {
        return false;
    }
    let of_object = |o: &Value| o.is_object() && selected(&constraints["objectSelector"], &o["metadata"]["labels"]);
    if !constraints["objectSelector"].is_null() && !of_object(asked.object) && !of_object(asked.old) {
        return false;
    }
    let any = |list: &Value| list.as_array().into_iter().flatten().any(|rule| rule_matches(rule, asked.a));
    if any(&constraints["excludeResourceRules"]) {
        return false;
    }
    match constraints["resourceRules"].as_array() {
        Some(rules) if !rules.is_empty() => any(&constraints["resourceRules"]),
        _ => true,
    }
}

fn rule_matches(rule: &Value, a: &Attributes<'_>) -> bool {
    let has = |field: &str, wanted: &str| rule[field].as_array().into_iter().flatten().any(|v| v == "*" || v == wanted);
    let operation = match a.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    };
    let of = |name: &str| name == "*" || name == a.resource.plural;
    let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let resource = resources.into_iter().any(|r| match r.split_once('/') {
        None => a.subresource.is_empty() && of(r),
        Some((r, sub)) => of(r) && (sub == "*" || sub == a.subresource),
    });
    let names = rule["resourceNames"].as_array();
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => a.resource.namespaced,
        Some("Cluster") => !a.resource.namespaced,
        _ => true,
    };
    resource
        && scope
        && has("operations", operation)
        && has("apiGroups", a.resource.group)
        && (rule["apiVersions"].is_null() || has("apiVersions", a.resource.version))
        && names.is_none_or(|n| n.is_empty() || n.iter().any(|n| n == a.name.as_str()))
}

/// `request` as expressions see it.
fn request_of(a: &Attributes<'_>) -> Value {
    let operation = match a.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    };
    let kind = json!({"group": a.resource.group, "version": a.resource.version, "kind": a.resource.kind});
    let resource = json!({"group": a.resource.group, "version": a.resource.version, "resource": a.resource.plural});
    json!({
        "kind": kind, "requestKind": kind, "resource": resource, "requestResource": resource,
        "subResource": a.subresource, "requestSubResource": a.subresource,
        "name": a.name, "namespace": a.namespace, "operation": operation, "dryRun": a.dry_run,
        "userInfo": reviews::user_value(a.user), "options": {},
    })
}

/// The objects that a binding names as parameters, each of which the policy is asked with; `None` for none at all.
async fn parameters(
    admission: &Admission,
    asked: &Asked<'_>,
    policy: &Value,
    binding: &Value,
) -> Result<Vec<Value>, String> {
    let kind = &policy["spec"]["paramKind"];
    let reference = &binding["spec"]["paramRef"];
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let resource = resource_of(admission, kind).await?;
    let own = reference["namespace"].as_str().unwrap_or(&asked.a.namespace);
    let namespace = if resource.kind.namespaced { own } else { "" };
    let found: Vec<Value> = match reference["name"].as_str().filter(|n| !n.is_empty()) {
        Some(name) => {
            let key = resource.key(namespace, name);
            resource.cache.get(&key).await.map_err(|e| e.to_string())?.iter().map(|o| o.value()).collect()
        }
        None => {
            let selector = LabelSelector::from_value(&reference["selector"]).map_err(|e| e.to_string())?;
            resource.cache.fresh().await.map_err(|e| e.to_string())?;
            let all = resource.cache.peek_all();
            let chosen = all.iter().filter(|o| *o.namespace == *namespace && selector.matches(|key| o.label(key)));
            chosen.map(|o| o.value()).collect()
        }
    };
    if found.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

async fn resource_of(admission: &Admission, kind: &Value) -> Result<Arc<Resource>, String> {
    let (version, name) = (kind["apiVersion"].as_str().unwrap_or_default(), kind["kind"].as_str().unwrap_or_default());
    let kinds = admission.registry.kinds().await.map_err(|e| e.message)?;
    let found = kinds.iter().find(|k| k.api_version() == version && k.kind == name);
    found
        .and_then(|k| admission.registry.stored(k))
        .ok_or_else(|| format!("failed to find resource referenced by paramKind: '{version}, Kind={name}'"))
}

/// What one policy says through one binding; refusals are added to `denied` with their reason.
async fn judge(
    admission: &Admission,
    asked: &Asked<'_>,
    policy: &Object,
    binding: &Value,
    denied: &mut Vec<(String, String)>,
) {
    let policy = policy.value();
    let spec = &policy["spec"];
    if !matches(&spec["matchConstraints"], asked)
        || (binding["spec"]["matchResources"].is_object() && !matches(&binding["spec"]["matchResources"], asked))
    {
        return;
    }
    let fails = spec["failurePolicy"] != "Ignore";
    let name = |o: &Value| o["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut deny = |reason: &str, message: &str| {
        let actions = &binding["spec"]["validationActions"];
        let has = |action: &str| actions.as_array().is_some_and(|a| a.iter().any(|a| a == action));
        let (policy, binding) = (name(&policy), name(binding));
        if has("Warn") {
            let text = format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
            );
            asked.a.warnings.add(text);
        }
        if has("Audit") {
            tracing::info!(policy, binding, message, "validation failed for ValidatingAdmissionPolicy");
        }
        if has("Deny") {
            let text =
                format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}");
            denied.push((reason.to_owned(), text));
        }
    };
    let parameters = match parameters(admission, asked, &policy, binding).await {
        Ok(list) => list,
        Err(e) if fails => return deny("Invalid", &format!("failed to configure binding: {e}")),
        Err(_) => return,
    };
    for parameter in parameters {
        let mut variables: Vec<(&str, CelValue)> = vec![
            ("object", expressions::value(asked.object)),
            ("oldObject", expressions::value(asked.old)),
            ("request", expressions::value(&request_of(asked.a))),
            ("namespaceObject", expressions::value(&asked.namespace)),
            ("params", expressions::value(&parameter)),
        ];
        match conditions(spec, &variables) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(e) if fails => {
                deny("Invalid", &e);
                continue;
            }
            Err(_) => continue,
        }
        let composed = compose(spec, &variables);
        variables.push(("variables", composed));
        for validation in spec["validations"].as_array().into_iter().flatten() {
            let expression = validation["expression"].as_str().unwrap_or_default();
            match expressions::holds(expression, &variables) {
                Ok(true) => {}
                Ok(false) => {
                    let reason = validation["reason"].as_str().unwrap_or("Invalid");
                    deny(reason, &message_of(validation, expression, &variables));
                }
                Err(e) if fails => deny("Invalid", &format!("expression '{expression}' resulted in error: {e}")),
                Err(_) => {}
            }
        }
    }
}

/// Whether all conditions of a policy hold; one that does not excuses another's fault.
fn conditions(spec: &Value, variables: &[(&str, CelValue)]) -> Result<bool, String> {
    let mut fault = None;
    for condition in spec["matchConditions"].as_array().into_iter().flatten() {
        let expression = condition["expression"].as_str().unwrap_or_default();
        match expressions::holds(expression, variables) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) => fault = Some(format!("expression '{expression}' resulted in error: {e}")),
        }
    }
    fault.map_or(Ok(true), Err)
}

/// `variables`: each may use those before it. One that fails is missing where it is used.
fn compose(spec: &Value, variables: &[(&str, CelValue)]) -> CelValue {
    let mut made = std::collections::HashMap::<String, CelValue>::new();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let text = |field: &str| variable[field].as_str().unwrap_or_default();
        let mut all = variables.to_vec();
        all.push(("variables", made.clone().into()));
        if let Ok(value) = expressions::compile(text("expression")).and_then(|p| expressions::evaluate(&p, &all)) {
            made.insert(text("name").to_owned(), value);
        }
    }
    made.into()
}

fn message_of(validation: &Value, expression: &str, variables: &[(&str, CelValue)]) -> String {
    if let Some(own) = validation["messageExpression"].as_str()
        && let Ok(message) = expressions::text(own, variables)
        && !message.trim().is_empty()
    {
        return message.trim().to_owned();
    }
    match validation["message"].as_str().filter(|m| !m.is_empty()) {
        Some(message) => message.trim().to_owned(),
        None => format!("failed expression: {}", expression.trim()),
    }
}
