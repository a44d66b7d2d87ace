//! ValidatingAdmissionPolicy: rules in CEL that every cluster may have of its own.
//!
//! A policy does nothing until a binding says where it holds. Nothing is looked at while there are no bindings.

use std::sync::Arc;

use cel::Value as CelValue;
use serde_json::{Value, json};
use skiff_api::{Kind, Status, selector::LabelSelector};

use super::{
    Admission, Attributes,
    matching::{self, Asked, Constraints},
    variables,
    view::View,
};
use crate::{
    cel as expressions,
    compiled::Compiled,
    object::Object,
    registry::{Registry, Resource},
};

const GROUP: &str = "admissionregistration.k8s.io";

/// A policy or binding with its constraints, read once.
pub struct Read {
    pub(super) value: Value,
    pub(super) constraints: Option<Constraints>,
}

impl Read {
    /// The version in which a request is meant; `None` without constraints.
    pub(super) fn chooses(&self, admission: &Admission, asked: &Asked<'_>) -> Result<Option<&'static Kind>, Status> {
        match &self.constraints {
            Some(constraints) => constraints.choose(&admission.registry, asked),
            None => Ok(None),
        }
    }

    fn of(object: &Object, constraints: &str) -> Read {
        let value = object.value();
        let of = &value["spec"][constraints];
        Read { constraints: of.is_object().then(|| Constraints::read(of, "resourceRules")), value }
    }

    pub(super) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// Policies of one kind and their bindings.
#[derive(Default)]
pub struct Policies {
    policies: Compiled<Read>,
    bindings: Compiled<Read>,
}

type List = Arc<Vec<(u64, Arc<Read>)>>;

impl Policies {
    /// All policies and their bindings, by their plurals; `None` without any binding.
    pub(super) async fn bound(
        &self,
        registry: &Registry,
        [policies, bindings]: [&'static str; 2],
    ) -> Result<Option<(List, List)>, Status> {
        let of = |plural| &registry.builtin(GROUP, plural).cache;
        let bound = self.bindings.of(of(bindings), |o| Some(Read::of(o, "matchResources"))).await?;
        if bound.is_empty() {
            return Ok(None);
        }
        let policies = self.policies.of(of(policies), |o| Some(Read::of(o, "matchConstraints"))).await?;
        Ok(Some((policies, bound)))
    }
}

/// Lets all policies that are bound say what they think.
pub(super) async fn admit(admission: &Admission, a: &Attributes<'_>, value: &Value, old: &Value) -> Result<(), Status> {
    if matching::is_exempt(a) {
        return Ok(());
    }
    let registry = &admission.registry;
    let of = ["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
    let Some((policies, bindings)) = admission.policies.bound(registry, of).await? else { return Ok(()) };
    let namespace = matching::namespace_of(registry, a).await?;
    let asked = Asked { a, object: value, old, namespace: &namespace };
    let mut denied = Vec::new();
    for (_, binding) in bindings.iter() {
        let named = binding.value["spec"]["policyName"].as_str().unwrap_or_default();
        let Some((_, policy)) = policies.iter().find(|(_, p)| p.name() == named) else { continue };
        judge(admission, &asked, policy, binding, &mut denied).await?;
    }
    match denied.into_iter().next() {
        None => Ok(()),
        Some((reason, message)) => Err(refusal(a, &reason, &message)),
    }
}

/// A policy's refusal: forbidden by its words, with the code of its reason.
fn refusal(a: &Attributes<'_>, reason: &str, message: &str) -> Status {
    let mut status = a.refuse(message);
    let (code, reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    (status.code, status.reason) = (code, reason.into());
    status.details["causes"] = json!([{"message": message}]);
    status
}

/// The objects that a binding names as parameters, each of which the policy is asked with; `None` for none at all.
pub(super) async fn parameters(
    admission: &Admission,
    a: &Attributes<'_>,
    policy: &Value,
    binding: &Value,
) -> Result<Vec<Value>, String> {
    let (kind, reference) = (&policy["paramKind"], &binding["paramRef"]);
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let resource = resource_of(admission, kind).await?;
    let own = reference["namespace"].as_str().unwrap_or(&a.namespace);
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
    policy: &Read,
    binding: &Read,
    denied: &mut Vec<(String, String)>,
) -> Result<(), Status> {
    let spec = &policy.value["spec"];
    let Some(kind) = policy.chooses(admission, asked)? else { return Ok(()) };
    if binding.constraints.is_some() && binding.chooses(admission, asked)?.is_none() {
        return Ok(());
    }
    // What expressions see is what the policy's rules are about.
    let view = View::new(admission, asked.a, kind);
    let (object, old) = (view.show(asked.object).await?, view.show(asked.old).await?);
    let asked = Asked { object: &object, old: &old, ..*asked };
    let fails = spec["failurePolicy"] != "Ignore";
    let mut deny = |reason: &str, message: &str| {
        let actions = &binding.value["spec"]["validationActions"];
        let has = |action: &str| actions.as_array().is_some_and(|a| a.iter().any(|a| a == action));
        let (policy, binding) = (policy.name(), binding.name());
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
    let parameters = match parameters(admission, asked.a, spec, &binding.value["spec"]).await {
        Ok(list) => list,
        Err(e) if fails => {
            deny("Invalid", &format!("failed to configure binding: {e}"));
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    for parameter in parameters {
        let mut variables = variables::of_request(&asked, kind);
        variables.push(("params", expressions::value(&parameter)));
        match variables::conditions(&spec["matchConditions"], &variables) {
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
    Ok(())
}

/// `variables`: each may use those before it. One that fails is missing where it is used.
pub(super) fn compose(spec: &Value, variables: &[(&str, CelValue)]) -> CelValue {
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
