//! Which pod, and which container of it, a command works on.

use std::time::Duration;

use serde_json::Value;

use crate::{
    cli::Cli,
    discovery::Resource,
    error::{Error, Result},
    out::tell,
    targets::{Item, Selectors},
};

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// How often pods are looked for that are not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// All containers of a pod, as messages list them.
pub(crate) fn container_names(pod: &Value) -> String {
    let of = |field: &str, suffix: &str| -> Vec<String> {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        containers.map(|c| format!("{}{suffix}", c["name"].as_str().unwrap_or_default())).collect()
    };
    let all = [of("containers", ""), of("ephemeralContainers", " (ephem)"), of("initContainers", " (init)")];
    all.concat().join(", ")
}

/// The names of a pod's containers: those that start it, its own, and those added for debugging.
pub(crate) fn containers(pod: &Value) -> Vec<String> {
    let fields = ["initContainers", "containers", "ephemeralContainers"];
    let all = fields.iter().flat_map(|field| pod["spec"][*field].as_array().into_iter().flatten());
    all.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
}

/// The container named, or the default one; which that is is said, unless `quiet`.
pub(crate) fn container(pod: &Value, wanted: &str, quiet: bool) -> Result<String> {
    let annotation = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str().unwrap_or_default();
    let wanted = if wanted.is_empty() { annotation } else { wanted };
    let all = containers(pod);
    if !wanted.is_empty() {
        return match all.iter().any(|name| name == wanted) {
            true => Ok(wanted.to_owned()),
            false => Err(Error::text(format!(
                "container {wanted} is not valid for pod {} out of: {}",
                pod["metadata"]["name"].as_str().unwrap_or_default(),
                container_names(pod)
            ))),
        };
    }
    let first = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
    if all.len() > 1 && !quiet {
        tell!("Defaulted container {first:?} out of: {}", container_names(pod));
    }
    Ok(first.to_owned())
}

/// The labels of the pods of a workload or a Service, as text.
pub(crate) fn selector_of(item: &Item) -> Result<String> {
    let spec = &item.object["spec"];
    let kind = item.resource.kind.as_str();
    let map = |labels: &Value| -> String {
        let pairs = labels.as_object().into_iter().flatten();
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
    };
    match kind {
        "ReplicationController" => Ok(map(&spec["selector"])),
        "Service" if spec["selector"].as_object().is_none_or(|map| map.is_empty()) => {
            Err(Error::text(format!("invalid service '{}': Service is defined without a selector", item.name())))
        }
        "Service" => Ok(map(&spec["selector"])),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => {
            let selector = skiff_api::selector::LabelSelector::from_value(&spec["selector"]);
            selector.map(|selector| selector.to_string()).map_err(|error| Error::text(error.to_string()))
        }
        kind => Err(Error::text(format!("selector for *v1.{kind} not implemented"))),
    }
}

impl Cli {
    /// The object that `POD` or `TYPE/NAME` names.
    pub(crate) async fn pod_or_owner(&self, text: &str) -> Result<Item> {
        let (kind, name) = text.split_once('/').unwrap_or(("pods", text));
        if kind.is_empty() || name.is_empty() {
            return Err(Error::text("arguments in resource/name form must have a single resource and name"));
        }
        let resource: &Resource = self.resource(kind).await?;
        let namespace = self.namespace()?;
        let path = resource.object_path(Some(&namespace), name);
        let object = self.rest()?.get(&path).await?;
        Ok(Item { resource: resource.clone(), object })
    }

    /// The pods of an object: itself, or those of a workload, the best first. Waits for the first of them.
    pub(crate) async fn pods_of(&self, item: &Item, patience: Duration) -> Result<Vec<Value>> {
        if item.resource.kind == "Pod" {
            return Ok(vec![item.object.clone()]);
        }
        let selectors = Selectors { labels: selector_of(item)?, fields: String::new() };
        let resource = self.resource("pods").await?;
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let (_, mut pods) = self.list(resource, Some(item.namespace()), &selectors).await?;
            if !pods.is_empty() {
                pods.sort_by_key(usefulness);
                return Ok(pods);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::text("timed out waiting for the condition"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// [`Cli::pods_of`] for a connection to one of them; an object without pods cannot be attached to.
    pub(crate) async fn pods_to_reach(&self, item: &Item) -> Result<Vec<Value>> {
        self.pods_of(item, self.pod_patience()?).await.map_err(|error| match error {
            Error::Text(text) if text.contains("not implemented") => {
                Error::text(format!("cannot attach to *v1.{}: {text}", item.resource.kind))
            }
            other => other,
        })
    }

    /// `--pod-running-timeout`.
    pub(crate) fn pod_patience(&self) -> Result<Duration> {
        let wanted = self.flags.duration("pod-running-timeout")?;
        wanted.positive().ok_or_else(|| Error::text("--pod-running-timeout must be higher than zero"))
    }
}

/// Pods that run and are ready come first, and of those the oldest.
fn usefulness(pod: &Value) -> (bool, u8, bool, String) {
    let status = &pod["status"];
    let phase = match status["phase"].as_str() {
        Some("Running") => 0,
        Some("Pending") => 1,
        _ => 2,
    };
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let ready = conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
    (pod["spec"]["nodeName"].is_null(), phase, !ready, created.to_owned())
}
