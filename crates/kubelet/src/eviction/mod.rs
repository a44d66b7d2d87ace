//! Node pressure: while the node runs short of memory, disk or processes it says so, takes no pods that it need not
//! take, removes unused images, and ends pods one by one, as upstream's eviction manager does with hard thresholds.

mod observe;
mod rank;
mod thresholds;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use parking_lot::Mutex;
use skiff_client::EventType;

pub(crate) use self::thresholds::Pressure;
pub use self::thresholds::{EvictionThresholds, ThresholdError};
use self::{rank::Candidate, thresholds::Signal};
use crate::{images::garbage, kubelet::Kubelet, names, pod::PodExt, status::Failure};

/// How often the node is looked at, upstream's.
const PERIOD: Duration = Duration::from_secs(10);
/// How long an evicted pod is waited for before the next look.
const CLEANUP: Duration = Duration::from_secs(30);
/// What an evicted pod's containers get to end, seconds.
pub(crate) const GRACE_S: i64 = 1;

/// How much there is of something, in bytes or pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) available: i64,
    pub(crate) capacity: i64,
}

/// What the node is short of.
#[derive(Default)]
pub(crate) struct Eviction {
    /// When each pressure was last seen.
    seen: Mutex<BTreeMap<Pressure, Instant>>,
    /// As told: pressures last a while after they were seen last.
    current: Mutex<Vec<Pressure>>,
}

impl Eviction {
    pub(crate) fn has(&self, pressure: Pressure) -> bool {
        self.current.lock().contains(&pressure)
    }

    /// Whether the pod may begin here.
    pub(crate) fn admit(&self, pod: &Pod) -> Result<(), Failure> {
        rank::admit(pod, &self.current.lock())
    }

    /// Notes the pressures that are there now; whether what is told changed.
    fn note(&self, now: &[Pressure], transition: Duration) -> bool {
        let mut seen = self.seen.lock();
        for pressure in now {
            seen.insert(*pressure, Instant::now());
        }
        seen.retain(|_, at| at.elapsed() < transition);
        let told: Vec<Pressure> =
            Pressure::ALL.into_iter().filter(|p| now.contains(p) || seen.contains_key(p)).collect();
        let mut current = self.current.lock();
        std::mem::replace(&mut *current, told.clone()) != told
    }
}

/// Watches over the node for ever.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    if kubelet.config.eviction_hard.0.is_empty() {
        return;
    }
    let images_dir = kubelet.runtime.image_filesystem().await.ok().flatten().map(PathBuf::from);
    loop {
        match synchronize(&kubelet, images_dir.as_deref()).await {
            Some(evicted) => wait_for(&kubelet, &evicted).await,
            None => tokio::time::sleep(PERIOD).await,
        }
    }
}

async fn wait_for(kubelet: &Kubelet, pod: &Pod) {
    let deadline = Instant::now() + CLEANUP;
    let runs = || kubelet.pods.get(&pod.uid()).is_some_and(|h| h.view.borrow().anything_runs());
    while runs() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // What it used is given back a little later than it ends.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// One look; the pod that was evicted.
async fn synchronize(kubelet: &Arc<Kubelet>, images_dir: Option<&std::path::Path>) -> Option<Arc<Pod>> {
    let look = || observe::observe(&kubelet.config.root_dir, images_dir, kubelet.capacity.memory_bytes);
    let seen = look();
    let met = |seen: &BTreeMap<Signal, Observation>| {
        let thresholds = kubelet.config.eviction_hard.0.iter();
        let is_met =
            |t: &&thresholds::Threshold| seen.get(&t.signal).is_some_and(|s| s.available < t.quantity(s.capacity));
        thresholds.filter(is_met).copied().collect::<Vec<_>>()
    };
    let short = met(&seen);
    let pressures: Vec<Pressure> = short.iter().map(|t| t.signal.pressure()).collect();
    if kubelet.eviction.note(&pressures, kubelet.config.eviction_pressure_transition) {
        kubelet.node_changed.notify_one();
    }
    let threshold = *short.first()?;
    let resource = threshold.signal.resource();
    tracing::warn!(signal = %threshold.signal, "the node is short of {resource}");
    kubelet.recorder.event(
        node_reference(kubelet),
        EventType::Warning,
        "EvictionThresholdMet",
        format!("Attempting to reclaim {resource}"),
    );
    if threshold.signal.pressure() == Pressure::Disk {
        garbage::remove_unused(kubelet, None).await;
        if !met(&look()).iter().any(|t| t.signal.pressure() == Pressure::Disk) {
            return None;
        }
    }
    let mut candidates = candidates(kubelet, threshold.signal).await;
    rank::rank(threshold.signal, &mut candidates);
    let chosen = candidates.into_iter().find(|c| !rank::is_critical(&c.pod))?;
    let failure = rank::failure(&chosen, &threshold, seen[&threshold.signal]);
    kubelet.pod_warning(&chosen.pod, "Evicted", &failure.message);
    if let Some(handle) = kubelet.pods.get(&chosen.pod.uid()) {
        handle.evict(failure);
    }
    Some(chosen.pod)
}

pub(crate) fn node_reference(kubelet: &Kubelet) -> ObjectReference {
    // As upstream: the kubelet knows its node by name only.
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(kubelet.config.node_name.clone()),
        uid: Some(kubelet.config.node_name.clone()),
        ..ObjectReference::default()
    }
}

/// The pods that run, with what they use.
async fn candidates(kubelet: &Arc<Kubelet>, signal: Signal) -> Vec<Candidate> {
    let stats = match kubelet.runtime.container_stats().await {
        Ok(stats) => stats,
        Err(error) => {
            tracing::warn!(%error, "cannot see what containers use");
            Vec::new()
        }
    };
    let handles = kubelet.pods.all();
    let running = handles.into_iter().filter(|h| h.eviction().is_none() && h.view.borrow().anything_runs());
    let pods: Vec<Arc<Pod>> = running.map(|h| h.pod()).filter(|p| !p.is_terminal() && !p.is_deleting()).collect();
    let on_disk = signal.pressure() == Pressure::Disk;
    let inodes = signal.resource() == "inodes";
    let measured = pods.into_iter().map(|pod| {
        let uid = pod.uid();
        let mut usage = Vec::new();
        for stats in &stats {
            let Some(attributes) = &stats.attributes else { continue };
            if attributes.labels.get(names::POD_UID).map(String::as_str) != Some(uid.as_str()) {
                continue;
            }
            let Some(name) = attributes.labels.get(names::CONTAINER_NAME) else { continue };
            let value = |v: Option<&skiff_cri::v1::UInt64Value>| v.map_or(0, |v| i64::try_from(v.value).unwrap_or(0));
            let layer = stats.writable_layer.as_ref();
            usage.push((
                name.clone(),
                match signal {
                    Signal::MemoryAvailable => value(stats.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref())),
                    Signal::PidAvailable => 0,
                    _ if inodes => value(layer.and_then(|l| l.inodes_used.as_ref())),
                    _ => value(layer.and_then(|l| l.used_bytes.as_ref())),
                },
            ));
        }
        let dirs = [
            kubelet.config.pod_dir(uid.as_str()),
            kubelet.config.pod_log_dir(pod.namespace(), pod.name(), uid.as_str()),
        ];
        (pod, usage, dirs)
    });
    let measured: Vec<_> = measured.collect();
    let counted = tokio::task::spawn_blocking(move || {
        let each = measured.into_iter().map(|(pod, mut usage, dirs)| {
            if on_disk {
                let used = dirs.iter().map(|d| observe::disk_usage(d)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                usage.push((String::new(), if inodes { used.1 } else { used.0 }));
            }
            Candidate { pod, usage }
        });
        each.collect()
    });
    counted.await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressures_last_for_the_transition_period() {
        let eviction = Eviction::default();
        assert!(!eviction.note(&[], Duration::from_secs(300)));
        assert!(eviction.note(&[Pressure::Disk], Duration::from_secs(300)));
        assert!(!eviction.note(&[], Duration::from_secs(300)));
        assert!(eviction.has(Pressure::Disk));
        std::thread::sleep(Duration::from_millis(2));
        assert!(eviction.note(&[], Duration::from_millis(1)));
        assert!(!eviction.has(Pressure::Disk));
    }
}
