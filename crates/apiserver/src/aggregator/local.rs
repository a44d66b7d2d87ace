//! APIServices of what this server serves itself: so that all groups are listed in one place.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use serde_json::{Value, json};
use skiff_api::{Kind, Status, kinds::KINDS};

use super::{GROUP, PLURAL};
use crate::{
    auth::{MASTERS, User},
    registry::engine::{Context, DeleteOptions, Engine},
    request::WriteOptions,
};

/// Says that an APIService comes from here: made once at the start, or kept in step with a custom kind.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Priorities of built-in groups, upstream's; the version's is 15 unless it is said here.
const PRIORITIES: [(&str, i64); 20] = [
    ("", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("apiextensions.k8s.io", 16700),
    ("admissionregistration.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("resource.k8s.io", 15900),
];
/// Those of custom kinds.
const CUSTOM: (i64, i64) = (1000, 100);
/// Of a group that is an add-on elsewhere.
const OTHERS: i64 = 100;

/// How far in front a group of this server's own is listed.
pub(crate) fn group_priority(kind: &Kind) -> i64 {
    match kind.is_custom() {
        true => CUSTOM.0,
        false if kind.group == GROUP => i64::MAX,
        false => PRIORITIES.iter().find(|(g, _)| *g == kind.group).map_or(OTHERS, |(_, p)| *p),
    }
}

/// How far in front a version of this server's own is listed within its group.
pub(crate) fn version_priority(kind: &Kind) -> i64 {
    match (kind.group, kind.version) {
        _ if kind.is_custom() => CUSTOM.1,
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", _) => 21,
        _ => 15,
    }
}

fn object(kind: &Kind) -> Value {
    let managed = if kind.is_custom() { "true" } else { "onstart" };
    let mut spec = json!({
        "version": kind.version, "groupPriorityMinimum": group_priority(kind), "versionPriority": version_priority(kind),
    });
    if !kind.group.is_empty() {
        spec["group"] = kind.group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name(kind), "labels": {MANAGED: managed}},
        "spec": spec,
    })
}

fn name(kind: &Kind) -> String {
    format!("{}.{}", kind.version, kind.group)
}

/// Makes what is missing for these kinds; whatever has that name stays as it is.
async fn ensure(engine: &Engine, kinds: impl Iterator<Item = &Kind>) -> Result<(), Status> {
    let resource = engine.registry.builtin(GROUP, PLURAL);
    let mut seen = BTreeSet::new();
    let missing: Vec<Value> = kinds
        // Its own group needs no service, as upstream's.
        .filter(|k| k.group != GROUP && seen.insert(name(k)))
        .filter(|k| resource.cache.peek(&resource.key("", &name(k))).is_none())
        .map(object)
        .collect();
    let (user, options) = own();
    let cx = Context { user: &user, options: &options };
    // All at once: the store commits them together.
    let made = missing.into_iter().map(|object| async {
        match engine.create(&cx, resource, "", object).await {
            Err(e) if e.reason != "AlreadyExists" => Err(e),
            _ => Ok(()),
        }
    });
    try_join_all(made).await.map(|_| ())
}

fn own() -> (User, WriteOptions) {
    // What the server does on its own account is nobody's to refuse.
    (User::known("system:apiserver", &[MASTERS]), WriteOptions { past_hooks: true, ..WriteOptions::default() })
}

/// Registers the built-in groups.
pub(crate) async fn register(engine: &Engine) -> Result<(), Status> {
    engine.registry.builtin(GROUP, PLURAL).cache.fresh().await.map_err(Status::internal)?;
    ensure(engine, KINDS.iter()).await
}

/// Brings the services of custom kinds into step with the kinds that there are.
pub(super) async fn follow_custom(engine: &Engine) -> Result<(), Status> {
    let kinds = engine.registry.kinds().await?;
    ensure(engine, kinds.iter().copied().filter(|k| k.is_custom())).await?;
    let wanted: BTreeSet<String> = kinds.iter().map(|k| name(k)).collect();
    let resource = engine.registry.builtin(GROUP, PLURAL);
    let (user, options) = own();
    let cx = Context { user: &user, options: &options };
    for service in resource.cache.peek_all() {
        if service.label(MANAGED) != Some("true") || wanted.contains(&*service.name) {
            continue;
        }
        match engine.delete(&cx, resource, "", &service.name, &DeleteOptions::default()).await {
            Err(e) if e.code != 404 => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
