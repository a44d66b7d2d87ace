//! What pods and containers use, in the forms that metrics collectors read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_cri::v1;

use super::Failure;
use crate::{kubelet::Kubelet, names};

/// The use of one container.
struct Usage {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    id: String,
    image: String,
    started: Option<Timestamp>,
    cpu_ns: u64,
    cpu_nano_cores: Option<u64>,
    memory_working_set: u64,
    memory_usage: u64,
    memory_rss: u64,
    writable_layer: u64,
    at: i64,
}

fn value(of: Option<&v1::UInt64Value>) -> u64 {
    of.map_or(0, |v| v.value)
}

async fn usages(kubelet: &Kubelet) -> Result<Vec<Usage>, Failure> {
    let stats = kubelet.runtime.container_stats().await.map_err(|e| Failure::internal(e.to_string()))?;
    let image =
        |c: &crate::observed::ObservedContainer| c.status.image.as_ref().map_or(String::new(), |i| i.image.clone());
    let known: BTreeMap<String, (i64, String)> = kubelet
        .pods
        .all()
        .iter()
        .flat_map(|h| {
            let view = h.view.borrow();
            view.containers.iter().map(|c| (c.id().to_owned(), (c.status.started_at, image(c)))).collect::<Vec<_>>()
        })
        .collect();
    Ok(stats
        .into_iter()
        .filter_map(|stats| {
            let attributes = stats.attributes?;
            let label = |name: &str| attributes.labels.get(name).cloned();
            let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
            Some(Usage {
                namespace: label(names::POD_NAMESPACE)?,
                pod: label(names::POD_NAME)?,
                uid: label(names::POD_UID)?,
                container: label(names::CONTAINER_NAME)?,
                started: known.get(&attributes.id).and_then(|(s, _)| crate::pod::timestamp(*s)),
                image: known.get(&attributes.id).map_or(String::new(), |(_, image)| image.clone()),
                id: attributes.id.clone(),
                cpu_ns: value(cpu.usage_core_nano_seconds.as_ref()),
                cpu_nano_cores: cpu.usage_nano_cores.as_ref().map(|v| v.value),
                memory_working_set: value(memory.working_set_bytes.as_ref()),
                memory_usage: value(memory.usage_bytes.as_ref()),
                memory_rss: value(memory.rss_bytes.as_ref()),
                writable_layer: stats.writable_layer.map_or(0, |l| value(l.used_bytes.as_ref())),
                at: cpu.timestamp,
            })
        })
        .collect())
}

/// Seconds of CPU and bytes of memory that the whole node uses: those of the cgroup that the kubelet sees as the root,
/// which on a node of a local cluster is the node's own and elsewhere the machine's.
fn node_usage(kubelet: &Kubelet) -> (f64, i64) {
    let (cpu, memory) = super::node_cgroup::usage(std::path::Path::new("/sys/fs/cgroup"));
    let cpu = cpu.map_or_else(machine_cpu_seconds, |ns| ns as f64 / 1e9);
    let memory = memory.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or_else(|| machine_memory(kubelet));
    (cpu, memory)
}

fn machine_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = stat
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1).enumerate())
        // All but idle and iowait; guest time is in user time already.
        .filter(|(i, _)| ![3, 4, 8, 9].contains(i))
        .filter_map(|(_, n)| n.parse::<u64>().ok())
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / per_second as f64
}

fn machine_memory(kubelet: &Kubelet) -> i64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find(|l| l.starts_with("MemAvailable:"));
    let available: i64 = available.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0) << 10;
    (kubelet.capacity.memory_bytes - available).max(0)
}

/// How full the pods' volumes are, of those whose drivers say it, by the pods' UIDs.
async fn volumes(kubelet: &Kubelet) -> BTreeMap<String, Vec<Value>> {
    let of_pods = kubelet.pods.all().into_iter().map(|handle| async move {
        let pod = handle.pod();
        let mounted = kubelet.csi.mounted_by(&handle.uid);
        let asked = mounted.iter().map(|(name, volume)| kubelet.csi.stats(&pod, name, volume));
        let told: Vec<Value> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        (handle.uid.as_str().to_owned(), told)
    });
    futures::future::join_all(of_pods).await.into_iter().filter(|(_, told)| !told.is_empty()).collect()
}

/// `/stats/summary`.
pub(super) async fn summary(kubelet: &Kubelet) -> Result<Value, Failure> {
    let now = Timestamp::now();
    let time = |at: i64| crate::pod::timestamp(at).unwrap_or(now).to_string();
    let mut pods: BTreeMap<String, (Value, Vec<Value>, u64, u64, u64)> = BTreeMap::new();
    for usage in usages(kubelet).await? {
        let reference = json!({"name": usage.pod, "namespace": usage.namespace, "uid": usage.uid});
        let pod = pods.entry(usage.uid.clone()).or_insert((reference, Vec::new(), 0, 0, 0));
        pod.2 += usage.cpu_ns;
        pod.3 += usage.cpu_nano_cores.unwrap_or(0);
        pod.4 += usage.memory_working_set;
        let mut cpu = json!({"time": time(usage.at), "usageCoreNanoSeconds": usage.cpu_ns});
        if let Some(cores) = usage.cpu_nano_cores {
            cpu["usageNanoCores"] = json!(cores);
        }
        pod.1.push(json!({
            "name": usage.container,
            "startTime": usage.started.map(|s| s.to_string()),
            "cpu": cpu,
            "memory": {
                "time": time(usage.at),
                "workingSetBytes": usage.memory_working_set,
                "usageBytes": usage.memory_usage,
                "rssBytes": usage.memory_rss,
            },
            "rootfs": {"time": time(usage.at), "usedBytes": usage.writable_layer},
        }));
    }
    let (cpu, memory) = node_usage(kubelet);
    let volumes = volumes(kubelet).await;
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|(uid, (reference, containers, cpu_ns, cores, memory))| {
            let mut pod = json!({
                "podRef": reference,
                "startTime": containers.first().map(|c| c["startTime"].clone()),
                "containers": containers,
                "cpu": {"time": now.to_string(), "usageCoreNanoSeconds": cpu_ns, "usageNanoCores": cores},
                "memory": {"time": now.to_string(), "workingSetBytes": memory},
            });
            if let Some(volumes) = volumes.get(&uid) {
                pod["volume"] = json!(volumes);
            }
            pod
        })
        .collect();
    Ok(json!({
        "node": {
            "nodeName": kubelet.config.node_name,
            "startTime": null,
            "cpu": {"time": now.to_string(), "usageCoreNanoSeconds": (cpu * 1e9) as u64},
            "memory": {
                "time": now.to_string(),
                "workingSetBytes": memory,
                "usageBytes": memory,
                "availableBytes": kubelet.capacity.memory_bytes - memory,
            },
        },
        "pods": pods,
    }))
}

/// `/metrics/resource`, which metrics-server reads.
pub(super) async fn resource(kubelet: &Kubelet) -> Result<String, Failure> {
    let usages = usages(kubelet).await?;
    let (cpu, memory) = node_usage(kubelet);
    let now = Timestamp::now().as_millisecond();
    let mut out = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let labels = |u: &Usage| format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", u.container, u.namespace, u.pod);
    let stamp = |u: &Usage| u.at / 1_000_000;
    for u in &usages {
        out.push_str(&format!(
            "container_cpu_usage_seconds_total{{{}}} {} {}\n",
            labels(u),
            u.cpu_ns as f64 / 1e9,
            stamp(u)
        ));
    }
    out.push_str("# TYPE container_memory_working_set_bytes gauge\n");
    for u in &usages {
        out.push_str(&format!(
            "container_memory_working_set_bytes{{{}}} {} {}\n",
            labels(u),
            u.memory_working_set,
            stamp(u)
        ));
    }
    out.push_str("# TYPE container_start_time_seconds gauge\n");
    for u in &usages {
        if let Some(started) = u.started {
            out.push_str(&format!(
                "container_start_time_seconds{{{}}} {}\n",
                labels(u),
                started.as_millisecond() as f64 / 1e3
            ));
        }
    }
    out.push_str(&format!("# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {cpu} {now}\n"));
    out.push_str(&format!(
        "# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {memory} {now}\n"
    ));
    let mut by_pod: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for u in &usages {
        let pod = by_pod.entry((&u.namespace, &u.pod)).or_default();
        pod.0 += u.cpu_ns;
        pod.1 += u.memory_working_set;
    }
    out.push_str("# TYPE pod_cpu_usage_seconds_total counter\n");
    for ((namespace, pod), (cpu, _)) in &by_pod {
        out.push_str(&format!(
            "pod_cpu_usage_seconds_total{{namespace=\"{namespace}\",pod=\"{pod}\"}} {} {now}\n",
            *cpu as f64 / 1e9
        ));
    }
    out.push_str("# TYPE pod_memory_working_set_bytes gauge\n");
    for ((namespace, pod), (_, memory)) in &by_pod {
        out.push_str(&format!(
            "pod_memory_working_set_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} {memory} {now}\n"
        ));
    }
    out.push_str("# TYPE scrape_error gauge\nscrape_error 0\n");
    Ok(out)
}

/// `/metrics/cadvisor`: the series that dashboards ask for most.
pub(super) async fn cadvisor(kubelet: &Kubelet) -> Result<String, Failure> {
    let usages = usages(kubelet).await?;
    let mut out = String::new();
    let series: [(&str, &str, fn(&Usage) -> f64); 6] = [
        ("container_cpu_usage_seconds_total", "counter", |u| u.cpu_ns as f64 / 1e9),
        ("container_memory_usage_bytes", "gauge", |u| u.memory_usage as f64),
        ("container_memory_working_set_bytes", "gauge", |u| u.memory_working_set as f64),
        ("container_memory_rss", "gauge", |u| u.memory_rss as f64),
        ("container_fs_usage_bytes", "gauge", |u| u.writable_layer as f64),
        ("container_start_time_seconds", "gauge", |u| u.started.map_or(0.0, |t| t.as_millisecond() as f64 / 1e3)),
    ];
    out.push_str(&format!(
        "# TYPE machine_cpu_cores gauge\nmachine_cpu_cores {}\n# TYPE machine_memory_bytes gauge\nmachine_memory_bytes {}\n",
        kubelet.capacity.cpu_millis / 1000, kubelet.capacity.memory_bytes
    ));
    for (name, kind, of) in series {
        out.push_str(&format!("# TYPE {name} {kind}\n"));
        for u in &usages {
            let labels = format!(
                "container=\"{}\",id=\"{}\",image=\"{}\",namespace=\"{}\",pod=\"{}\"",
                u.container, u.id, u.image, u.namespace, u.pod
            );
            out.push_str(&format!("{name}{{{labels}}} {}\n", of(u)));
        }
    }
    Ok(out)
}
