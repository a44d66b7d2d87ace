//! What is in every cluster as ordinary objects: the cluster's DNS, and the default classes of storage and Ingresses.

pub(crate) mod ingress;

use anyhow::{Context as _, Result};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use skiff_api::storage;

/// What a pod of the control plane consists of, when its one container runs this program: `container` has what is its own.
fn system_pod(account: &str, grace_s: i64, image: &str, mut container: Value) -> Value {
    container["image"] = image.into();
    container["imagePullPolicy"] = "Never".into();
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
    });
    json!({
        "serviceAccountName": account,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": grace_s,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
        ],
        "containers": [container],
    })
}

/// The pods that answer names, their account, and the Service in front of them.
fn dns(image: &str, cluster_dns: &str) -> Vec<Value> {
    let labels = json!({"k8s-app": "kube-dns"});
    let probe = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}, "periodSeconds": 10});
    let mut readiness = probe("/ready", 8181);
    // A new cluster is as fast as its first answer; later probes are as rare as upstream's.
    readiness["periodSeconds"] = 1.into();
    let container = json!({
        "name": "coredns",
        "command": ["/skiff", "dns"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9153, "protocol": "TCP"}],
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "livenessProbe": probe("/health", 8080),
        "readinessProbe": readiness,
    });
    let mut pod = system_pod("coredns", 5, image, container);
    pod["dnsPolicy"] = "Default".into();
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", "namespace": "kube-system"}}),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
            "spec": {"clusterIP": cluster_dns, "selector": labels, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153}]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "coredns", "namespace": "kube-system", "labels": labels},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }),
    ]
}

/// The class that claims without one get: directories of the nodes.
fn storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": storage::CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": storage::PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

/// Creates what is missing and brings the image of what is there up to date.
pub(crate) async fn ensure(client: kube::Client, image: &str, cluster_dns: &str, with_dns: bool) -> Result<()> {
    let dns = if with_dns { dns(image, cluster_dns) } else { Vec::new() };
    for object in [storage_class(), ingress::class()].into_iter().chain(dns) {
        ensure_object(&client, object).await?;
    }
    Ok(())
}

/// How an object is reached, by what is in it.
fn api_of(client: &kube::Client, object: &Value) -> (Api<DynamicObject>, String, String) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let (group, version) = object["apiVersion"].as_str().unwrap_or_default().rsplit_once('/').unwrap_or(("", "v1"));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    (api, kind, name)
}

/// Creates an object, or brings the image of a Deployment that is there up to date.
async fn ensure_object(client: &kube::Client, object: Value) -> Result<()> {
    let (api, kind, name) = api_of(client, &object);
    // Looked for first: creating a Service again is refused for its address, not for its name.
    if api.get_metadata_opt(&name).await.with_context(|| format!("cannot look for {kind} {name}"))?.is_some() {
        if kind == "Deployment" {
            let container = &object["spec"]["template"]["spec"]["containers"][0];
            let container = json!({"name": container["name"], "image": container["image"]});
            let patch = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
            api.patch(&name, &PatchParams::default(), &Patch::Strategic(&patch))
                .await
                .with_context(|| format!("cannot update {kind} {name}"))?;
        }
        return Ok(());
    }
    let typed: DynamicObject = serde_json::from_value(object)?;
    match api.create(&PostParams::default(), &typed).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot create {kind} {name}")),
    }
}
