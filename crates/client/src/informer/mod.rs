//! Informers: a complete, current copy of a kind's objects, shared by everything in the process.
//!
//! Flow: the [reflector] lists and watches the API server and feeds the [cache]; the cache answers
//! reads and tells each [`Subscription`] what changed.
//!
//! Guarantees:
//! - Objects are immutable and shared (`Arc<K>`); reading never waits for the network.
//! - A subscription tells every object that exists, and every later change, in order per object. Updates
//!   of one object that a slow subscriber has not yet seen are merged into one, with the old object it
//!   saw last; creations and deletions are never merged away.
//! - After an interruption the watch goes on from where it was; if the server no longer has that
//!   history, a new list is compared with the cache, and the difference is told.
//!
//! Caveats: `metadata.managedFields` is dropped to save memory. Send an object back without it and the
//! server keeps what it had.

mod cache;
mod reflector;
mod subscription;

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    fmt::Debug,
    sync::Arc,
};

use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::{sync::watch, task::AbortHandle};

use cache::Cache;
pub use subscription::{Change, Subscription};

/// Names an object of a kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Empty for kinds without namespace.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its parts; an empty namespace for kinds without.
    pub fn new(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }

    /// An object's key.
    pub fn of<K: Resource>(object: &K) -> ObjectKey {
        let meta = object.meta();
        ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which objects of a kind an informer holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// A label selector, as in the API.
    pub labels: Option<String>,
    /// A field selector, as in the API: `spec.nodeName=node-1`.
    pub fields: Option<String>,
}

impl Selector {
    /// All objects.
    pub fn all() -> Selector {
        Selector::default()
    }

    /// Those that match a field selector.
    pub fn fields(selector: impl Into<String>) -> Selector {
        Selector { fields: Some(selector.into()), ..Selector::default() }
    }

    /// Those that match a label selector.
    pub fn labels(selector: impl Into<String>) -> Selector {
        Selector { labels: Some(selector.into()), ..Selector::default() }
    }
}

/// What a kind must be able to do to be held by an informer; all types of `k8s-openapi` and
/// `DynamicObject` are.
pub trait Kind: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Kind for K {}

/// The process's informers: one list and watch per kind and selector, whoever asks for it.
///
/// An informer starts when it is first asked for and ends when this and all its handles are gone.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    running: Arc<Mutex<HashMap<InformerId, Box<dyn Any + Send>>>>,
}

#[derive(PartialEq, Eq, Hash)]
struct InformerId {
    kind: TypeId,
    /// Two dynamic kinds have the same Rust type.
    resource: String,
    selector: Selector,
}

impl Informers {
    /// Informers that read with `client`.
    pub fn new(client: Client) -> Informers {
        Informers { client, running: Arc::default() }
    }

    /// The client that they read with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of all objects of a kind.
    ///
    /// Must be called on a tokio runtime.
    pub fn informer<K>(&self) -> Informer<K>
    where
        K: Kind,
        K::DynamicType: Default,
    {
        self.select(&K::DynamicType::default(), Selector::all())
    }

    /// The informer of those objects of a kind that match.
    pub fn selected<K>(&self, selector: Selector) -> Informer<K>
    where
        K: Kind,
        K::DynamicType: Default,
    {
        self.select(&K::DynamicType::default(), selector)
    }

    /// The informer of a kind that is only known at run time, with `DynamicObject` or
    /// `PartialObjectMeta<DynamicObject>` as `K`.
    pub fn select<K: Kind>(&self, kind: &K::DynamicType, selector: Selector) -> Informer<K> {
        let resource = K::url_path(kind, selector.namespace.as_deref());
        let id = InformerId { kind: TypeId::of::<K>(), resource: resource.clone(), selector: selector.clone() };
        let mut running = self.running.lock();
        if let Some(informer) = running.get(&id).and_then(|informer| informer.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        // Not `Api`: it takes a namespace only where the scope is known at compile time.
        let source = reflector::Source {
            client: self.client.clone(),
            request: kube::core::Request::new(resource),
            metadata_only: K::metadata_api(),
            selector,
        };
        let informer = Informer::start(source);
        running.insert(id, Box::new(informer.clone()));
        informer
    }
}

/// A handle on a shared copy of a kind's objects. Cloning is cheap.
pub struct Informer<K: Resource> {
    shared: Arc<Running<K>>,
}

struct Running<K: Resource> {
    cache: Arc<Cache<K>>,
    synced: watch::Receiver<bool>,
    task: AbortHandle,
}

impl<K: Resource> Drop for Running<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Resource> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone() }
    }
}

impl<K: Kind> Informer<K> {
    fn start(source: reflector::Source) -> Informer<K> {
        let cache = Arc::new(Cache::new());
        let (synced_sender, synced) = watch::channel(false);
        let reflector = reflector::Reflector::<K>::new(source, cache.clone(), synced_sender);
        let task = tokio::spawn(reflector.run()).abort_handle();
        Informer { shared: Arc::new(Running { cache, synced, task }) }
    }
}

impl<K: Resource> Informer<K> {
    /// Waits until the first list is in the cache.
    pub async fn wait_synced(&self) {
        // The sender lives in the task, which lives as long as this handle.
        let _ = self.shared.synced.clone().wait_for(|synced| *synced).await;
    }

    /// Whether the first list is in the cache.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// One object; an empty namespace for kinds without.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.cache.get(&ObjectKey::new(namespace, name))
    }

    /// One object by its key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.cache.get(key)
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.cache.list()
    }

    /// The objects of one namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.cache.list_namespace(namespace)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.cache.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects that name this UID among their owners.
    pub fn by_owner(&self, uid: &str) -> Vec<Arc<K>> {
        self.shared.cache.by_owner(uid)
    }

    /// Adds an index, by the values that `values` gives for an object. Adding one of the same name
    /// again does nothing, so that each user of a shared informer may add what it needs.
    pub fn add_index(&self, index: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.shared.cache.add_index(index, Box::new(values));
    }

    /// The objects for which an added index has this value; none if there is no such index.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.shared.cache.by_index(index, value)
    }

    /// All objects as they are now, as [`Change::Applied`] without old object, and then every change.
    pub fn subscribe(&self) -> Subscription<K> {
        self.shared.cache.subscribe()
    }
}

#[cfg(test)]
mod tests;
