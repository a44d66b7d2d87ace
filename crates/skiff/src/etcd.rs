//! The store on etcd's port, with certificates of its own authority, under the names that kubeadm gives them.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use skiff_etcd::Etcd;
use skiff_pki::{Request, Usage};
use skiff_store::Embedded;
use tokio::net::TcpListener;

use crate::certificates;

/// Where clients of etcd look for it.
pub(crate) const PORT: u16 = 2379;

/// How the store is shown.
pub(crate) struct Setup {
    pub(crate) data_dir: PathBuf,
    /// The member's name.
    pub(crate) name: String,
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// 0: not at all.
    pub(crate) port: u16,
}

impl Setup {
    /// Serves in the background: nothing else waits for it, or ends because it cannot be.
    pub(crate) fn start(self, store: Arc<Embedded>) {
        if self.port == 0 {
            return;
        }
        tokio::spawn(async move {
            if let Err(error) = self.serve(store).await {
                tracing::warn!(error = format!("{error:#}"), "the etcd API is not served");
            }
        });
    }

    async fn serve(self, store: Arc<Embedded>) -> Result<()> {
        let mut listeners = Vec::new();
        for address in &self.addresses {
            let listener = TcpListener::bind((*address, self.port)).await;
            listeners.push(listener.with_context(|| format!("cannot listen on {address}:{}", self.port))?);
        }
        let urls = self.addresses.iter().map(|address| format!("https://{address}:{}", self.port)).collect();
        let (dir, name, addresses) = (self.data_dir.clone(), self.name.clone(), self.addresses);
        // Keys take milliseconds, and files are synced.
        let tls = tokio::task::spawn_blocking(move || tls(&dir.join("pki"), &name, &addresses)).await??;
        let etcd =
            Arc::new(Etcd { store, name: self.name, client_urls: urls, file: self.data_dir.join("db/state.redb") });
        let all = listeners.into_iter().map(|listener| etcd.clone().serve(listener, tls.clone()));
        futures::future::join_all(all).await;
        Ok(())
    }
}

/// Makes the files that are missing. Only who has a certificate of this authority is let in.
fn tls(pki: &std::path::Path, name: &str, addresses: &[Ipv4Addr]) -> Result<Arc<rustls::ServerConfig>> {
    let dir = pki.join("etcd");
    let authority = certificates::authority(&dir, "etcd-ca")?;
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| IpAddr::V4(*address)).collect();
    let names = ["localhost".to_owned(), name.to_owned()];
    let member =
        Request { common_name: name, organization: None, usage: Usage::Both, dns_names: &names, addresses: &addresses };
    // Addresses can change between starts.
    let serving = authority.issue(&member)?;
    skiff_pki::write_private(&dir.join("server.key"), &serving.key_pem)?;
    skiff_pki::write_public(&dir.join("server.crt"), &serving.certificate_pem)?;
    skiff_pki::load_or_create(&dir, "peer", &authority, &member)?;
    for (dir, file, user) in [
        (dir.as_path(), "healthcheck-client", "kube-etcd-healthcheck-client"),
        (pki, "apiserver-etcd-client", "kube-apiserver-etcd-client"),
    ] {
        let client =
            Request { common_name: user, organization: None, usage: Usage::Client, dns_names: &[], addresses: &[] };
        skiff_pki::load_or_create(dir, file, &authority, &client)?;
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes())?)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let (chain, key) = certificates::der(&serving)?;
    let mut config =
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
