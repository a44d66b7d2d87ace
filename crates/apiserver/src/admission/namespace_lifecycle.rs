//! NamespaceLifecycle: nothing is created in a namespace that is not there or is going, and the namespaces that
//! the system needs stay.

use serde_json::json;
use skiff_api::Status;

use super::{Admission, Attributes, Operation};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses creation in a namespace that is missing or terminating.
pub(super) async fn admit(admission: &Admission, a: &Attributes<'_>) -> Result<(), Status> {
    if a.operation != Operation::Create || !a.resource.namespaced || a.namespace.is_empty() {
        return Ok(());
    }
    let namespaces = admission.registry.builtin("", "namespaces");
    let key = namespaces.key("", &a.namespace);
    let Some(namespace) = namespaces.cache.get(&key).await.map_err(Status::internal)? else {
        return Err(Status::not_found("", "namespaces", &a.namespace));
    };
    // A namespace that is deleted is in this phase from the same write on.
    if namespace.field(namespaces.strategy.selectable, "status.phase") == Some("Terminating") {
        let why = format!("unable to create new content in namespace {} because it is being terminated", a.namespace);
        let mut status = a.refuse(why);
        status.details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {} is being terminated", a.namespace),
            "field": "metadata.namespace",
        }]);
        return Err(status);
    }
    Ok(())
}

/// Refuses to delete the namespaces that the system needs.
pub(super) fn protect(a: &Attributes<'_>) -> Result<(), Status> {
    if a.operation == Operation::Delete && a.is("", "namespaces") && IMMORTAL.contains(&a.name.as_str()) {
        return Err(a.refuse("this namespace may not be deleted"));
    }
    Ok(())
}
