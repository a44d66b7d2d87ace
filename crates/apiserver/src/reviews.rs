//! Kinds that are questions: their answer is all there is of them.

use serde_json::{Value, json};
use skiff_api::{Kind, Status};

use crate::{
    auth::User,
    rbac::{Attributes, Authorizer},
};

/// Who a review is about.
fn user_of(spec: &Value) -> User {
    let list = |v: &Value| v.as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect();
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: list(&spec["groups"]),
        extra: serde_json::from_value(spec["extra"].clone()).unwrap_or_default(),
    }
}

/// Answers an access review of any of the three kinds.
pub fn access(
    authorizer: &Authorizer,
    kind: &Kind,
    namespace: &str,
    mut review: Value,
    asker: &User,
) -> Result<Value, Status> {
    let own = kind.kind == "SelfSubjectAccessReview";
    let user = if own { asker.clone() } else { user_of(&review["spec"]) };
    let spec = &review["spec"];
    if !own && user.name.is_empty() && user.groups.is_empty() {
        let e = skiff_api::validation::FieldError::invalid(
            "spec.user",
            "",
            "at least one of user or group must be specified",
        );
        return Err(Status::invalid_object(kind, "", &[e]));
    }
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        let e = skiff_api::validation::FieldError::invalid(
            "spec.resourceAttributes",
            resource.clone(),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
        return Err(Status::invalid_object(kind, "", &[e]));
    }
    if kind.kind == "LocalSubjectAccessReview" && resource["namespace"] != namespace {
        let e = skiff_api::validation::FieldError::invalid(
            "spec.resourceAttributes.namespace",
            resource["namespace"].clone(),
            "must match metadata.namespace",
        );
        return Err(Status::invalid_object(kind, "", &[e]));
    }
    let text = |v: &'_ Value| v.as_str().unwrap_or_default().to_owned();
    let name = match resource["subresource"].as_str().filter(|s| !s.is_empty()) {
        Some(sub) => format!("{}/{sub}", text(&resource["resource"])),
        None => text(&resource["resource"]),
    };
    let (verb, group, object, ns, url) = (
        text(if resource.is_object() { &resource["verb"] } else { &path["verb"] }),
        text(&resource["group"]),
        text(&resource["name"]),
        text(&resource["namespace"]),
        text(&path["path"]),
    );
    let asked = Attributes {
        verb: &verb,
        group: &group,
        resource: &name,
        name: &object,
        namespace: &ns,
        path: &url,
        is_resource: resource.is_object(),
    };
    review["status"] = match authorizer.allows(&user, &asked) {
        Some(reason) if reason.is_empty() => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false}),
    };
    Ok(review)
}

/// Answers `SelfSubjectRulesReview`: all that the asker may do in a namespace.
pub fn rules(authorizer: &Authorizer, mut review: Value, asker: &User) -> Result<Value, Status> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default().to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resources, mut urls) = (Vec::new(), Vec::new());
    for rule in authorizer.rules(asker, &namespace) {
        if rule.non_resource_urls.is_empty() {
            let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                value["resourceNames"] = json!(rule.resource_names);
            }
            resources.push(value);
        } else {
            urls.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": false});
    Ok(review)
}

/// A user as reviews show it.
pub fn user_value(user: &User) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}
