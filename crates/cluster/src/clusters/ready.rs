//! Waiting for a cluster.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};

use crate::{Error, Result, interrupt::Interrupts};

const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at the API; a list of a few objects costs a fraction of a millisecond.
const API_PAUSE: Duration = Duration::from_millis(20);

/// Waits until a condition holds; `None` if it does not within `patience`.
pub(super) fn wait(patience: Duration, interrupts: &Interrupts, condition: impl Fn() -> bool) -> Result<Option<()>> {
    let deadline = Instant::now() + patience;
    loop {
        interrupts.check()?;
        if condition() {
            return Ok(Some(()));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until all nodes are Ready and a DNS pod is; returns what is still missing when time is up.
pub(super) fn cluster_ready(
    kubeconfig: &Path,
    nodes: usize,
    patience: Duration,
    interrupts: &Interrupts,
) -> Result<Option<String>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("start a runtime"))?;
    runtime.block_on(async {
        let failed = |message: String| Error::Kubeconfig { file: kubeconfig.to_owned(), message };
        let config = skiff_client::Config::from_kubeconfig(kubeconfig, None).map_err(|e| failed(e.to_string()))?;
        let client = skiff_client::https(&config).map_err(|e| failed(e.to_string()))?;
        let deadline = Instant::now() + patience;
        loop {
            interrupts.check()?;
            let missing = match missing(&client, nodes).await {
                Ok(None) => return Ok(None),
                Ok(Some(missing)) => missing,
                Err(error) => format!("the API server does not answer: {error}"),
            };
            if Instant::now() >= deadline {
                return Ok(Some(missing));
            }
            tokio::time::sleep(API_PAUSE).await;
        }
    })
}

async fn missing(client: &kube::Client, expected: usize) -> Result<Option<String>, kube::Error> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let ready = nodes.iter().filter(|node| is_ready(node)).count();
    if ready < expected {
        return Ok(Some(format!("{ready} of {expected} nodes are Ready")));
    }
    let dns = ListParams::default().labels("k8s-app=kube-dns");
    let pods = Api::<Pod>::namespaced(client.clone(), "kube-system").list(&dns).await?;
    let answers = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    Ok((!pods.iter().any(answers)).then(|| "no DNS pod is Ready".to_owned()))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
