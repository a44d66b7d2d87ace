//! Probing by gRPC's standard health service.

use std::time::Duration;

use skiff_cri::Channel;
use tonic::{Code, codegen::http::uri::PathAndQuery, transport::Endpoint};

use super::run::Outcome;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The status that means: ready to serve.
const SERVING: i32 = 1;

/// Success is the answer `SERVING`.
pub(super) async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let seconds = timeout.as_secs();
    let unreachable = || {
        Outcome::Failure(format!(
            "timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded"
        ))
    };
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { return unreachable() };
    let checked = tokio::time::timeout(timeout, async {
        let channel = endpoint.connect().await.map_err(|_| None)?;
        check(channel, service).await.map_err(Some)
    });
    match checked.await {
        Ok(Ok(SERVING)) => Outcome::Success,
        Ok(Ok(status)) => {
            let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = usize::try_from(status).ok().and_then(|s| name.get(s)).unwrap_or(&"UNKNOWN");
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(None)) => unreachable(),
        Ok(Err(Some(status))) => match status.code() {
            Code::Unimplemented => Outcome::Failure(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            )),
            Code::DeadlineExceeded => {
                Outcome::Failure(format!("timeout: health rpc did not complete within {seconds}s"))
            }
            _ => Outcome::Failure(format!("error: health rpc probe failed: {}", status.message())),
        },
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {seconds}s")),
    }
}

async fn check(channel: Channel, service: &str) -> Result<i32, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    Ok(client.unary(request, path, codec).await?.into_inner().status)
}
