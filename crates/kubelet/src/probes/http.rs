//! Probing by an HTTP request; also what lifecycle hooks of type `httpGet` send.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls_pki_types::ServerName;

use super::{run::Outcome, tcp};
use crate::pod::resolve_port;

const USER_AGENT: &str = "kube-probe/1.36";
const MAX_REDIRECTS: usize = 10;
/// How much of an answer is read.
const MAX_BODY: usize = 10 * 1024;

/// A request to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path_and_query: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Target {
    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}{}", self.port, self.path_and_query)
    }
}

/// The request that an action asks for.
pub(crate) fn request_of(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Target, String> {
    let path = action.path.as_deref().unwrap_or_default();
    Ok(Target {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_owned(),
        port: resolve_port(&action.port, container)?,
        path_and_query: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

/// Success is any status from 200 to 399. Redirects on the same host are followed.
pub(crate) async fn probe(target: &Target, timeout: Duration) -> Outcome {
    let url = target.url();
    match tokio::time::timeout(timeout, follow(target.clone(), timeout)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(message)) => Outcome::Failure(format!("Get {url:?}: {message}")),
        Err(_) => Outcome::Failure(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(mut target: Target, timeout: Duration) -> Result<Outcome, String> {
    for _ in 0..=MAX_REDIRECTS {
        let (status, location) = get(&target, timeout).await?;
        let code = status.as_u16();
        if status.is_redirection()
            && let Some(location) = location
        {
            let Some(next) = resolve(&target, &location) else {
                return Err(format!("failed to parse Location header {location:?}"));
            };
            if next.host != target.host {
                // Somebody else's answer would say nothing about the container.
                return Ok(Outcome::Warning(format!("Probe terminated redirects, Response body: {location}")));
            }
            target = next;
            continue;
        }
        return Ok(match code {
            200..400 => Outcome::Success,
            _ => Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
        });
    }
    Err("stopped after 10 redirects".to_owned())
}

fn resolve(from: &Target, location: &str) -> Option<Target> {
    let uri: Uri = location.parse().ok()?;
    let path_and_query = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let Some(host) = uri.host() else {
        return Some(Target { path_and_query, ..from.clone() });
    };
    let https = uri.scheme_str().map_or(from.https, |s| s == "https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(Target { https, host, port, path_and_query, headers: from.headers.clone() })
}

/// One request on a connection of its own: status and where it redirects to.
async fn get(target: &Target, timeout: Duration) -> Result<(StatusCode, Option<String>), String> {
    let stream = tcp::connect(&target.host, target.port, timeout).await?;
    if !target.https {
        return exchange(TokioIo::new(stream), target).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(skiff_pki::unverified_tls().map_err(|e| e.to_string())?);
    let tls = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(TokioIo::new(tls), target).await
}

async fn exchange<I>(io: I, target: &Target) -> Result<(StatusCode, Option<String>), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let words = |e: hyper::Error| if e.is_incomplete_message() { "EOF".to_owned() } else { e.to_string() };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(words)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = target.path_and_query.parse().map_err(|e| format!("{e}"))?;
    let headers = request.headers_mut();
    let default_port = if target.https { 443 } else { 80 };
    let bare = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let host = if target.port == default_port { bare } else { format!("{bare}:{}", target.port) };
    headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|e| e.to_string())?);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut own = http::HeaderMap::new();
    for (name, value) in &target.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| e.to_string())?;
        own.append(name, HeaderValue::from_str(value).map_err(|e| e.to_string())?);
    }
    for name in own.keys() {
        headers.remove(name);
    }
    for (name, value) in &own {
        // An empty value takes a default header away.
        if !value.is_empty() {
            headers.append(name, value.clone());
        }
    }
    let response = sender.send_request(request).await.map_err(words)?;
    let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    let status = response.status();
    // Read, so that the server does not see its answer refused; but not more than is polite.
    let mut body = response.into_body();
    let mut read = 0;
    while read < MAX_BODY
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    connection.abort();
    Ok((status, location))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Answers each connection with the next text and returns what was asked.
    async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = Vec::new();
                while !text.ends_with(b"\r\n\r\n") {
                    text.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                asked.push(String::from_utf8(text).unwrap().to_lowercase());
            }
            asked
        });
        (port, served)
    }

    fn target(port: u16, headers: &[(&str, &str)]) -> Target {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Target { https: false, host: "127.0.0.1".into(), port, path_and_query: "/ok?x=1".into(), headers }
    }

    fn answer(status: &str, header: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{header}\r\n")
    }

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn statuses_and_headers() {
        let (port, asked) = server(vec![answer("200 OK", ""), answer("500 No", "")]).await;
        assert_eq!(probe(&target(port, &[("X-A", "b"), ("Host", "h")]), TIMEOUT).await, Outcome::Success);
        let failed = probe(&target(port, &[]), TIMEOUT).await;
        assert_eq!(failed, Outcome::Failure("HTTP probe failed with statuscode: 500".into()));
        let asked = asked.await.unwrap();
        assert!(asked[0].starts_with("get /ok?x=1 http/1.1\r\n"), "{}", asked[0]);
        for header in ["host: h\r\n", "x-a: b\r\n", "user-agent: kube-probe/1.36\r\n", "accept: */*\r\n"] {
            assert!(asked[0].contains(header), "{}", asked[0]);
        }
    }

    #[tokio::test]
    async fn redirects_stay_on_the_host() {
        let (port, asked) = server(vec![answer("302 F", "Location: /other\r\n"), answer("204 N", "")]).await;
        assert_eq!(probe(&target(port, &[]), TIMEOUT).await, Outcome::Success);
        assert!(asked.await.unwrap()[1].starts_with("get /other "));
        let (port, _) = server(vec![answer("302 F", "Location: http://192.0.2.1/\r\n")]).await;
        assert!(matches!(probe(&target(port, &[]), TIMEOUT).await, Outcome::Warning(_)));
    }

    #[tokio::test]
    async fn nobody_there() {
        let (port, _) = server(Vec::new()).await;
        tokio::task::yield_now().await;
        let refused = format!("Get \"http://127.0.0.1:{port}/ok?x=1\": ");
        match probe(&target(port, &[]), TIMEOUT).await {
            Outcome::Failure(message) => assert!(message.starts_with(&refused), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}
