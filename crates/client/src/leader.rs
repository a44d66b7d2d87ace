//! Leader election on a Lease, as client-go does it: of several servers one runs the controllers.
//!
//! Guarantee: two do not lead at the same time as long as their clocks run at about the same rate. Times
//! in the Lease are never compared with the local clock; a candidate waits until it has seen the Lease
//! unchanged for a whole lease duration. The leader stops after the (shorter) renew deadline.

use std::{future::Future, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rand::Rng;
use tokio::time::{Instant, sleep, timeout};

/// The components' defaults upstream.
const LEASE_DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Candidates' tries are spread by this part of the period.
const JITTER: f64 = 1.2;

/// The leader could not renew its Lease in time, or lost it to another. Whatever it was doing as the
/// leader has been stopped.
#[derive(Debug, thiserror::Error)]
#[error("{identity} is no longer the leader of {namespace}/{name}")]
pub struct LeadershipLost {
    identity: String,
    namespace: String,
    name: String,
}

/// One candidate.
pub struct LeaderElection {
    leases: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    lease_duration: Duration,
    renew_deadline: Duration,
    retry_period: Duration,
    /// The Lease as last seen, and when its record last changed.
    observed: Option<(Lease, Instant)>,
}

impl LeaderElection {
    /// A candidate called `identity` (unique among the candidates) for the Lease `namespace`/`name`,
    /// with upstream's times: 15 s lease, 10 s to renew, a try every 2 s.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> LeaderElection {
        LeaderElection {
            leases: Api::namespaced(client, namespace),
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: LEASE_DURATION,
            renew_deadline: RENEW_DEADLINE,
            retry_period: RETRY_PERIOD,
            observed: None,
        }
    }

    /// Other times, in this order of size: lease duration > renew deadline > retry period.
    #[must_use]
    pub fn with_times(mut self, lease: Duration, renew: Duration, retry: Duration) -> LeaderElection {
        (self.lease_duration, self.renew_deadline, self.retry_period) = (lease, renew, retry);
        self
    }

    /// Waits to become the leader, then runs `leading` until it ends or the lead is lost. When it ends
    /// by itself the Lease is given up, so that another candidate can take over at once.
    pub async fn run<F: Future>(mut self, leading: impl FnOnce() -> F) -> Result<F::Output, LeadershipLost> {
        while !self.try_acquire_or_renew().await {
            let part = rand::rng().random::<f64>() * JITTER;
            sleep(self.retry_period.mul_f64(1.0 + part)).await;
        }
        tracing::info!(lease = %self.name, identity = %self.identity, "became the leader");
        let result = {
            let leading = std::pin::pin!(leading());
            let renewing = std::pin::pin!(self.renew());
            match futures::future::select(leading, renewing).await {
                futures::future::Either::Left((output, _)) => Some(output),
                futures::future::Either::Right(((), _)) => None,
            }
        };
        match result {
            Some(output) => {
                self.release().await;
                Ok(output)
            }
            None => Err(LeadershipLost { identity: self.identity, namespace: self.namespace, name: self.name }),
        }
    }

    /// Returns when the lead is lost.
    async fn renew(&mut self) {
        loop {
            sleep(self.retry_period).await;
            let deadline = self.renew_deadline;
            let retry = self.retry_period;
            let renewed = timeout(deadline, async {
                while !self.try_acquire_or_renew().await {
                    if self.held_by_another() {
                        return false;
                    }
                    sleep(retry).await;
                }
                true
            });
            if !renewed.await.unwrap_or(false) {
                return;
            }
        }
    }

    fn held_by_another(&self) -> bool {
        self.observed.as_ref().is_some_and(|(lease, _)| holder(lease) != self.identity)
    }

    /// Whether we hold the Lease now.
    async fn try_acquire_or_renew(&mut self) -> bool {
        // The leader's own last write is usually still what is stored.
        if let Some((lease, _)) = &self.observed
            && holder(lease) == self.identity
            && let Ok(lease) = self.leases.replace(&self.name, &PostParams::default(), &self.renewed(lease)).await
        {
            self.observe(lease);
            return true;
        }
        let lease = match self.leases.get_opt(&self.name).await {
            Ok(Some(lease)) => lease,
            Ok(None) => {
                let created = self.leases.create(&PostParams::default(), &self.renewed(&Lease::default())).await;
                return match created {
                    Ok(lease) => {
                        self.observe(lease);
                        true
                    }
                    Err(error) => self.failed("create", &error),
                };
            }
            Err(error) => return self.failed("get", &error),
        };
        let current = holder(&lease).to_owned();
        self.observe(lease);
        let Some((lease, since)) = &self.observed else {
            return false;
        };
        let spec = lease.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).max(self.lease_duration);
        if !current.is_empty() && current != self.identity && since.elapsed() < duration {
            return false;
        }
        match self.leases.replace(&self.name, &PostParams::default(), &self.renewed(lease)).await {
            Ok(lease) => {
                self.observe(lease);
                true
            }
            Err(error) => self.failed("update", &error),
        }
    }

    fn failed(&self, verb: &str, error: &kube::Error) -> bool {
        tracing::debug!(lease = %self.name, identity = %self.identity, %error, "cannot {verb} the lease");
        false
    }

    fn observe(&mut self, lease: Lease) {
        let since = match &self.observed {
            Some((known, since)) if known.spec == lease.spec => *since,
            _ => Instant::now(),
        };
        self.observed = Some((lease, since));
    }

    /// The Lease as it should be with us as the holder.
    fn renewed(&self, lease: &Lease) -> Lease {
        let now = Timestamp::now();
        let old = lease.spec.clone().unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(&self.identity);
        let transitions = old.lease_transitions.unwrap_or(0);
        // The first holder is no transition; any later change of holder is.
        let first = lease.metadata.resource_version.is_none();
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..lease.metadata.clone()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.lease_duration.as_secs().max(1).try_into().unwrap_or(i32::MAX)),
                acquire_time: if ours { old.acquire_time.clone() } else { Some(MicroTime(now)) },
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(if ours || first { transitions } else { transitions + 1 }),
                ..old
            }),
        }
    }

    /// Lets others take over at once. Failing is harmless: they wait for the lease duration.
    async fn release(&self) {
        let Some((lease, _)) = &self.observed else {
            return;
        };
        let now = Some(MicroTime(Timestamp::now()));
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: now.clone(),
            renew_time: now,
            ..lease.spec.clone().unwrap_or_default()
        };
        let lease = Lease { metadata: lease.metadata.clone(), spec: Some(spec) };
        if let Err(error) = self.leases.replace(&self.name, &PostParams::default(), &lease).await {
            self.failed("release", &error);
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or("")
}

#[cfg(test)]
mod tests;
