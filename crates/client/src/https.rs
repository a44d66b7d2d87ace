//! A client that reaches the API server over HTTPS, with HTTP/2 where the server speaks it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use hyper::{body::Incoming, rt};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kube::client::Body;
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::{CryptoProvider, aws_lc_rs},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{BoxError, Service};

use crate::{Config, ConfigError, Credentials, Pem};

/// A dead peer is noticed as client-go does it: a ping after 30 s without a frame, 15 s to answer it.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// client-go's dial timeout.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a token read from a file is used before the file is looked at again; client-go's period.
const TOKEN_PERIOD: Duration = Duration::from_secs(60);

/// A client for the server of `config`. Connects when it is first used, and again when it has to.
///
/// Must be called on a tokio runtime.
///
/// Errors: an address, CA bundle, certificate or key that cannot be used.
pub fn https(config: &Config) -> Result<kube::Client, ConfigError> {
    let base = Base::parse(&config.server)?;
    let server_name = server_name(config, &base)?;
    let mut tls = tls_config(config)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = Connector { tls: TlsConnector::from(Arc::new(tls)), server_name };
    let http = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(connector);
    let user_agent = HeaderValue::from_str(&config.user_agent)
        .map_err(|error| ConfigError::Server { server: config.server.clone(), what: format!("user agent: {error}") })?;
    let token = token(config)?;
    let service = Transport { http, base: Arc::new(base), user_agent, token: token.map(Arc::new) };
    Ok(kube::Client::new(service, &*config.default_namespace))
}

/// The bearer token of a configuration.
pub(crate) fn token(config: &Config) -> Result<Option<Token>, ConfigError> {
    Ok(match &config.credentials {
        Credentials::Token(token) => Some(Token::Fixed(
            bearer(token).map_err(|error| ConfigError::Tls { what: "bearer token", reason: error.to_string() })?,
        )),
        Credentials::TokenFile(path) => Some(Token::File { path: path.clone(), read: Mutex::new(None) }),
        Credentials::Anonymous | Credentials::Certificate { .. } => None,
    })
}

/// The parts of the server's address.
pub(crate) struct Base {
    pub(crate) authority: http::uri::Authority,
    /// Without a slash at the end.
    path: String,
}

impl Base {
    pub(crate) fn parse(server: &str) -> Result<Base, ConfigError> {
        let invalid = |what: &str| ConfigError::Server { server: server.into(), what: what.into() };
        let uri: Uri = server.parse().map_err(|error: http::uri::InvalidUri| invalid(&error.to_string()))?;
        if uri.scheme_str() != Some("https") {
            return Err(invalid("it must start with https://"));
        }
        let authority = uri.authority().cloned().ok_or_else(|| invalid("it has no host"))?;
        Ok(Base { authority, path: uri.path().trim_end_matches('/').to_owned() })
    }

    /// A request's path on this server.
    pub(crate) fn resolve(&self, uri: &Uri) -> Result<Uri, http::Error> {
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        Uri::builder()
            .scheme("https")
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}", self.path))
            .build()
    }
}

pub(crate) fn server_name(config: &Config, base: &Base) -> Result<ServerName<'static>, ConfigError> {
    let host = base.authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = config.tls_server_name.clone().unwrap_or_else(|| host.to_owned());
    ServerName::try_from(name)
        .map_err(|error| ConfigError::Server { server: config.server.clone(), what: error.to_string() })
}

/// Adds address, user agent and token to each request.
#[derive(Clone)]
struct Transport {
    http: legacy::Client<Connector, Body>,
    base: Arc<Base>,
    user_agent: HeaderValue,
    token: Option<Arc<Token>>,
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Connections are made and waited for per request.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            *request.uri_mut() = this.base.resolve(request.uri())?;
            request.headers_mut().insert(header::USER_AGENT, this.user_agent);
            if let Some(token) = this.token {
                request.headers_mut().insert(header::AUTHORIZATION, token.header().await?);
            }
            Ok(this.http.request(request).await?)
        })
    }
}

/// Where the bearer token comes from.
pub(crate) enum Token {
    Fixed(HeaderValue),
    File { path: std::path::PathBuf, read: Mutex<Option<(Instant, HeaderValue)>> },
}

impl Token {
    pub(crate) async fn header(&self) -> Result<HeaderValue, BoxError> {
        let (path, read) = match self {
            Token::Fixed(value) => return Ok(value.clone()),
            Token::File { path, read } => (path, read),
        };
        let known = read.lock().clone();
        if let Some((when, value)) = &known
            && when.elapsed() < TOKEN_PERIOD
        {
            return Ok(value.clone());
        }
        match tokio::fs::read_to_string(path).await {
            Ok(token) => {
                let value = bearer(token.trim())?;
                *read.lock() = Some((Instant::now(), value.clone()));
                Ok(value)
            }
            // As client-go does, go on with the old token: it is valid longer than it is used.
            Err(error) => match known {
                Some((_, value)) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read the token file, using the last token");
                    Ok(value)
                }
                None => Err(format!("cannot read token file {}: {error}", path.display()).into()),
            },
        }
    }
}

fn bearer(token: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Opens TLS connections.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    server_name: ServerName<'static>,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        let connect = async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            let tls = this.tls.connect(this.server_name, tcp).await?;
            Ok(Stream(TokioIo::new(tls)))
        };
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, connect)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 30 s"))?
        })
    }
}

/// A TLS connection as hyper wants it.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let (_, tls) = self.0.inner().get_ref();
        if tls.alpn_protocol() == Some(b"h2") { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pub(crate) fn tls_config(config: &Config) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = roots(&config.ca)?;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls { what: "TLS library", reason: error.to_string() })?
        .with_root_certificates(roots);
    Ok(match &config.credentials {
        Credentials::Certificate { certificate, key } => {
            let identity =
                Identity { certificate: certificate.clone(), key: key.clone(), provider, loaded: Mutex::new(None) };
            // Read now, so that a mistake is reported where it was made.
            identity.current()?;
            builder.with_client_cert_resolver(Arc::new(identity))
        }
        _ => builder.with_no_client_auth(),
    })
}

fn roots(ca: &Pem) -> Result<RootCertStore, ConfigError> {
    let unusable = |reason: String| ConfigError::Tls { what: "CA bundle", reason };
    let pem = ca.read().map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it holds no certificate".into()));
    }
    Ok(roots)
}

/// A client certificate that is read again when its file changed.
#[derive(Debug)]
struct Identity {
    certificate: Pem,
    key: Pem,
    provider: Arc<CryptoProvider>,
    loaded: Mutex<Option<(Option<SystemTime>, Arc<CertifiedKey>)>>,
}

impl Identity {
    fn current(&self) -> Result<Arc<CertifiedKey>, ConfigError> {
        let changed = match &self.certificate {
            Pem::Inline(_) => None,
            Pem::File(path) => std::fs::metadata(path).and_then(|meta| meta.modified()).ok(),
        };
        let mut loaded = self.loaded.lock();
        if let Some((when, key)) = &*loaded
            && *when == changed
        {
            return Ok(key.clone());
        }
        let unusable = |what, reason: String| ConfigError::Tls { what, reason };
        let pem = self.certificate.read().map_err(|error| unusable("client certificate", error.to_string()))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| unusable("client certificate", error.to_string()))?;
        let pem = self.key.read().map_err(|error| unusable("client key", error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable("client key", error.to_string()))?;
        let certified = CertifiedKey::from_der(chain, key, &self.provider)
            .map_err(|error| unusable("client certificate and key", error.to_string()))?;
        let certified = Arc::new(certified);
        *loaded = Some((changed, certified.clone()));
        Ok(certified)
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self.current() {
            Ok(key) => Some(key),
            Err(error) => {
                // In the middle of being replaced, perhaps: the old one may still be good.
                tracing::warn!(%error, "using the last client certificate");
                self.loaded.lock().as_ref().map(|(_, key)| key.clone())
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
