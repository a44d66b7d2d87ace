//! Following the API: new routes whenever something that they are made of changes, and the status of Ingresses.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::FutureExt;
use k8s_openapi::api::{
    core::v1::{Secret, Service},
    discovery::v1::EndpointSlice,
    networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress},
};
use kube::api::{Api, Patch, PatchParams};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use skiff_client::{EventRecorder, EventType, Informer, Informers, ObjectKey, Selector};

use crate::{
    class::serves,
    routes::{self, Objects, Routes},
    tls,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "ingress-by-service";
/// Changes that come together make routes once.
const GATHER: Duration = Duration::from_millis(20);
/// A status that could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

struct Watched {
    ingresses: Informer<Ingress>,
    classes: Informer<IngressClass>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    secrets: Informer<Secret>,
    /// By `namespace/name`: the version of the Secret that a certificate is from.
    certificates: HashMap<String, (String, Option<Arc<CertifiedKey>>)>,
}

impl Objects for Watched {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn certificate(&mut self, namespace: &str, name: &str) -> Option<Arc<CertifiedKey>> {
        let key = format!("{namespace}/{name}");
        let Some(secret) = self.secrets.get(namespace, name) else {
            tracing::warn!(secret = key, "there is no such Secret of type kubernetes.io/tls");
            return None;
        };
        let version = secret.metadata.resource_version.clone().unwrap_or_default();
        if let Some((_, known)) = self.certificates.get(&key).filter(|(known, _)| *known == version) {
            return known.clone();
        }
        let certificate = tls::of_secret(&secret)
            .inspect_err(|why| tracing::warn!(secret = key, why, "not a certificate and its key"))
            .ok()
            .map(Arc::new);
        self.certificates.insert(key, (version, certificate.clone()));
        certificate
    }
}

impl Watched {
    fn ours(&self) -> Vec<Arc<Ingress>> {
        let mut all = self.ingresses.list();
        all.retain(|ingress| serves(ingress, |name| self.classes.get("", name)));
        all
    }
}

/// Keeps the routes in line with the API until the informers end. `own` is the Service in front of this controller:
/// namespace and name.
pub async fn run(informers: Informers, routes: Arc<ArcSwap<Routes>>, synced: Arc<AtomicBool>, own: (String, String)) {
    let mut watched = Watched {
        ingresses: informers.informer(),
        classes: informers.informer(),
        services: informers.informer(),
        slices: informers.informer(),
        secrets: informers.selected(Selector::fields("type=kubernetes.io/tls")),
        certificates: HashMap::new(),
    };
    watched.slices.add_index(BY_SERVICE, |slice| {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let namespace = slice.metadata.namespace.as_ref();
        service.zip(namespace).map(|(service, namespace)| format!("{namespace}/{service}")).into_iter().collect()
    });
    watched.ingresses.wait_synced().await;
    watched.classes.wait_synced().await;
    watched.services.wait_synced().await;
    watched.slices.wait_synced().await;
    watched.secrets.wait_synced().await;
    let mut ingresses = watched.ingresses.subscribe();
    let mut classes = watched.classes.subscribe();
    let mut services = watched.services.subscribe();
    let mut slices = watched.slices.subscribe();
    let mut secrets = watched.secrets.subscribe();
    let mut statuses = Statuses {
        events: EventRecorder::new(informers.client().clone(), "skiff-ingress-controller", None),
        client: informers.client().clone(),
        told: HashSet::new(),
    };
    loop {
        let ours = watched.ours();
        routes.store(Arc::new(routes::build(&ours, &mut watched)));
        synced.store(true, Ordering::Release);
        let address = watched.services.get(&own.0, &own.1);
        let content = statuses.write(&ours, address.as_deref()).await;
        let changed = tokio::select! {
            change = ingresses.recv() => change.is_some(),
            change = classes.recv() => change.is_some(),
            change = services.recv() => change.is_some(),
            change = slices.recv() => change.is_some(),
            change = secrets.recv() => change.is_some(),
            () = tokio::time::sleep(RETRY), if !content => true,
        };
        if !changed {
            return;
        }
        tokio::time::sleep(GATHER).await;
        while let Some(Some(_)) = ingresses.recv().now_or_never() {}
        while let Some(Some(_)) = classes.recv().now_or_never() {}
        while let Some(Some(_)) = services.recv().now_or_never() {}
        while let Some(Some(_)) = slices.recv().now_or_never() {}
        while let Some(Some(_)) = secrets.recv().now_or_never() {}
    }
}

struct Statuses {
    client: kube::Client,
    events: EventRecorder,
    /// Ingresses that an event was written about, by uid and generation.
    told: HashSet<(String, i64)>,
}

impl Statuses {
    /// Gives our Ingresses the address of our Service. False if that has to be tried again.
    async fn write(&mut self, ingresses: &[Arc<Ingress>], service: Option<&Service>) -> bool {
        let wanted = addresses(service);
        let mut content = true;
        for ingress in ingresses {
            let uid = ingress.metadata.uid.clone().unwrap_or_default();
            if self.told.insert((uid, ingress.metadata.generation.unwrap_or(0))) {
                self.events.for_object(ingress.as_ref(), EventType::Normal, "Sync", "Scheduled for sync");
            }
            let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let is = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
            if same(is, &wanted) {
                continue;
            }
            let key = ObjectKey::of(ingress.as_ref());
            let patch = json!({"status": {"loadBalancer": {"ingress": wanted}}});
            let api = Api::<Ingress>::namespaced(self.client.clone(), &key.namespace);
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {}
                // Gone: its own change comes by itself.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(ingress = %key, %error, "cannot write the status");
                    content = false;
                }
            }
        }
        content
    }
}

/// Addresses of our Service, as the status of an Ingress has them.
fn addresses(service: Option<&Service>) -> Vec<Value> {
    let status = service.and_then(|service| service.status.as_ref()?.load_balancer.as_ref());
    let all = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let address = |ingress: &k8s_openapi::api::core::v1::LoadBalancerIngress| match (&ingress.hostname, &ingress.ip) {
        (Some(hostname), _) => Some(json!({"hostname": hostname})),
        (None, Some(ip)) => Some(json!({"ip": ip})),
        (None, None) => None,
    };
    all.iter().filter_map(address).collect()
}

fn same(is: &[IngressLoadBalancerIngress], wanted: &[Value]) -> bool {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let pairs = is.iter().map(|i| (text(i.hostname.as_deref()), text(i.ip.as_deref())));
    let wanted = wanted.iter().map(|w| (text(w["hostname"].as_str()), text(w["ip"].as_str())));
    pairs.eq(wanted)
}
