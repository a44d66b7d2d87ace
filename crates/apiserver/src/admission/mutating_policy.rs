//! MutatingAdmissionPolicy: changes in CEL that a cluster makes of its own.
//!
//! As with validating policies nothing happens without a binding, and nothing is looked at while there are none.

use cel::Value as CelValue;
use serde_json::{Value, json};
use skiff_api::{Status, apply, decode, patch};

use super::{
    Admission, Attributes,
    matching::{self, Asked},
    policy::{Policies, Read, compose, parameters},
    reinvocation::Reinvocation,
    variables,
    view::View,
};
use crate::cel::mutation;

/// A policy that could not be carried out; whether that refuses the request is for `failurePolicy` to say.
struct Fault {
    reason: &'static str,
    message: String,
}

/// Lets all policies that are bound change the object. The second time (`again`) only those that want it and have not
/// seen what changed since.
pub(super) async fn mutate(
    admission: &Admission,
    a: &Attributes<'_>,
    value: &mut Value,
    old: &Value,
    state: &mut Reinvocation,
    again: bool,
) -> Result<(), Status> {
    if matching::is_exempt(a) || value.is_null() {
        return Ok(());
    }
    let of = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];
    let Some((policies, bindings)) = Policies::bound(&admission.mutating, &admission.registry, of).await? else {
        return Ok(());
    };
    if again {
        state.begin_again(value);
    }
    let namespace = matching::namespace_of(&admission.registry, a).await?;
    let mut faults: Vec<(Fault, String)> = Vec::new();
    for (_, policy) in policies.iter() {
        let bound = bindings.iter().filter(|(_, b)| b.value["spec"]["policyName"] == policy.name());
        for (_, binding) in bound {
            let fails = policy.value["spec"]["failurePolicy"] != "Ignore";
            for fault in apply_one(admission, a, (policy, binding), value, old, &namespace, (state, again)).await? {
                let (policy, binding) = (policy.name(), binding.name());
                let text = format!("policy '{policy}' with binding '{binding}' denied request: {}", fault.message);
                tracing::warn!(fails, "{text}");
                if fails {
                    faults.push((fault, text));
                }
            }
        }
    }
    state.end(value);
    let Some((first, message)) = faults.first() else { return Ok(()) };
    let mut status = a.refuse("");
    (status.reason, status.message) = (first.reason.into(), message.clone());
    status.details["causes"] = faults.iter().map(|(_, message)| json!({"message": message})).collect();
    Err(status)
}

/// Lets one policy change the object through one binding, with each of its parameters.
async fn apply_one(
    admission: &Admission,
    a: &Attributes<'_>,
    (policy, binding): (&Read, &Read),
    value: &mut Value,
    old: &Value,
    namespace: &Value,
    (state, again): (&mut Reinvocation, bool),
) -> Result<Vec<Fault>, Status> {
    let asked = Asked { a, object: value, old, namespace };
    let Some(kind) = policy.chooses(admission, &asked)? else { return Ok(Vec::new()) };
    if binding.constraints.is_some() && binding.chooses(admission, &asked)?.is_none() {
        return Ok(Vec::new());
    }
    let spec = &policy.value["spec"];
    let parameters = match parameters(admission, a, spec, &binding.value["spec"]).await {
        Ok(list) => list,
        Err(e) => {
            return Ok(vec![Fault { reason: "Forbidden", message: format!("failed to configure binding: {e}") }]);
        }
    };
    let view = View::new(admission, a, kind);
    let before_all = view.show(old).await?;
    let mut faults = Vec::new();
    for parameter in parameters {
        let mut object = view.show(value).await?;
        let given = |object: &Value| {
            let mut given = variables::of_request(&Asked { a, object, old: &before_all, namespace }, kind);
            given.push(("params", crate::cel::value(&parameter)));
            given
        };
        match variables::conditions(&spec["matchConditions"], &given(&object)) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(message) => {
                faults.push(Fault { reason: "Invalid", message });
                continue;
            }
        }
        let of = |field: &str| parameter["metadata"][field].as_str().unwrap_or_default();
        let key = format!("{}/{}/{}/{}", policy.name(), binding.name(), of("namespace"), of("name"));
        if again && !state.is_due(&key) {
            continue;
        }
        let before = value.clone();
        for mutation in spec["mutations"].as_array().into_iter().flatten() {
            let mut variables = given(&object);
            let composed = compose(spec, &variables);
            variables.push(("variables", composed));
            match mutated(&view, mutation, &object, &variables) {
                Ok(None) => {}
                Ok(Some(new)) => {
                    view.accept(new, value).await?;
                    object = view.show(value).await?;
                }
                Err(message) => faults.push(Fault { reason: "Invalid", message }),
            }
        }
        if *value != before {
            state.changed();
        }
        if spec["reinvocationPolicy"] == "IfNeeded" {
            state.wants_more(&key);
        }
    }
    Ok(faults)
}

/// The object after one mutation; `None` if that leaves it as it is.
fn mutated(
    view: &View<'_>,
    mutation: &Value,
    object: &Value,
    variables: &[(&'static str, CelValue)],
) -> Result<Option<Value>, String> {
    let is_patch = mutation["patchType"] == "JSONPatch";
    let field = if is_patch { "jsonPatch" } else { "applyConfiguration" };
    let text = mutation[field]["expression"].as_str().unwrap_or_default();
    let failed = |e: String| format!("expression '{text}' resulted in error: {e}");
    let expression = mutation::compile(text.trim())?;
    let made = mutation::evaluate(&expression, variables).map_err(failed)?;
    let mut new = object.clone();
    if is_patch {
        if !made.is_array() {
            return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
        }
        match patch::json(&mut new, &made) {
            // A test that fails is no fault: it says that there is nothing to do.
            Err(patch::PatchError::TestFailed(_)) => return Ok(None),
            Err(e) => return Err(format!("JSON Patch: {e}")),
            Ok(()) => {}
        }
    } else {
        configure(view, &mut new, made)?;
    }
    Ok((new != *object).then_some(new))
}

/// Merges an apply configuration into an object. Nobody becomes its owner.
fn configure(view: &View<'_>, object: &mut Value, mut configuration: Value) -> Result<(), String> {
    if !configuration.is_object() {
        return Err("unsupported return type from ApplyConfiguration expression".to_owned());
    }
    for field in ["apiVersion", "kind"] {
        configuration[field] = object[field].clone();
    }
    let failed = |why: String| format!("error applying patch: {why}");
    let mut known = configuration.clone();
    let unknown = match view.version() {
        Some(version) => version.conform(&mut known),
        None => decode::conform(&mut known, &view.type_name()),
    };
    let typed = |why: String| failed(format!("failed to convert patch object to typed object: {why}"));
    if let Some(field) = unknown.map_err(|e| typed(e.to_string()))?.first() {
        return Err(typed(format!(".{field}: field not declared in schema")));
    }
    let type_name = view.type_name();
    let schema = match view.version() {
        Some(version) => apply::Schema::CustomRoot(version.schema()),
        None => apply::Schema::of_type(&type_name),
    };
    let atomics = apply::atomics(schema, &configuration);
    if !atomics.is_empty() {
        let why = format!("may not mutate atomic arrays, maps or structs: {}", atomics.join(", "));
        return Err(failed(format!("invalid ApplyConfiguration: {why}")));
    }
    apply::merge(schema, object, &configuration);
    Ok(())
}
