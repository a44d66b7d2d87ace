//! Pulling images from registries.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use tokio::task::spawn_blocking;

use crate::config::ConfigFile;
use crate::manifest::{Descriptor, Document, Manifest};
use crate::store::{Image, ImageStore};
use crate::{Digest, Error, Reference};

/// Kinds of documents asked for, the older ones too.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Longest silence of a registry before a pull is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Layers fetched at once, as containerd does.
const CONCURRENT_LAYERS: usize = 3;
/// Attempts at each layer; a broken connection is the most common fault of a pull.
const ATTEMPTS: u32 = 3;

/// Credentials for a registry.
#[derive(Clone, Default)]
pub enum Auth {
    /// None.
    #[default]
    Anonymous,
    /// User and password.
    Basic(String, String),
    /// A token sent as it is.
    Bearer(String),
}

/// Registries to ask before the one that a reference names.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// The registry of references, for example `docker.io`.
    pub registry: String,
    /// Where to ask, in this order: `https://host[:port]` or `http://host[:port]`.
    pub endpoints: Vec<String>,
}

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Mirrors of registries.
    pub mirrors: Vec<Mirror>,
    /// Registries (`host[:port]`) spoken to without TLS; loopback ones always are.
    pub plain_http: Vec<String>,
}

/// How far a pull has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Layers that are in the store.
    pub layers_done: usize,
    /// Layers of the image.
    pub layers: usize,
    /// Compressed bytes that have arrived or were not needed.
    pub bytes_done: u64,
    /// Compressed bytes of all layers.
    pub bytes: u64,
}

type Report<'a> = &'a (dyn Fn(PullProgress) + Send + Sync);

/// One place an image may come from, or go to.
pub(crate) struct Source {
    pub(crate) client: oci_client::Client,
    pub(crate) reference: oci_client::Reference,
    pub(crate) auth: RegistryAuth,
}

impl ImageStore {
    /// Pulls an image and returns it as the store has it then.
    ///
    /// Layers that are there are not fetched again, including those of a pull that was broken off.
    /// `progress` is called from time to time.
    ///
    /// An image that was loaded from an archive and never pulled is taken as it is when no registry can be
    /// asked: it is what the user meant on a cluster without a way out, also with the tag `latest`, whose
    /// pull policy is `Always`. A registry that answers decides, also when it says that it has no such image.
    ///
    /// # Errors
    /// The texts of [`Error::PullNotFound`], [`Error::PullDenied`] and [`Error::Pull`] are what users
    /// see in a pod's events.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Auth,
        options: &PullOptions,
        progress: impl Fn(PullProgress) + Send + Sync,
    ) -> Result<Arc<Image>, Error> {
        let mut failure = None;
        for (endpoint, plain) in endpoints(reference, options) {
            let is_origin = endpoint == reference.domain();
            // Credentials are for the registry that the user named, not for its mirrors.
            let auth = if is_origin { auth.clone() } else { Auth::Anonymous };
            let source = source(reference, &endpoint, plain, auth).await?;
            match self.pull_from(reference, &source, &progress).await {
                Ok(image) => return Ok(image),
                Err(e) => {
                    if !is_origin {
                        tracing::info!(%reference, %endpoint, error = %e, "mirror does not help");
                    }
                    failure = Some(e);
                }
            }
        }
        let failure = failure.unwrap_or_else(|| Error::NotFound(reference.to_string()));
        match self.find(&reference.to_string()) {
            Some(image) if matches!(failure, Error::Pull { .. }) && image.repo_digests.is_empty() => {
                tracing::info!(%reference, error = %failure, "no registry to ask: the loaded image is taken");
                Ok(image)
            }
            _ => Err(failure),
        }
    }

    async fn pull_from(
        &self,
        reference: &Reference,
        source: &Source,
        progress: Report<'_>,
    ) -> Result<Arc<Image>, Error> {
        let (manifest, digest) = self.fetch_manifest(reference, source).await?;
        let config_blob = self.fetch_document(reference, source, &manifest.config).await?;
        let config = ConfigFile::parse(&config_blob)?;
        config.check(manifest.layers.len(), self.limits())?;
        let mut chain: Vec<Digest> = Vec::new();
        for diff_id in config.diff_ids() {
            chain.push(Digest::chain(chain.last(), diff_id));
        }
        let lease = self.lease_for_pull(chain.clone());

        let mut state = PullProgress {
            layers: chain.len(),
            bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
            ..Default::default()
        };
        progress(state.clone());
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel::<u64>();
        // Boxed, or the compiler cannot tell that the whole future may change threads.
        let mut fetches: Vec<BoxFuture<'_, Result<Option<Spooled>, Error>>> = Vec::new();
        for (layer, chain) in manifest.layers.iter().zip(&chain) {
            let (arrived, present) = (arrived.clone(), self.has_layer(chain));
            fetches.push(Box::pin(async move {
                if present {
                    let _ = arrived.send(layer.size);
                    return Ok(None);
                }
                let spooled = Spooled(self.staging_path());
                self.fetch_layer(reference, source, layer, &spooled.0, &arrived).await?;
                Ok(Some(spooled))
            }));
        }
        // Unpacked in order, since a layer needs those below it; fetched ahead meanwhile.
        let mut fetches = futures::stream::iter(fetches).buffered(CONCURRENT_LAYERS);
        let mut done = 0;
        loop {
            tokio::select! {
                Some(bytes) = arrivals.recv() => {
                    state.bytes_done += bytes;
                    progress(state.clone());
                }
                next = fetches.next() => {
                    let Some(fetched) = next else { break };
                    if let Some(spooled) = fetched? {
                        let store = self.clone();
                        let (below, this) = (chain[..done].to_vec(), chain[done].clone());
                        let diff_id = config.diff_ids()[done].clone();
                        run(move || {
                            store.add_layer(&below, &this, &diff_id, || spooled.open())
                        })
                        .await?;
                    }
                    done += 1;
                    state.layers_done = done;
                    progress(state.clone());
                }
            }
        }
        let mut names = vec![reference.with_digest(&digest)];
        if reference.digest().is_none() {
            names.push(reference.clone());
        }
        drop(fetches);
        while let Ok(bytes) = arrivals.try_recv() {
            state.bytes_done += bytes;
        }
        progress(state);
        let store = self.clone();
        let image = run(move || store.add_image(&config_blob, chain, &names)).await?;
        drop(lease);
        Ok(image)
    }

    /// The manifest for this machine, and the digest that the reference stands for.
    async fn fetch_manifest(&self, reference: &Reference, source: &Source) -> Result<(Manifest, Digest), Error> {
        let step = || format!("resolve reference {:?}", reference.to_string());
        let (bytes, digest) = self.fetch_manifest_document(reference, source, None).await?;
        if let Some(wanted) = reference.digest() {
            wanted.expect("manifest", &digest)?;
        }
        let index = match Document::parse(&bytes)? {
            Document::Manifest(manifest) => return Ok((manifest, digest)),
            Document::Index(index) => index,
        };
        let no_match = || Error::Pull {
            reference: reference.to_string(),
            step: step(),
            message: format!(
                "no match for platform in manifest: linux/{}: not found",
                crate::manifest::host_architecture()
            ),
        };
        let candidates = index.for_host();
        let chosen = candidates.first().ok_or_else(no_match)?;
        let (bytes, actual) = self.fetch_manifest_document(reference, source, Some(&chosen.digest)).await?;
        chosen.digest.expect("manifest", &actual)?;
        match Document::parse(&bytes)? {
            Document::Manifest(manifest) => Ok((manifest, digest)),
            Document::Index(_) => Err(no_match()),
        }
    }

    async fn fetch_manifest_document(
        &self,
        reference: &Reference,
        source: &Source,
        digest: Option<&Digest>,
    ) -> Result<(Vec<u8>, Digest), Error> {
        let target = match digest {
            Some(digest) => source.reference.clone_with_digest(digest.to_string()),
            None => source.reference.clone(),
        };
        let (bytes, _) = source
            .client
            .pull_manifest_raw(&target, &source.auth, &MANIFEST_TYPES)
            .await
            .map_err(|e| explain(reference, format!("resolve reference {:?}", reference.to_string()), e))?;
        let limit = self.limits().document_bytes;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: "manifest", limit });
        }
        let digest = Digest::of(&bytes);
        Ok((bytes.into(), digest))
    }

    async fn fetch_document(
        &self,
        reference: &Reference,
        source: &Source,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, Error> {
        let limit = self.limits().document_bytes;
        let too_large = || Error::TooLarge { what: "image configuration", limit };
        if descriptor.size > limit {
            return Err(too_large());
        }
        let step = || format!("copy: fetch {}", descriptor.digest);
        let mut stream = source
            .client
            .pull_blob_stream(&source.reference, &to_oci(descriptor))
            .await
            .map_err(|e| explain(reference, step(), e))?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|e| broken(reference, step(), &e))?);
            if bytes.len() as u64 > limit {
                return Err(too_large());
            }
        }
        descriptor.digest.verify("image configuration", &bytes)?;
        Ok(bytes)
    }

    async fn fetch_layer(
        &self,
        reference: &Reference,
        source: &Source,
        layer: &Descriptor,
        path: &Path,
        arrived: &tokio::sync::mpsc::UnboundedSender<u64>,
    ) -> Result<(), Error> {
        let mut counted = 0;
        let mut attempt = 1;
        loop {
            let result = self.try_fetch_layer(reference, source, layer, path, &mut counted, arrived).await;
            match result {
                Err(Error::Pull { message, .. }) if attempt < ATTEMPTS => {
                    tracing::info!(%reference, layer = %layer.digest, %message, "fetching again");
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// `counted` is how much of the layer has been reported, over all attempts.
    async fn try_fetch_layer(
        &self,
        reference: &Reference,
        source: &Source,
        layer: &Descriptor,
        path: &Path,
        counted: &mut u64,
        arrived: &tokio::sync::mpsc::UnboundedSender<u64>,
    ) -> Result<(), Error> {
        let limit = self.limits().layer_bytes;
        let step = || format!("copy: fetch {}", layer.digest);
        let mut stream = source
            .client
            .pull_blob_stream(&source.reference, &to_oci(layer))
            .await
            .map_err(|e| explain(reference, step(), e))?;
        let mut file = std::fs::File::create(path).map_err(Error::io("spool a layer"))?;
        let mut hash = sha2::Sha256::default();
        let mut size = 0;
        while let Some(chunk) = stream.stream.next().await {
            let chunk = chunk.map_err(|e| broken(reference, step(), &e))?;
            size += chunk.len() as u64;
            if size > limit {
                return Err(Error::TooLarge { what: "layer", limit });
            }
            sha2::Digest::update(&mut hash, &chunk);
            // Into the page cache: short enough for an asynchronous thread.
            file.write_all(&chunk).map_err(Error::io("spool a layer"))?;
            if size > *counted {
                let _ = arrived.send(size - *counted);
                *counted = size;
            }
        }
        layer.digest.expect("layer", &Digest::from(hash))
    }
}

/// A fetched file that goes when it is no longer needed.
struct Spooled(PathBuf);

impl Spooled {
    fn open(&self) -> Result<std::fs::File, Error> {
        std::fs::File::open(&self.0).map_err(Error::io("open a spooled layer"))
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // It may never have been made; what is left is removed when the store is opened again.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Blocking work off the asynchronous threads.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::io("unpack")(std::io::Error::other(e))),
    }
}

fn to_oci(descriptor: &Descriptor) -> OciDescriptor {
    OciDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}

/// Where to ask for an image, in order, and whether without TLS. The origin comes last.
fn endpoints(reference: &Reference, options: &PullOptions) -> Vec<(String, bool)> {
    let mut endpoints = Vec::new();
    let mirrors = options.mirrors.iter().filter(|m| m.registry == reference.domain());
    for endpoint in mirrors.flat_map(|mirror| &mirror.endpoints) {
        let (plain, host) = match endpoint.split_once("://") {
            Some((scheme, host)) => (scheme == "http", host),
            None => (is_loopback(endpoint), endpoint.as_str()),
        };
        endpoints.push((host.trim_end_matches('/').to_owned(), plain));
    }
    let origin = reference.domain().to_owned();
    let plain = is_plain(&origin, options);
    endpoints.push((origin, plain));
    endpoints
}

/// Whether a registry is spoken to without TLS.
pub(crate) fn is_plain(registry: &str, options: &PullOptions) -> bool {
    is_loopback(registry) || options.plain_http.iter().any(|plain| plain == registry)
}

fn is_loopback(host_and_port: &str) -> bool {
    let host = match host_and_port.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host_and_port.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(crate) async fn source(reference: &Reference, endpoint: &str, plain: bool, auth: Auth) -> Result<Source, Error> {
    let config = ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        read_timeout: Some(READ_TIMEOUT),
        connect_timeout: Some(CONNECT_TIMEOUT),
        user_agent: concat!("skiff/", env!("CARGO_PKG_VERSION")),
        ..Default::default()
    };
    // Only the first call of a process can install a provider; that it is there already is fine.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Reads the machine's certificates, and panics where there are none.
    let client = spawn_blocking(move || oci_client::Client::try_from(config)).await;
    let failed =
        |message: String| Error::Pull { reference: reference.to_string(), step: "set up TLS".to_owned(), message };
    let client = match client {
        Ok(Ok(client)) => client,
        Ok(Err(e)) => return Err(failed(chain(&e))),
        Err(e) => return Err(failed(format!("are CA certificates installed? {e}"))),
    };
    let (registry, repository) = (endpoint.to_owned(), reference.path().to_owned());
    let target = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_string()),
        (None, tag) => {
            let tag = tag.unwrap_or("latest").to_owned();
            oci_client::Reference::with_tag(registry, repository, tag)
        }
    };
    let auth = match auth {
        Auth::Anonymous => RegistryAuth::Anonymous,
        Auth::Basic(user, password) => RegistryAuth::Basic(user, password),
        Auth::Bearer(token) => RegistryAuth::Bearer(token),
    };
    client.store_auth_if_needed(target.resolve_registry(), &auth).await;
    Ok(Source { client, reference: target, auth })
}

/// The registry's answer in the words that users know from containerd.
fn explain(reference: &Reference, step: String, error: OciDistributionError) -> Error {
    let reference = reference.to_string();
    match &error {
        OciDistributionError::ImageManifestNotFoundError(_) | OciDistributionError::ServerError { code: 404, .. } => {
            Error::PullNotFound { reference }
        }
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::ServerError { code: 401 | 403, .. } => {
            Error::PullDenied { reference, message: "authorization failed: no basic auth credentials".to_owned() }
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let has =
                |codes: &[OciErrorCode]| envelope.errors.iter().any(|e| codes.iter().any(|c| same_code(c, &e.code)));
            if has(&[OciErrorCode::Denied, OciErrorCode::Unauthorized]) {
                Error::PullDenied { reference, message: envelope.to_string() }
            } else if has(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]) {
                Error::PullNotFound { reference }
            } else {
                Error::Pull { reference, step, message: envelope.to_string() }
            }
        }
        error => Error::Pull { reference, step, message: chain(error) },
    }
}

fn same_code(a: &OciErrorCode, b: &OciErrorCode) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

fn broken(reference: &Reference, step: String, error: &std::io::Error) -> Error {
    Error::Pull { reference: reference.to_string(), step, message: chain(error) }
}

/// An error with its causes: the text goes into an event, where only one line is seen.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_only_on_loopback_or_when_asked_for() {
        let check = |name: &str, options: &PullOptions| {
            let reference: Reference = name.parse().expect("a reference");
            endpoints(&reference, options)
        };
        let none = PullOptions::default();
        assert_eq!(check("127.0.0.1:5000/a", &none), [("127.0.0.1:5000".to_owned(), true)]);
        assert_eq!(check("localhost/a", &none), [("localhost".to_owned(), true)]);
        assert_eq!(check("[::1]:5/a", &none), [("[::1]:5".to_owned(), true)]);
        assert_eq!(check("127.0.0.1.example.com/a", &none), [("127.0.0.1.example.com".to_owned(), false)]);
        let some = PullOptions {
            mirrors: vec![Mirror {
                registry: "docker.io".to_owned(),
                endpoints: vec!["http://127.0.0.1:5000/".to_owned()],
            }],
            plain_http: vec!["registry.test".to_owned()],
        };
        assert_eq!(check("registry.test/a", &some), [("registry.test".to_owned(), true)]);
        assert_eq!(check("nginx", &some), [("127.0.0.1:5000".to_owned(), true), ("docker.io".to_owned(), false)]);
    }
}
