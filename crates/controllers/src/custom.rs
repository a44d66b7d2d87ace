//! Custom kinds as the controllers see them that have to do with objects of every kind.

use std::sync::Arc;

use kube::{
    api::Object,
    core::{ApiResource, GroupVersionKind},
};
use serde::{Deserialize, Serialize};
use skiff_client::{Informer, Informers, Selector};

/// What is of interest of a CustomResourceDefinition; its schema is not kept.
pub(crate) type Definition = Object<Spec, Status>;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    group: String,
    scope: String,
    versions: Vec<Version>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Version {
    name: String,
    served: bool,
    storage: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    conditions: Vec<Condition>,
    accepted_names: Names,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Names {
    plural: String,
    kind: String,
}

/// A custom kind that is served.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CustomKind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
}

/// The informer of all definitions.
pub(crate) fn definitions(informers: &Informers) -> Informer<Definition> {
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    informers.select(&ApiResource::from_gvk_with_plural(&gvk, "customresourcedefinitions"), Selector::all())
}

/// The kinds of these definitions that are served, each in one version.
pub(crate) fn kinds(definitions: &[Arc<Definition>]) -> Vec<CustomKind> {
    let mut kinds: Vec<CustomKind> = definitions.iter().filter_map(|d| kind(d)).collect();
    kinds.sort_by(|a, b| (&a.resource.group, &a.resource.plural).cmp(&(&b.resource.group, &b.resource.plural)));
    kinds
}

fn kind(definition: &Definition) -> Option<CustomKind> {
    let status = definition.status.as_ref()?;
    if !status.conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
        return None;
    }
    let spec = &definition.spec;
    let served = || spec.versions.iter().filter(|v| v.served);
    let version = served().find(|v| v.storage).or_else(|| served().next())?;
    let gvk = GroupVersionKind::gvk(&spec.group, &version.name, &status.accepted_names.kind);
    Some(CustomKind {
        resource: ApiResource::from_gvk_with_plural(&gvk, &status.accepted_names.plural),
        namespaced: spec.scope == "Namespaced",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn served_kinds_alone() {
        let definition = |established: &str| -> Arc<Definition> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "as.example.com"},
                    "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "as", "kind": "A"}, "versions": [
                        {"name": "v2", "served": true, "storage": false}, {"name": "v1", "served": true, "storage": true}]},
                    "status": {"acceptedNames": {"plural": "as", "kind": "A"}, "conditions": [{"type": "Established", "status": established}]},
                }))
                .unwrap(),
            )
        };
        assert!(kinds(&[definition("False")]).is_empty());
        let found = kinds(&[definition("True")]);
        assert_eq!((found[0].resource.version.as_str(), found[0].namespaced), ("v1", false));
    }
}
