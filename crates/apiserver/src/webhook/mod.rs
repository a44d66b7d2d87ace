//! Calling webhooks: HTTPS servers that the cluster's users name in `clientConfig`, for admission and for conversion.
//!
//! They are shown no credentials, redirects are not followed, answers are bounded in time and size, and connections
//! are kept. A Service is reached at its endpoints, where a certificate for `<name>.<namespace>.svc` must be shown.

mod config;

use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http::{Request, Uri, header};
use http_body_util::BodyExt as _;
use serde_json::Value;

pub(crate) use self::config::{REVIEWS, default_config, validate_config, validate_reviews};
use crate::{
    endpoints::{self, Address},
    http::full,
    outbound::{Server, Trust},
    registry::Registry,
};

/// As upstream's API server names itself to webhooks.
const USER_AGENT: &str = "kube-apiserver-admission";
/// What of a refusal's text is repeated.
const SHOWN_BYTES: usize = 2048;

/// Where a webhook is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Url(Address),
    Service {
        namespace: String,
        name: String,
        port: u16,
    },
    /// The configuration names no place that could be called.
    Nowhere(String),
}

/// A `clientConfig`, ready to be called. Lives as long as the configuration does, and its connections with it.
pub struct Webhook {
    place: Place,
    /// Host and port as the server knows itself: the `Host` header.
    authority: String,
    path: String,
    server: Server,
}

impl Webhook {
    /// Reads a `clientConfig` that has been validated.
    pub fn read(config: &Value) -> Webhook {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let ca_bundle = base64::engine::general_purpose::STANDARD.decode(text(&config["caBundle"])).unwrap_or_default();
        let service = &config["service"];
        let (place, authority, server_name, path) = if service.is_object() {
            let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
            let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
            let server_name = format!("{name}.{namespace}.svc");
            let path = text(&service["path"]);
            (Place::Service { namespace, name, port }, format!("{server_name}:{port}"), server_name, path)
        } else {
            let url = text(&config["url"]);
            match url.parse::<Uri>().ok().and_then(|uri| uri.host().map(|h| (h.to_owned(), uri.clone()))) {
                Some((host, uri)) => {
                    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
                    let place = Place::Url((host.clone(), uri.port_u16().unwrap_or(443)));
                    (place, authority, host, uri.path().to_owned())
                }
                None => {
                    let why = "webhook configuration must have either service or URL".to_owned();
                    (Place::Nowhere(why), String::new(), String::new(), String::new())
                }
            }
        };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Webhook { place, authority, path, server: Server::new(server_name, Trust::Authorities(ca_bundle), None) }
    }

    async fn addresses(&self, registry: &Registry) -> Result<Vec<Address>, String> {
        match &self.place {
            Place::Url(address) => Ok(vec![address.clone()]),
            Place::Service { namespace, name, port } => endpoints::of_service(registry, namespace, name, *port).await,
            Place::Nowhere(why) => Err(why.clone()),
        }
    }

    /// Posts a review and returns the answer, at most `limit` bytes of it. The error is what upstream says after
    /// `failed to call webhook: `.
    pub async fn call(
        &self,
        registry: &Registry,
        review: &Value,
        timeout: Duration,
        limit: usize,
    ) -> Result<Value, String> {
        // Whole seconds, rounded up.
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let path = format!("{}?timeout={seconds}s", self.path);
        let exchange = self.exchange(registry, &path, review.to_string().into(), limit);
        let answer = tokio::time::timeout(timeout, exchange).await;
        let (code, is_text, body) = answer
            .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
            .map_err(|why| format!("Post \"https://{}{path}\": {why}", self.authority))?;
        if !(200..=206).contains(&code) {
            return Err(refusal(code, is_text, &body));
        }
        serde_json::from_slice(&body).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
    }

    async fn exchange(
        &self,
        registry: &Registry,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<(u16, bool, Bytes), String> {
        let addresses = self.addresses(registry).await?;
        let request = Request::post(path)
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .body(full(body))
            .map_err(|e| e.to_string())?;
        let (parts, mut body) = self.server.send(request, &addresses).await?.into_parts();
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
            if read.len() + data.len() > limit {
                return Err(format!("the response is larger than {limit} bytes"));
            }
            read.extend_from_slice(&data);
        }
        let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("text/plain");
        Ok((parts.status.as_u16(), media_type.starts_with("text/"), read.freeze()))
    }
}

/// What an answer that is no success means, in the words of upstream's client.
fn refusal(code: u16, is_text: bool, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
        && let Some(message) = status["message"].as_str()
    {
        return message.to_owned();
    }
    let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]).trim().to_owned();
    let said = if is_text { shown } else { "unknown".to_owned() };
    match code {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 | 406 | 415 => said,
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_owned()
        }
        500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more details"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_read() {
        let service = Webhook::read(&json!({"service": {"namespace": "n", "name": "s", "port": 8443, "path": "/a"}}));
        assert_eq!(service.authority, "s.n.svc:8443");
        assert_eq!(service.path, "/a");
        let url = Webhook::read(&json!({"url": "https://[::1]:9443/b/c"}));
        assert_eq!(url.place, Place::Url(("::1".into(), 9443)));
        assert_eq!((url.authority.as_str(), url.path.as_str()), ("[::1]:9443", "/b/c"));
        assert_eq!(
            Webhook::read(&json!({"url": "https://example.com"})).place,
            Place::Url(("example.com".into(), 443))
        );
    }

    #[test]
    fn refusals_have_upstreams_words() {
        assert_eq!(refusal(404, true, b"x"), "the server could not find the requested resource");
        assert_eq!(
            refusal(500, true, b" oh \n"),
            "an error on the server (\"oh\") has prevented the request from succeeding"
        );
        assert_eq!(refusal(403, false, br#"{"kind":"Status","message":"no"}"#), "no");
    }
}
