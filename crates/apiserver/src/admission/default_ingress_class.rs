//! DefaultIngressClass: an Ingress that names no class gets the default one, the newest if there are several.

use serde_json::Value;
use skiff_api::Status;

use super::{Admission, Attributes};
use crate::registry::{CLASS_ANNOTATION, is_default_ingress_class};

pub(super) async fn admit(admission: &Admission, a: &Attributes<'_>, ingress: &mut Value) -> Result<(), Status> {
    if !a.creates("networking.k8s.io", "ingresses")
        || !ingress["spec"]["ingressClassName"].is_null()
        || !ingress["metadata"]["annotations"][CLASS_ANNOTATION].is_null()
    {
        return Ok(());
    }
    let classes = admission.registry.builtin("networking.k8s.io", "ingressclasses");
    let listed = classes.cache.list(&Default::default(), 0, None).await.map_err(Status::internal)?;
    let defaults = listed.objects.iter().map(|o| o.value()).filter(is_default_ingress_class);
    let text = |class: &Value, field: &str| class["metadata"][field].as_str().unwrap_or_default().to_owned();
    let newest = defaults.max_by_key(|c| (text(c, "creationTimestamp"), std::cmp::Reverse(text(c, "name"))));
    if let Some(class) = newest {
        ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}
