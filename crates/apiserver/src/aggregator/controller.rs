//! Keeps the conditions of aggregated APIs true: asks their servers when something changed that matters to them, and
//! every half minute. Sleeps while there are none.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::join_all;
use serde_json::Value;
use skiff_api::Status;
use tokio::time::Instant;

use super::{GROUP, PLURAL, Remote, availability, local};
use crate::{
    auth::{MASTERS, User},
    cache::{CacheWatch, Signal},
    custom,
    object::{Filter, Object},
    registry::{
        apiregistration::apiservice,
        engine::{Context, Engine, Part},
    },
    request::WriteOptions,
    server::ApiServer,
    subresources::set_condition,
};

/// How often a server is asked though nothing changed.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon a failed check is tried again; twice as long each time, up to [`RESYNC`].
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// When a server is asked next.
struct Plan {
    spec: Value,
    due: Instant,
    failures: u32,
}

/// What happened.
enum Event {
    Services,
    Definitions,
    /// An object that may belong to the Service of this namespace and name.
    Behind(Arc<Object>, String),
    Due,
}

/// Follows all APIServices as long as the server lives.
pub(crate) async fn run(server: Weak<ApiServer>) {
    loop {
        if let Err(error) = follow(&server).await {
            tracing::warn!(%error, "aggregated APIs cannot be followed, trying again");
        }
        if server.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow(weak: &Weak<ApiServer>) -> Result<(), Status> {
    let watched = |group: &'static str, plural: &'static str| {
        weak.upgrade().map(|s| s.engine().registry.builtin(group, plural).cache.clone())
    };
    let (Some(services), Some(definitions), Some(ports), Some(slices)) = (
        watched(GROUP, PLURAL),
        watched(custom::GROUP, custom::PLURAL),
        watched("", "services"),
        watched("discovery.k8s.io", "endpointslices"),
    ) else {
        return Ok(());
    };
    let start = async |cache: &Arc<crate::cache::Cache>| {
        cache.watch_with_initial(Filter::default()).await.map(|(_, watch)| watch).map_err(Status::internal)
    };
    let (mut of_services, mut of_definitions) = (start(&services).await?, start(&definitions).await?);
    // Only while somebody else serves something.
    let mut behind: Option<(CacheWatch, CacheWatch)> = None;
    let mut plans: HashMap<String, Plan> = HashMap::new();
    let mut definitions_changed = true;
    loop {
        let next = {
            let Some(server) = weak.upgrade() else { return Ok(()) };
            if std::mem::take(&mut definitions_changed)
                && let Err(error) = local::follow_custom(server.engine()).await
            {
                tracing::warn!(%error, "the APIServices of custom kinds cannot be written");
            }
            let next = look(&server, &mut plans).await?;
            if plans.is_empty() {
                behind = None;
            } else if behind.is_none() {
                behind = Some((start(&ports).await?, start(&slices).await?));
            }
            next
        };
        let event = wait(&mut of_services, &mut of_definitions, behind.as_mut(), next).await;
        match event {
            // A watch that ended is begun anew, with everything looked at.
            None => return Ok(()),
            Some(Event::Definitions) => definitions_changed = true,
            Some(Event::Behind(object, name)) => {
                for plan in plans.values_mut() {
                    let service = &plan.spec["service"];
                    if service["namespace"] == *object.namespace && service["name"] == *name {
                        (plan.due, plan.failures) = (Instant::now(), 0);
                    }
                }
            }
            Some(Event::Services | Event::Due) => {}
        }
    }
}

/// The next thing that happens; `None` when a watch has ended.
async fn wait(
    services: &mut CacheWatch,
    definitions: &mut CacheWatch,
    behind: Option<&mut (CacheWatch, CacheWatch)>,
    next: Option<Instant>,
) -> Option<Event> {
    let of_behind = async {
        let Some((ports, slices)) = behind else { return std::future::pending().await };
        loop {
            let (signal, is_slice) = tokio::select! {
                signal = ports.recv() => (signal?, false),
                signal = slices.recv() => (signal?, true),
            };
            let Signal::Change(change, _) = signal else { continue };
            let object = change.object.clone();
            let name = match is_slice {
                true => object.label("kubernetes.io/service-name").unwrap_or_default().to_owned(),
                false => object.name.to_string(),
            };
            return Some(Event::Behind(object, name));
        }
    };
    let changed = async |watch: &mut CacheWatch| loop {
        if let Signal::Change(..) = watch.recv().await? {
            return Some(());
        }
    };
    let due = async {
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        event = changed(services) => event.map(|()| Event::Services),
        event = changed(definitions) => event.map(|()| Event::Definitions),
        event = of_behind => event,
        () = due => Some(Event::Due),
    }
}

/// Asks all servers whose time has come; when the next one's comes is returned.
async fn look(server: &Arc<ApiServer>, plans: &mut HashMap<String, Plan>) -> Result<Option<Instant>, Status> {
    let (engine, aggregator) = (server.engine(), server.aggregator());
    let remotes = aggregator.remotes(&engine.registry).await?;
    plans.retain(|name, _| remotes.iter().any(|(_, r)| r.name == *name));
    aggregator.documents().retain(&remotes.iter().map(|(_, r)| r.name.as_str()).collect::<Vec<_>>());
    let now = Instant::now();
    let mut asked = Vec::new();
    for (_, remote) in remotes.iter() {
        let plan = plans.get(&remote.name).filter(|plan| plan.spec == remote.spec);
        if plan.is_none_or(|plan| plan.due <= now) {
            asked.push(settle(server, remote));
        }
    }
    for (remote, passed) in join_all(asked).await {
        let before = plans.get(&remote.name).filter(|p| p.spec == remote.spec).map_or(0, |p| p.failures);
        let failures = if passed { 0 } else { before + 1 };
        let wait = match failures {
            0 => RESYNC,
            n => (FIRST_RETRY * 2_u32.saturating_pow(n.min(16) - 1)).min(RESYNC),
        };
        let plan = Plan { spec: remote.spec.clone(), due: Instant::now() + wait, failures };
        plans.insert(remote.name.clone(), plan);
    }
    Ok(plans.values().map(|p| p.due).min())
}

/// Asks one server and writes down what was found; whether it passed is returned.
async fn settle<'a>(server: &Arc<ApiServer>, remote: &'a Arc<Remote>) -> (&'a Arc<Remote>, bool) {
    let (engine, documents) = (server.engine(), server.aggregator().documents());
    let found = availability::check(&engine.registry, remote).await;
    let passed = found.discovered.is_some();
    match found.discovered {
        Some((list, openapi)) => documents.keep(&remote.name, &list, openapi),
        None => documents.age(&remote.name),
    }
    if let Err(error) = write(engine, &remote.name, &found.condition).await {
        tracing::warn!(%error, name = remote.name, "the status of an APIService cannot be written");
    }
    (remote, passed)
}

async fn write(engine: &Engine, name: &str, condition: &Value) -> Result<(), Status> {
    let resource = engine.registry.builtin(GROUP, PLURAL);
    let change = |old: &Value| {
        let mut new = old.clone();
        let mut condition = condition.clone();
        // The time is that of the change from one to the other.
        if let Some(before) = apiservice::available(old).filter(|c| c["status"] == condition["status"]) {
            condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
        set_condition(&mut new, condition);
        Ok(new)
    };
    let user = User::known("system:kube-aggregator", &[MASTERS]);
    let options = WriteOptions { past_hooks: true, ..WriteOptions::default() };
    let cx = Context { user: &user, options: &options };
    match engine.update(&cx, resource, "", name, Part::Status, "status", &change).await {
        Err(e) if e.code == 404 => Ok(()),
        other => other.map(drop),
    }
}
