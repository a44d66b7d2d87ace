//! Metrics of the API server in Prometheus' text form.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

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

/// What requests are counted by. All of it is static text, so that counting allocates nothing and nobody can make the
/// table grow with names of his own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

impl Labels {
    /// Nothing for what is not served.
    fn of(info: &RequestInfo) -> Option<Labels> {
        const VERBS: [(&str, &str); 10] = [
            ("get", "GET"),
            ("list", "LIST"),
            ("watch", "WATCH"),
            ("create", "CREATE"),
            ("update", "UPDATE"),
            ("patch", "PATCH"),
            ("delete", "DELETE"),
            ("deletecollection", "DELETECOLLECTION"),
            ("post", "POST"),
            ("head", "HEAD"),
        ];
        let verb = VERBS.iter().find(|(v, _)| *v == info.verb).map_or("other", |(_, upper)| upper);
        if !info.is_resource {
            return Some(Labels { verb, group: "", version: "", resource: "", subresource: "", scope: "" });
        }
        let kind = skiff_api::kinds::by_resource(&info.group, &info.version, &info.resource)?;
        let subresource = match info.subresource.as_str() {
            "" => "",
            wanted => kind.subresources.iter().find(|s| **s == wanted)?,
        };
        let scope = if !info.name.is_empty() {
            "resource"
        } else if !info.namespace.is_empty() {
            "namespace"
        } else {
            "cluster"
        };
        let (group, version, resource) = (kind.group, kind.version, kind.plural);
        Some(Labels { verb, group, version, resource, subresource, scope })
    }
}

#[derive(Default)]
struct Counted {
    /// By code as well.
    requests: HashMap<(Labels, u16), u64>,
    durations: HashMap<Labels, Durations>,
}

/// What has been counted since the start.
#[derive(Default)]
pub struct Metrics {
    counted: Mutex<Counted>,
}

impl Metrics {
    /// Counts a request that was answered.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let Some(labels) = Labels::of(info) else { return };
        let mut counted = self.counted.lock();
        *counted.requests.entry((labels, code)).or_default() += 1;
        if labels.verb == "WATCH" {
            return;
        }
        let durations = counted.durations.entry(labels).or_default();
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
        let mut requests: Vec<_> = counted.requests.iter().collect();
        requests.sort_by_key(|(key, _)| **key);
        for ((Labels { verb, group, version, resource, subresource: sub, scope }, code), n) in requests {
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
        let mut durations: Vec<_> = counted.durations.iter().collect();
        durations.sort_by_key(|(key, _)| **key);
        for (Labels { verb, group, version, resource, subresource: sub, scope }, d) in durations {
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
