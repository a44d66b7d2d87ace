//! Whether the server of an aggregated API is there: upstream's checks, reasons and words.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{Remote, as_user};
use crate::{
    auth::{MASTERS, User},
    endpoints,
    http::full,
    registry::Registry,
    subresources::now,
};

/// A server has to answer within this time.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest list of resources, or index of documents, that is read.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// What was found: the condition, and what the server has said of its resources.
pub(super) struct Found {
    pub(super) condition: Value,
    pub(super) discovered: Option<(Value, Option<Value>)>,
}

/// The condition `Available` with this reason; `None` is no fault.
fn condition(fault: Option<(&str, &str)>, message: String) -> Value {
    let (status, reason) = fault.unwrap_or(("True", "Passed"));
    json!({"type": "Available", "status": status, "lastTransitionTime": now(), "reason": reason, "message": message})
}

/// Looks at Service and endpoints, and asks the server what it serves.
pub(super) async fn check(registry: &Registry, remote: &Remote) -> Found {
    match reach(registry, remote).await {
        Ok(discovered) => {
            Found { condition: condition(None, "all checks passed".to_owned()), discovered: Some(discovered) }
        }
        Err((status, reason, message)) => {
            Found { condition: condition(Some((status, reason)), message), discovered: None }
        }
    }
}

type Fault = (&'static str, &'static str, String);

async fn reach(registry: &Registry, remote: &Remote) -> Result<(Value, Option<Value>), Fault> {
    let Remote { namespace, service: name, port, .. } = remote;
    let of = format!("service/{name} in {namespace:?}");
    let services = registry.builtin("", "services");
    let found = services.cache.get(&services.key(namespace, name)).await;
    let found = found.map_err(|e| ("Unknown", "ServiceAccessError", format!("{of} cannot be checked due to: {e}")))?;
    let service = found.ok_or_else(|| ("False", "ServiceNotFound", format!("{of} is not present")))?.value();
    if service["spec"]["type"] == "ClusterIP" {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let Some(found) = ports.into_iter().find(|p| p["port"] == *port) else {
            return Err(("False", "ServicePortError", format!("{of} is not listening on port {port}")));
        };
        let port_name = found["name"].as_str().unwrap_or_default();
        let ready = endpoints::ready(registry, namespace, name, port_name).await;
        match ready {
            Err(e) => return Err(("Unknown", "EndpointsAccessError", format!("{of} cannot be checked due to: {e}"))),
            Ok(ready) if !ready.is_empty() => {}
            Ok(_) if !endpoints::any(registry, namespace, name) => {
                return Err(("False", "EndpointsNotFound", format!("cannot find endpointslices for {of}")));
            }
            Ok(_) => {
                let why = format!("endpointslices for {of} have no addresses with port name {port_name:?}");
                return Err(("False", "MissingEndpoints", why));
            }
        }
    }
    let failed = |why: String| ("False", "FailedDiscoveryCheck", why);
    let addresses = endpoints::of_service(registry, namespace, name, *port).await.map_err(|why| failed(why.clone()))?;
    let path = remote.path();
    let (host, number) = &addresses[0];
    let url = format!("https://{host}:{number}{path}");
    let asked = tokio::time::timeout(TIMEOUT, ask(remote, &path, &addresses)).await;
    let answer = asked.unwrap_or_else(|_| Err(format!("Get {url:?}: context deadline exceeded")));
    let (code, body) = answer.map_err(|why| failed(format!("failing or missing response from {url}: {why}")))?;
    if !(200..300).contains(&code) {
        let why = format!("failing or missing response from {url}: bad status from {url}: {code}");
        return Err(failed(why));
    }
    // Documents are welcome but no condition.
    let index = tokio::time::timeout(TIMEOUT, ask(remote, "/openapi/v3", &addresses)).await;
    let index: Option<Value> = match index {
        Ok(Ok((200, body))) => serde_json::from_slice(&body).ok(),
        _ => None,
    };
    let entry = index.and_then(|index| index["paths"].get(path.trim_start_matches('/')).cloned());
    Ok((serde_json::from_slice(&body).unwrap_or_default(), entry))
}

/// Gets what is at a path of a server, as the aggregator itself.
async fn ask(remote: &Remote, path: &str, addresses: &[endpoints::Address]) -> Result<(u16, Bytes), String> {
    let mut request = Request::get(path)
        .header(header::HOST, format!("{}.{}.svc", remote.service, remote.namespace))
        .header(header::ACCEPT, "application/json")
        .body(full(""))
        .map_err(|e| e.to_string())?;
    as_user(request.headers_mut(), &User::known("system:kube-aggregator", &[MASTERS]));
    let (parts, mut body) = remote.server.send(request, addresses).await?.into_parts();
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
        if read.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(format!("the response is larger than {MAX_ANSWER_BYTES} bytes"));
        }
        read.extend_from_slice(&data);
    }
    Ok((parts.status.as_u16(), read.freeze()))
}
