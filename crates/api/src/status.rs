//! `metav1.Status`: how the API says no.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value, json};

use crate::{kinds::Kind, validation::FieldError};

/// A failure as clients see it: an HTTP code, a reason that programs read and a message that people read.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    /// Empty for what upstream has no reason for.
    pub reason: Cow<'static, str>,
    pub message: String,
    /// `details`, an object, or `Null`.
    pub details: Box<Value>,
}

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `pods "x"`, `deployments.apps "x"`: how messages name an object.
fn resource_text(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn object_details(name: &str, group: &str, kind: &str) -> Map<String, Value> {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !group.is_empty() {
        details.insert("group".into(), group.into());
    }
    if !kind.is_empty() {
        details.insert("kind".into(), kind.into());
    }
    details
}

impl Status {
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Status { code, reason: reason.into(), message: message.into(), details: Box::default() }
    }

    fn about(mut self, name: &str, group: &str, resource: &str) -> Self {
        self.details = Value::Object(object_details(name, group, resource)).into();
        self
    }

    /// 400: the request itself makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, "BadRequest", message)
    }

    /// 401: nobody that we know.
    pub fn unauthorized() -> Self {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 with upstream's words around the reason.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = resource_text(group, resource);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Status::new(403, "Forbidden", message).about(name, group, resource)
    }

    /// 404 for an object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource_text(group, resource));
        Status::new(404, "NotFound", message).about(name, group, resource)
    }

    /// 404 for a path that leads nowhere.
    pub fn no_such_resource() -> Self {
        let mut s = Status::new(404, "NotFound", "the server could not find the requested resource");
        s.details = json!({}).into();
        s
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let mut s =
            Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        s.details = json!({}).into();
        s
    }

    /// 409: an object of this name is there.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource_text(group, resource));
        Status::new(409, "AlreadyExists", message).about(name, group, resource)
    }

    /// 409 with a reason.
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource_text(group, resource));
        Status::new(409, "Conflict", message).about(name, group, resource)
    }

    /// 409: the object is not the one that the writer has seen.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Status::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 410: the wanted revision is gone; the client lists again.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(why: impl fmt::Display) -> Self {
        Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 415.
    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        Status::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                supported.join(", ")
            ),
        )
    }

    /// 422: the object breaks the rules of its kind; every fault is a cause.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            // An aggregate prints each distinct message once.
            many => {
                let mut seen: Vec<&str> = Vec::new();
                for t in many {
                    if !seen.contains(&t.as_str()) {
                        seen.push(t);
                    }
                }
                match seen.as_slice() {
                    [one] => (*one).to_owned(),
                    seen => format!("[{}]", seen.join(", ")),
                }
            }
        };
        let mut details = object_details(name, group, kind);
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({"reason": e.reason(), "message": e.body(), "field": e.field})).collect();
        details.insert("causes".into(), causes.into());
        let mut s = Status::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {text}"));
        s.details = Value::Object(details).into();
        s
    }

    /// 422 for an object of a kind of the table.
    pub fn invalid_object(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        Status::invalid(kind.group, kind.kind, name, errors)
    }

    /// 429: try again.
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut s = Status::new(429, "TooManyRequests", message);
        s.details = json!({"retryAfterSeconds": retry_after_s}).into();
        s
    }

    /// 500. The message names the fault, as upstream's does.
    pub fn internal(why: impl fmt::Display) -> Self {
        let mut s = Status::new(500, "InternalError", format!("Internal error occurred: {why}"));
        s.details = json!({"causes": [{"message": why.to_string()}]}).into();
        s
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Status::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(why: impl fmt::Display) -> Self {
        Status::new(504, "Timeout", format!("Timeout: {why}"))
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), "Status".into());
        object.insert("apiVersion".into(), "v1".into());
        object.insert("metadata".into(), json!({}));
        object.insert("status".into(), "Failure".into());
        object.insert("message".into(), self.message.clone().into());
        if !self.reason.is_empty() {
            object.insert("reason".into(), self.reason.as_ref().into());
        }
        if !self.details.is_null() {
            object.insert("details".into(), Value::clone(&self.details));
        }
        object.insert("code".into(), self.code.into());
        Value::Object(object)
    }
}

/// The answer to a deletion that left nothing to show.
pub fn success(name: &str, group: &str, resource: &str, uid: &str) -> Value {
    let mut details = object_details(name, group, resource);
    details.insert("uid".into(), uid.into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(Status::not_found("apps", "deployments", "x").message, "deployments.apps \"x\" not found");
        assert_eq!(Status::already_exists("", "pods", "x").message, "pods \"x\" already exists");
        let e = [FieldError::required("spec.selector", "")];
        assert_eq!(
            Status::invalid("apps", "Deployment", "x", &e).message,
            "Deployment.apps \"x\" is invalid: spec.selector: Required value"
        );
    }
}
