//! The demonstration of `skiff cluster create --demo`: a page behind a load balancer.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use skiff_client::{Config, https};

/// The page's ports on this machine, in the order in which they are tried.
const PORTS: [u16; 4] = [80, 8080, 8000, 8888];
const NAME: &str = "hello-world";
/// How long the pods may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demonstration in the cluster of this context and tells where it is.
pub(crate) fn run(kubeconfig: &Path, context: &str, out: &mut dyn Write) -> Result<()> {
    crate::certificates::choose_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let port = runtime.block_on(async {
        let client = https(&Config::from_kubeconfig(kubeconfig, Some(context))?)?;
        deploy(client).await
    })?;
    let address = if port == 80 { "http://localhost".to_owned() } else { format!("http://localhost:{port}") };
    writeln!(
        out,
        "\nhello-world runs: two pods behind a load balancer.\n\n    curl {address}\n\nGo on with:\n\n    \
         kubectl get pods,services -o wide\n    kubectl scale deployment {NAME} --replicas=3\n    kubectl logs -l app={NAME}\n    \
         skiff cluster delete\n"
    )?;
    Ok(())
}

/// Whether nobody listens on this port of the machine's loopback.
fn is_free(port: u16) -> bool {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err()
}

async fn deploy(client: kube::Client) -> Result<u16> {
    let Some(port) = PORTS.into_iter().find(|p| is_free(*p)) else {
        bail!("none of the ports {PORTS:?} of this machine is free");
    };
    let labels = json!({"app": NAME});
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": NAME,
                    "image": crate::node::builtin_image(),
                    "imagePullPolicy": "Never",
                    "command": ["/skiff", "hello"],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    }))?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": NAME, "labels": labels},
        "spec": {"type": "LoadBalancer", "selector": labels, "ports": [{"port": port, "targetPort": 8080}]},
    }))?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client);
    match deployments.create(&PostParams::default(), &deployment).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        created => drop(created.context("cannot create the demonstration")?),
    }
    match services.create(&PostParams::default(), &service).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({"spec": {"ports": [{"port": port, "targetPort": 8080}]}});
            services
                .patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .context("cannot change the Service")?;
        }
        created => drop(created.context("cannot create the demonstration's Service")?),
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let deployment = deployments.get_status(NAME).await.context("cannot look at the demonstration")?;
        let available = deployment.status.and_then(|s| s.available_replicas).unwrap_or(0);
        let service = services.get_status(NAME).await.context("cannot look at the demonstration's Service")?;
        let balanced =
            service.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).is_some_and(|i| !i.is_empty());
        if available >= 2 && balanced {
            return Ok(port);
        }
        if Instant::now() > deadline {
            bail!(
                "the demonstration is not ready after {} s ({available} of 2 pods available); see: kubectl describe pods",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
