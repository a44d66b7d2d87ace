//! The controllers, all of one shape on one runtime.
//!
//! Each folder is a controller: `mod.rs` says what it watches, owns and writes and carries out what its
//! `reconcile.rs` decides, a function from observed state to actions with neither clock nor client in it. The queue,
//! the retries and the watches are those of `skiff_client`.

mod attachdetach;
mod certificates;
mod clusterroleaggregation;
mod cronjob;
mod custom;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod ephemeralvolume;
mod expectations;
mod garbagecollector;
mod history;
mod horizontalpodautoscaler;
mod job;
mod localvolumes;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod nodes;
mod podcontrol;
mod podgc;
mod pods;
mod replicaset;
mod serviceaccount;
mod statefulset;
mod ttlafterfinished;
mod volumebinder;
mod volumeprotection;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::ReplicationController};
use skiff_client::Informers;
use skiff_pki::Authority;
use tokio::task::JoinSet;

/// What the controllers are told.
pub struct Config {
    /// The cluster's certificate authority: published to every namespace and used to sign.
    pub authority: Arc<Authority>,
    /// Ranges of the pods' addresses, one of each family with the primary one first, separated by commas; every node
    /// gets a /24, or a /64 of IPv6, of each.
    pub pod_cidr: String,
    /// How long a node may be silent before it counts as lost.
    pub node_monitor_grace_period: Duration,
}

/// How long nodes may be silent unless told otherwise.
pub const NODE_MONITOR_GRACE_PERIOD: Duration = Duration::from_secs(40);

/// A controller's failure; the queue tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what}: {source}")]
    Api {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{0}")]
    Object(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when the API refused.
pub(crate) trait While<T> {
    fn during(self, what: impl Into<String>) -> Result<T>;
}

impl<T> While<T> for kube::Result<T> {
    fn during(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Api { what: what.into(), source: Box::new(source) })
    }
}

/// Whether the API said that there is no such object.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether another writer came first or the object is there already.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Runs all controllers until the future is dropped.
pub async fn run(config: Config, informers: Informers) {
    let mut controllers = JoinSet::new();
    controllers.spawn(deployment::run(informers.clone()));
    controllers.spawn(replicaset::run::<ReplicaSet>(informers.clone()));
    controllers.spawn(replicaset::run::<ReplicationController>(informers.clone()));
    controllers.spawn(statefulset::run(informers.clone()));
    controllers.spawn(daemonset::run(informers.clone()));
    controllers.spawn(job::run(informers.clone()));
    controllers.spawn(disruption::run(informers.clone()));
    controllers.spawn(cronjob::run(informers.clone()));
    controllers.spawn(ttlafterfinished::run(informers.clone()));
    controllers.spawn(horizontalpodautoscaler::run(informers.clone()));
    controllers.spawn(endpointslice::run(informers.clone()));
    controllers.spawn(endpoints::run(informers.clone()));
    controllers.spawn(namespace::run(informers.clone()));
    controllers.spawn(serviceaccount::run(informers.clone(), config.authority.certificate_pem().to_owned()));
    controllers.spawn(nodelifecycle::run(informers.clone(), config.node_monitor_grace_period));
    controllers.spawn(nodeipam::run(informers.clone(), config.pod_cidr));
    controllers.spawn(podgc::run(informers.clone()));
    controllers.spawn(volumebinder::run(informers.clone()));
    controllers.spawn(attachdetach::run(informers.clone()));
    controllers.spawn(volumeprotection::run(informers.clone()));
    controllers.spawn(ephemeralvolume::run(informers.clone()));
    controllers.spawn(localvolumes::run(informers.clone()));
    controllers.spawn(certificates::run(informers.clone(), config.authority));
    controllers.spawn(clusterroleaggregation::run(informers.clone()));
    controllers.spawn(garbagecollector::run(informers));
    while let Some(ended) = controllers.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended");
        }
    }
}

/// A merge patch that makes `old` be `new`: what `new` leaves out is taken away, at any depth.
pub(crate) fn replacement(old: &impl serde::Serialize, new: &impl serde::Serialize) -> serde_json::Value {
    fn erase(patch: &mut serde_json::Value, old: &serde_json::Value) {
        let (Some(patch), Some(old)) = (patch.as_object_mut(), old.as_object()) else { return };
        for (field, value) in old {
            match patch.get_mut(field) {
                Some(now) => erase(now, value),
                None => {
                    patch.insert(field.clone(), serde_json::Value::Null);
                }
            }
        }
    }
    let mut patch = serde_json::to_value(new).unwrap_or_default();
    erase(&mut patch, &serde_json::to_value(old).unwrap_or_default());
    patch
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_replacement_takes_away_what_is_left_out() {
        let (old, new) = (json!({"a": {"b": [1], "c": 2}, "d": 3}), json!({"a": {"c": 2}, "e": {}}));
        assert_eq!(super::replacement(&old, &new), json!({"a": {"b": null, "c": 2}, "d": null, "e": {}}));
    }
}
