//! The three groups that metrics come from.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;
use skiff_api::quantity::Quantity;

use super::calculator::{PodMetric, PodMetrics};
use crate::{is_not_found, pods};

/// Asks the API for metrics. Failures are told in upstream's words.
pub(super) struct Metrics(pub(super) kube::Client);

fn millis(value: &Value) -> Option<i64> {
    value.as_str()?.parse::<Quantity>().ok().map(|q| q.millis())
}

/// A time and a window in Go's form, such as `1m5.5s`.
fn window(text: &str) -> Option<SignedDuration> {
    text.parse().ok()
}

fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn query(name: &str, selector: Option<&LabelSelector>) -> String {
    let selector = selector.and_then(pods::compile).map(|s| s.to_string()).filter(|s| !s.is_empty());
    selector.map_or_else(String::new, |s| format!("{name}={}", escaped(&s)))
}

fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl Metrics {
    async fn get(&self, path: &str) -> kube::Result<Value> {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.0.request(request).await
    }

    /// CPU or memory of the selected pods, or of one of their containers.
    pub(super) async fn of_resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<PodMetrics, String> {
        let path =
            format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", escaped(selector));
        let list = self
            .get(&path)
            .await
            .map_err(|e| format!("unable to fetch metrics from resource metrics API: {}", reason(&e)))?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let mut found = PodMetrics::new();
        for item in items {
            let all = item["containers"].as_array().into_iter().flatten();
            let mut wanted = all.filter(|c| container.is_none_or(|name| c["name"] == name)).peekable();
            if wanted.peek().is_none() {
                if let Some(name) = container {
                    let pod = item["metadata"]["name"].as_str().unwrap_or_default();
                    return Err(format!(
                        "failed to get container metrics: container {name} not present in metrics for pod {namespace}/{pod}"
                    ));
                }
                continue;
            }
            // A pod of which a container is not known is not known.
            let Some(value) = wanted.map(|c| millis(&c["usage"][resource])).sum::<Option<i64>>() else { continue };
            let at = item["timestamp"].as_str().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH);
            let window = item["window"].as_str().and_then(window).unwrap_or_default();
            let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            found.insert(name, PodMetric { at, window, value });
        }
        Ok(found)
    }

    async fn custom(&self, path: &str) -> Result<Value, String> {
        let failed = |why: &str| format!("unable to fetch metrics from custom metrics API: {why}");
        for version in ["v1beta2", "v1beta1"] {
            match self.get(&format!("/apis/custom.metrics.k8s.io/{version}/{path}")).await {
                Err(e) if is_not_found(&e) => {}
                answer => return answer.map_err(|e| failed(&reason(&e))),
            }
        }
        Err(failed("no custom metrics API (custom.metrics.k8s.io) registered"))
    }

    /// A metric that each of the selected pods has.
    pub(super) async fn of_pods(
        &self,
        namespace: &str,
        selector: &str,
        metric: &str,
        labels: Option<&LabelSelector>,
    ) -> Result<PodMetrics, String> {
        let more = query("&metricLabelSelector", labels);
        let path = format!("namespaces/{namespace}/pods/*/{metric}?labelSelector={}{more}", escaped(selector));
        let list = self.custom(&path).await?;
        let mut found = PodMetrics::new();
        for item in list["items"].as_array().into_iter().flatten() {
            let Some(value) = millis(&item["value"]) else { continue };
            let at = item["timestamp"].as_str().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH);
            let window = SignedDuration::from_secs(item["windowSeconds"].as_i64().unwrap_or(60));
            let name = item["describedObject"]["name"].as_str().unwrap_or_default().to_owned();
            found.insert(name, PodMetric { at, window, value });
        }
        if found.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        Ok(found)
    }

    /// A metric of one object.
    pub(super) async fn of_object(
        &self,
        namespace: &str,
        resource: &str,
        name: &str,
        metric: &str,
        labels: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let more = query("?metricLabelSelector", labels);
        let path = match resource {
            "namespaces" => format!("namespaces/{name}/metrics/{metric}{more}"),
            _ => format!("namespaces/{namespace}/{resource}/{name}/{metric}{more}"),
        };
        let answer = self.custom(&path).await?;
        let value = answer["items"].get(0).and_then(|i| millis(&i["value"])).or_else(|| millis(&answer["value"]));
        value.ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
    }

    /// The sum of all values of a metric that belongs to nothing in the cluster.
    pub(super) async fn external(
        &self,
        namespace: &str,
        metric: &str,
        labels: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let failed = |why: &str| format!("unable to fetch metrics from external metrics API: {why}");
        let more = query("?labelSelector", labels);
        let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}{more}");
        let list = match self.get(&path).await {
            Err(e) if is_not_found(&e) => {
                let why = "the server could not find the requested resource";
                return Err(failed(&format!("{why} (get {metric}.external.metrics.k8s.io)")));
            }
            answer => answer.map_err(|e| failed(&reason(&e)))?,
        };
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(items.iter().filter_map(|i| millis(&i["value"])).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_queries() {
        assert_eq!(window("10.25s"), Some(SignedDuration::from_millis(10_250)));
        assert_eq!(window("1m0s"), Some(SignedDuration::from_secs(60)));
        let labels =
            LabelSelector { match_labels: Some([("a".to_owned(), "b".to_owned())].into()), ..LabelSelector::default() };
        assert_eq!(query("?labelSelector", Some(&labels)), "?labelSelector=a%3Db");
        assert_eq!(query("?labelSelector", None), "");
    }
}
