//! What expressions of webhooks and policies are given, and their conditions.

use cel::Value as CelValue;
use serde_json::{Value, json};
use skiff_api::Kind;

use super::{Attributes, matching::Asked, view::group_version_kind};
use crate::{cel as expressions, reviews};

/// The names of variables with their values.
pub(super) type Variables = Vec<(&'static str, CelValue)>;

/// What every expression is given about a request that matched in this version.
pub(super) fn of_request(asked: &Asked<'_>, kind: &'static Kind) -> Variables {
    vec![
        ("object", expressions::value(asked.object)),
        ("oldObject", expressions::value(asked.old)),
        ("request", expressions::value(&request(asked.a, kind))),
        ("namespaceObject", expressions::value(asked.namespace)),
    ]
}

fn request(a: &Attributes<'_>, kind: &'static Kind) -> Value {
    let kind_of = |k| {
        let [group, version, kind] = group_version_kind(k, a.subresource);
        json!({"group": group, "version": version, "kind": kind})
    };
    let resource = |k: &Kind| json!({"group": k.group, "version": k.version, "resource": k.plural});
    let requested = a.requested();
    json!({
        "kind": kind_of(kind), "requestKind": kind_of(requested),
        "resource": resource(kind), "requestResource": resource(requested),
        "subResource": a.subresource, "requestSubResource": a.subresource,
        "name": a.name, "namespace": a.hook_namespace(), "operation": a.operation.as_str(), "dryRun": a.dry_run,
        "userInfo": reviews::user_value(a.user), "options": {},
    })
}

/// Whether all `matchConditions` hold; one that does not excuses another's fault.
pub(super) fn conditions(conditions: &Value, variables: &[(&str, CelValue)]) -> Result<bool, String> {
    let mut fault = None;
    for condition in conditions.as_array().into_iter().flatten() {
        let expression = condition["expression"].as_str().unwrap_or_default();
        match expressions::holds(expression, variables) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) => fault = Some(format!("expression '{expression}' resulted in error: {e}")),
        }
    }
    fault.map_or(Ok(true), Err)
}
