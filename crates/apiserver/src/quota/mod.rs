//! ResourceQuota: what a namespace may take, and what it takes.
//!
//! A create is charged to the quotas that it is about by compare-and-swap on their status, before it is written, so
//! that of many at once only as many pass as there is room for. After every write that may change what is taken, the
//! quotas of its namespace are counted anew, from the watch caches: that gives back what was deleted, and corrects what
//! was charged and then not written. Both are here and not in a controller because the caches are.

mod usage;

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use skiff_api::{Kind, Status, quantity::Quantity};
use skiff_store::{Revision, Txn, TxnOutcome};
use tokio::sync::Notify;

use self::usage::{Amounts, amounts};
use crate::{
    admission::{Attributes, Operation},
    object::{Filter, Object, encode, meta_str, take_revision},
    registry::{
        Resource,
        engine::{Engine, cache_status, store_status},
    },
    server::ApiServer,
};

/// How often a quota is charged that others keep changing.
const MAX_ATTEMPTS: usize = 200;
/// How long after another server's charge its write may come. Later it is counted, or came to nothing.
const OTHERS_WRITE: Duration = Duration::from_secs(1);
/// Writes within this time are counted together.
const GATHER: Duration = Duration::from_millis(25);

/// The namespaces whose quotas are to be counted anew.
#[derive(Default)]
pub struct Quotas {
    changed: Mutex<BTreeSet<String>>,
    wake: Notify,
    /// What was charged for writes that are under way.
    pending: Mutex<Vec<Pending>>,
    next: std::sync::atomic::AtomicU64,
}

/// What was charged to one quota for a write that is under way.
#[derive(Clone)]
struct Pending {
    /// Of the [`Charge`].
    id: u64,
    /// The quota's key in the store.
    quota: Arc<str>,
    write: Write,
    delta: Amounts,
}

/// A write that is charged: of this key, on top of this revision, which is zero for a create.
#[derive(Clone)]
struct Write {
    key: Arc<str>,
    base: Revision,
}

impl Write {
    /// Whether the object is there with this write, or with another one that makes this one fail.
    fn is_in(&self, objects: &[Arc<Object>]) -> bool {
        objects.iter().any(|object| *object.key == *self.key && object.revision > self.base)
    }
}

/// What was charged for one write. Dropped after the write: until then a count adds it to what it finds.
pub struct Charge {
    quotas: Arc<Quotas>,
    id: u64,
    namespace: String,
    /// Whether the write came about. Otherwise the quotas are counted anew.
    kept: bool,
}

impl Charge {
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.quotas.pending.lock().retain(|p| p.id != self.id);
        if !self.kept {
            self.quotas.recount(&self.namespace);
        }
    }
}

impl Quotas {
    /// Tells of a write: `new` is null for a deletion, `old` for a create.
    pub fn wrote(&self, engine: &Engine, kind: &Kind, namespace: &str, old: &Value, new: &Value) {
        if namespace.is_empty() || quotas(engine).cache.is_empty() && kind.plural != "resourcequotas" {
            return;
        }
        // Most updates change nothing of what is taken, above all those of status.
        let same = !old.is_null() && !new.is_null() && {
            if kind.plural == "resourcequotas" {
                old["spec"] == new["spec"] && old["status"] == new["status"]
            } else {
                printed(&usage::usage(kind, old)) == printed(&usage::usage(kind, new))
            }
        };
        if !same {
            self.recount(namespace);
        }
    }

    fn recount(&self, namespace: &str) {
        self.changed.lock().insert(namespace.to_owned());
        self.wake.notify_one();
    }
}

fn quotas(engine: &Engine) -> &Arc<Resource> {
    engine.registry.builtin("", "resourcequotas")
}

/// `cpu=1,memory=1Gi`.
fn printed(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

fn written(amounts: &Amounts) -> Value {
    Value::Object(amounts.iter().map(|(name, q)| (name.clone(), q.to_string().into())).collect::<Map<_, _>>())
}

fn only(amounts: &Amounts, names: &BTreeSet<String>) -> Amounts {
    amounts.iter().filter(|(name, _)| names.contains(*name)).map(|(n, q)| (n.clone(), *q)).collect()
}

/// Whether a write may take more of a quota than before.
fn is_charged(a: &Attributes<'_>) -> bool {
    match a.operation {
        Operation::Create => a.subresource.is_empty(),
        Operation::Update if a.resource.group.is_empty() => match a.resource.plural {
            "pods" => a.subresource == "resize",
            "services" | "persistentvolumeclaims" => a.subresource.is_empty(),
            _ => false,
        },
        _ => false,
    }
}

/// Charges a write to the quotas of its namespace, or refuses it.
pub async fn charge(
    engine: &Engine,
    a: &Attributes<'_>,
    new: &Value,
    old: Option<&Value>,
) -> Result<Option<Charge>, Status> {
    let resource = quotas(engine);
    if a.namespace.is_empty() || !is_charged(a) || resource.cache.is_empty() {
        return Ok(None);
    }
    let filter = Filter { namespace: a.namespace.clone(), ..Filter::default() };
    let all = resource.cache.list(&filter, 0, None).await.map_err(|e| cache_status(&e))?.objects;
    if all.is_empty() {
        return Ok(None);
    }
    let mut delta = usage::usage(a.resource, new);
    for (name, amount) in old.map(|old| usage::usage(a.resource, old)).unwrap_or_default() {
        usage::add(&mut delta, name, Quantity::ZERO - amount);
    }
    delta.retain(|_, amount| !amount.is_zero());
    // All quotas are asked before one is charged.
    for quota in &all {
        decide(a, &quota.value(), new, old, &delta)?;
    }
    if a.dry_run {
        return Ok(None);
    }
    let Some(stored) = engine.registry.stored(a.resource) else { return Ok(None) };
    let write = Write { key: stored.key(&a.namespace, &a.name), base: a.revision.unwrap_or(Revision::ZERO) };
    // What is there cannot be created, and is not charged.
    if a.operation == Operation::Create && stored.cache.get(&write.key).await.map_err(|e| cache_status(&e))?.is_some() {
        return Ok(None);
    }
    let quotas = engine.quotas.clone();
    let id = quotas.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let charge = Charge { quotas, id, namespace: a.namespace.clone(), kept: false };
    for quota in all {
        charge_one(engine, a, quota, new, old, &delta, (id, &write)).await?;
    }
    Ok(Some(charge))
}

async fn charge_one(
    engine: &Engine,
    a: &Attributes<'_>,
    mut quota: Arc<Object>,
    new: &Value,
    old: Option<&Value>,
    delta: &Amounts,
    (id, write): (u64, &Write),
) -> Result<(), Status> {
    let mut noted = false;
    for _ in 0..MAX_ATTEMPTS {
        let mut value = quota.value();
        let Some(used) = decide(a, &value, new, old, delta)? else { return Ok(()) };
        if !noted {
            // Before the quota is written: whoever counts it after that must know.
            noted = true;
            let pending = Pending { id, quota: quota.key.clone(), write: write.clone(), delta: delta.clone() };
            engine.quotas.pending.lock().push(pending);
        }
        value["status"]["used"] = written(&used);
        match swap(engine, &quota, value).await? {
            Swapped::Done | Swapped::Gone => return Ok(()),
            Swapped::Changed(current) => quota = current,
        }
    }
    Err(Status::modified("", "resourcequotas", &quota.name))
}

enum Swapped {
    Done,
    Gone,
    /// Another writer came first.
    Changed(Arc<Object>),
}

/// Writes a quota if it is still as it was read.
async fn swap(engine: &Engine, quota: &Object, mut value: Value) -> Result<Swapped, Status> {
    take_revision(&mut value);
    let txn = Txn::put_if(quota.key.clone(), quota.revision, encode(&value), None);
    let response = engine.store.txn(txn).await.map_err(|e| store_status(&e))?;
    match response.outcome {
        TxnOutcome::Succeeded(_) => Ok(Swapped::Done),
        TxnOutcome::Failed(mut current) => match current.pop().flatten() {
            Some(kv) => {
                let object = Object::from_kv(&kv, quotas(engine).cache.indexing()).map_err(Status::internal)?;
                Ok(Swapped::Changed(Arc::new(object)))
            }
            None => Ok(Swapped::Gone),
        },
    }
}

/// What is used of a quota after a write; nothing if it is not about this write. Refuses what it has no room for.
fn decide(
    a: &Attributes<'_>,
    quota: &Value,
    new: &Value,
    old: Option<&Value>,
    delta: &Amounts,
) -> Result<Option<Amounts>, Status> {
    let name = meta_str(quota, "name");
    // A quota that nobody has counted yet limits by its spec.
    let (spec, status) = (amounts(&quota["spec"]["hard"]), &quota["status"]);
    let counted = status["hard"].is_object();
    let hard = if counted { amounts(&status["hard"]) } else { spec };
    let names = usage::concerned(a.resource, &hard);
    if names.is_empty() || !usage::in_scope(a.resource, quota, new) {
        return Ok(None);
    }
    if a.resource.plural == "pods"
        && old.is_none()
        && let Some(missing) = usage::unsaid(new, &names)
    {
        return Err(a.refuse(format!("failed quota: {name}: must specify {missing}")));
    }
    let used = amounts(&status["used"]);
    if names.iter().any(|n| !used.contains_key(n)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        return Err(a.refuse(format!("status unknown for quota: {name}, resources: {}", names.join(","))));
    }
    let requested = only(delta, &names);
    if requested.is_empty() {
        return Ok(None);
    }
    let mut after = used.clone();
    for (name, amount) in &requested {
        usage::add(&mut after, name.clone(), *amount);
    }
    let too_much = |n: &&String| requested.get(*n).is_some_and(|q| *q > Quantity::ZERO) && after.get(*n) > hard.get(*n);
    let exceeded: BTreeSet<String> = names.iter().filter(too_much).cloned().collect();
    if !exceeded.is_empty() {
        return Err(a.refuse(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            printed(&only(&requested, &exceeded)),
            printed(&only(&used, &exceeded)),
            printed(&only(&hard, &exceeded)),
        )));
    }
    Ok(Some(after))
}

/// Counts the quotas of the namespaces where something changed, as long as the server lives.
pub async fn run(server: Weak<ApiServer>, changed: Arc<Quotas>) {
    if let Some(server) = server.upgrade() {
        let all = quotas(server.engine()).cache.peek_all();
        changed.changed.lock().extend(all.iter().map(|q| q.namespace.to_string()));
        changed.wake.notify_one();
    }
    loop {
        // The wait does not keep the server.
        changed.wake.notified().await;
        tokio::time::sleep(GATHER).await;
        let Some(server) = server.upgrade() else { return };
        let namespaces = std::mem::take(&mut *changed.changed.lock());
        for namespace in namespaces {
            if let Err(error) = count(server.engine(), &namespace).await {
                tracing::warn!(namespace, %error, "cannot count what quotas limit, trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                changed.changed.lock().insert(namespace);
                changed.wake.notify_one();
            }
        }
    }
}

/// Counts the quotas of a namespace.
async fn count(engine: &Engine, namespace: &str) -> Result<(), Status> {
    let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
    let all = quotas(engine).cache.list(&filter, 0, None).await.map_err(|e| cache_status(&e))?.objects;
    for quota in all {
        let mut quota = quota;
        let mut waited = None;
        for _ in 0..MAX_ATTEMPTS {
            let value = quota.value();
            // Before the objects: a write that ends meanwhile is found among them, and then not counted again.
            let pending: Vec<Pending> =
                engine.quotas.pending.lock().iter().filter(|p| p.quota == quota.key).cloned().collect();
            let used = used(engine, &value, &filter, pending).await?;
            let status = json!({"hard": value["spec"]["hard"], "used": written(&used)});
            if same(&value["status"], &status) {
                break;
            }
            // Another server may have charged for a write that is not there yet: it is, or the quota has changed, when
            // the same count comes out of it a moment later.
            if engine.shared && waited != Some(quota.revision) {
                tokio::time::sleep(OTHERS_WRITE).await;
                waited = Some(quota.revision);
                continue;
            }
            let mut new = value;
            new["status"] = status;
            match swap(engine, &quota, new).await? {
                Swapped::Changed(current) => quota = current,
                Swapped::Done | Swapped::Gone => break,
            }
        }
    }
    Ok(())
}

/// Whether two statuses say the same, however it is written.
fn same(a: &Value, b: &Value) -> bool {
    a["hard"].is_object() && ["hard", "used"].iter().all(|f| amounts(&a[*f]) == amounts(&b[*f]))
}

/// What objects take of a quota now, and what writes under way will take that are not in them yet.
async fn used(engine: &Engine, quota: &Value, filter: &Filter, mut pending: Vec<Pending>) -> Result<Amounts, Status> {
    let hard = amounts(&quota["spec"]["hard"]);
    let mut used: Amounts = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let kinds = engine.registry.kinds().await?;
    for kind in kinds.into_iter().filter(|k| k.namespaced) {
        let names = usage::concerned(kind, &hard);
        // Another version of a kind is the same objects.
        let Some(resource) = engine.registry.stored(kind).filter(|r| r.kind == kind) else { continue };
        if names.is_empty() {
            continue;
        }
        let objects = resource.cache.list(filter, 0, None).await.map_err(|e| cache_status(&e))?.objects;
        pending.retain(|p| !p.write.is_in(&objects));
        for object in objects {
            let object = object.value();
            if !usage::in_scope(kind, quota, &object) {
                continue;
            }
            for (name, amount) in only(&usage::usage(kind, &object), &names) {
                usage::add(&mut used, name, amount);
            }
        }
    }
    for (name, amount) in pending.into_iter().flat_map(|p| p.delta) {
        if let Some(sum) = used.get_mut(&name) {
            *sum = *sum + amount;
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use skiff_api::kinds::by_resource;

    use super::*;
    use crate::{auth::User, object::Indexing, request::WriteOptions};

    fn decided(quota: &Value, pod: &Value) -> Result<Option<String>, String> {
        let (user, options) = (User::known("u", &[]), WriteOptions::default());
        let kind = by_resource("", "v1", "pods").unwrap();
        let a = Attributes {
            namespace: "n".into(),
            name: "p".into(),
            ..Attributes::new(&user, Operation::Create, kind, "", &options)
        };
        let delta = usage::usage(kind, pod);
        decide(&a, quota, pod, None, &delta).map(|used| used.map(|u| printed(&u))).map_err(|s| s.message)
    }

    #[test]
    fn a_write_that_is_counted_is_not_pending() {
        let object = |revision| {
            let value = encode(&json!({"metadata": {"namespace": "n", "name": "a"}}));
            let indexing = Indexing { selectable: &[], field: |_, _| String::new() };
            vec![Arc::new(
                Object::new("/registry/configmaps/n/a".into(), &value, Revision(revision), indexing).unwrap(),
            )]
        };
        let write = |base| Write { key: "/registry/configmaps/n/a".into(), base: Revision(base) };
        assert!(!write(0).is_in(&[]));
        assert!(write(0).is_in(&object(3)));
        assert!(!write(3).is_in(&object(3)), "an update that is not there yet");
        assert!(write(3).is_in(&object(4)));
    }

    #[test]
    fn room_is_taken_or_refused() {
        let hard = json!({"requests.cpu": "1", "pods": "2", "secrets": "3"});
        let quota = |cpu: &str| {
            json!({"metadata": {"name": "q"}, "spec": {"hard": hard},
                "status": {"hard": hard, "used": {"requests.cpu": cpu, "pods": "1", "secrets": "0"}}})
        };
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}}]}});
        assert_eq!(decided(&quota("500m"), &pod).unwrap().unwrap(), "pods=2,requests.cpu=1,secrets=0");
        assert_eq!(
            decided(&quota("600m"), &pod).unwrap_err(),
            "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
        let silent = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(
            decided(&quota("0"), &silent).unwrap_err(),
            "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: a"
        );
        let mut uncounted = quota("0");
        uncounted["status"] = json!({});
        assert_eq!(
            decided(&uncounted, &pod).unwrap_err(),
            "pods \"p\" is forbidden: status unknown for quota: q, resources: pods,requests.cpu"
        );
    }
}
