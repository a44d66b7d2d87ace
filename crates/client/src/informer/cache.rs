//! The objects, their indices, and who wants to know of changes.
//!
//! One lock guards all of it: a change updates objects and indices and is queued to the subscribers
//! under it, so a subscriber never sees something older in the cache than what it was told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use kube::{Resource, ResourceExt as _};
use parking_lot::RwLock;

use super::{
    Change, ObjectKey, Subscription,
    subscription::{Queue, QueueHandle},
};

/// Tells the values under which an object is found.
type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

pub(super) struct Cache<K> {
    state: RwLock<State<K>>,
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    owners: Entries,
    indices: HashMap<&'static str, Index<K>>,
    subscribers: Vec<QueueHandle<K>>,
}

/// Value → the keys of the objects that have it.
type Entries = HashMap<String, BTreeSet<ObjectKey>>;

struct Index<K> {
    values: IndexFn<K>,
    entries: Entries,
}

impl<K: Resource> Cache<K> {
    pub(super) fn new() -> Cache<K> {
        let state = State {
            objects: BTreeMap::new(),
            owners: HashMap::new(),
            indices: HashMap::new(),
            subscribers: Vec::new(),
        };
        Cache { state: RwLock::new(state) }
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    pub(super) fn list(&self) -> Vec<Arc<K>> {
        self.state.read().objects.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub(super) fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = ObjectKey::new(namespace, "");
        let state = self.state.read();
        let from = state.objects.range((Bound::Included(&first), Bound::Unbounded));
        from.take_while(|(key, _)| *key.namespace == *namespace).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn by_owner(&self, uid: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        state.resolve(state.owners.get(uid))
    }

    pub(super) fn add_index(&self, name: &'static str, values: IndexFn<K>) {
        let mut state = self.state.write();
        if state.indices.contains_key(name) {
            return;
        }
        let mut entries = HashMap::new();
        for (key, object) in &state.objects {
            insert(&mut entries, key, values(object));
        }
        state.indices.insert(name, Index { values, entries });
    }

    pub(super) fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        state.resolve(state.indices.get(index).and_then(|index| index.entries.get(value)))
    }

    pub(super) fn subscribe(&self) -> Subscription<K> {
        let mut state = self.state.write();
        let mut queue = Queue::new();
        for (key, object) in &state.objects {
            queue.push(key, Change::Applied { old: None, new: object.clone() });
        }
        let (handle, subscription) = queue.split();
        state.subscribers.push(handle);
        subscription
    }

    /// An object was added or changed. One that is as it was is not told again.
    pub(super) fn apply(&self, object: K) {
        self.state.write().apply(object);
    }

    /// An object is gone.
    pub(super) fn delete(&self, key: &ObjectKey) {
        self.state.write().delete(key);
    }

    /// These are all the objects there are: the result of a list.
    pub(super) fn replace(&self, objects: Vec<K>) {
        let mut state = self.state.write();
        let listed: BTreeSet<ObjectKey> = objects.iter().map(ObjectKey::of).collect();
        let gone: Vec<_> = state.objects.keys().filter(|key| !listed.contains(key)).cloned().collect();
        for key in gone {
            state.delete(&key);
        }
        for object in objects {
            state.apply(object);
        }
    }
}

impl<K: Resource> State<K> {
    fn resolve(&self, keys: Option<&BTreeSet<ObjectKey>>) -> Vec<Arc<K>> {
        keys.into_iter().flatten().filter_map(|key| self.objects.get(key).cloned()).collect()
    }

    fn apply(&mut self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old {
            let (was, is) = (old.meta(), new.meta());
            if was.uid != is.uid {
                // Deleted and created again while nobody watched.
                self.delete(&key);
                return self.insert(key, None, new);
            }
            if was.resource_version.is_some() && was.resource_version == is.resource_version {
                return;
            }
        }
        self.insert(key, old, new);
    }

    fn insert(&mut self, key: ObjectKey, old: Option<Arc<K>>, new: Arc<K>) {
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        insert(&mut self.owners, &key, owner_uids(&*new));
        for index in self.indices.values_mut() {
            insert(&mut index.entries, &key, (index.values)(&new));
        }
        self.objects.insert(key.clone(), new.clone());
        self.tell(&key, &Change::Applied { old, new });
    }

    fn delete(&mut self, key: &ObjectKey) {
        if let Some(old) = self.objects.remove(key) {
            self.unindex(key, &old);
            self.tell(key, &Change::Deleted { old });
        }
    }

    fn unindex(&mut self, key: &ObjectKey, object: &K) {
        remove(&mut self.owners, key, owner_uids(object));
        for index in self.indices.values_mut() {
            remove(&mut index.entries, key, (index.values)(object));
        }
    }

    fn tell(&mut self, key: &ObjectKey, change: &Change<K>) {
        self.subscribers.retain(|subscriber| subscriber.push(key, change.clone()));
    }
}

fn owner_uids<K: Resource>(object: &K) -> Vec<String> {
    object.owner_references().iter().map(|owner| owner.uid.clone()).collect()
}

fn insert(entries: &mut Entries, key: &ObjectKey, values: Vec<String>) {
    for value in values {
        entries.entry(value).or_default().insert(key.clone());
    }
}

fn remove(entries: &mut Entries, key: &ObjectKey, values: Vec<String>) {
    for value in values {
        if let Some(keys) = entries.get_mut(&value) {
            keys.remove(key);
            if keys.is_empty() {
                entries.remove(&value);
            }
        }
    }
}
