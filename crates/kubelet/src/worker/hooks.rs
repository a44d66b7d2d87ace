//! Lifecycle hooks: what is run in or sent to a container after it started and before it is stopped.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::{
    kubelet::Kubelet,
    pod::resolve_port,
    probes::{http, run::Outcome, tcp},
};

/// How long an HTTP or TCP hook may take.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a hook to its end. The error is for the container's status, not for events: it may hold secrets.
pub(super) async fn run(
    kubelet: &Kubelet,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match kubelet.runtime.exec_sync(container_id, command, 0).await {
            Ok(answer) if answer.exit_code == 0 => Ok(()),
            Ok(answer) => {
                let output = [answer.stdout, answer.stderr].concat();
                Err(format!(
                    "Exec lifecycle hook ([{shown}]) for Container {:?} failed - error: command '{shown}' exited with {}: {}, message: {:?}",
                    container.name,
                    answer.exit_code,
                    String::from_utf8_lossy(&output),
                    String::from_utf8_lossy(&output),
                ))
            }
            Err(error) => Err(format!(
                "Exec lifecycle hook ([{shown}]) for Container {:?} failed - error: {error}",
                container.name
            )),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    let outcome = if let Some(action) = &hook.http_get {
        let target = http::request_of(action, container, pod_ip)?;
        http::probe(&target, NETWORK_TIMEOUT).await
    } else if let Some(action) = &hook.tcp_socket {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        tcp::probe(host, resolve_port(&action.port, container)?, NETWORK_TIMEOUT).await
    } else {
        return Err("invalid handler".to_owned());
    };
    match outcome {
        Outcome::Success | Outcome::Warning(_) => Ok(()),
        Outcome::Failure(message) | Outcome::Unknown(message) => {
            Err(format!("lifecycle hook for Container {:?} failed - error: {message}", container.name))
        }
    }
}
