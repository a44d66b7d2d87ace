//! Lists and watches a kind, and keeps a cache equal to what the server has.
//!
//! List in pages at one resource version, then watch from there. When the watch ends, or an error
//! interrupts it, watch again from the last resource version seen (objects and bookmarks tell it). When
//! the server answers 410 (it forgot that version), list again. Errors are retried with back-off.
//!
//! kube's own watcher is not used: it does not list again when a *request* to watch is answered 410.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use kube::{
    Client,
    api::{ListParams, ObjectList, WatchEvent, WatchParams},
    core::Request,
};
use tokio::{sync::watch, time::Instant};

use super::{Kind, ObjectKey, Selector, cache::Cache};
use crate::Backoff;

/// client-go's page size.
const PAGE_SIZE: u32 = 500;
/// The first retry is soon, because in one process the server may just be starting; the last step is
/// client-go's.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A watch that held this long was healthy: its end is no reason to back off.
const HEALTHY: Duration = Duration::from_secs(5);
/// How long the server should let a watch run; kube refuses 295 and more.
const WATCH_TIMEOUT_S: u32 = 290;

/// What to list and watch.
pub(super) struct Source {
    pub(super) client: Client,
    /// Knows the path.
    pub(super) request: Request,
    /// Whether the server should send `PartialObjectMetadata`.
    pub(super) metadata_only: bool,
    pub(super) selector: Selector,
}

impl Source {
    async fn list<K: Kind>(&self, params: &ListParams) -> Result<ObjectList<K>, kube::Error> {
        let request = if self.metadata_only { self.request.list_metadata(params) } else { self.request.list(params) };
        self.client.request(request.map_err(kube::Error::BuildRequest)?).await
    }

    async fn watch<K: Kind>(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> Result<BoxStream<'static, Result<WatchEvent<K>, kube::Error>>, kube::Error> {
        let request = if self.metadata_only {
            self.request.watch_metadata(params, version)
        } else {
            self.request.watch(params, version)
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        Ok(self.client.request_events(request).await?.boxed())
    }
}

pub(super) struct Reflector<K: Kind> {
    source: Source,
    cache: Arc<Cache<K>>,
    synced: watch::Sender<bool>,
}

/// Why a watch ended.
enum Ended {
    /// Go on from this version.
    Resume(String),
    /// The server does not have this version any more.
    Expired,
    /// Retry from this version, later.
    Failed(String, kube::Error),
}

impl<K: Kind> Reflector<K> {
    pub(super) fn new(source: Source, cache: Arc<Cache<K>>, synced: watch::Sender<bool>) -> Self {
        Reflector { source, cache, synced }
    }

    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut version = None;
        loop {
            let from = match version.take() {
                Some(version) => version,
                None => match self.list().await {
                    Ok(version) => {
                        self.synced.send_replace(true);
                        version
                    }
                    Err(error) => {
                        self.wait(&mut backoff, "list", &error).await;
                        continue;
                    }
                },
            };
            let started = Instant::now();
            let ended = self.watch(from).await;
            if started.elapsed() >= HEALTHY {
                backoff.reset();
            }
            match ended {
                Ended::Resume(at) => {
                    version = Some(at);
                    if started.elapsed() < HEALTHY {
                        // A server that ends watches at once is not asked in a tight loop.
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
                Ended::Expired => {
                    tracing::debug!(resource = %self.source.request.url_path, "watch expired, listing again");
                    if started.elapsed() < HEALTHY {
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
                Ended::Failed(at, error) => {
                    version = Some(at);
                    self.wait(&mut backoff, "watch", &error).await;
                }
            }
        }
    }

    async fn wait(&self, backoff: &mut Backoff, verb: &str, error: &kube::Error) {
        let delay = backoff.next_delay();
        tracing::warn!(
            resource = %self.source.request.url_path, %error, delay_ms = delay.as_millis(), "failed to {verb}, trying again"
        );
        tokio::time::sleep(delay).await;
    }

    /// Makes the cache equal to the server's state and returns the version of that.
    async fn list(&self) -> Result<String, kube::Error> {
        let mut params = ListParams {
            label_selector: self.source.selector.labels.clone(),
            field_selector: self.source.selector.fields.clone(),
            limit: Some(PAGE_SIZE),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            let page = match self.source.list(&params).await {
                Ok(page) => page,
                // The pages' version expired under way: ask for all at once, as client-go does.
                Err(error) if is_expired(&error) && params.continue_token.is_some() => {
                    params.continue_token = None;
                    params.limit = None;
                    objects.clear();
                    continue;
                }
                Err(error) => return Err(error),
            };
            objects.extend(page.items);
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.cache.replace(objects);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }

    async fn watch(&self, mut version: String) -> Ended {
        let params = WatchParams {
            label_selector: self.source.selector.labels.clone(),
            field_selector: self.source.selector.fields.clone(),
            timeout: Some(WATCH_TIMEOUT_S),
            bookmarks: true,
            send_initial_events: false,
        };
        let mut events = match self.source.watch::<K>(&params, &version).await {
            Ok(events) => events,
            Err(error) if is_expired(&error) => return Ended::Expired,
            Err(error) => return Ended::Failed(version, error),
        };
        loop {
            match events.try_next().await {
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    advance(&mut version, &object);
                    self.cache.apply(object);
                }
                Ok(Some(WatchEvent::Deleted(object))) => {
                    advance(&mut version, &object);
                    self.cache.delete(&ObjectKey::of(&object));
                }
                Ok(Some(WatchEvent::Bookmark(bookmark))) => version = bookmark.metadata.resource_version,
                Ok(Some(WatchEvent::Error(status))) if status.code == 410 => return Ended::Expired,
                Ok(Some(WatchEvent::Error(status))) => {
                    return Ended::Failed(version, kube::Error::Api(status));
                }
                Ok(None) => return Ended::Resume(version),
                Err(error) => return Ended::Failed(version, error),
            }
        }
    }
}

fn advance<K: Kind>(version: &mut String, object: &K) {
    if let Some(seen) = &object.meta().resource_version {
        version.clone_from(seen);
    }
}

fn is_expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}
