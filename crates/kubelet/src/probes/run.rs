//! Making one probe, of whatever kind.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

use super::{grpc, http, tcp};
use crate::{kubelet::Kubelet, pod::resolve_port};

/// Most of a command's output that is shown.
const MAX_OUTPUT: usize = 10 * 1024;

/// What a probe found. The texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// Success that deserves a word.
    Warning(String),
    Failure(String),
    /// The probe could not be made.
    Unknown(String),
}

/// Makes a probe.
pub(super) async fn probe(
    kubelet: &Kubelet,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
    probe: &Probe,
) -> Outcome {
    let timeout = Duration::from_secs(probe.timeout_seconds.and_then(|t| u64::try_from(t).ok()).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return run_command(kubelet, container_id, command, timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return match http::request_of(action, container, pod_ip) {
            Ok(request) => http::probe(&request, timeout).await,
            Err(message) => Outcome::Unknown(message),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        return match resolve_port(&action.port, container) {
            Ok(port) => tcp::probe(host, port, timeout).await,
            Err(message) => Outcome::Unknown(message),
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        return match u16::try_from(action.port) {
            Ok(port) => grpc::probe(pod_ip, port, service, timeout).await,
            Err(_) => Outcome::Unknown(format!("invalid port number: {}", action.port)),
        };
    }
    Outcome::Unknown("missing probe handler".to_owned())
}

async fn run_command(kubelet: &Kubelet, container_id: &str, command: Vec<String>, timeout: Duration) -> Outcome {
    let shown = command.join(" ");
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(1);
    match kubelet.runtime.exec_sync(container_id, command, seconds).await {
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            output.truncate(MAX_OUTPUT);
            let output = String::from_utf8_lossy(&output).into_owned();
            if answer.exit_code == 0 { Outcome::Success } else { Outcome::Failure(output) }
        }
        Err(error) if error.is_timeout() => {
            Outcome::Failure(format!("command timed out: {shown:?} timed out after {seconds}s"))
        }
        Err(error) => Outcome::Unknown(format!("rpc error: {error}")),
    }
}
