//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: servers of the cluster's users that may change or refuse.
//!
//! Configurations are read once, when they change; while there are none nothing is looked at. No lock is held while a
//! webhook is asked: what is decided goes by the object that was seen, and a write by compare-and-swap.

mod review;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use serde_json::Value;
use skiff_api::{Kind, Status, patch};

use self::review::Answer;
use super::{
    Admission, Attributes,
    matching::{self, Asked, Constraints},
    reinvocation::Reinvocation,
    variables,
    view::View,
};
use crate::{compiled::Compiled, object::Object, webhook::Webhook};

const GROUP: &str = "admissionregistration.k8s.io";
/// What a webhook may take if it does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer: a patch may hold a whole object.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// One webhook of a configuration.
struct Hook {
    name: String,
    /// Name of the configuration, of the webhook, and its place: what tells it from all others.
    id: String,
    webhook: Webhook,
    constraints: Constraints,
    /// `matchConditions`.
    conditions: Value,
    /// Whether a call that fails refuses the request.
    fails: bool,
    timeout: Duration,
    dry_run: bool,
    reinvoked: bool,
    /// Those of `AdmissionReview` that it takes.
    versions: Vec<String>,
}

impl Hook {
    fn read(configuration: &Object) -> Vec<Hook> {
        let value = configuration.value();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let hooks = value["webhooks"].as_array().into_iter().flatten().enumerate();
        hooks
            .map(|(i, hook)| Hook {
                name: text(&hook["name"]),
                id: format!("{}/{}/{i}", configuration.name, text(&hook["name"])),
                webhook: Webhook::read(&hook["clientConfig"]),
                constraints: Constraints::of_webhook(hook),
                conditions: hook["matchConditions"].clone(),
                fails: hook["failurePolicy"] != "Ignore",
                timeout: hook["timeoutSeconds"].as_u64().map_or(DEFAULT_TIMEOUT, Duration::from_secs),
                dry_run: ["None", "NoneOnDryRun"].contains(&hook["sideEffects"].as_str().unwrap_or_default()),
                reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
                versions: hook["admissionReviewVersions"].as_array().into_iter().flatten().map(text).collect(),
            })
            .collect()
    }
}

/// All webhooks that are registered.
#[derive(Default)]
pub struct Hooks {
    mutating: Compiled<Vec<Hook>>,
    validating: Compiled<Vec<Hook>>,
}

type Configurations = Arc<Vec<(u64, Arc<Vec<Hook>>)>>;

async fn configured(admission: &Admission, mutating: bool) -> Result<Option<Configurations>, Status> {
    let (plural, compiled) = match mutating {
        true => ("mutatingwebhookconfigurations", &admission.hooks.mutating),
        false => ("validatingwebhookconfigurations", &admission.hooks.validating),
    };
    let cache = &admission.registry.builtin(GROUP, plural).cache;
    let found = compiled.of(cache, |o| Some(Hook::read(o))).await?;
    Ok((!found.is_empty()).then_some(found))
}

/// What failed while a webhook was asked.
enum Failure {
    /// There was no answer that could be used: `failurePolicy` decides.
    Call(String),
    /// The request is refused, or the webhook's answer cannot be carried out.
    Refused(Status),
}

impl Failure {
    /// What it means for the request.
    fn settle(self, hook: &Hook) -> Result<(), Status> {
        match self {
            Failure::Refused(status) => Err(status),
            Failure::Call(why) => {
                let what = format!("failed calling webhook {:?}: {why}", hook.name);
                tracing::warn!(webhook = hook.name, open = !hook.fails, "{what}");
                if hook.fails { Err(Status::internal(what)) } else { Ok(()) }
            }
        }
    }
}

/// The version in which a webhook is to be asked about a request, if it is.
fn chosen(admission: &Admission, hook: &Hook, asked: &Asked<'_>) -> Result<Option<&'static Kind>, Status> {
    let Some(kind) = hook.constraints.choose(&admission.registry, asked)? else { return Ok(None) };
    if hook.conditions.as_array().is_none_or(Vec::is_empty) {
        return Ok(Some(kind));
    }
    match variables::conditions(&hook.conditions, &variables::of_request(asked, kind)) {
        Ok(true) => Ok(Some(kind)),
        Ok(false) => Ok(None),
        Err(why) if hook.fails => Err(asked.a.refuse(why)),
        Err(_) => Ok(None),
    }
}

/// Asks one webhook about objects in the form that it sees.
async fn ask(
    admission: &Admission,
    hook: &Hook,
    view: &View<'_>,
    a: &Attributes<'_>,
    mutating: bool,
    object: &Value,
    old: &Value,
) -> Result<Answer, Failure> {
    if a.dry_run && !hook.dry_run {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(Status::bad_request(why)));
    }
    let version = hook.versions.iter().find(|v| ["v1", "v1beta1"].contains(&v.as_str())).ok_or_else(|| {
        let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        Failure::Call(format!("could not create admission objects: {why}"))
    })?;
    let uid = uuid::Uuid::new_v4().to_string();
    let review = review::request(version, &uid, a, view, object, old);
    let answer = hook.webhook.call(&admission.registry, &review, hook.timeout, MAX_ANSWER_BYTES).await;
    let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    let answer = review::answer(version, &uid, mutating, answer)
        .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
    for warning in &answer.warnings {
        a.warnings.add(warning.clone());
    }
    match answer.allowed {
        true => Ok(answer),
        false => Err(Failure::Refused(review::denial(&hook.name, answer.status))),
    }
}

/// Lets mutating webhooks change the object, one after the other. The second time (`again`) only those are asked that
/// want it and have not seen what changed since.
pub(super) async fn mutate(
    admission: &Admission,
    a: &Attributes<'_>,
    value: &mut Value,
    old: &Value,
    state: &mut Reinvocation,
    again: bool,
) -> Result<(), Status> {
    if matching::is_exempt(a) {
        return Ok(());
    }
    let Some(configurations) = configured(admission, true).await? else { return Ok(()) };
    if again {
        state.begin_again(value);
    }
    let namespace = matching::namespace_of(&admission.registry, a).await?;
    for hook in configurations.iter().flat_map(|(_, hooks)| hooks.iter()) {
        let asked = Asked { a, object: value, old, namespace: &namespace };
        let Some(kind) = chosen(admission, hook, &asked)? else { continue };
        if again && !state.is_due(&hook.id) {
            continue;
        }
        let view = View::new(admission, a, kind);
        let (object, before) = (view.show(value).await?, view.show(old).await?);
        let done = match ask(admission, hook, &view, a, true, &object, &before).await {
            Ok(answer) => patched(hook, &view, answer, object, value).await,
            Err(failure) => Err(failure),
        };
        if let Ok(true) = done {
            state.changed();
        }
        if hook.reinvoked {
            state.wants_more(&hook.id);
        }
        if let Err(failure) = done {
            failure.settle(hook)?;
        }
    }
    state.end(value);
    Ok(())
}

/// Carries out a webhook's patch; whether it changed anything is returned.
async fn patched(
    hook: &Hook,
    view: &View<'_>,
    answer: Answer,
    object: Value,
    value: &mut Value,
) -> Result<bool, Failure> {
    let Some(patch) = answer.patch else { return Ok(false) };
    let patch: Value = serde_json::from_slice(&patch)
        .map_err(|e| Failure::Call(format!("received undecodable patch in webhook response: {e}")))?;
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    let internal = |e: &dyn std::fmt::Display| Failure::Refused(Status::internal(e));
    if object.is_null() {
        let why = "attempted to modify the object, which is not supported for this operation";
        return Err(internal(&format!("admission webhook {:?} {why}", hook.name)));
    }
    let mut new = object.clone();
    patch::json(&mut new, &patch).map_err(|e| internal(&e))?;
    if new == object {
        return Ok(false);
    }
    view.accept(new, value).await.map_err(Failure::Refused)?;
    Ok(true)
}

/// Lets validating webhooks refuse, all at once.
pub(super) async fn validate(
    admission: &Admission,
    a: &Attributes<'_>,
    value: &Value,
    old: &Value,
) -> Result<(), Status> {
    if matching::is_exempt(a) {
        return Ok(());
    }
    let Some(configurations) = configured(admission, false).await? else { return Ok(()) };
    let namespace = matching::namespace_of(&admission.registry, a).await?;
    let asked = Asked { a, object: value, old, namespace: &namespace };
    let mut calls = Vec::new();
    for hook in configurations.iter().flat_map(|(_, hooks)| hooks.iter()) {
        let Some(kind) = chosen(admission, hook, &asked)? else { continue };
        calls.push(async move {
            let view = View::new(admission, a, kind);
            let (object, before) = (view.show(value).await?, view.show(old).await?);
            match ask(admission, hook, &view, a, false, &object, &before).await {
                Ok(_) => Ok(()),
                Err(failure) => failure.settle(hook),
            }
        });
    }
    join_all(calls).await.into_iter().collect()
}
