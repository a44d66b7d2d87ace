//! The ReplicaSets of a Deployment and their revisions.

use serde_json::Value;

/// The sets that a Deployment controls, the oldest first.
pub(crate) fn owned<'a>(sets: &'a [Value], deployment: &Value) -> Vec<&'a Value> {
    let uid = &deployment["metadata"]["uid"];
    let is_own = |set: &&Value| {
        let mut owners = set["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.any(|owner| owner["controller"] == true && owner["uid"] == *uid)
    };
    let mut own: Vec<&Value> = sets.iter().filter(is_own).collect();
    own.sort_by_key(|set| set["metadata"]["creationTimestamp"].as_str().unwrap_or_default());
    own
}

/// The set whose template is the Deployment's.
pub(crate) fn current_set<'a>(sets: &[&'a Value], template: &Value) -> Option<&'a Value> {
    sets.iter().find(|set| without_hash(&set["spec"]["template"]) == *template).copied()
}

/// A set's template as the Deployment has it.
pub(crate) fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.shift_remove("pod-template-hash");
    }
    template
}

/// The revision of a set, or of a Deployment.
pub(crate) fn revision(object: &Value) -> i64 {
    let text = object["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}
