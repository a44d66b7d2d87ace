//! Where the control plane keeps its state: in a file of its own, or in an etcd that several control planes share.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use skiff_pki::Pair;
use skiff_store::{
    Code, Embedded, EtcdStore, Revision, Store, Txn, TxnOutcome,
    etcd::{Endpoints, Options},
};

use crate::certificates::{self, Certificates};

/// What keys begin with in etcd unless it is told otherwise, as upstream. Here they always do.
const PREFIX: &str = "/registry";
/// Which server compacts is decided by this key.
const COMPACTION: &str = "/registry/compact_rev_key";
/// What all control planes of a cluster sign with.
const KEYS: &str = "/registry/controlplane/keys";
/// How often an etcd is tried that is not there yet.
const RETRY: Duration = Duration::from_secs(2);

/// Flags that name a real etcd, as kube-apiserver has them.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct EtcdArgs {
    /// A real etcd instead of a file of this machine: https://ADDRESS:2379,… Several control planes can share it
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// The authority of etcd's certificates
    #[arg(long, value_name = "FILE", requires = "etcd_servers")]
    etcd_cafile: Option<PathBuf>,
    /// The certificate to show to etcd
    #[arg(long, value_name = "FILE", requires_all = ["etcd_servers", "etcd_keyfile"])]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires_all = ["etcd_servers", "etcd_certfile"])]
    etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with
    #[arg(long, value_name = "PREFIX", default_value = PREFIX)]
    etcd_prefix: String,
}

impl EtcdArgs {
    /// Whether there is one.
    pub(crate) fn given(&self) -> Option<EtcdArgs> {
        (!self.etcd_servers.is_empty()).then(|| self.clone())
    }

    fn options(&self) -> Result<Options> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let tls = match &self.etcd_cafile {
            None => None,
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(&read(ca)?) {
                    roots.add(certificate.with_context(|| format!("no certificate in {}", ca.display()))?)?;
                }
                let config = rustls::ClientConfig::builder().with_root_certificates(roots);
                let config = match (&self.etcd_certfile, &self.etcd_keyfile) {
                    (Some(certificate), Some(key)) => {
                        let pair = Pair {
                            certificate_pem: String::from_utf8(read(certificate)?)?,
                            key_pem: String::from_utf8(read(key)?)?,
                        };
                        let (chain, key) = certificates::der(&pair)
                            .with_context(|| format!("cannot use the certificate {}", certificate.display()))?;
                        config.with_client_auth_cert(chain, key)?
                    }
                    _ => config.with_no_client_auth(),
                };
                Some(Arc::new(config))
            }
        };
        let endpoints = Endpoints { urls: self.etcd_servers.clone(), tls };
        // As upstream, which takes a prefix without its slash too.
        let prefix = format!("/{}", self.etcd_prefix.trim_matches('/'));
        if prefix == "/" {
            bail!("--etcd-prefix is empty");
        }
        Ok(Options { root: PREFIX.to_owned(), ..Options::new(endpoints, &prefix) })
    }
}

/// An open store.
#[derive(Clone)]
pub(crate) enum Backend {
    Embedded(Arc<Embedded>),
    Etcd(Arc<EtcdStore>),
}

impl Backend {
    /// Opens the file `state.redb` in a directory, or connects to etcd, however long that takes to be there. The history
    /// is compacted from then on.
    pub(crate) async fn open(dir: PathBuf, etcd: Option<&EtcdArgs>) -> Result<Backend> {
        let period = skiff_store::DEFAULT_COMPACTION_PERIOD;
        let Some(etcd) = etcd else {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let store = Arc::new(Embedded::open(dir.join("state.redb"), &skiff_store::Options::default())?);
            tokio::spawn(skiff_store::compact_periodically(store.clone(), period));
            return Ok(Backend::Embedded(store));
        };
        let store = loop {
            match EtcdStore::connect(etcd.options()?).await {
                Ok(store) => break Arc::new(store),
                Err(error) if error.code() == Code::Unavailable => {
                    tracing::warn!(%error, "cannot reach etcd, trying again");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error).context("cannot use the etcd of --etcd-servers"),
            }
        };
        tokio::spawn(skiff_store::compact_together(store.clone(), period, COMPACTION));
        Ok(Backend::Etcd(store))
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Backend::Embedded(store) => store.clone(),
            Backend::Etcd(store) => store.clone(),
        }
    }

    /// Whether other control planes may work on it too.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Backend::Etcd(_))
    }

    /// How the store is, without waiting for it.
    pub(crate) fn health(&self) -> Result<(), String> {
        use futures::FutureExt as _;
        match self {
            // Reading what is not there is answered at once.
            Backend::Embedded(store) => match store.get("/registry/health", None).now_or_never() {
                Some(Err(error)) => Err(error.to_string()),
                _ => Ok(()),
            },
            Backend::Etcd(store) => store.last_failure().map_or(Ok(()), |error| Err(error.to_string())),
        }
    }

    /// Refuses to go on with other keys than the cluster's other control planes have: what one signs, the others would
    /// not believe.
    pub(crate) async fn check_keys(&self, certificates: &Certificates, pki: &std::path::Path) -> Result<()> {
        if !self.is_shared() {
            return Ok(());
        }
        let ours = [certificates.authority.certificate_pem(), &certificates.token_key.1, &certificates.front_proxy.1];
        let ours = ours.map(str::trim).join("\n");
        let answer = self.store().txn(Txn::put_if(KEYS, Revision::ZERO, ours.clone(), None)).await?;
        match answer.outcome {
            TxnOutcome::Failed(found) if found.iter().flatten().any(|kv| kv.value != ours.as_bytes()) => bail!(
                "the cluster in this etcd has other keys than those in {}: copy ca.crt, ca.key, sa.key, sa.pub, front-proxy-ca.crt, front-proxy-ca.key and encryption.yaml there from the directory pki of another control plane of the cluster",
                pki.display()
            ),
            _ => Ok(()),
        }
    }
}
