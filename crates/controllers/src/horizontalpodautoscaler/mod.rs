//! HorizontalPodAutoscaler: how many replicas the load of a workload needs.
//!
//! Watches autoscalers; reads pods and the groups of metrics; writes the scale of the targets and the status of the
//! autoscalers. Looks at each autoscaler every 10 seconds, and at once when its spec changes. What it recommended
//! lately is remembered in memory alone.

mod calculator;
mod metrics;
mod reconcile;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus, MetricSpec,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{
        api::resource::Quantity as ApiQuantity,
        apis::meta::v1::{LabelSelector, Time},
    },
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::{kinds::KINDS, quantity::Quantity};
use skiff_client::{Action, Change, Controller, EventRecorder, EventType, Informer, Informers, ObjectKey};

use self::{
    calculator::{PodMetrics, Proposal, Target, Tolerance},
    metrics::Metrics,
    reconcile::{Memory, normalize, set_condition},
};
use crate::{Result, While as _, custom, is_conflict, is_not_found, pods};

/// How often each autoscaler is looked at. Upstream's default of 15 s may answer a load only after 15 s and more; here
/// usage is measured when it is asked for, so that looking more often is also answered with something newer.
const PERIOD: Duration = Duration::from_secs(10);

struct Autoscaler {
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    definitions: Informer<custom::Definition>,
    metrics: Metrics,
    client: kube::Client,
    recorder: EventRecorder,
    memories: Mutex<HashMap<ObjectKey, Memory>>,
}

/// A target's scale, where it was read.
struct Scale {
    path: String,
    object: Value,
    spec: i32,
    status: i32,
    selector: String,
}

/// A metric that could not be had: the reason of the condition and the event, and why.
struct Unknown {
    reason: &'static str,
    why: String,
}

/// What a metric asks for: its name in messages, its status, and how many pods.
struct Asked {
    name: String,
    status: Value,
    replicas: i32,
}

pub(crate) async fn run(informers: Informers) {
    let client = informers.client().clone();
    let this = Arc::new(Autoscaler {
        autoscalers: informers.informer(),
        pods: informers.informer(),
        definitions: custom::definitions(&informers),
        metrics: Metrics(client.clone()),
        recorder: EventRecorder::new(client.clone(), "horizontal-pod-autoscaler", None),
        client,
        memories: Mutex::default(),
    });
    // Its own status is no reason to look again.
    let mapper = |change: &Change<HorizontalPodAutoscaler>| match change {
        Change::Applied { old: Some(old), new } if old.spec == new.spec => None,
        change => Some(ObjectKey::of(&**change.object())),
    };
    Controller::new("horizontalpodautoscaler")
        .workers(4)
        .watch(&this.autoscalers, mapper)
        .reads(&this.pods)
        .reads(&this.definitions)
        .run({
            let this = this.clone();
            move |key| {
                let this = this.clone();
                async move { this.reconcile(key).await }
            }
        })
        .await;
}

fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn quantity(millis: i64) -> String {
    Quantity::from_millis(millis).to_string()
}

fn millis(quantity: Option<&ApiQuantity>) -> Option<i64> {
    quantity.and_then(|q| q.0.parse::<Quantity>().ok()).map(|q| q.millis())
}

impl Autoscaler {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action> {
        let Some(autoscaler) = self.autoscalers.get_key(&key) else {
            self.memories.lock().remove(&key);
            return Ok(Action::Done);
        };
        let mut memory = self.memories.lock().get(&key).cloned().unwrap_or_default();
        let mut status = autoscaler.status.clone().unwrap_or_default();
        self.look(&autoscaler, &mut status, &mut memory, Timestamp::now()).await;
        self.memories.lock().insert(key.clone(), memory);
        if autoscaler.status.as_ref() != Some(&status) {
            let api: Api<HorizontalPodAutoscaler> = Api::namespaced(self.client.clone(), &key.namespace);
            let metadata = json!({"uid": autoscaler.uid()});
            let patch = json!({"metadata": metadata, "status": crate::replacement(&autoscaler.status, &status)});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                written => drop(written.during("writing the status")?),
            }
        }
        Ok(Action::RequeueAfter(PERIOD))
    }

    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: &str) {
        self.recorder.for_object(autoscaler, EventType::Warning, reason, message);
    }

    async fn look(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
        memory: &mut Memory,
        now: Timestamp,
    ) {
        let spec = &autoscaler.spec;
        let namespace = autoscaler.namespace().unwrap_or_default();
        let scale = match self.scale(&namespace, &spec.scale_target_ref).await {
            Ok(scale) => scale,
            Err(why) => {
                self.warn(autoscaler, "FailedGetScale", &why);
                let why = format!("the HPA controller was unable to get the target's current scale: {why}");
                set_condition(status, ("AbleToScale", false, "FailedGetScale".into(), why), now);
                return;
            }
        };
        let got = "the HPA controller was able to get the target's current scale".to_owned();
        set_condition(status, ("AbleToScale", true, "SucceededGetScale".into(), got), now);
        let current = scale.spec;
        memory.begin(current, now);
        let min = spec.min_replicas.unwrap_or(1);
        let mut why = String::new();
        let mut current_metrics = None;
        status.current_replicas = Some(current);
        let wanted = if current == 0 && min != 0 {
            let off = "scaling is disabled since the replica count of the target is zero".to_owned();
            set_condition(status, ("ScalingActive", false, "ScalingDisabled".into(), off), now);
            current
        } else if current > spec.max_replicas {
            why = "Current number of replicas above Spec.MaxReplicas".to_owned();
            spec.max_replicas
        } else if current < min {
            why = "Current number of replicas below Spec.MinReplicas".to_owned();
            min
        } else {
            let metrics = spec.metrics.as_deref().unwrap_or_default();
            let tolerance = reconcile::tolerance(spec);
            match self.ask_all(autoscaler, &namespace, metrics, &scale, tolerance, status, now).await {
                Err(failed) => {
                    self.warn(autoscaler, "FailedComputeMetricsReplicas", &failed);
                    return;
                }
                Ok((asked, name, statuses)) => {
                    current_metrics = Some(statuses);
                    if asked > current {
                        why = format!("{name} above target");
                    } else if asked < current {
                        why = "All metrics below target".to_owned();
                    }
                    let normalized = normalize(spec, current, asked, memory, now);
                    for condition in normalized.conditions {
                        set_condition(status, condition, now);
                    }
                    normalized.replicas
                }
            }
        };
        if wanted != current {
            if let Err(error) = self.rescale(&scale, wanted).await {
                let error = message(&error);
                let text = format!("New size: {wanted}; reason: {why}; error: {error}");
                self.warn(autoscaler, "FailedRescale", &text);
                let text = format!("the HPA controller was unable to update the target scale: {error}");
                set_condition(status, ("AbleToScale", false, "FailedUpdateScale".into(), text), now);
                return;
            }
            let text = format!("the HPA controller was able to update the target scale to {wanted}");
            set_condition(status, ("AbleToScale", true, "SucceededRescale".into(), text), now);
            let text = format!("New size: {wanted}; reason: {why}");
            self.recorder.for_object(autoscaler, EventType::Normal, "SuccessfulRescale", text);
            memory.scaled(current, wanted, now);
            status.last_scale_time = Some(Time(now));
        }
        status.desired_replicas = wanted;
        status.current_metrics = current_metrics.filter(|m: &Vec<_>| !m.is_empty());
    }

    /// The resource of a kind that a reference names, with its group and version.
    fn resource(&self, api_version: &str, kind: &str) -> std::result::Result<(String, String), String> {
        if api_version.matches('/').count() > 1 {
            return Err(format!("unexpected GroupVersion string: {api_version}"));
        }
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        if let Some(found) = KINDS.iter().find(|k| k.group == group && k.kind == kind && k.is_stored()) {
            return Ok((found.api_version(), found.plural.to_owned()));
        }
        let found = custom::kinds(&self.definitions.list())
            .into_iter()
            .find(|k| k.resource.group == group && k.resource.kind == kind);
        match found {
            Some(kind) => Ok((kind.resource.api_version, kind.resource.plural)),
            None => Err(format!("no matches for kind {kind:?} in group {group:?}")),
        }
    }

    async fn scale(&self, namespace: &str, target: &CrossVersionObjectReference) -> std::result::Result<Scale, String> {
        let (api_version, plural) = self.resource(target.api_version.as_deref().unwrap_or_default(), &target.kind)?;
        let root = if api_version.contains('/') { "/apis" } else { "/api" };
        let path = format!("{root}/{api_version}/namespaces/{namespace}/{plural}/{}/scale", target.name);
        let request = http::Request::get(&path).body(Vec::new()).map_err(|e| e.to_string())?;
        let object: Value = self.client.request(request).await.map_err(|e| message(&e))?;
        let number = |value: &Value| i32::try_from(value.as_i64().unwrap_or(0)).unwrap_or(i32::MAX);
        Ok(Scale {
            spec: number(&object["spec"]["replicas"]),
            status: number(&object["status"]["replicas"]),
            selector: object["status"]["selector"].as_str().unwrap_or_default().to_owned(),
            path,
            object,
        })
    }

    async fn rescale(&self, scale: &Scale, replicas: i32) -> kube::Result<()> {
        let mut object = scale.object.clone();
        object["spec"]["replicas"] = replicas.into();
        let request = http::Request::put(&scale.path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(object.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request::<Value>(request).await.map(drop)
    }

    /// What all metrics ask for together: the most that one of them does, its name, and the status of all.
    async fn ask_all(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        namespace: &str,
        metrics: &[MetricSpec],
        scale: &Scale,
        tolerance: Tolerance,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> std::result::Result<(i32, String, Vec<k8s_openapi::api::autoscaling::v2::MetricStatus>), String> {
        let selector = match skiff_api::selector::LabelSelector::parse(&scale.selector) {
            Ok(selector) if !scale.selector.is_empty() => selector,
            parsed => {
                let (event, event_text, text) = match parsed {
                    Ok(_) => (
                        "SelectorRequired",
                        "selector is required".to_owned(),
                        "the HPA target's scale is missing a selector".to_owned(),
                    ),
                    Err(error) => {
                        let text =
                            format!("couldn't convert selector into a corresponding internal selector object: {error}");
                        ("InvalidSelector", text.clone(), text)
                    }
                };
                self.warn(autoscaler, event, &event_text);
                set_condition(status, ("ScalingActive", false, "InvalidSelector".into(), text), now);
                return Err(event_text);
            }
        };
        let mut selected = self.pods.list_namespace(namespace);
        selected.retain(|pod| pods::selects(&selector, &**pod));
        let mut most: Option<(i32, String)> = None;
        let mut statuses = Vec::new();
        let mut first: Option<Unknown> = None;
        let mut unknown = 0;
        for metric in metrics {
            match self.ask(namespace, metric, scale, &selected, tolerance, now).await {
                Ok(asked) => {
                    if let Ok(status) = serde_json::from_value(asked.status) {
                        statuses.push(status);
                    }
                    if most.as_ref().is_none_or(|(replicas, _)| asked.replicas > *replicas) {
                        most = Some((asked.replicas, asked.name));
                    }
                }
                Err(failed) => {
                    self.warn(autoscaler, failed.reason, &failed.why);
                    unknown += 1;
                    first.get_or_insert(failed);
                }
            }
        }
        // Nothing is taken away while a metric is unknown.
        if let Some(first) = first
            && most.as_ref().is_none_or(|(replicas, _)| *replicas < scale.spec)
        {
            let text = format!("the HPA was unable to compute the replica count: {}", first.why);
            set_condition(status, ("ScalingActive", false, first.reason.into(), text), now);
            let count = metrics.len();
            return Err(format!("invalid metrics ({unknown} invalid out of {count}), first error is: {}", first.why));
        }
        let (replicas, name) = most.unwrap_or((scale.spec, String::new()));
        let text = format!("the HPA was able to successfully calculate a replica count from {name}");
        set_condition(status, ("ScalingActive", true, "ValidMetricFound".into(), text), now);
        Ok((replicas, name, statuses))
    }

    async fn ask(
        &self,
        namespace: &str,
        metric: &MetricSpec,
        scale: &Scale,
        selected: &[Arc<Pod>],
        tolerance: Tolerance,
        now: Timestamp,
    ) -> std::result::Result<Asked, Unknown> {
        let of_pods = |metrics: PodMetrics, target: Target<'_>, of_cpu: bool| {
            calculator::replicas_for_pods(scale.spec, selected, metrics, target, of_cpu, tolerance, now)
        };
        let resource = metric.resource.as_ref().map(|r| (&r.name, None, &r.target));
        let container = metric.container_resource.as_ref().map(|r| (&r.name, Some(r.container.as_str()), &r.target));
        if let Some((name, container, target)) = resource.or(container) {
            let reason =
                if container.is_some() { "FailedGetContainerResourceMetric" } else { "FailedGetResourceMetric" };
            let what = if container.is_some() { "container resource" } else { "resource" };
            let calculated = async {
                let metrics = self.metrics.of_resource(namespace, &scale.selector, name, container).await;
                let metrics = metrics.map_err(|e| format!("unable to get metrics for resource {name}: {e}"))?;
                if let Some(average) = millis(target.average_value.as_ref()) {
                    return of_pods(metrics, Target::Average(average), name == "cpu");
                }
                let percent = target.average_utilization.unwrap_or(0);
                let requests = calculator::requests(selected, name, container)?;
                of_pods(metrics, Target::Utilization { percent, requests: &requests }, name == "cpu")
            };
            let failed = |why| {
                let of = if target.average_value.is_some() { "usage" } else { "utilization" };
                Unknown { reason, why: format!("failed to get {name} {of}: {why}") }
            };
            let found: Proposal = calculated.await.map_err(failed)?;
            let mut current = json!({"averageValue": quantity(found.value)});
            let mut metric_name = format!("{name} {what}");
            if let Some(percent) = found.utilization {
                current["averageUtilization"] = percent.into();
                metric_name.push_str(" utilization (percentage of request)");
            }
            let status = match container {
                None => json!({"type": "Resource", "resource": {"name": name, "current": current}}),
                Some(container) => json!({"type": "ContainerResource",
                    "containerResource": {"name": name, "container": container, "current": current}}),
            };
            return Ok(Asked { name: metric_name, status, replicas: found.replicas });
        }
        if let Some(source) = &metric.pods {
            let (name, labels) = (&source.metric.name, source.metric.selector.as_ref());
            let calculated = async {
                let metrics = self.metrics.of_pods(namespace, &scale.selector, name, labels).await;
                let metrics = metrics.map_err(|e| format!("unable to get metric {name}: {e}"))?;
                of_pods(metrics, Target::Average(millis(source.target.average_value.as_ref()).unwrap_or(1)), false)
            };
            let failed =
                |why| Unknown { reason: "FailedGetPodsMetric", why: format!("failed to get pods metric value: {why}") };
            let found = calculated.await.map_err(failed)?;
            let status = json!({"type": "Pods",
                "pods": {"metric": source.metric, "current": {"averageValue": quantity(found.value)}}});
            return Ok(Asked { name: format!("pods metric {name}"), status, replicas: found.replicas });
        }
        if let Some(source) = &metric.object {
            let (name, of) = (&source.metric.name, &source.described_object);
            let failed = |why| Unknown {
                reason: "FailedGetObjectMetric",
                why: format!("failed to get object metric value: {why}"),
            };
            let labels = source.metric.selector.as_ref();
            let value = async {
                let (_, plural) = self.resource(of.api_version.as_deref().unwrap_or_default(), &of.kind)?;
                self.metrics.of_object(namespace, &plural, &of.name, name, labels).await
            };
            let on = format!("{} on {namespace} {}", of.kind, of.name);
            let value = value.await.map_err(|e| failed(format!("unable to get metric {name}: {on}/{e}")))?;
            let average = millis(source.target.average_value.as_ref());
            let (found, field) = match (millis(source.target.value.as_ref()), average) {
                (Some(target), _) => {
                    let ready = calculator::ready(selected).map_err(failed)?;
                    (calculator::replicas_for_value(scale.spec, ready, value, target, tolerance), "value")
                }
                (None, target) => {
                    let target = target.unwrap_or(1);
                    (calculator::replicas_for_share(scale.status, value, target, tolerance), "averageValue")
                }
            };
            let status = json!({"type": "Object", "object":
                {"describedObject": of, "metric": source.metric, "current": {field: quantity(found.value)}}});
            return Ok(Asked { name: format!("{} metric {name}", of.kind), status, replicas: found.replicas });
        }
        let Some(source) = &metric.external else {
            let why = format!("unknown metric source type {:?}", metric.type_);
            return Err(Unknown { reason: "InvalidMetricSourceType", why });
        };
        let (name, labels) = (&source.metric.name, source.metric.selector.as_ref());
        let failed = |why: String| Unknown {
            reason: "FailedGetExternalMetric",
            why: format!("failed to get external metric {name}: {why}"),
        };
        let value = self.metrics.external(namespace, name, labels).await.map_err(|e| {
            failed(format!("unable to get external metric {namespace}/{name}/{}: {e}", go_selector(labels)))
        })?;
        let (found, field) = match (millis(source.target.average_value.as_ref()), millis(source.target.value.as_ref()))
        {
            (Some(target), _) => {
                (calculator::replicas_for_share(scale.status, value, target, tolerance), "averageValue")
            }
            (None, target) => {
                let ready = calculator::ready(selected).map_err(failed)?;
                (calculator::replicas_for_value(scale.spec, ready, value, target.unwrap_or(1), tolerance), "value")
            }
        };
        let status = json!({"type": "External",
            "external": {"metric": source.metric, "current": {field: quantity(found.value)}}});
        let name = format!("external metric {name}({})", go_selector(labels));
        Ok(Asked { name, status, replicas: found.replicas })
    }
}

/// A selector as upstream's messages show it.
fn go_selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels: String =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions: String = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|e| {
            let values = e.values.as_deref().unwrap_or_default().join(" ");
            format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", e.key, e.operator)
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}
