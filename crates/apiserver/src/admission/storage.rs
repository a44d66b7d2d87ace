//! What claims and volumes get and may not do: a class (DefaultStorageClass), protection while they are in use
//! (StorageObjectInUseProtection), and growth where their class allows it (PersistentVolumeClaimResize).

use serde_json::{Value, json};
use skiff_api::{Status, quantity::Quantity};

use super::{Admission, Attributes, Operation};
use crate::registry::is_default_storage_class;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Gives a claim that names no class the default one: the newest, if there are several.
pub(super) async fn default_class(admission: &Admission, a: &Attributes<'_>, claim: &mut Value) -> Result<(), Status> {
    if !a.creates("", "persistentvolumeclaims")
        || !claim["spec"]["storageClassName"].is_null()
        || !claim["metadata"]["annotations"][CLASS_ANNOTATION].is_null()
    {
        return Ok(());
    }
    let classes = admission.registry.builtin("storage.k8s.io", "storageclasses");
    let listed = classes.cache.list(&Default::default(), 0, None).await.map_err(Status::internal)?;
    let defaults = listed.objects.iter().map(|o| o.value()).filter(is_default_storage_class);
    let text = |class: &Value, field: &str| class["metadata"][field].as_str().unwrap_or_default().to_owned();
    let newest = defaults.max_by_key(|c| (text(c, "creationTimestamp"), std::cmp::Reverse(text(c, "name"))));
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// Keeps claims and volumes until nothing uses them any more: controllers take the finalizers away.
pub(super) fn protect(a: &Attributes<'_>, object: &mut Value) {
    let finalizer = match a.resource.plural {
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        "persistentvolumes" => "kubernetes.io/pv-protection",
        _ => return,
    };
    let list = &mut object["metadata"]["finalizers"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// Refuses growth that nobody would carry out.
pub(super) async fn resize(
    admission: &Admission,
    a: &Attributes<'_>,
    claim: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(old) = old.filter(|_| a.operation == Operation::Update && a.subresource.is_empty()) else {
        return Ok(());
    };
    if !a.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let size = |o: &Value| o["spec"]["resources"]["requests"]["storage"].as_str()?.parse::<Quantity>().ok();
    if size(claim) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(a.refuse("Only bound persistent volume claims can be expanded"));
    }
    let name = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
    let classes = admission.registry.builtin("storage.k8s.io", "storageclasses");
    let class = classes.cache.get(&classes.key("", name)).await.map_err(Status::internal)?;
    if class.is_some_and(|c| c.value()["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(a.refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}
