//! One request: found, checked, sent on, answered.

use std::{
    collections::HashMap,
    error::Error,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TE, TRANSFER_ENCODING, UPGRADE},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;

use crate::{
    annotations::Rate,
    routes::{Found, Routes, Target},
};

type BoxError = Box<dyn Error + Send + Sync>;
/// A request's or a response's content.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A pod that does not even accept a connection within this is left for another one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Contents up to this size are kept until a pod has taken them, so that another pod can be tried.
const REPEATABLE: u64 = 64 << 10;
/// Connections to pods are kept this long without a request; pods that keep theirs for a shorter time would end
/// one just as it is used again.
const IDLE: Duration = Duration::from_secs(4);
/// Clients whose rate is remembered; above this, those that are below their limit are forgotten.
const MOST_CLIENTS: usize = 10_000;

/// What all requests share.
#[derive(Debug)]
pub struct Proxy {
    routes: Arc<ArcSwap<Routes>>,
    http1: Client<HttpConnector, Body>,
    http2: Client<HttpConnector, Body>,
    rates: Mutex<HashMap<(String, IpAddr), Bucket>>,
}

/// How much a client may still ask.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
}

fn answer(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{text}\n").into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn plain(status: StatusCode) -> Response<Body> {
    answer(status, &format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn redirect(status: StatusCode, to: &str) -> Response<Body> {
    let mut response = plain(status);
    match HeaderValue::from_str(to) {
        Ok(to) => drop(response.headers_mut().insert(LOCATION, to)),
        Err(_) => return plain(StatusCode::BAD_GATEWAY),
    }
    response
}

impl Proxy {
    pub(crate) fn new(routes: Arc<ArcSwap<Routes>>) -> Self {
        let connector = || {
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
            connector.set_nodelay(true);
            connector
        };
        let builder = || {
            let mut builder = Client::builder(TokioExecutor::new());
            builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).timer(TokioTimer::new());
            builder
        };
        Self {
            routes,
            http1: builder().http1_preserve_header_case(true).build(connector()),
            http2: builder().http2_only(true).build(connector()),
            rates: Mutex::default(),
        }
    }

    /// Answers a request.
    pub(crate) async fn handle(&self, request: Request<Incoming>, from: Origin) -> Response<Body> {
        let host = host_of(&request);
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let name = name.map_or(host.as_str(), |(name, _)| name).to_ascii_lowercase();
        let found = self.routes.load().find(&name, request.uri().path());
        let Some(found) = found else {
            return answer(StatusCode::NOT_FOUND, "default backend - 404");
        };
        if let Some(response) = self.refused(&request, &name, &found, from) {
            return response;
        }
        let ingress = found.target.ingress.clone();
        match self.send(request, &host, found, from).await {
            Ok(response) => response,
            Err(Failure { status, cause }) => {
                tracing::warn!(ingress, host, status = status.as_u16(), cause, "a request was not answered by a pod");
                match status {
                    StatusCode::SERVICE_UNAVAILABLE => answer(status, "503 Service Temporarily Unavailable"),
                    status => plain(status),
                }
            }
        }
    }

    /// What is answered without asking a pod.
    fn refused(&self, request: &Request<Incoming>, name: &str, found: &Found, from: Origin) -> Option<Response<Body>> {
        let settings = &found.target.settings;
        if !from.tls && (settings.force_ssl_redirect || (settings.ssl_redirect && found.tls)) {
            let rest = request.uri().path_and_query().map_or("/", |rest| rest.as_str());
            return Some(redirect(StatusCode::PERMANENT_REDIRECT, &format!("https://{name}{rest}")));
        }
        if let Some((status, to)) = &settings.redirect {
            return Some(redirect(StatusCode::from_u16(*status).unwrap_or(StatusCode::FOUND), to));
        }
        if let Some(root) = settings.app_root.as_ref().filter(|_| request.uri().path() == "/") {
            return Some(redirect(StatusCode::FOUND, root));
        }
        if let Some(rate) = settings.rate
            && !self.may_ask(&found.target.ingress, from.address.ip(), rate)
        {
            return Some(answer(StatusCode::SERVICE_UNAVAILABLE, "503 Service Temporarily Unavailable"));
        }
        let limit = settings.body_limit?;
        (request.body().size_hint().lower() > limit).then(|| plain(StatusCode::PAYLOAD_TOO_LARGE))
    }

    fn may_ask(&self, ingress: &str, client: IpAddr, rate: Rate) -> bool {
        let now = Instant::now();
        let most = rate.burst.max(1.0);
        let mut rates = self.rates.lock();
        if rates.len() > MOST_CLIENTS {
            rates.retain(|_, bucket| bucket.left < 1.0 && now - bucket.at < Duration::from_secs(60));
        }
        let bucket = rates.entry((ingress.to_owned(), client)).or_insert(Bucket { left: most, at: now });
        bucket.left = (bucket.left + (now - bucket.at).as_secs_f64() * rate.per_second).min(most);
        bucket.at = now;
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }

    /// Sends a request to one pod after the other until one has taken it.
    async fn send(
        &self,
        mut request: Request<Incoming>,
        host: &str,
        found: Found,
        from: Origin,
    ) -> Result<Response<Body>, Failure> {
        let target = &found.target;
        let endpoints = target.in_turn();
        if endpoints.is_empty() {
            return Err(Failure { status: StatusCode::SERVICE_UNAVAILABLE, cause: "no endpoint is ready".to_owned() });
        }
        let wants_upgrade = upgrade_of(request.headers()).is_some() && request.version() == Version::HTTP_11;
        let client_side = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let head = Head::new(&request, host, &found, from, wants_upgrade);
        let limit = usize::try_from(target.settings.body_limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let (mut streamed, repeatable) = take_content(request.into_body(), limit).await?;
        let mut last = Failure { status: StatusCode::BAD_GATEWAY, cause: String::new() };
        for endpoint in endpoints {
            let content = match (&repeatable, streamed.take()) {
                (Some(bytes), _) => full(bytes.clone()),
                (None, Some(stream)) => stream,
                (None, None) => break,
            };
            let sent = head.request(&endpoint, content)?;
            match self.ask(sent, target).await {
                Ok(mut response) => {
                    if let Some(client_side) = client_side
                        && response.status() == StatusCode::SWITCHING_PROTOCOLS
                    {
                        join(client_side, hyper::upgrade::on(&mut response));
                    } else {
                        remove_hop_headers(response.headers_mut());
                    }
                    return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
                }
                Err((failure, may_repeat)) => {
                    last = failure;
                    if !may_repeat && !head.method.is_idempotent() {
                        break;
                    }
                }
            }
            if last.status == StatusCode::GATEWAY_TIMEOUT {
                break;
            }
        }
        Err(last)
    }

    /// The failure, and whether the pod cannot have seen the request.
    async fn ask(&self, request: Request<Body>, target: &Target) -> Result<Response<Incoming>, (Failure, bool)> {
        let client = if target.settings.http2 { &self.http2 } else { &self.http1 };
        match tokio::time::timeout(target.settings.read_timeout, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let not_sent = error.is_connect();
                Err((Failure { status: status_of(&error), cause: chain(&error) }, not_sent))
            }
            Err(_) => {
                let cause = "no answer within the read timeout".to_owned();
                Err((Failure { status: StatusCode::GATEWAY_TIMEOUT, cause }, false))
            }
        }
    }
}

/// A request that no pod answered.
struct Failure {
    status: StatusCode,
    cause: String,
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A content that turned out to be too large fails the sending of it.
fn status_of(error: &dyn Error) -> StatusCode {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<LengthLimitError>() {
            return StatusCode::PAYLOAD_TOO_LARGE;
        }
        source = cause.source();
    }
    StatusCode::BAD_GATEWAY
}

/// The content as a stream, or as bytes if it is small.
async fn take_content(body: Incoming, limit: usize) -> Result<(Option<Body>, Option<Bytes>), Failure> {
    if body.size_hint().upper().is_some_and(|size| size <= REPEATABLE) {
        let collected = body
            .collect()
            .await
            .map_err(|error| Failure { status: StatusCode::BAD_REQUEST, cause: error.to_string() })?;
        return Ok((None, Some(collected.to_bytes())));
    }
    Ok((Some(Limited::new(body, limit).boxed_unsync()), None))
}

fn host_of<B>(request: &Request<B>) -> String {
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    request.uri().authority().map(ToString::to_string).or_else(header).unwrap_or_default()
}

/// What a client wants the connection to become.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(CONNECTION)?.to_str().ok()?;
    let asks = connection.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asks).cloned()
}

/// Headers that are about one connection only.
fn remove_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let known = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in named.into_iter().chain(known).chain([CONNECTION, TRANSFER_ENCODING, UPGRADE]) {
        headers.remove(name);
    }
}

/// A request without its content, as pods get it.
struct Head {
    method: Method,
    path: String,
    headers: HeaderMap,
}

impl Head {
    fn new(request: &Request<Incoming>, host: &str, found: &Found, from: Origin, upgrade: bool) -> Self {
        let mut headers = request.headers().clone();
        let kept = upgrade_of(&headers).filter(|_| upgrade);
        let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        remove_hop_headers(&mut headers);
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        if let Some(upgrade) = kept {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, upgrade);
        }
        if request.body().size_hint().exact().is_none() {
            headers.remove(CONTENT_LENGTH);
        }
        let scheme = if from.tls { "https" } else { "http" };
        let port = if from.tls { "443" } else { "80" };
        let client = from.address.ip().to_canonical().to_string();
        let set = [
            ("x-real-ip", client.as_str()),
            ("x-forwarded-for", client.as_str()),
            ("x-forwarded-host", host),
            ("x-forwarded-port", port),
            ("x-forwarded-proto", scheme),
            ("x-forwarded-scheme", scheme),
            ("x-scheme", scheme),
        ];
        for (name, value) in set {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let host = found.target.settings.host.as_deref().unwrap_or(host);
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
        let path = match (&found.path, request.uri().query()) {
            (Some(path), Some(query)) => format!("{path}?{query}"),
            (Some(path), None) => path.clone(),
            (None, _) => request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        };
        Self { method: request.method().clone(), path, headers }
    }

    fn request(&self, endpoint: &str, content: Body) -> Result<Request<Body>, Failure> {
        let uri: Result<Uri, _> = format!("http://{endpoint}{}", self.path).parse();
        let uri = uri.map_err(|error| Failure { status: StatusCode::BAD_REQUEST, cause: error.to_string() })?;
        let mut request = Request::new(content);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// Passes on what both sides say, until both are done.
fn join(client: hyper::upgrade::OnUpgrade, pod: hyper::upgrade::OnUpgrade) {
    tokio::spawn(async move {
        if let (Ok(client), Ok(pod)) = tokio::join!(client, pod) {
            // Either side ends the conversation as it likes.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(pod)).await;
        }
    });
}
