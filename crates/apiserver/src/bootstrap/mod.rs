//! What every cluster has: namespaces, roles, priority classes and the `kubernetes` Service. Made at each start where
//! it is missing; what users changed stays, but for the roles, which are brought up to date as upstream does it.

mod roles;
pub(crate) mod servers;

use std::{collections::BTreeSet, net::SocketAddr};

use serde_json::{Value, json};
use skiff_api::Status;

use crate::{
    aggregator::{self, FRONT_PROXY_NAME, FrontProxy},
    auth::{MASTERS, User},
    registry::engine::{Context, Engine, Part, store_status},
    request::WriteOptions,
};

/// Makes what is missing.
pub(crate) async fn run(
    engine: &Engine,
    advertise: SocketAddr,
    front_proxy: Option<&FrontProxy>,
) -> Result<(), Status> {
    let services = engine.registry.builtin("", "services");
    let services = services.cache.list(&Default::default(), 0, None).await.map_err(Status::internal)?.objects;
    for service in &services {
        engine.services.adopt(&service.value());
    }
    if engine.shared {
        engine.services.reconcile(&*engine.store, &services).await.map_err(|e| store_status(&e))?;
    }
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        ensure(
            engine,
            "",
            "namespaces",
            "",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )
        .await?;
    }
    roles::ensure(engine).await?;
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        });
        ensure(engine, "scheduling.k8s.io", "priorityclasses", "", class).await?;
    }
    let cidrs: Vec<String> = engine.services.ranges().iter().map(|r| format!("{}/{}", r.base, r.prefix)).collect();
    let service_cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs},
    });
    ensure(engine, "networking.k8s.io", "servicecidrs", "", service_cidr).await?;
    if let Some(front_proxy) = front_proxy {
        authentication(engine, front_proxy).await?;
    }
    aggregator::register(engine).await?;
    kubernetes_service(engine, advertise).await
}

/// What servers of aggregated APIs have to know to tell who asks them.
async fn authentication(engine: &Engine, front_proxy: &FrontProxy) -> Result<(), Status> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": front_proxy.client_authority_pem,
            "requestheader-allowed-names": json!([FRONT_PROXY_NAME]).to_string(),
            "requestheader-client-ca-file": front_proxy.authority_pem,
            "requestheader-extra-headers-prefix": json!(["X-Remote-Extra-"]).to_string(),
            "requestheader-group-headers": json!(["X-Remote-Group"]).to_string(),
            "requestheader-uid-headers": json!(["X-Remote-Uid"]).to_string(),
            "requestheader-username-headers": json!(["X-Remote-User"]).to_string(),
        },
    });
    ensure_fields(engine, "", "configmaps", "kube-system", map, &["data"]).await
}

fn system() -> (User, WriteOptions) {
    // A webhook that cannot be reached must not keep the server from starting.
    let options = WriteOptions { past_hooks: true, ..WriteOptions::default() };
    (User::known("system:apiserver", &[MASTERS]), options)
}

/// Creates an object unless there is one of its name.
async fn ensure(
    engine: &Engine,
    group: &'static str,
    plural: &'static str,
    namespace: &str,
    object: Value,
) -> Result<(), Status> {
    let resource = engine.registry.builtin(group, plural);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match engine.get(resource, namespace, &name).await {
        Ok(_) => return Ok(()),
        Err(e) if e.code == 404 => {}
        Err(e) => return Err(e),
    }
    let (user, options) = system();
    match engine.create(&Context { user: &user, options: &options }, resource, namespace, object).await {
        Err(e) if e.reason != "AlreadyExists" => Err(e),
        _ => Ok(()),
    }
}

/// Makes an object be what is wanted in these fields, and have the labels.
async fn ensure_fields(
    engine: &Engine,
    group: &'static str,
    plural: &'static str,
    namespace: &str,
    object: Value,
    fields: &[&str],
) -> Result<(), Status> {
    ensure(engine, group, plural, namespace, object.clone()).await?;
    let resource = engine.registry.builtin(group, plural);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (user, options) = system();
    let change = |old: &Value| {
        let mut new = old.clone();
        for field in fields {
            new[*field] = object[*field].clone();
        }
        for (label, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
            new["metadata"]["labels"][label] = value.clone();
        }
        Ok(new)
    };
    let cx = Context { user: &user, options: &options };
    engine.update(&cx, resource, namespace, name, Part::Main, "", &change).await.map(|_| ())
}

/// The Service under which pods find the API, and where it leads.
async fn kubernetes_service(engine: &Engine, advertise: SocketAddr) -> Result<(), Status> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let address = engine.services.ranges().first().map(|range| range.nth(1).to_string());
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "clusterIP": address,
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": advertise.port()}],
            "type": "ClusterIP", "sessionAffinity": "None",
        },
    });
    ensure(engine, "", "services", "default", service).await?;
    // Of several servers each finds the others a moment later.
    match engine.shared {
        true => Ok(()),
        false => servers::write(engine, &BTreeSet::from([advertise]), advertise.port()).await,
    }
}
