//! `AdmissionReview`: what a webhook is asked, and what it may answer.

use base64::Engine as _;
use serde_json::{Value, json};
use skiff_api::Status;

use crate::{
    admission::{
        Attributes, Operation,
        view::{View, group_version_kind},
    },
    reviews,
};

const GROUP: &str = "admission.k8s.io";

/// A webhook's answer, checked.
pub(super) struct Answer {
    pub(super) allowed: bool,
    /// A JSON patch.
    pub(super) patch: Option<Vec<u8>>,
    pub(super) warnings: Vec<String>,
    /// Why it says no: a `Status`, or null.
    pub(super) status: Value,
}

/// The options of the operation as upstream has them.
fn options(a: &Attributes<'_>) -> Value {
    let kind = match a.operation {
        Operation::Connect => return Value::Null,
        Operation::Create => "CreateOptions",
        Operation::Update if a.options.given.patch => "PatchOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if a.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    let given = &a.options.given;
    if let Some(deletion) = a.deletion {
        if let Some(seconds) = deletion.grace_s {
            options["gracePeriodSeconds"] = seconds.into();
        }
        for (name, value) in [("uid", &deletion.uid), ("resourceVersion", &deletion.resource_version)] {
            if let Some(value) = value {
                options["preconditions"][name] = value.as_str().into();
            }
        }
        if let Some(propagation) = deletion.propagation {
            options["propagationPolicy"] = format!("{propagation:?}").into();
        }
        return options;
    }
    if let Some(manager) = &given.manager {
        options["fieldManager"] = manager.as_str().into();
    }
    if let Some(validation) = &given.validation {
        options["fieldValidation"] = validation.as_str().into();
    }
    if let Some(force) = given.force.filter(|_| kind == "PatchOptions") {
        options["force"] = force.into();
    }
    options
}

/// What a webhook is asked.
pub(super) fn request(
    version: &str,
    uid: &str,
    a: &Attributes<'_>,
    view: &View<'_>,
    object: &Value,
    old: &Value,
) -> Value {
    let requested = a.requested();
    let kind = |[group, version, kind]: [&str; 3]| json!({"group": group, "version": version, "kind": kind});
    let resource = |k: &skiff_api::Kind| json!({"group": k.group, "version": k.version, "resource": k.plural});
    let mut request = json!({
        "uid": uid,
        "kind": kind(view.group_version_kind()),
        "resource": resource(view.kind),
        "requestKind": kind(group_version_kind(requested, a.subresource)),
        "requestResource": resource(requested),
        "operation": a.operation.as_str(),
        "userInfo": reviews::user_value(a.user),
        "object": object,
        "oldObject": old,
        "dryRun": a.dry_run,
        "options": options(a),
    });
    for (field, text) in [
        ("subResource", a.subresource),
        ("requestSubResource", a.subresource),
        ("name", a.name.as_str()),
        ("namespace", a.hook_namespace()),
    ] {
        if !text.is_empty() {
            request[field] = text.into();
        }
    }
    json!({"kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}"), "request": request})
}

/// Checks what a webhook has answered.
pub(super) fn answer(version: &str, uid: &str, mutating: bool, review: Value) -> Result<Answer, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let patch = match text(&response["patch"]).filter(|p| !p.is_empty()) {
        None => None,
        Some(encoded) => Some(
            base64::engine::general_purpose::STANDARD
                .decode(encoded)
                .map_err(|e| format!("response.patch is not base64: {e}"))?,
        ),
    };
    let patch_type = text(&response["patchType"]);
    // The older version was not looked at so closely.
    if version == "v1" {
        let given = text(&response["uid"]).unwrap_or_default();
        if given != uid {
            return Err(format!("expected response.uid={uid:?}, got {given:?}"));
        }
        let group_version = text(&review["apiVersion"]).unwrap_or_default();
        let kind = text(&review["kind"]).unwrap_or_default();
        if group_version != format!("{GROUP}/v1") || kind != "AdmissionReview" {
            let got = if group_version.contains('/') { group_version } else { format!("/{group_version}") };
            return Err(format!(
                "expected webhook response of {GROUP}/v1, Kind=AdmissionReview, got {got}, Kind={kind}"
            ));
        }
        match (mutating, &patch, &patch_type) {
            (true, Some(_), None) => {
                return Err("webhook returned response.patch but not response.patchType".to_owned());
            }
            (true, None, Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".to_owned());
            }
            (true, _, Some(ty)) if ty.is_empty() => {
                return Err("webhook returned invalid response.patchType of \"\"".to_owned());
            }
            (true, Some(_), Some(ty)) if ty != "JSONPatch" => return Err(format!("unsupported patch type {ty:?}")),
            (false, Some(_), _) => return Err("validating webhook may not return response.patch".to_owned()),
            (false, _, Some(_)) => return Err("validating webhook may not return response.patchType".to_owned()),
            _ => {}
        }
    }
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(text).collect();
    let allowed = response["allowed"] == true;
    Ok(Answer { allowed, patch: patch.filter(|_| mutating), warnings, status: response["status"].clone() })
}

/// A webhook's no, in its own words with upstream's around them.
pub(super) fn denial(webhook: &str, status: Value) -> Status {
    let denied = format!("admission webhook {webhook:?} denied the request");
    let text = |field: &str| status[field].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let (message, reason) = (text("message"), text("reason"));
    let message = match message.or_else(|| reason.clone()) {
        Some(why) => format!("{denied}: {why}"),
        None => format!("{denied} without explanation"),
    };
    // What is no refusal is no code for one.
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
    let mut refused = Status::new(code.unwrap_or(400), reason.unwrap_or_default(), message);
    if status["details"].is_object() {
        refused.details = status["details"].clone().into();
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(mutating: bool, review: Value) -> String {
        answer("v1", "u", mutating, review).err().unwrap_or_default()
    }

    #[test]
    fn answers_are_checked() {
        let good = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {"uid": "u", "allowed": true}});
        assert_eq!(said(true, good.clone()), "");
        assert_eq!(said(true, json!({"kind": "AdmissionReview"})), "webhook response was absent");
        let mut bad = good.clone();
        bad["response"]["uid"] = "v".into();
        assert_eq!(said(true, bad), "expected response.uid=\"u\", got \"v\"");
        let mut bad = good.clone();
        bad["apiVersion"] = Value::Null;
        bad["kind"] = Value::Null;
        assert_eq!(
            said(true, bad),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind="
        );
        let mut patch = good;
        patch["response"]["patch"] = "W10=".into();
        assert_eq!(said(true, patch.clone()), "webhook returned response.patch but not response.patchType");
        assert_eq!(said(false, patch.clone()), "validating webhook may not return response.patch");
        assert!(answer("v1beta1", "x", true, patch.clone()).is_ok_and(|a| a.patch.is_some()));
        patch["response"]["patchType"] = "JSONPatch".into();
        assert_eq!(said(true, patch), "");
    }

    #[test]
    fn denials_are_worded() {
        let status = denial("a.b.c", json!({"message": "no", "code": 403, "reason": "Forbidden"}));
        assert_eq!((status.code, status.reason.as_ref()), (403, "Forbidden"));
        assert_eq!(status.message, "admission webhook \"a.b.c\" denied the request: no");
        let status = denial("a.b.c", Value::Null);
        assert_eq!((status.code, status.reason.as_ref()), (400, ""));
        assert_eq!(status.message, "admission webhook \"a.b.c\" denied the request without explanation");
        assert_eq!(denial("a", json!({"reason": "Odd"})).message, "admission webhook \"a\" denied the request: Odd");
    }
}
