//! Certificates: those of Secrets by the name that a client asks for, and one of our own for all other names.

use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use skiff_pki::{Authority, Pair, Request, Usage};

use crate::{routes::Routes, server::IngressError};

/// Who a client sees that asks for a name without a certificate, as with ingress-nginx.
const FALLBACK_NAME: &str = "Kubernetes Ingress Controller Fake Certificate";

#[derive(Debug)]
struct Certificates {
    routes: Arc<ArcSwap<Routes>>,
    fallback: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.routes.load().certificate(&name.to_ascii_lowercase()));
        Some(named.unwrap_or_else(|| self.fallback.clone()))
    }
}

/// How TLS is spoken: HTTP/2 where the client can, certificates of the routes of the moment.
pub(crate) fn config(routes: Arc<ArcSwap<Routes>>) -> Result<Arc<ServerConfig>, IngressError> {
    let fallback = fallback().map_err(|error| IngressError::Certificate(error.into()))?;
    let fallback = certified(fallback.certificate_pem.as_bytes(), fallback.key_pem.as_bytes())
        .map_err(|error| IngressError::Certificate(error.into()))?;
    let certificates = Certificates { routes, fallback: Arc::new(fallback) };
    let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn fallback() -> Result<Pair, skiff_pki::Error> {
    let (authority, _) = Authority::generate(FALLBACK_NAME)?;
    authority.issue(&Request {
        common_name: FALLBACK_NAME,
        organization: Some("Acme Co"),
        usage: Usage::Server,
        dns_names: &["ingress.local".to_owned()],
        addresses: &[],
    })
}

/// The certificate in a Secret of type `kubernetes.io/tls`.
pub(crate) fn of_secret(secret: &Secret) -> Result<CertifiedKey, String> {
    let field = |name: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(name));
        data.map(|bytes| bytes.0.as_slice()).ok_or_else(|| format!("{name} is missing"))
    };
    certified(field("tls.crt")?, field("tls.key")?)
}

fn certified(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate is not in PEM form: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key is not in PEM form: {error}"))?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Some keys cannot tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn secrets() {
        let pair = fallback().unwrap();
        let secret = |certificate: &str, key: &str| Secret {
            data: Some(
                [("tls.crt", certificate), ("tls.key", key)]
                    .map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec())))
                    .into(),
            ),
            ..Secret::default()
        };
        assert!(of_secret(&secret(&pair.certificate_pem, &pair.key_pem)).is_ok());
        let other = fallback().unwrap();
        assert!(of_secret(&secret(&pair.certificate_pem, &other.key_pem)).is_err());
        assert!(of_secret(&secret("none", &pair.key_pem)).is_err());
        assert_eq!(of_secret(&Secret::default()).unwrap_err(), "tls.crt is missing");
    }
}
