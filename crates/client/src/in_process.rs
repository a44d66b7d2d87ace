//! A client that calls the API server's handler chain in the same process.

use http::{HeaderValue, Request, Response, header::USER_AGENT};
use kube::client::Body;
use tower::{BoxError, Service, ServiceExt as _};

/// A client whose requests enter `service` directly: no socket, no TLS, no HTTP framing, but the same
/// chain of handlers as HTTPS, authentication, authorization and admission included. The service
/// decides whom such a request is from, as it does for a connection.
///
/// Requests carry a path without scheme and host, and `user_agent`.
///
/// Must be called on a tokio runtime.
pub fn in_process<S, B>(service: S, user_agent: &str, default_namespace: &str) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let agent = HeaderValue::from_str(user_agent).ok();
    let service = service.map_request(move |mut request: Request<Body>| {
        if let Some(agent) = &agent {
            request.headers_mut().insert(USER_AGENT, agent.clone());
        }
        request
    });
    kube::Client::new(service, default_namespace)
}
