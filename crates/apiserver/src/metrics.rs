//! Metrics of the API server in Prometheus' text form.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use parking_lot::Mutex;

use crate::{registry::Registry, request::RequestInfo};

/// Upper bounds of the duration buckets, in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 5.0, 60.0];

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

#[derive(Default)]
struct Counted {
    /// By verb, group, version, resource, subresource, scope and code.
    requests: BTreeMap<(String, String, String, String, String, &'static str, u16), u64>,
    /// By verb, group, version, resource, subresource, scope.
    durations: BTreeMap<(String, String, String, String, String, &'static str), Durations>,
}

/// What has been counted since the start.
#[derive(Default)]
pub struct Metrics {
    counted: Mutex<Counted>,
}

impl Metrics {
    /// Counts a request that was answered.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        // Names of resources that are not served would let anybody grow this without bound.
        if code == 404
            && info.is_resource
            && skiff_api::kinds::by_resource(&info.group, &info.version, &info.resource).is_none()
        {
            return;
        }
        let scope = if !info.is_resource {
            ""
        } else if !info.name.is_empty() {
            "resource"
        } else if !info.namespace.is_empty() {
            "namespace"
        } else {
            "cluster"
        };
        let verb = info.verb.to_ascii_uppercase();
        let key =
            (verb, info.group.clone(), info.version.clone(), info.resource.clone(), info.subresource.clone(), scope);
        let mut counted = self.counted.lock();
        let (v, g, ver, r, s, sc) = key.clone();
        *counted.requests.entry((v, g, ver, r, s, sc, code)).or_default() += 1;
        if info.verb == "watch" {
            return;
        }
        let durations = counted.durations.entry(key).or_default();
        let seconds = took.as_secs_f64();
        durations.sum += seconds;
        durations.count += 1;
        for (bucket, bound) in durations.buckets.iter_mut().zip(BUCKETS) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self, registry: &Registry) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = self.write(&mut out, registry);
        out
    }

    fn write(&self, out: &mut String, registry: &Registry) -> std::fmt::Result {
        let counted = self.counted.lock();
        writeln!(
            out,
            "# HELP apiserver_request_total Counter of apiserver requests broken out for each verb, group, version, resource, scope and HTTP response code."
        )?;
        writeln!(out, "# TYPE apiserver_request_total counter")?;
        for ((verb, group, version, resource, sub, scope, code), n) in &counted.requests {
            writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"{sub}\",verb=\"{verb}\",version=\"{version}\"}} {n}"
            )?;
        }
        writeln!(
            out,
            "# HELP apiserver_request_duration_seconds Response latency distribution in seconds for each verb, group, version, resource, subresource and scope."
        )?;
        writeln!(out, "# TYPE apiserver_request_duration_seconds histogram")?;
        for ((verb, group, version, resource, sub, scope), d) in &counted.durations {
            let labels = format!(
                "component=\"apiserver\",dry_run=\"\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"{sub}\",verb=\"{verb}\",version=\"{version}\""
            );
            for (n, bound) in d.buckets.iter().zip(BUCKETS) {
                writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {n}")?;
            }
            writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", d.count)?;
            writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {}", d.sum)?;
            writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {}", d.count)?;
        }
        writeln!(
            out,
            "# HELP apiserver_storage_objects Number of stored objects at the time of last check split by kind."
        )?;
        writeln!(out, "# TYPE apiserver_storage_objects gauge")?;
        let mut resources: Vec<_> = registry.all().map(|r| (r.kind.resource_name(), r.cache.len())).collect();
        resources.sort();
        for (name, n) in resources {
            writeln!(out, "apiserver_storage_objects{{resource=\"{name}\"}} {n}")?;
        }
        Ok(())
    }
}
