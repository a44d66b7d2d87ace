//! Probing running containers. One task for each container that has probes; its findings are in [`Results`].

mod grpc;
pub(crate) mod http;
pub(crate) mod run;
pub(crate) mod tcp;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{MissedTickBehavior, interval_at},
};

use self::run::Outcome;
use crate::{
    kubelet::Kubelet,
    pod::{PodExt, timestamp},
    worker::plan::Verdict,
};

/// How often a probe that could not be made is tried at once again.
const TRIES: usize = 3;

/// The first and the longest pause between probes of a container that has only just begun.
const WARM_UP: Duration = Duration::from_millis(5);
const WARM_UP_LAST: Duration = Duration::from_millis(500);
const WARM_UP_EXEC: Duration = Duration::from_millis(50);

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What is known of a running container by its probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Results {
    started: bool,
    startup_failed: bool,
    liveness_failed: bool,
    ready: bool,
}

/// The probing of one running container; it ends when this is dropped.
pub(crate) struct Probing {
    results: Arc<Mutex<Results>>,
    task: Option<AbortHandle>,
}

impl Drop for Probing {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Probing {
    /// Begins to probe a container. What a container that was adopted was found to be before is believed until
    /// its probes say otherwise: `before` is (started, ready).
    pub(crate) fn start(
        kubelet: &Arc<Kubelet>,
        pod: &Arc<Pod>,
        container: &Container,
        container_id: &str,
        started_at: i64,
        pod_ip: &str,
        before: Option<(bool, bool)>,
    ) -> Probing {
        let (started, ready) = before.unwrap_or((false, false));
        let results = Results {
            started: started || container.startup_probe.is_none(),
            startup_failed: false,
            liveness_failed: false,
            ready: ready || container.readiness_probe.is_none(),
        };
        let results = Arc::new(Mutex::new(results));
        let any = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        let task = any.iter().any(|p| p.is_some()).then(|| {
            let prober = Prober {
                kubelet: kubelet.clone(),
                pod: pod.clone(),
                container: container.clone(),
                container_id: container_id.to_owned(),
                started_at: timestamp(started_at).unwrap_or_else(Timestamp::now),
                pod_ip: pod_ip.to_owned(),
                results: results.clone(),
            };
            tokio::spawn(prober.run()).abort_handle()
        });
        Probing { results, task }
    }

    /// For the plan of what to do.
    pub(crate) fn verdict(&self) -> Verdict {
        let results = *self.results.lock();
        Verdict {
            started: results.started,
            liveness_failed: results.liveness_failed,
            startup_failed: results.startup_failed,
        }
    }

    /// For the status: started, ready.
    pub(crate) fn readiness(&self) -> (bool, bool) {
        let results = *self.results.lock();
        (results.started, results.started && results.ready)
    }
}

struct Prober {
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    container: Container,
    container_id: String,
    started_at: Timestamp,
    pod_ip: String,
    results: Arc<Mutex<Results>>,
}

impl Prober {
    async fn run(self) {
        if let Some(probe) = &self.container.startup_probe
            && !self.results.lock().started
            && !self.watch(Kind::Startup, probe).await
        {
            // It failed: the container is about to be ended.
            return;
        }
        tokio::join!(
            async {
                if let Some(probe) = &self.container.liveness_probe {
                    self.watch(Kind::Liveness, probe).await;
                }
            },
            async {
                if let Some(probe) = &self.container.readiness_probe {
                    self.watch(Kind::Readiness, probe).await;
                }
            }
        );
    }

    /// Probes until there is nothing more to find out. For startup: whether it succeeded.
    async fn watch(&self, kind: Kind, probe: &Probe) -> bool {
        let seconds = |value: Option<i32>, default: u64| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
        let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
        let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
        let success_threshold = seconds(probe.success_threshold, 1).max(1);
        let failure_threshold = seconds(probe.failure_threshold, 3).max(1);
        let age: Duration = Timestamp::now().duration_since(self.started_at).try_into().unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
        if kind == Kind::Liveness {
            // A container that has only just begun is given time to: upstream's first one is in its first period too.
            tokio::time::sleep((delay + period).saturating_sub(age.max(delay))).await;
        } else if success_threshold == 1 && self.warmed_up(kind, probe, period).await {
            self.note(kind, true);
            if kind == Kind::Startup {
                return true;
            }
            tokio::time::sleep(period).await;
        }
        let mut ticks = interval_at(tokio::time::Instant::now(), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut run) = (None, 0);
        loop {
            ticks.tick().await;
            if self.kubelet.is_terminating(&self.pod.uid()) && kind != Kind::Readiness {
                return false;
            }
            let Some(good) = self.probe(kind, probe).await else { continue };
            run = if last == Some(good) { run + 1 } else { 1 };
            last = Some(good);
            if run < if good { success_threshold } else { failure_threshold } {
                continue;
            }
            self.note(kind, good);
            match (kind, good) {
                (Kind::Startup, good) => return good,
                // Nothing helps now but a new container.
                (Kind::Liveness, false) => return false,
                _ => {}
            }
        }
    }

    /// Whether the container answers within its first period. It is asked again and again, so that what is up after
    /// 30 ms need not wait for a second look after ten seconds; upstream looks once and then waits. Failures say only
    /// that the container is still starting, and are neither counted nor told. Commands cost more than requests and
    /// are run in doubling intervals.
    async fn warmed_up(&self, kind: Kind, probe: &Probe, period: Duration) -> bool {
        let exec = probe.exec.is_some();
        let mut pause = if exec { WARM_UP_EXEC } else { WARM_UP };
        // A container that was adopted has been up for long.
        if self.results.lock().ready && kind == Kind::Readiness {
            return false;
        }
        let begun = tokio::time::Instant::now();
        while begun.elapsed() + pause < period && !self.kubelet.is_terminating(&self.pod.uid()) {
            let outcome = run::probe(&self.kubelet, &self.container, &self.container_id, &self.pod_ip, probe).await;
            if outcome == Outcome::Success {
                return true;
            }
            tokio::time::sleep(pause).await;
            pause = if exec { pause * 2 } else { (pause * 2).min(WARM_UP_LAST) };
        }
        false
    }

    fn note(&self, kind: Kind, good: bool) {
        let changed = {
            let mut results = self.results.lock();
            let before = *results;
            match kind {
                Kind::Startup if good => results.started = true,
                Kind::Startup => results.startup_failed = true,
                Kind::Liveness => results.liveness_failed = !good,
                Kind::Readiness => results.ready = good,
            }
            before != *results
        };
        if changed {
            self.kubelet.wake(&self.pod.uid());
        }
    }

    /// Whether the probe succeeded; `None` if that could not be found out.
    async fn probe(&self, kind: Kind, probe: &Probe) -> Option<bool> {
        let mut outcome = Outcome::Unknown(String::new());
        for _ in 0..TRIES {
            outcome = run::probe(&self.kubelet, &self.container, &self.container_id, &self.pod_ip, probe).await;
            if !matches!(outcome, Outcome::Unknown(_)) {
                break;
            }
        }
        let title = kind.title();
        let warn = |reason: &str, message: String| {
            self.kubelet.container_warning(&self.pod, &self.container.name, reason, &message);
        };
        match outcome {
            Outcome::Success => Some(true),
            Outcome::Warning(message) => {
                warn("ProbeWarning", format!("{title} probe warning: {message}"));
                Some(true)
            }
            Outcome::Failure(message) => {
                warn("Unhealthy", format!("{title} probe failed: {message}"));
                Some(false)
            }
            Outcome::Unknown(message) => {
                warn("Unhealthy", format!("{title} probe errored and resulted in unknown state: {message}"));
                None
            }
        }
    }
}
