//! What becomes of a definition: its names are accepted or refused, it is established, and when it goes, its objects
//! go first.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::Status;

use super::{GROUP, PLURAL};
use crate::{
    auth::{MASTERS, User},
    cache::{Seen, Signal},
    object::{Filter, Object},
    registry::engine::{Context, DeleteOptions, Engine, Part},
    request::{ListOptions, WriteOptions},
    server::ApiServer,
};

pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// How often a definition that is going looks whether its objects are gone, beside being told.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Whether a condition of a definition holds.
pub(crate) fn is_true(definition: &Value, condition: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == condition && c["status"] == "True")
}

fn set_condition(definition: &mut Value, ty: &str, status: bool, reason: &str, message: &str) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let status = if status { "True" } else { "False" };
    let conditions = &mut definition["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let wanted = |since: &Value| json!({"lastTransitionTime": since, "message": message, "reason": reason, "status": status, "type": ty});
    match list.iter_mut().find(|c| c["type"] == ty) {
        Some(c) if c["status"] == status => *c = wanted(&c["lastTransitionTime"].clone()),
        Some(c) => *c = wanted(&now.into()),
        None => list.push(wanted(&now.into())),
    }
}

/// Marks a definition whose deletion was asked for.
pub(crate) fn mark_terminating(definition: &mut Value) {
    let finalizers = &mut crate::object::meta_mut(definition).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == FINALIZER)
    {
        list.push(FINALIZER.into());
    }
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set_condition(definition, "Terminating", true, "InstanceDeletionPending", message);
}

/// The status that a definition deserves, beside all others of its group.
fn judged(definition: &Value, others: &[Value]) -> Value {
    let names = &definition["spec"]["names"];
    let mut taken = HashSet::new();
    let mut taken_kinds = HashSet::new();
    for other in others {
        let accepted = &other["status"]["acceptedNames"];
        let mut take = |v: &Value| taken.extend(v.as_str().filter(|s| !s.is_empty()).map(str::to_owned));
        take(&accepted["plural"]);
        take(&accepted["singular"]);
        accepted["shortNames"].as_array().into_iter().flatten().for_each(&mut take);
        for field in ["kind", "listKind"] {
            taken_kinds.extend(accepted[field].as_str().filter(|s| !s.is_empty()).map(str::to_owned));
        }
    }
    let mut accepted = definition["status"]["acceptedNames"].clone();
    let mut conflict = None;
    let mut check = |field: &str, reason: &'static str, in_use: &HashSet<String>| {
        let given = &names[field];
        let texts: Vec<&str> = match given {
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            other => other.as_str().into_iter().collect(),
        };
        match texts.iter().find(|t| in_use.contains(**t)) {
            Some(name) => conflict = Some((reason, format!("{name:?} is already in use"))),
            None if given.is_null() => drop(accepted.as_object_mut().and_then(|m| m.shift_remove(field))),
            None => accepted[field] = given.clone(),
        }
    };
    check("plural", "PluralConflict", &taken);
    check("singular", "SingularConflict", &taken);
    check("shortNames", "ShortNamesConflict", &taken);
    check("kind", "KindConflict", &taken_kinds);
    check("listKind", "ListKindConflict", &taken_kinds);
    if names["categories"].is_array() {
        accepted["categories"] = names["categories"].clone();
    }
    let mut new = definition.clone();
    match conflict {
        None => {
            new["status"]["acceptedNames"] = accepted;
            set_condition(&mut new, "NamesAccepted", true, "NoConflicts", "no conflicts found");
            let message = "the initial names have been accepted";
            set_condition(&mut new, "Established", true, "InitialNamesAccepted", message);
        }
        Some((reason, message)) => {
            set_condition(&mut new, "NamesAccepted", false, reason, &message);
            // Whoever was established stays it under the names that he has.
            if !is_true(definition, "Established") {
                set_condition(&mut new, "Established", false, "NotAccepted", "not all names are accepted");
            }
        }
    }
    new
}

/// Follows all definitions as long as the server lives.
pub(crate) async fn run(server: Weak<ApiServer>) {
    let cleaning = Arc::new(Mutex::new(HashSet::new()));
    loop {
        let Some(cache) = server.upgrade().map(|s| s.engine().registry.builtin(GROUP, PLURAL).cache.clone()) else {
            return;
        };
        let (listed, mut watch) = match cache.watch_with_initial(Filter::default()).await {
            Ok(started) => started,
            Err(error) => {
                tracing::warn!(%error, "definitions cannot be read, trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        for object in listed.objects {
            concern(&server, &object, &cleaning).await;
        }
        while let Some(signal) = watch.recv().await {
            let Signal::Change(change, seen) = signal else { continue };
            if seen == Seen::Deleted {
                // Others may have waited for its names.
                for object in cache.peek_all() {
                    concern(&server, &object, &cleaning).await;
                }
            } else {
                concern(&server, &change.object, &cleaning).await;
            }
        }
    }
}

async fn concern(server: &Weak<ApiServer>, object: &Arc<Object>, cleaning: &Arc<Mutex<HashSet<String>>>) {
    let Some(server) = server.upgrade() else { return };
    let definition = object.value();
    let name = object.name.to_string();
    if definition["metadata"]["deletionTimestamp"].is_null() {
        if let Err(error) = judge(server.engine(), &name, &definition).await {
            tracing::warn!(%error, name, "the status of a definition cannot be written");
        }
        return;
    }
    let uid = object.uid.to_string();
    if !cleaning.lock().insert(uid.clone()) {
        return;
    }
    let cleaning = cleaning.clone();
    tokio::spawn(async move {
        let mut backoff = LOOK_AGAIN;
        while let Err(error) = clean(server.engine(), &name).await {
            tracing::warn!(%error, name, "the objects of a definition cannot be deleted, trying again");
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(Duration::from_secs(30));
        }
        cleaning.lock().remove(&uid);
    });
}

fn system() -> User {
    User::known("system:apiserver", &[MASTERS])
}

/// Nobody is asked about what becomes of a definition.
fn own_options() -> WriteOptions {
    WriteOptions { past_hooks: true, ..WriteOptions::default() }
}

async fn write_status(engine: &Engine, name: &str, change: &(dyn Fn(&Value) -> Value + Sync)) -> Result<(), Status> {
    let (user, options) = (system(), own_options());
    let cx = Context { user: &user, options: &options };
    let resource = engine.registry.builtin(GROUP, PLURAL);
    let done = engine.update(&cx, resource, "", name, Part::Whole, "status", &|old| Ok(change(old))).await;
    match done {
        Err(e) if e.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

async fn judge(engine: &Engine, name: &str, definition: &Value) -> Result<(), Status> {
    let all = engine.registry.builtin(GROUP, PLURAL).cache.peek_all();
    let group = &definition["spec"]["group"];
    let others: Vec<Value> =
        all.iter().filter(|o| *o.name != *name).map(|o| o.value()).filter(|o| o["spec"]["group"] == *group).collect();
    if judged(definition, &others)["status"] == definition["status"] {
        return Ok(());
    }
    write_status(engine, name, &|old| judged(old, &others)).await
}

/// Deletes all objects of a definition that is going, and lets it go when they are gone.
async fn clean(engine: &Engine, name: &str) -> Result<(), Status> {
    let definitions = engine.registry.builtin(GROUP, PLURAL);
    let object = match engine.get(definitions, "", name).await {
        Err(e) if e.code == 404 => return Ok(()),
        other => other?,
    };
    let definition = object.value();
    let has = definition["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == FINALIZER));
    if !has {
        return Ok(());
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&definition["spec"]["group"]), text(&definition["status"]["acceptedNames"]["plural"]));
    engine.registry.definitions.settle(&definitions.cache).await?;
    if let Some(resource) = engine.registry.definitions.resource(&group, &plural) {
        let message = "CustomResource deletion is in progress";
        write_status(engine, name, &|old| {
            let mut new = old.clone();
            set_condition(&mut new, "Terminating", true, "InstanceDeletionInProgress", message);
            new
        })
        .await?;
        let (user, options) = (system(), own_options());
        let cx = Context { user: &user, options: &options };
        loop {
            engine.delete_collection(&cx, &resource, &ListOptions::default(), &DeleteOptions::default()).await?;
            resource.cache.fresh().await.map_err(|e| crate::registry::engine::cache_status(&e))?;
            if resource.cache.is_empty() {
                break;
            }
            // Finalizers of others hold them.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    write_status(engine, name, &|old| {
        let mut new = old.clone();
        set_condition(&mut new, "Terminating", false, "InstanceDeletionCompleted", "removed all instances");
        if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| f != FINALIZER);
        }
        new
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &str) -> Value {
        json!({"metadata": {"name": plural}, "spec": {"names": {"plural": plural, "kind": kind, "listKind": format!("{kind}List"), "shortNames": [short]}}})
    }

    #[test]
    fn names_are_given_once() {
        let first = judged(&definition("as", "A", "a"), &[]);
        assert!(is_true(&first, "Established") && is_true(&first, "NamesAccepted"));
        assert_eq!(first["status"]["acceptedNames"]["plural"], "as");
        let second = judged(&definition("bs", "B", "a"), &[first]);
        assert!(!is_true(&second, "Established"));
        let condition = &second["status"]["conditions"][0];
        assert_eq!(
            (&condition["reason"], &condition["message"]),
            (&json!("ShortNamesConflict"), &json!("\"a\" is already in use"))
        );
        // A judgement that changes nothing changes no time either.
        assert_eq!(judged(&second, &[judged(&definition("as", "A", "a"), &[])]), second);
    }
}
