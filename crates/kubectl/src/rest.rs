//! Requests of the API, with JSON values in and out.

use std::{cell::RefCell, collections::BTreeSet};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use skiff_client::Config;

use crate::{
    error::{Error, Result},
    out::tell,
};

/// Asks for tables, and takes objects where there are none.
pub(crate) const TABLES: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// A connection to the API server.
pub(crate) struct Rest {
    client: kube::Client,
    pub(crate) config: Config,
    /// Host and port, for messages.
    server: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    timeout: Option<std::time::Duration>,
    /// Each warning of the server is passed on once.
    warned: RefCell<BTreeSet<String>>,
}

impl Rest {
    /// For the server of `config`; `headers` go with each request, such as whom to act as.
    pub(crate) fn new(
        config: Config,
        headers: Vec<(HeaderName, HeaderValue)>,
        timeout: Option<std::time::Duration>,
    ) -> Result<Rest> {
        let client = skiff_client::https(&config).map_err(|error| Error::text(chain(&error)))?;
        let server = config.server.split("://").last().unwrap_or_default();
        let server = server.split('/').next().unwrap_or_default().to_owned();
        Ok(Rest { client, config, server, headers, timeout, warned: RefCell::default() })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Value> {
        self.json(Method::DELETE, path, Some(options)).await
    }

    /// `kind` is `strategic-merge`, `merge`, `json` or `apply`.
    pub(crate) async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Result<Value> {
        let content = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        parse(&self.send(Method::PATCH, path, &content, "application/json", patch.to_string().into()).await?)
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        parse(&self.send(method, path, "application/json", "application/json", body).await?)
    }

    /// With an `Accept` of the caller's.
    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Result<Value> {
        parse(&self.send(Method::GET, path, "application/json", accept, Bytes::new()).await?)
    }

    /// What the server answers, whatever that is.
    pub(crate) async fn bytes(&self, path: &str) -> Result<Bytes> {
        self.send(Method::GET, path, "application/json", "application/json, */*", Bytes::new()).await
    }

    async fn send(&self, method: Method, path: &str, content: &str, accept: &str, body: Bytes) -> Result<Bytes> {
        let whole = async {
            let response = self.open(method, path, content, accept, body).await?;
            let collected = response.into_body().collect().await;
            collected.map(|body| body.to_bytes()).map_err(|error| self.unreachable(&error))
        };
        match self.timeout {
            Some(limit) => tokio::time::timeout(limit, whole).await.map_err(|_| Error::Unreachable {
                server: self.server.clone(),
                reason: "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
            })?,
            None => whole.await,
        }
    }

    /// Sends a request and returns the answer's head, its body to be read; anything but success is an error.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(path).header(http::header::ACCEPT, accept);
        if !body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, content);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_vec())).map_err(|error| Error::text(error.to_string()))?;
        let response = self.client.send(request).await.map_err(|error| self.unreachable(&error))?;
        self.pass_on_warnings(&response);
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(refusal(status, &body))
    }

    /// Sends somebody else's request and returns the answer, whatever it says.
    pub(crate) async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: &http::HeaderMap,
        body: Bytes,
    ) -> Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers.iter().chain(self.headers.iter().map(|(name, value)| (name, value))) {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_vec())).map_err(|error| Error::text(error.to_string()))?;
        self.client.send(request).await.map_err(|error| self.unreachable(&error))
    }

    /// The lines of an answer that goes on, such as a watch or a log.
    pub(crate) async fn stream(&self, path: &str, accept: &str) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let response = self.open(Method::GET, path, "", accept, Bytes::new()).await?;
        let body = response.into_body().into_data_stream();
        Ok(body.map_err(|error| Error::text(chain(&error))))
    }

    /// The events of a watch.
    pub(crate) async fn watch(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl Stream<Item = Result<Value>> + Unpin + use<>> {
        let stream = Box::pin(self.stream(path, accept).await?);
        let lines =
            futures::stream::unfold((stream, Vec::new()), |(mut stream, mut buffer): (_, Vec<u8>)| async move {
                loop {
                    if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = buffer.drain(..=end).collect();
                        return Some((parse(&line), (stream, buffer)));
                    }
                    match stream.next().await {
                        Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
                        Some(Err(error)) => return Some((Err(error), (stream, buffer))),
                        None => return None,
                    }
                }
            });
        Ok(Box::pin(lines))
    }

    /// Headers that go with each request, for those sent otherwise.
    pub(crate) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    pub(crate) fn unreachable(&self, error: &dyn std::error::Error) -> Error {
        Error::Unreachable { server: self.server.clone(), reason: chain(error) }
    }

    fn pass_on_warnings(&self, response: &Response<Body>) {
        for value in response.headers().get_all(http::header::WARNING) {
            // `299 - "text"`
            let text = value.to_str().unwrap_or_default();
            let quoted =
                text.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map_or(text, |(text, _)| text);
            let text = quoted.replace("\\\"", "\"").replace("\\\\", "\\");
            if self.warned.borrow_mut().insert(text.clone()) {
                tell!("Warning: {text}");
            }
        }
    }
}

/// What an answer that is no success says.
pub(crate) fn refusal(code: StatusCode, body: &[u8]) -> Error {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
    {
        return Error::Status(status);
    }
    let text = String::from_utf8_lossy(body);
    let reason = match code {
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalError",
    };
    let message = match (code, text.trim()) {
        (StatusCode::NOT_FOUND, _) => "the server could not find the requested resource".to_owned(),
        (_, "") => code.to_string(),
        (_, text) => text.to_owned(),
    };
    Error::Status(json!({"kind": "Status", "code": code.as_u16(), "reason": reason, "message": message}))
}

/// An error with its causes, which is where the reason is.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn parse(bytes: &[u8]) -> Result<Value> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| Error::text(format!("the server sent no JSON: {error}")))
}

/// Makes `?a=b&c=d` of what is not empty.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// Percent-encodes a part of an address.
pub(crate) fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}
