//! ConfigMaps and Secrets that pods of this node use: one watch for each, as long as a pod uses it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kube::Client;
use parking_lot::Mutex;
use skiff_client::{Informer, Informers, ObjectKey, Selector};
use tokio::task::AbortHandle;

use crate::pod::PodUid;

/// How long the first look at an object may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Told which pods should look again.
pub(crate) type Waker = Arc<dyn Fn(&PodUid) + Send + Sync>;

/// The objects of one kind that are in use.
pub(crate) struct Objects<K: kube::Resource> {
    client: Client,
    wake: Waker,
    entries: Mutex<HashMap<ObjectKey, Arc<Entry<K>>>>,
}

struct Entry<K: kube::Resource> {
    informer: Informer<K>,
    users: Mutex<HashSet<PodUid>>,
    task: Mutex<Option<AbortHandle>>,
}

impl<K: kube::Resource> Drop for Entry<K> {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

/// The API server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("failed to sync {kind} cache: timed out waiting for the condition")]
pub(crate) struct NotSynced {
    kind: &'static str,
}

impl<K> Objects<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new(client: Client, wake: Waker) -> Objects<K> {
        Objects { client, wake, entries: Mutex::default() }
    }

    /// The object as it is now, `None` if there is none. The pod is woken when it changes, until it is released.
    pub(crate) async fn get(&self, namespace: &str, name: &str, user: &PodUid) -> Result<Option<Arc<K>>, NotSynced> {
        let key = ObjectKey::new(namespace, name);
        let entry = self.entry(&key, user);
        if tokio::time::timeout(FIRST_LOOK, entry.informer.wait_synced()).await.is_err() {
            let kind = if std::any::type_name::<K>().ends_with("Secret") { "secret" } else { "configmap" };
            return Err(NotSynced { kind });
        }
        Ok(entry.informer.get_key(&key))
    }

    fn entry(&self, key: &ObjectKey, user: &PodUid) -> Arc<Entry<K>> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(key) {
            entry.users.lock().insert(user.clone());
            return entry.clone();
        }
        let selector = Selector {
            namespace: Some(key.namespace.to_string()),
            fields: Some(format!("metadata.name={}", key.name)),
            labels: None,
        };
        // Of its own: a shared set of informers would keep it for ever.
        let informer = Informers::new(self.client.clone()).selected::<K>(selector);
        let entry = Arc::new(Entry {
            informer: informer.clone(),
            users: Mutex::new([user.clone()].into()),
            task: Mutex::default(),
        });
        let (weak, wake) = (Arc::downgrade(&entry), self.wake.clone());
        let mut changes = informer.subscribe();
        let task = tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let Some(entry) = weak.upgrade() else { return };
                let users: Vec<PodUid> = entry.users.lock().iter().cloned().collect();
                users.iter().for_each(|user| wake(user));
            }
        });
        *entry.task.lock() = Some(task.abort_handle());
        entries.insert(key.clone(), entry.clone());
        entry
    }

    /// The pod uses nothing any more.
    pub(crate) fn release(&self, user: &PodUid) {
        self.entries.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(user);
            !users.is_empty()
        });
    }
}
