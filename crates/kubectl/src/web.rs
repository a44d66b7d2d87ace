//! Manifests from addresses, over HTTP and HTTPS.

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::error::{Error, Result};

/// Other places that an address may lead to, one after the other.
const MAX_REDIRECTS: usize = 10;

/// What is at an address.
pub(crate) async fn get(address: &str) -> Result<String> {
    let mut at = address.to_owned();
    for _ in 0..MAX_REDIRECTS {
        let uri: Uri = at.parse().map_err(|error| Error::text(format!("the URL {at:?} is not valid: {error}")))?;
        let (status, location, body) = fetch(&uri).await.map_err(|reason| {
            let host = uri.authority().map(ToString::to_string).unwrap_or_default();
            Error::Unreachable { server: host, reason }
        })?;
        match location {
            Some(location) if status.is_redirection() => {
                at = if location.contains("://") {
                    location
                } else {
                    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
                    format!("{}://{host}{location}", uri.scheme_str().unwrap_or("http"))
                };
            }
            _ if status.is_success() => {
                return String::from_utf8(body.to_vec()).map_err(|_| Error::text(format!("{address} is no text")));
            }
            _ => {
                let reason = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
                return Err(Error::text(format!(
                    "unable to read URL {address:?}, server reported {reason}, status code={}",
                    status.as_u16()
                )));
            }
        }
    }
    Err(Error::text(format!("{address}: stopped after {MAX_REDIRECTS} redirects")))
}

async fn fetch(uri: &Uri) -> Result<(StatusCode, Option<String>, Bytes), String> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
    if secure {
        let roots = skiff_client::Pem::File("/etc/ssl/certs/ca-certificates.crt".into());
        let connector = skiff_client::tls_connector(&roots).map_err(|error| error.to_string())?;
        let name = skiff_client::server_name(&host).map_err(|error| error.to_string())?;
        let tls = connector.connect(name, tcp).await.map_err(|error| error.to_string())?;
        ask(tls, uri).await
    } else {
        ask(tcp, uri).await
    }
}

async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
) -> Result<(StatusCode, Option<String>, Bytes), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    let running = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(http::header::HOST, uri.authority().map(|a| a.as_str()).unwrap_or_default())
        .header(http::header::USER_AGENT, "kubectl")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let location = response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.map(str::to_owned);
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    running.abort();
    Ok((status, location, body))
}
