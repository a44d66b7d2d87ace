//! The Ingress controller: its class is always there, its pod and the Service in front only while an Ingress is for it,
//! so that a cluster without Ingresses does not pay for it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use skiff_client::Informers;
use skiff_ingress::{CLASS, CONTROLLER, SERVICE, serves};

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The class that Ingresses without one get.
pub(super) fn class() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": CLASS, "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": CONTROLLER},
    })
}

/// The pod, its account, and the Service that is the address of all Ingresses.
fn objects(image: &str) -> [Value; 3] {
    let labels = json!({"app.kubernetes.io/name": "ingress", "app.kubernetes.io/component": "controller"});
    let meta = json!({"name": SERVICE, "namespace": "kube-system", "labels": labels});
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": name});
    let container_port = |name: &str, number: u16| json!({"name": name, "containerPort": number});
    let probe = json!({"httpGet": {"path": "/healthz", "port": 10254}, "periodSeconds": 10});
    let mut readiness = probe.clone();
    readiness["periodSeconds"] = 1.into();
    let container = json!({
        "name": "controller",
        "command": ["/skiff", "ingress"],
        "ports": [container_port("http", 80), container_port("https", 443)],
        "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "32Mi"}},
        "livenessProbe": probe,
        "readinessProbe": readiness,
    });
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"type": "LoadBalancer", "selector": labels, "ports": [port("http", 80), port("https", 443)]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {
                "replicas": 1,
                // The new one answers before the old one goes.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": super::system_pod(SERVICE, 30, image, container)},
            },
        }),
    ]
}

/// Keeps the controller there while it is wanted, until the informers end.
pub(crate) async fn follow(informers: Informers, image: String) {
    let (ingresses, classes) = (informers.informer::<Ingress>(), informers.informer::<IngressClass>());
    ingresses.wait_synced().await;
    classes.wait_synced().await;
    let (mut of_ingresses, mut of_classes) = (ingresses.subscribe(), classes.subscribe());
    let mut is_there = None;
    loop {
        let wanted = ingresses.list().iter().any(|ingress| serves(ingress, |name| classes.get("", name)));
        let mut failed = false;
        if is_there != Some(wanted) {
            match settle(informers.client(), &image, wanted).await {
                Ok(()) => is_there = Some(wanted),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the Ingress controller cannot be set up");
                    failed = true;
                }
            }
        }
        let goes_on = tokio::select! {
            change = of_ingresses.recv() => change.is_some(),
            change = of_classes.recv() => change.is_some(),
            () = tokio::time::sleep(RETRY), if failed => true,
        };
        if !goes_on {
            return;
        }
    }
}

async fn settle(client: &kube::Client, image: &str, wanted: bool) -> Result<()> {
    for object in objects(image) {
        if wanted {
            super::ensure_object(client, object).await?;
            continue;
        }
        let (api, kind, name) = super::api_of(client, &object);
        match api.delete(&name, &DeleteParams::background()).await {
            Ok(_) => tracing::info!(kind, name, "no Ingress needs it"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("cannot delete {kind} {name}")),
        }
    }
    Ok(())
}
