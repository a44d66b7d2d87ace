//! Upgrade requests: what is asked for and which protocol is agreed on.

use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

/// The body of the answers.
pub type Body = Full<Bytes>;

/// SPDY's header for what WebSocket calls a subprotocol.
pub(crate) const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a client wants to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    WebSocket,
    Spdy,
}

/// The words of a header that may be given several times and as a list.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(','));
    words.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

/// Whether a request wants the connection for something else than HTTP.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade"))
}

pub(crate) fn transport(headers: &HeaderMap) -> Option<Transport> {
    if !is_upgrade(headers) {
        return None;
    }
    words(headers, &UPGRADE).iter().find_map(|word| match word.to_ascii_lowercase().as_str() {
        "websocket" => Some(Transport::WebSocket),
        "spdy/3.1" => Some(Transport::Spdy),
        _ => None,
    })
}

/// The first protocol that the client names and the server knows. A client that names none gets the empty
/// one, if the server knows that.
pub(crate) fn negotiate<'a>(headers: &HeaderMap, transport: Transport, known: &[&'a str]) -> Option<&'a str> {
    let name = match transport {
        Transport::WebSocket => &SEC_WEBSOCKET_PROTOCOL,
        Transport::Spdy => &STREAM_VERSION,
    };
    let offered = words(headers, name);
    if offered.is_empty() {
        return known.iter().find(|protocol| protocol.is_empty()).copied();
    }
    offered.iter().find_map(|offer| known.iter().find(|protocol| offer == *protocol).copied())
}

/// A refusal in plain text.
pub(crate) fn refuse(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response
}

/// The refusal of a client whose protocols are all unknown.
pub(crate) fn refuse_protocols(transport: Transport, known: &[&str]) -> Response<Body> {
    let text = format!("unable to upgrade: unable to negotiate protocol: server supports {known:?}");
    match transport {
        Transport::WebSocket => refuse(StatusCode::BAD_REQUEST, &text),
        Transport::Spdy => {
            let mut response = refuse(StatusCode::FORBIDDEN, &text);
            for protocol in known {
                if let Ok(value) = HeaderValue::from_str(protocol) {
                    response.headers_mut().append(ACCEPTED_VERSIONS, value);
                }
            }
            response
        }
    }
}

/// The answer after which the connection is no longer HTTP's.
pub(crate) fn accept(headers: &HeaderMap, transport: Transport, protocol: &str) -> Option<Response<Body>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let name = match transport {
        Transport::WebSocket => {
            out.insert(UPGRADE, HeaderValue::from_static("websocket"));
            let key = headers.get(SEC_WEBSOCKET_KEY)?;
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            out.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).ok()?);
            SEC_WEBSOCKET_PROTOCOL
        }
        Transport::Spdy => {
            out.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            STREAM_VERSION
        }
    };
    if !protocol.is_empty() {
        out.insert(name, HeaderValue::from_str(protocol).ok()?);
    }
    Some(response)
}
