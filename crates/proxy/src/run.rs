//! The loop: changes of Services and EndpointSlices into rules.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures::FutureExt;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use skiff_client::{Backoff, Change, Informer, Informers, ObjectKey, Subscription};

use crate::{
    members::Members,
    proxy::{Changed, Known, Proxy, ProxyError},
};

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "proxy-by-service";
/// How often it is looked whether somebody else removed the table (a firewall's reload does).
const CHECK_PERIOD: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The Service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref()?, name))
}

/// Keeps the rules in line with the API until the informers end, and `members` in line with the rules. The
/// proxy has to be opened in the node's network namespace.
///
/// Changes that arrive while a batch is being written go into the next one together, so that the rate
/// of changes decides the size of batches, not their number.
pub async fn run(proxy: Proxy, informers: Informers, members: Members) {
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    services.wait_synced().await;
    slices.wait_synced().await;
    let changes = Changes { of_services: services.subscribe(), of_slices: slices.subscribe() };
    let mut driver = Driver { proxy: Some(proxy), services, slices, members, unwritten: HashMap::new() };
    driver.run(changes).await;
}

struct Changes {
    of_services: Subscription<Service>,
    of_slices: Subscription<EndpointSlice>,
}

impl Changes {
    /// Waits for a change and takes all others that are there. `None` when an informer ended.
    async fn next(&mut self) -> Option<BTreeSet<ObjectKey>> {
        let mut keys = BTreeSet::new();
        tokio::select! {
            change = self.of_services.recv() => note_service(&mut keys, &change?),
            change = self.of_slices.recv() => note_slice(&mut keys, &change?),
        }
        while let Some(change) = self.of_services.recv().now_or_never() {
            note_service(&mut keys, &change?);
        }
        while let Some(change) = self.of_slices.recv().now_or_never() {
            note_slice(&mut keys, &change?);
        }
        Some(keys)
    }
}

fn note_service(keys: &mut BTreeSet<ObjectKey>, change: &Change<Service>) {
    keys.insert(ObjectKey::of(change.object().as_ref()));
}

/// A slice may have been given to another Service, which concerns both.
fn note_slice(keys: &mut BTreeSet<ObjectKey>, change: &Change<EndpointSlice>) {
    keys.extend(service_of(change.object()));
    keys.extend(change.old().and_then(|old| service_of(old)));
}

struct Driver {
    /// Absent only while a blocking thread has it.
    proxy: Option<Proxy>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    members: Members,
    /// What the rules will know after the next batch that the kernel takes.
    unwritten: HashMap<ObjectKey, Known>,
}

impl Driver {
    async fn run(&mut self, mut changes: Changes) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut retry_in = None;
        loop {
            let mut keys = BTreeSet::new();
            tokio::select! {
                next = changes.next() => match next {
                    Some(next) => keys = next,
                    None => return,
                },
                () = tokio::time::sleep(retry_in.unwrap_or(CHECK_PERIOD)) => {
                    if retry_in.is_none() && self.intact().await {
                        continue;
                    }
                }
            }
            match self.apply(&keys).await {
                Ok(()) => {
                    backoff.reset();
                    retry_in = None;
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(%error, cause, ?delay, "Service rules are out of date; trying again");
                    retry_in = Some(delay);
                }
            }
        }
    }

    async fn apply(&mut self, keys: &BTreeSet<ObjectKey>) -> Result<(), ProxyError> {
        let changed: Vec<Changed> = keys
            .iter()
            .map(|key| {
                let service = self.services.get_key(key);
                (key.clone(), service.map(|service| (service, self.slices.by_index(BY_SERVICE, &key.to_string()))))
            })
            .collect();
        self.unwritten.extend(changed.iter().cloned());
        self.with_proxy(move |proxy| proxy.apply(changed)).await.unwrap_or(Ok(()))?;
        for (key, object) in self.unwritten.drain() {
            self.members.set(&key, object.as_ref().map_or(&[], |(_, slices)| slices));
        }
        Ok(())
    }

    async fn intact(&mut self) -> bool {
        match self.with_proxy(Proxy::check).await {
            Some(Ok(intact)) => intact,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot look at the Service rules");
                true
            }
            None => true,
        }
    }

    /// Large batches take the kernel a tenth of a second, in which other tasks go on. `None` if the
    /// runtime is shutting down.
    async fn with_proxy<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Proxy) -> T + Send + 'static,
    ) -> Option<T> {
        let mut proxy = self.proxy.take()?;
        let worked = tokio::task::spawn_blocking(move || {
            let result = work(&mut proxy);
            (proxy, result)
        });
        let (proxy, result) = worked.await.ok()?;
        self.proxy = Some(proxy);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use kube::{Api, api::PostParams};
    use serde_json::json;
    use skiff_client::fake::FakeApi;
    use skiff_network::{
        NetNs,
        nft::{self, Family},
    };

    use super::*;
    use crate::NodeInfo;

    async fn wait_for_endpoints(namespace: &NetNs, expected: usize) {
        let mut socket = nft::socket_in(namespace.as_fd()).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let found = nft::elements(&mut socket, Family::Ip, crate::table::TABLE, "endpoints").unwrap().len();
            if found == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found} endpoints instead of {expected}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_rules_follow_the_api() {
        let namespace = NetNs::create().unwrap();
        let node = NodeInfo {
            name: "one".to_owned(),
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: Vec::new(),
            zone: None,
        };
        let proxy = namespace.run(|| Proxy::open(node)).unwrap().unwrap();
        let client = FakeApi::new().client();
        let loops = tokio::spawn(run(proxy, Informers::new(client.clone()), Members::default()));
        let services = Api::<Service>::namespaced(client.clone(), "default");
        let slices = Api::<EndpointSlice>::namespaced(client, "default");
        let service = json!({
            "metadata": { "name": "web" },
            "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
        });
        let slice = |name: &str, address: &str| {
            let slice = json!({
                "metadata": { "name": name, "labels": { SERVICE_NAME: "web" } },
                "addressType": "IPv4", "ports": [{ "port": 8080, "protocol": "TCP" }],
                "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
            });
            serde_json::from_value::<EndpointSlice>(slice).unwrap()
        };
        // The slice may come before its Service.
        slices.create(&PostParams::default(), &slice("web-1", "10.244.0.1")).await.unwrap();
        services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
        wait_for_endpoints(&namespace, 1).await;
        slices.create(&PostParams::default(), &slice("web-2", "10.244.0.2")).await.unwrap();
        wait_for_endpoints(&namespace, 2).await;
        slices.delete("web-1", &Default::default()).await.unwrap();
        wait_for_endpoints(&namespace, 1).await;
        services.delete("web", &Default::default()).await.unwrap();
        wait_for_endpoints(&namespace, 0).await;
        loops.abort();
    }
}
