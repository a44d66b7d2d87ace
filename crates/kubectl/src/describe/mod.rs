//! `kubectl describe`: a text for each kind, and a generic one for those that have none.

mod access;
mod autoscaling;
mod config;
mod containers;
mod generic;
mod network;
mod network_policy;
mod node;
mod pod;
mod storage;
mod text;
mod volumes;
mod workloads;

use serde_json::Value;

use self::text::{Text, line};
use crate::{
    cli::Cli,
    discovery::Resource,
    error::Result,
    rest::query,
    targets::{Item, Selectors},
    time,
};

/// What a description is made with.
pub(crate) struct Describer<'a> {
    cli: &'a Cli,
    /// Whether events are shown.
    pub(crate) events: bool,
}

impl<'a> Describer<'a> {
    pub(crate) fn new(cli: &'a Cli, events: bool) -> Describer<'a> {
        Describer { cli, events }
    }

    /// The text of an object.
    pub(crate) async fn describe(&self, item: &Item) -> Result<String> {
        let object = &item.object;
        let mut text = Text::default();
        let w = &mut text;
        match (item.resource.group.as_str(), item.resource.kind.as_str()) {
            ("", "Pod") => pod::pod(w, object),
            ("", "Node") => node::node(self, w, object).await?,
            ("", "Service") => network::service(self, w, object).await?,
            ("", "Endpoints") => network::endpoints(w, object),
            ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(w, object),
            ("networking.k8s.io", "Ingress") => network::ingress(self, w, object).await?,
            ("networking.k8s.io", "IngressClass") => network::ingress_class(w, object),
            ("networking.k8s.io", "NetworkPolicy") => return Ok(network_policy::network_policy(object)),
            ("apps", "Deployment") => workloads::deployment(self, w, object).await?,
            ("apps", "ReplicaSet") => workloads::replica_set(self, w, object).await?,
            ("", "ReplicationController") => workloads::replication_controller(self, w, object).await?,
            ("apps", "StatefulSet") => workloads::stateful_set(self, w, object).await?,
            ("apps", "DaemonSet") => workloads::daemon_set(self, w, object).await?,
            ("batch", "Job") => workloads::job(w, object),
            ("batch", "CronJob") => workloads::cron_job(w, object),
            ("", "ConfigMap") => config::config_map(w, object),
            ("", "Secret") => return Ok(config::secret(object)),
            ("", "Namespace") => return config::namespace(self, object).await,
            ("", "ResourceQuota") => return Ok(config::quota(object)),
            ("", "LimitRange") => return Ok(config::limit_range(object)),
            ("", "ServiceAccount") => access::service_account(w, object),
            ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => return Ok(access::role(object)),
            ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => return Ok(access::binding(object)),
            ("", "PersistentVolume") => storage::persistent_volume(w, object),
            ("", "PersistentVolumeClaim") => storage::claim(self, w, object).await?,
            ("storage.k8s.io", "StorageClass") => storage::class(w, object),
            ("policy", "PodDisruptionBudget") => autoscaling::disruption_budget(w, object),
            ("scheduling.k8s.io", "PriorityClass") => autoscaling::priority_class(w, object),
            ("autoscaling", "HorizontalPodAutoscaler") => {
                autoscaling::horizontal_pod_autoscaler(w, &self.version_two(item).await?)
            }
            _ => generic::object(w, object),
        }
        if self.events {
            let mut events = self.events_of(object, str(&object["metadata"]["uid"])).await?;
            if item.resource.kind == "Node" && item.resource.group.is_empty() {
                // The kubelet knows its node by name only.
                events.extend(self.events_of(object, item.name()).await?);
            }
            describe_events(w, events);
        }
        Ok(text.finish())
    }

    /// An autoscaler as `autoscaling/v2` has it, which the text is made of.
    async fn version_two(&self, item: &Item) -> Result<Value> {
        if item.resource.version == "v2" {
            return Ok(item.object.clone());
        }
        let path = item.path().replace("/autoscaling/v1/", "/autoscaling/v2/");
        self.cli.rest()?.get(&path).await
    }

    async fn events_of(&self, object: &Value, uid: &str) -> Result<Vec<Value>> {
        let metadata = &object["metadata"];
        let fields = format!(
            "involvedObject.name={},involvedObject.namespace={},involvedObject.kind={},involvedObject.uid={uid}",
            str(&metadata["name"]),
            str(&metadata["namespace"]),
            str(&object["kind"]),
        );
        let path = match str(&metadata["namespace"]) {
            // Events of what is in no namespace are looked for in all.
            "" => "/api/v1/events".to_owned(),
            namespace => format!("/api/v1/namespaces/{namespace}/events"),
        };
        let list = self.cli.rest()?.get(&format!("{path}{}", query(&[("fieldSelector", &fields)]))).await?;
        Ok(array(&list["items"]).to_vec())
    }

    /// Objects of a built-in resource.
    async fn list(&self, name: &str, namespace: Option<&str>, labels: &str, fields: &str) -> Result<Vec<Value>> {
        let resource: &Resource = self.cli.resource(name).await?;
        let selectors = Selectors { labels: labels.to_owned(), fields: fields.to_owned() };
        Ok(self.cli.list(resource, namespace, &selectors).await?.1)
    }

    /// How many pods of an owner are running, waiting, succeeded and failed.
    async fn pod_statuses(&self, owner: &Value, selector: &str) -> Result<String> {
        let pods = self.list("pods", owner["metadata"]["namespace"].as_str(), selector, "").await?;
        let uid = &owner["metadata"]["uid"];
        let of = |phase: &str| {
            let own = pods.iter().filter(|pod| controller(pod).is_some_and(|owner| owner["uid"] == *uid));
            own.filter(|pod| pod["status"]["phase"] == phase).count()
        };
        Ok(format!(
            "{} Running / {} Waiting / {} Succeeded / {} Failed",
            of("Running"),
            of("Pending"),
            of("Succeeded"),
            of("Failed")
        ))
    }
}

/// The last part of most descriptions.
fn describe_events(w: &mut Text, mut events: Vec<Value>) {
    if events.is_empty() {
        line!(w, 0, "Events:\t<none>");
        return;
    }
    w.flush();
    events.sort_by(|a, b| str(&a["lastTimestamp"]).cmp(str(&b["lastTimestamp"])));
    line!(w, 0, "Events:");
    line!(w, 0, "  Type\tReason\tAge\tFrom\tMessage");
    line!(w, 1, "----\t------\t----\t----\t-------");
    for event in &events {
        let since = |time: &Value| time.as_str().map_or("<unknown>".to_owned(), time::age);
        let first = match event["eventTime"].as_str() {
            Some(_) => since(&event["eventTime"]),
            None => since(&event["firstTimestamp"]),
        };
        let count = int(&event["count"]);
        let age = if event["series"].is_object() {
            let series = &event["series"];
            format!("{} (x{} over {first})", since(&series["lastObservedTime"]), int(&series["count"]))
        } else if count > 1 {
            format!("{} (x{count} over {first})", since(&event["lastTimestamp"]))
        } else {
            first
        };
        let source = match str(&event["source"]["component"]) {
            "" => str(&event["reportingComponent"]),
            component => component,
        };
        let message = str(&event["message"]).trim();
        let message = match str(&event["involvedObject"]["fieldPath"]) {
            "" => message.to_owned(),
            path => format!("{path}: {message}"),
        };
        line!(w, 1, "{}\t{}\t{age}\t{source}\t{message}", str(&event["type"]), str(&event["reason"]));
    }
}

fn str(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A scalar as it is shown.
fn show(value: &Value) -> String {
    crate::print::jsonpath::print(value)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

fn truth(value: &Value) -> &'static str {
    if value == true { "True" } else { "False" }
}

/// `[a b]`, as Go shows a list.
fn go_list(value: &Value) -> String {
    format!("[{}]", array(value).iter().map(show).collect::<Vec<_>>().join(" "))
}

fn joined(value: &Value, separator: &str) -> String {
    array(value).iter().map(show).collect::<Vec<_>>().join(separator)
}

fn date(value: &Value) -> String {
    match value.as_str() {
        Some(time) => time::rfc1123(time),
        None => "Mon, 01 Jan 0001 00:00:00 +0000".to_owned(),
    }
}

/// The keys of a map, sorted.
fn keys(value: &Value) -> Vec<&String> {
    let mut keys: Vec<_> = value.as_object().into_iter().flat_map(|map| map.keys()).collect();
    keys.sort();
    keys
}

/// `a=b,c=d`, or `<none>`.
fn labels(value: &Value) -> String {
    let pairs: Vec<_> = keys(value).into_iter().map(|key| format!("{key}={}", show(&value[key]))).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A structured selector as text; empty if it selects everything.
fn selector(value: &Value) -> String {
    let Ok(mut selector) = skiff_api::selector::LabelSelector::from_value(value) else { return String::new() };
    selector.requirements.sort_by(|a, b| a.key.cmp(&b.key));
    // A single value stands in parentheses where the selector has it in a list.
    selector
        .requirements
        .iter()
        .map(|requirement| {
            let structured = array(&value["matchExpressions"]).iter().any(|e| str(&e["key"]) == requirement.key);
            use skiff_api::selector::Op;
            match (&requirement.op, structured) {
                (Op::In(values), true) => format!("{} in ({})", requirement.key, values.join(",")),
                (Op::NotIn(values), _) => format!("{} notin ({})", requirement.key, values.join(",")),
                _ => skiff_api::selector::LabelSelector { requirements: vec![requirement.clone()] }.to_string(),
            }
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// The owner that controls an object.
fn controller(object: &Value) -> Option<&Value> {
    array(&object["metadata"]["ownerReferences"]).iter().find(|owner| owner["controller"] == true)
}

/// The template of pods of a revision, not aligned.
pub(crate) fn pod_template(template: &Value) -> String {
    let mut text = Text::default();
    containers::template(&mut text, template);
    text.unaligned()
}
