//! Bodies and answers.

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::Value;
use skiff_api::Status;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A request's or an answer's body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The largest body that is read; upstream's limit.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is sent as it comes.
pub fn streamed<S>(stream: S) -> Body
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    use futures::StreamExt as _;
    StreamBody::new(stream.map(|b| Ok(Frame::data(b)))).boxed_unsync()
}

/// Reads a whole request body.
pub async fn read_body(mut body: Body) -> Result<Bytes, Status> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(format!("reading the request body failed: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if read.len() + data.len() > MAX_BODY_BYTES {
            return Err(Status::too_large(format!("limit is {MAX_BODY_BYTES}")));
        }
        if read.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}

/// An answer of this type and content.
pub fn respond(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub const JSON: &str = "application/json";

/// A JSON answer.
pub fn json(code: u16, value: &Value) -> Response<Body> {
    respond(code, JSON, value.to_string())
}

/// A plain text answer.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    respond(code, "text/plain; charset=utf-8", text.into())
}

/// A failure as an answer.
pub fn failure(status: &Status) -> Response<Body> {
    let mut response = json(status.code, &status.to_value());
    if let Some(seconds) = status.details["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
