//! Keeping the zone in line with the API.
//!
//! A light list and watch: objects are decoded straight into the few fields that names are made of, so
//! that a large cluster costs kilobytes, and no copy of an object is kept.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::TryStreamExt;
use kube::{
    api::{ListParams, WatchParams},
    core::{Request, WatchEvent},
};
use serde::{Deserialize, de::DeserializeOwned};
use skiff_client::Backoff;

use crate::zone::{Key, Meta, Namespace, Service, Slice, Zone, key_of};

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// The server ends a watch after this long, so that a dead connection is noticed.
const WATCH_S: u32 = 290;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The zone, shared between the server and those that fill it.
#[derive(Debug, Clone, Default)]
pub struct SharedZone {
    zone: Arc<Mutex<Zone>>,
    synced: Arc<AtomicUsize>,
}

/// Kinds that are reflected.
const KINDS: usize = 3;

impl SharedZone {
    /// Runs `look` on the zone.
    pub fn with<T>(&self, look: impl FnOnce(&mut Zone) -> T) -> T {
        look(&mut self.zone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether every kind has been listed once.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire) >= KINDS
    }
}

/// A kind that is reflected.
trait Reflected: Clone + DeserializeOwned + Send + 'static {
    const PATH: &'static str;
    fn meta(&self) -> &Meta;
    fn set(&self, zone: &mut Zone);
    fn remove(key: &Key, zone: &mut Zone);
    fn keys(zone: &Zone) -> Vec<Key>;
}

impl Reflected for Service {
    const PATH: &'static str = "/api/v1/services";

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn set(&self, zone: &mut Zone) {
        zone.set_service(self);
    }

    fn remove(key: &Key, zone: &mut Zone) {
        zone.remove_service(key);
    }

    fn keys(zone: &Zone) -> Vec<Key> {
        zone.service_keys()
    }
}

impl Reflected for Slice {
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn set(&self, zone: &mut Zone) {
        zone.set_slice(self);
    }

    fn remove(key: &Key, zone: &mut Zone) {
        zone.remove_slice(key);
    }

    fn keys(zone: &Zone) -> Vec<Key> {
        zone.slice_keys()
    }
}

impl Reflected for Namespace {
    const PATH: &'static str = "/api/v1/namespaces";

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn set(&self, zone: &mut Zone) {
        zone.set_namespace(self);
    }

    fn remove(key: &Key, zone: &mut Zone) {
        zone.remove_namespace(key);
    }

    fn keys(zone: &Zone) -> Vec<Key> {
        zone.namespace_keys()
    }
}

/// Follows Services, EndpointSlices and Namespaces for as long as it is polled.
pub async fn run(client: kube::Client, zone: SharedZone) {
    tokio::join!(
        follow::<Service>(&client, &zone),
        follow::<Slice>(&client, &zone),
        follow::<Namespace>(&client, &zone),
    );
}

async fn follow<K: Reflected>(client: &kube::Client, zone: &SharedZone) {
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut first = true;
    loop {
        match list::<K>(client, zone).await {
            Ok(version) => {
                if std::mem::take(&mut first) {
                    zone.synced.fetch_add(1, Ordering::Release);
                }
                backoff.reset();
                let error = watch::<K>(client, zone, version).await;
                tracing::info!(path = K::PATH, %error, "watch ended; listing again");
            }
            Err(error) => tracing::warn!(path = K::PATH, %error, "cannot list"),
        }
        // What is known is still answered meanwhile.
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

#[derive(Deserialize)]
struct Page<K> {
    #[serde(default)]
    metadata: PageMeta,
    items: Vec<K>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: Option<String>,
}

async fn list<K: Reflected>(client: &kube::Client, zone: &SharedZone) -> Result<String, kube::Error> {
    let mut gone: HashSet<Key> = zone.with(|zone| K::keys(zone).into_iter().collect());
    let mut next: Option<String> = None;
    loop {
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.continue_token = next.take();
        let request = Request::new(K::PATH).list(&parameters).map_err(kube::Error::BuildRequest)?;
        let page: Page<K> = client.request(request).await?;
        zone.with(|zone| {
            for object in &page.items {
                gone.remove(&key_of(object.meta()));
                object.set(zone);
            }
        });
        next = page.metadata.next.filter(|token| !token.is_empty());
        if next.is_none() {
            zone.with(|zone| gone.iter().for_each(|key| K::remove(key, zone)));
            return Ok(page.metadata.resource_version);
        }
    }
}

/// Watches from a version on, through any number of connections, until the server wants a new list.
async fn watch<K: Reflected>(client: &kube::Client, zone: &SharedZone, mut version: String) -> kube::Error {
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let error = match watch_once::<K>(client, zone, &mut version).await {
            Ok(()) => {
                backoff.reset();
                continue;
            }
            Err(error) => error,
        };
        if matches!(&error, kube::Error::Api(status) if matches!(status.code, 410 | 504)) {
            return error;
        }
        tracing::debug!(path = K::PATH, %error, "watch broke off");
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn watch_once<K: Reflected>(
    client: &kube::Client,
    zone: &SharedZone,
    version: &mut String,
) -> Result<(), kube::Error> {
    let parameters = WatchParams::default().timeout(WATCH_S);
    let request = Request::new(K::PATH).watch(&parameters, version).map_err(kube::Error::BuildRequest)?;
    let events = client.request_events::<K>(request).await?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await? {
        let object = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                zone.with(|zone| object.set(zone));
                object
            }
            WatchEvent::Deleted(object) => {
                zone.with(|zone| K::remove(&key_of(object.meta()), zone));
                object
            }
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        };
        version.clone_from(&object.meta().resource_version);
    }
    Ok(())
}
