//! From one version of a custom kind to another.

use serde_json::Value;
use skiff_api::Status;

use crate::registry::{Registry, Resource};

/// The object in this version of its kind.
pub(crate) async fn convert(
    _registry: &Registry,
    resource: &Resource,
    mut value: Value,
    version: &str,
) -> Result<Value, Status> {
    value["apiVersion"] = format!("{}/{version}", resource.kind.group).into();
    Ok(value)
}
