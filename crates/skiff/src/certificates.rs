//! The files of the control plane's `pki` directory, and TLS configurations from them.

use std::{net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use skiff_apiserver::FrontProxy;
use skiff_pki::{Authority, Pair, Request, Usage};

/// Makes the one cryptography library of this program the one that TLS uses.
pub(crate) fn choose_provider() {
    // The first of two equal choices wins.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Everything that a control plane signs with or shows.
pub(crate) struct Certificates {
    pub(crate) authority: Arc<Authority>,
    /// Of the API server.
    pub(crate) serving: Pair,
    /// With which the API server speaks to kubelets.
    pub(crate) kubelet_client: Pair,
    /// With which the API server passes requests on to servers of aggregated APIs, and the authority of that alone:
    /// no certificate of the cluster's own authority can pretend to be it.
    pub(crate) front_proxy: (Pair, String),
    /// Of the cluster's administrator.
    pub(crate) admin: Pair,
    /// For signing tokens: private and public.
    pub(crate) token_key: (String, String),
}

impl Certificates {
    /// Loads what is there and makes the rest. `names` and `addresses` are those of the API server.
    pub(crate) fn load_or_create(dir: &Path, names: &[String], addresses: &[IpAddr]) -> Result<Certificates> {
        let authority = authority(dir, "kubernetes")?;
        let client = |common_name, organization| Request {
            common_name,
            organization,
            usage: Usage::Client,
            dns_names: &[],
            addresses: &[],
        };
        let serving = Request {
            common_name: "kube-apiserver",
            organization: None,
            usage: Usage::Server,
            dns_names: names,
            addresses,
        };
        Ok(Certificates {
            // Names can change between starts, and this one costs a millisecond: it is always new.
            serving: authority.issue(&serving)?,
            kubelet_client: skiff_pki::load_or_create(
                dir,
                "apiserver-kubelet-client",
                &authority,
                &client("kube-apiserver-kubelet-client", None),
            )?,
            front_proxy: front_proxy(dir)?,
            admin: skiff_pki::load_or_create(
                dir,
                "admin",
                &authority,
                &client("kubernetes-admin", Some("system:masters")),
            )?,
            token_key: token_key(dir)?,
            authority: Arc::new(authority),
        })
    }

    /// TLS of the API server: clients may show a certificate, and one that is shown must be good.
    pub(crate) fn server_tls(&self) -> Result<Arc<rustls::ServerConfig>> {
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiClientVerifier::builder(roots).allow_unauthenticated().build()?;
        let (chain, key) = der(&self.serving)?;
        let mut config =
            rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS of the API server as a client of kubelets.
    pub(crate) fn kubelet_client_tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        let (chain, key) = der(&self.kubelet_client)?;
        let config =
            rustls::ClientConfig::builder().with_root_certificates(self.roots()?).with_client_auth_cert(chain, key)?;
        Ok(Arc::new(config))
    }

    /// What servers of aggregated APIs are shown, and told.
    pub(crate) fn front_proxy(&self) -> Result<FrontProxy> {
        let (pair, authority_pem) = &self.front_proxy;
        Ok(FrontProxy {
            identity: der(pair)?,
            authority_pem: authority_pem.clone(),
            client_authority_pem: self.authority.certificate_pem().to_owned(),
        })
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.certificate_pem().as_bytes())?)?;
        Ok(roots)
    }
}

/// The front proxy's certificate, and its authority's.
fn front_proxy(dir: &Path) -> Result<(Pair, String)> {
    let authority = authority_of(dir, "front-proxy-ca", "front-proxy-ca")?;
    let request = Request {
        common_name: skiff_apiserver::FRONT_PROXY_NAME,
        organization: None,
        usage: Usage::Client,
        dns_names: &[],
        addresses: &[],
    };
    let pair = skiff_pki::load_or_create(dir, "front-proxy-client", &authority, &request)?;
    Ok((pair, authority.certificate_pem().to_owned()))
}

/// The authority in a directory, made at the first start.
pub(crate) fn authority(dir: &Path, name: &str) -> Result<Authority> {
    authority_of(dir, "ca", name)
}

/// The authority in the files `FILE.crt` and `FILE.key`.
fn authority_of(dir: &Path, file: &str, name: &str) -> Result<Authority> {
    let (certificate, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    if let (Some(certificate_pem), Some(key_pem)) = (skiff_pki::read(&certificate)?, skiff_pki::read(&key)?) {
        return Authority::load(&Pair { certificate_pem, key_pem })
            .with_context(|| format!("cannot use the certificate authority in {}", dir.display()));
    }
    let (authority, pair) = Authority::generate(name)?;
    skiff_pki::write_private(&key, &pair.key_pem)?;
    skiff_pki::write_public(&certificate, &pair.certificate_pem)?;
    Ok(authority)
}

fn token_key(dir: &Path) -> Result<(String, String)> {
    let (private, public) = (dir.join("sa.key"), dir.join("sa.pub"));
    if let (Some(private_pem), Some(public_pem)) = (skiff_pki::read(&private)?, skiff_pki::read(&public)?) {
        return Ok((private_pem, public_pem));
    }
    let (private_pem, public_pem) = skiff_pki::signing_key()?;
    skiff_pki::write_public(&public, &public_pem)?;
    skiff_pki::write_private(&private, &private_pem)?;
    Ok((private_pem, public_pem))
}

/// Chain and key of a pair in the form that TLS takes.
pub(crate) fn der(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())?))
}
