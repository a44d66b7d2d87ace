//! NetworkPolicies: what pods may receive and send, enforced on the node that a pod runs on.
//!
//! Flow: [`wanted`] turns policies, pods and namespaces into whom and what the pods of this node may talk to;
//! [`ranges`] cuts that into pieces that the kernel's sets take; [`table`] writes the difference to what is there.
//!
//! As common implementations do: connections that are established go on when a policy that would forbid them
//! comes; the node itself reaches its pods and they reach it (probes, the API server on the same node); pods in
//! their node's network are not selected; what is not allowed is dropped silently. A policy sees addresses after
//! destination NAT, so that a rule names pods and their ports, not Services.
//!
//! Without any policy there is no table and nobody watches pods.

mod ranges;
mod table;
mod wanted;

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use skiff_client::{Backoff, Change, Informer, Informers, Subscription};
use skiff_network::{
    netlink::Socket,
    nft::{self, Family},
};

use self::{table::Written, wanted::wanted};
use crate::proxy::ProxyError;

/// How often it is looked whether somebody else removed the table.
const CHECK_PERIOD: Duration = Duration::from_secs(60);
/// Changes that come together are written together.
const GATHER: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The policies of one node, in the network namespace in which they were opened.
#[derive(Debug)]
pub struct Policies {
    node: String,
    socket: Socket,
    planes: Vec<Plane>,
}

/// The rules of one address family.
#[derive(Debug)]
struct Plane {
    family: Family,
    written: Written,
    /// The kernel has our table, and what we believe to be in it.
    in_step: bool,
}

impl Policies {
    /// Writes nothing yet. `families`: those that pods have addresses of.
    pub fn open(node: impl Into<String>, families: &[Family]) -> Result<Self, ProxyError> {
        let plane = |family: &Family| Plane { family: *family, written: Written::default(), in_step: false };
        Ok(Self { node: node.into(), socket: nft::socket()?, planes: families.iter().map(plane).collect() })
    }

    /// Brings the rules in line, in one atomic batch for each family.
    ///
    /// # Errors
    /// The rules of the family stay as they were; the next call writes everything anew.
    pub fn apply(
        &mut self,
        policies: &[Arc<NetworkPolicy>],
        pods: &[Arc<Pod>],
        namespaces: &[Arc<Namespace>],
    ) -> Result<(), ProxyError> {
        if policies.is_empty() {
            return self.remove();
        }
        for plane in &mut self.planes {
            let wanted = wanted(plane.family, &self.node, policies, pods, namespaces);
            if plane.in_step && plane.written.is(&wanted) {
                continue;
            }
            let mut batch = table::batch(plane.family);
            let written = std::mem::take(&mut plane.written).write(plane.family, wanted, plane.in_step, &mut batch);
            plane.in_step = false;
            batch.commit(&mut self.socket)?;
            plane.written = written;
            plane.in_step = true;
        }
        Ok(())
    }

    /// Whether the tables are still there. If they are not, the next [`apply`](Self::apply) writes them.
    pub fn check(&mut self) -> Result<bool, ProxyError> {
        let mut intact = true;
        for plane in &mut self.planes {
            let tables = nft::tables(&mut self.socket, plane.family)?;
            plane.in_step &= tables.iter().any(|name| name == table::TABLE);
            intact &= plane.in_step;
        }
        Ok(intact)
    }

    /// Removes all rules.
    pub fn remove(&mut self) -> Result<(), ProxyError> {
        for plane in &mut self.planes {
            plane.in_step = false;
            plane.written = Written::default();
            let mut batch = table::batch(plane.family);
            batch.delete_table();
            batch.commit(&mut self.socket)?;
        }
        Ok(())
    }
}

/// Keeps the rules in line with the API until the informers end.
pub async fn follow_policies(policies: Policies, informers: Informers) {
    let objects = informers.informer::<NetworkPolicy>();
    objects.wait_synced().await;
    let mut changes = objects.subscribe();
    let mut driver = Driver { policies: Some(policies), objects, backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY) };
    loop {
        if !driver.objects.is_empty() {
            match driver.enforce(&informers, &mut changes).await {
                Some(()) => continue,
                None => return,
            }
        }
        // What an earlier life left is taken away, too.
        let retry = driver.settle(|policies| policies.remove()).await;
        tokio::select! {
            change = changes.recv() => if change.is_none() {
                return;
            },
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

struct Driver {
    /// Absent only while a blocking thread has them.
    policies: Option<Policies>,
    objects: Informer<NetworkPolicy>,
    backoff: Backoff,
}

impl Driver {
    /// While there are policies. `None` when an informer ended.
    async fn enforce(&mut self, informers: &Informers, changes: &mut Subscription<NetworkPolicy>) -> Option<()> {
        let (pods, namespaces) = (informers.informer::<Pod>(), informers.informer::<Namespace>());
        pods.wait_synced().await;
        namespaces.wait_synced().await;
        let (mut of_pods, mut of_namespaces) = (pods.subscribe(), namespaces.subscribe());
        while !self.objects.is_empty() {
            let (objects, pods, namespaces) = (self.objects.list(), pods.list(), namespaces.list());
            let retry = self.settle(move |policies| policies.apply(&objects, &pods, &namespaces)).await;
            let mut changed = false;
            while !changed {
                tokio::select! {
                    change = changes.recv() => changed = change.map(|_| true)?,
                    change = of_namespaces.recv() => changed = change.map(|_| true)?,
                    change = of_pods.recv() => changed = is_news(&change?),
                    () = tokio::time::sleep(retry.unwrap_or(CHECK_PERIOD)) => {
                        changed = retry.is_some() || !self.intact().await;
                    }
                }
            }
            tokio::time::sleep(GATHER).await;
            while let Some(change) = changes.recv().now_or_never() {
                change?;
            }
            while let Some(change) = of_namespaces.recv().now_or_never() {
                change?;
            }
            while let Some(change) = of_pods.recv().now_or_never() {
                change?;
            }
        }
        Some(())
    }

    /// After which time to try again, if it failed.
    async fn settle(
        &mut self,
        work: impl FnOnce(&mut Policies) -> Result<(), ProxyError> + Send + 'static,
    ) -> Option<Duration> {
        let error = match self.with(work).await {
            Some(Err(error)) => error,
            _ => {
                self.backoff.reset();
                return None;
            }
        };
        let delay = self.backoff.next_delay();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(%error, cause, ?delay, "network policies are out of date; trying again");
        Some(delay)
    }

    async fn intact(&mut self) -> bool {
        match self.with(Policies::check).await {
            Some(Ok(intact)) => intact,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot look at the rules of network policies");
                true
            }
            None => true,
        }
    }

    /// Large batches take the kernel a while, in which other tasks go on. `None` if the runtime is shutting down.
    async fn with<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Policies) -> T + Send + 'static) -> Option<T> {
        let mut policies = self.policies.take()?;
        let worked = tokio::task::spawn_blocking(move || {
            let result = work(&mut policies);
            (policies, result)
        });
        let (policies, result) = worked.await.ok()?;
        self.policies = Some(policies);
        Some(result)
    }
}

/// Pods report much that policies do not care about.
fn is_news(change: &Change<Pod>) -> bool {
    match change {
        Change::Applied { old: Some(old), new } => wanted::facts_differ(old, new),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
