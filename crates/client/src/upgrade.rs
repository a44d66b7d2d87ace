//! Connections of their own: for requests that become something else than HTTP, and to servers that are no API server.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::BoxError;

use crate::{
    Config, ConfigError, Pem,
    https::{self, CONNECT_TIMEOUT},
};

/// Sends a request that asks for an upgrade on an HTTP/1.1 connection of its own, and returns the answer, with which
/// `hyper::upgrade::on` gives the connection. `request` has the path alone; host, user agent and token are added.
///
/// Must be called on a tokio runtime.
pub async fn upgrade(config: &Config, mut request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, BoxError> {
    let base = https::Base::parse(&config.server)?;
    let name = https::server_name(config, &base)?;
    let connector = TlsConnector::from(Arc::new(https::tls_config(config)?));
    let host = base.authority.host().trim_matches(['[', ']']).to_owned();
    let connect = async {
        let tcp = TcpStream::connect((host.as_str(), base.authority.port_u16().unwrap_or(443))).await?;
        tcp.set_nodelay(true)?;
        connector.connect(name, tcp).await
    };
    let tls = tokio::time::timeout(CONNECT_TIMEOUT, connect).await??;
    *request.uri_mut() = base.resolve(request.uri())?.path_and_query().cloned().map(Into::into).unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(base.authority.as_str())?);
    headers.insert(header::USER_AGENT, HeaderValue::from_str(&config.user_agent)?);
    if let Some(token) = https::token(config)? {
        headers.insert(header::AUTHORIZATION, token.header().await?);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

/// TLS that trusts these authorities and shows no certificate of its own.
pub fn tls_connector(authorities: &Pem) -> Result<TlsConnector, ConfigError> {
    let config = Config::new("", authorities.clone());
    Ok(TlsConnector::from(Arc::new(https::tls_config(&config)?)))
}

/// A host as certificates name it.
pub fn server_name(host: &str) -> Result<ServerName<'static>, ConfigError> {
    ServerName::try_from(host.to_owned())
        .map_err(|error| ConfigError::Server { server: host.to_owned(), what: error.to_string() })
}
