//! The resources that the server has, and which of them a name means.

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    rest::Rest,
};

/// Requests at once.
const PARALLEL: usize = 32;

/// A resource of a version of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) verbs: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether the group prefers this version.
    pub(crate) preferred: bool,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`.
    pub(crate) fn full_plural(&self) -> String {
        with_group(&self.plural, &self.group)
    }

    /// `pod`, `deployment.apps`: how what was done names its object.
    pub(crate) fn full_kind(&self) -> String {
        with_group(&self.kind.to_lowercase(), &self.group)
    }

    /// `Pod`, `Deployment.apps`: how some messages name a kind.
    pub(crate) fn full_kind_name(&self) -> String {
        with_group(&self.kind, &self.group)
    }

    /// Where its objects are.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let version = self.api_version();
        match namespace.filter(|namespace| self.namespaced && !namespace.is_empty()) {
            Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{version}/{}", self.plural),
        }
    }

    /// Where one object is.
    pub(crate) fn object_path(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}/{}", self.path(namespace), crate::rest::escape(name))
    }

    /// The type of its objects in the table of types, if it is built in.
    pub(crate) fn type_name(&self) -> Option<String> {
        let kind = skiff_api::kinds::by_kind(&self.group, &self.version, &self.kind)?;
        Some(kind.type_name())
    }

    fn is_called(&self, name: &str) -> bool {
        self.plural == name || self.singular == name || self.kind.to_lowercase() == name
    }

    fn is_called_for_short(&self, name: &str) -> bool {
        self.short_names.iter().any(|short| short == name)
    }
}

fn with_group(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// All that the server has, in its order.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) resources: Vec<Resource>,
    /// `v1`, `apps/v1` …, in the server's order.
    pub(crate) versions: Vec<String>,
}

impl Discovery {
    /// Asks the server.
    pub(crate) async fn load(rest: &Rest) -> Result<Discovery> {
        let groups = rest.get("/apis").await?;
        let mut versions = vec![("v1".to_owned(), true)];
        for group in groups["groups"].as_array().into_iter().flatten() {
            for version in group["versions"].as_array().into_iter().flatten() {
                let name = version["groupVersion"].as_str().unwrap_or_default().to_owned();
                versions.push((name, version == &group["preferredVersion"]));
            }
        }
        let lists = futures::stream::iter(&versions).map(|(version, _)| async move {
            let path = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
            match rest.get(&path).await {
                // An aggregated API whose server is away takes nothing from the others.
                Err(Error::Status(_)) => Ok(Value::Null),
                other => other,
            }
        });
        let lists: Vec<Value> = lists.buffered(PARALLEL).try_collect().await?;
        let mut resources = Vec::new();
        for ((version, preferred), list) in versions.iter().zip(&lists) {
            for item in list["resources"].as_array().into_iter().flatten() {
                resources.extend(read(version, *preferred, item));
            }
        }
        Ok(Discovery { resources, versions: versions.into_iter().map(|(version, _)| version).collect() })
    }

    /// The resource that `name`, `name.group` or `name.version.group` means.
    pub(crate) fn find(&self, text: &str) -> Result<&Resource> {
        let wanted = text.to_lowercase();
        if let Some(found) = self.named(&wanted, None, None) {
            return Ok(found);
        }
        let (name, rest) = wanted.split_once('.').unwrap_or((&wanted, ""));
        if !rest.is_empty() {
            if let Some((version, group)) = rest.split_once('.')
                && let Some(found) = self.named(name, Some(version), Some(group))
            {
                return Ok(found);
            }
            // `pods.v1.` and `deployments.v1` have no group behind the version, `deployments.apps` no version.
            let found = self.named(name, None, Some(rest)).or_else(|| self.named(name, Some(rest), Some("")));
            if let Some(found) = found {
                return Ok(found);
            }
            return Err(Error::text(format!("the server doesn't have a resource type {text:?}")));
        }
        Err(Error::text(format!("the server doesn't have a resource type {text:?}")))
    }

    fn named(&self, name: &str, version: Option<&str>, group: Option<&str>) -> Option<&Resource> {
        let fits = |resource: &&Resource| {
            group.is_none_or(|group| resource.group == group)
                && version.map_or(resource.preferred, |version| resource.version == version)
        };
        let by_name = self.resources.iter().filter(fits).find(|resource| resource.is_called(name));
        by_name.or_else(|| self.resources.iter().filter(fits).find(|resource| resource.is_called_for_short(name)))
    }

    /// The resource of an object's `apiVersion` and `kind`.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.kind == kind && resource.api_version() == api_version)
    }

    /// The resources of a category such as `all`.
    pub(crate) fn category(&self, name: &str) -> Vec<&Resource> {
        let of = |resource: &&Resource| resource.preferred && resource.categories.iter().any(|of| of == name);
        self.resources.iter().filter(of).collect()
    }
}

fn read(version: &str, preferred: bool, item: &Value) -> Option<Resource> {
    let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
    let list = |field: &str| -> Vec<String> {
        let texts = item[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let plural = text("name");
    if plural.contains('/') {
        return None;
    }
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let singular = match text("singularName") {
        name if name.is_empty() => text("kind").to_lowercase(),
        name => name,
    };
    Some(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: text("kind"),
        singular,
        short_names: list("shortNames"),
        categories: list("categories"),
        verbs: list("verbs"),
        namespaced: item["namespaced"] == true,
        preferred,
        plural,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn discovery() -> Discovery {
        let resource = |version: &str, preferred, plural: &str, kind: &str, short: &str| {
            let item = json!({"name": plural, "kind": kind, "namespaced": true, "shortNames": [short]});
            read(version, preferred, &item).unwrap()
        };
        Discovery {
            resources: vec![
                resource("v1", true, "pods", "Pod", "po"),
                resource("v1", true, "events", "Event", "ev"),
                resource("apps/v1", true, "deployments", "Deployment", "deploy"),
                resource("autoscaling/v2", true, "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa"),
                resource("autoscaling/v1", false, "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa"),
                resource("events.k8s.io/v1", true, "events", "Event", "ev"),
            ],
            versions: Vec::new(),
        }
    }

    #[test]
    fn names_of_all_forms() {
        let discovery = discovery();
        let version = |name: &str| discovery.find(name).map(|found| format!("{} {}", found.api_version(), found.kind));
        for (name, found) in [
            ("pods", "v1 Pod"),
            ("Pod", "v1 Pod"),
            ("deploy", "apps/v1 Deployment"),
            ("deployments.apps", "apps/v1 Deployment"),
            ("deployments.v1.apps", "apps/v1 Deployment"),
            ("hpa", "autoscaling/v2 HorizontalPodAutoscaler"),
            ("hpa.v1.autoscaling", "autoscaling/v1 HorizontalPodAutoscaler"),
            ("events", "v1 Event"),
            ("events.events.k8s.io", "events.k8s.io/v1 Event"),
        ] {
            assert_eq!(version(name).unwrap(), found, "{name}");
        }
        let unknown = version("foo").unwrap_err().message();
        assert_eq!(unknown, "error: the server doesn't have a resource type \"foo\"");
    }
}
