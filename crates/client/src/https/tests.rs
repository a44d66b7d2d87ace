use std::{convert::Infallible, path::Path};

use http_body_util::{BodyExt as _, Full};
use hyper::{body::Bytes, service::service_fn};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA for a test's server and clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A server that answers with what it saw: version, path, user agent, token, client certificate or not.
async fn serve(authority: &Authority, alpn: &[&[u8]]) -> String {
    let (certificate, key) = authority.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let with_certificate = tls.get_ref().1.peer_certificates().is_some();
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let header = |name| {
                        let value = request.headers().get(name);
                        value.map_or("-", |value: &HeaderValue| value.to_str().unwrap()).to_owned()
                    };
                    let seen = format!(
                        "{:?} {} {} {} {with_certificate}",
                        request.version(),
                        request.uri().path_and_query().unwrap(),
                        header("user-agent"),
                        header("authorization"),
                    );
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(seen))))
                });
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    format!("https://localhost:{}", address.port())
}

async fn seen(client: &kube::Client) -> Result<String, kube::Error> {
    let request = Request::get("/api/v1/pods?limit=1").body(Body::empty()).unwrap();
    let body = client.send(request).await?.into_body().collect().await?;
    Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

fn config(authority: &Authority, server: String) -> Config {
    Config::new(server, Pem::Inline(authority.0.pem().into_bytes())).with_user_agent("kubelet/v1")
}

const H2: &[&[u8]] = &[b"h2", b"http/1.1"];

#[tokio::test]
async fn http_2_is_preferred_and_http_1_taken() {
    let authority = Authority::new();
    let client = https(&config(&authority, serve(&authority, H2).await)).unwrap();
    assert_eq!(seen(&client).await.unwrap(), "HTTP/2.0 /api/v1/pods?limit=1 kubelet/v1 - false");
    let client = https(&config(&authority, serve(&authority, &[]).await)).unwrap();
    assert_eq!(seen(&client).await.unwrap(), "HTTP/1.1 /api/v1/pods?limit=1 kubelet/v1 - false");
}

#[tokio::test]
async fn client_certificates_and_a_path_prefix() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("admin", ExtendedKeyUsagePurpose::ClientAuth);
    let server = serve(&authority, H2).await + "/prefix/";
    let config = config(&authority, server).with_credentials(Credentials::Certificate {
        certificate: Pem::Inline(certificate.into_bytes()),
        key: Pem::Inline(key.into_bytes()),
    });
    let client = https(&config).unwrap();
    assert_eq!(seen(&client).await.unwrap(), "HTTP/2.0 /prefix/api/v1/pods?limit=1 kubelet/v1 - true");
}

#[tokio::test]
async fn a_renewed_certificate_file_is_used() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let write = |(certificate, key): (String, String)| {
        std::fs::write(file("key"), key).unwrap();
        std::fs::write(file("crt"), certificate).unwrap();
    };
    write(authority.issue("first", ExtendedKeyUsagePurpose::ClientAuth));
    let identity = Identity {
        certificate: Pem::File(file("crt")),
        key: Pem::File(file("key")),
        provider: Arc::new(aws_lc_rs::default_provider()),
        loaded: Mutex::new(None),
    };
    let first = identity.current().unwrap();
    assert!(Arc::ptr_eq(&first, &identity.current().unwrap()));
    write(authority.issue("second", ExtendedKeyUsagePurpose::ClientAuth));
    let later = SystemTime::now() + Duration::from_secs(10);
    std::fs::File::options().write(true).open(file("crt")).unwrap().set_modified(later).unwrap();
    let second = identity.current().unwrap();
    assert_ne!(first.cert, second.cert);
    std::fs::write(file("crt"), "half a file").unwrap();
    assert!(identity.resolve(&[], &[]).is_some(), "the last good one serves");
}

#[tokio::test]
async fn tokens_given_and_from_a_file() {
    let authority = Authority::new();
    let server = serve(&authority, H2).await;
    let with = |credentials| https(&config(&authority, server.clone()).with_credentials(credentials)).unwrap();
    let client = with(Credentials::Token("secret".into()));
    assert!(seen(&client).await.unwrap().ends_with("Bearer secret false"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "from-file\n").unwrap();
    let client = with(Credentials::TokenFile(path));
    assert!(seen(&client).await.unwrap().ends_with("Bearer from-file false"));
    let client = with(Credentials::TokenFile(Path::new("/nonexistent/token").into()));
    let error = seen(&client).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/token"), "{error}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let server = serve(&Authority::new(), H2).await;
    let client = https(&config(&Authority::new(), server)).unwrap();
    assert!(seen(&client).await.is_err());
}

#[tokio::test]
async fn what_cannot_work_is_said_at_once() {
    let authority = Authority::new();
    let message = |config: Config| https(&config).map(drop).unwrap_err().to_string();
    assert_eq!(
        message(config(&authority, "http://localhost".into())),
        r#"invalid server address "http://localhost": it must start with https://"#
    );
    assert_eq!(
        message(Config::new("https://localhost", Pem::Inline(Vec::new()))),
        "cannot use the CA bundle: it holds no certificate"
    );
    let credentials = Credentials::Certificate { certificate: Pem::File("/no".into()), key: Pem::File("/no".into()) };
    let error = message(config(&authority, "https://localhost".into()).with_credentials(credentials));
    assert!(error.starts_with("cannot use the client certificate: /no: No such file"), "{error}");
}
