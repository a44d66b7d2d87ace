//! Pushing images to registries.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder};
use futures::{StreamExt as _, TryStreamExt as _};
use oci_client::{RegistryOperation, errors::OciDistributionError};
use tokio_util::io::ReaderStream;

use crate::{
    Auth, Digest, Error, PullOptions, Reference,
    digest::HashingReader,
    export,
    pull::{self, Source},
    store::ImageStore,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A file that is to be sent, and what it is known by.
struct Blob {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

impl ImageStore {
    /// Pushes an image to the registry and under the name that `reference` says, and returns the digest of its manifest.
    ///
    /// Layers are archived anew, as in [`ImageStore::export`], always to the same bytes: what the registry has is not
    /// sent again. Each is sent before the next is made. `tell` is called with a line for each.
    ///
    /// # Errors
    /// `NotFound` if the image is not in the store; [`Error::Push`] with the step that failed.
    pub async fn push(
        &self,
        reference: &Reference,
        auth: Auth,
        options: &PullOptions,
        tell: impl Fn(&str) + Send + Sync,
    ) -> Result<Digest, Error> {
        let name = reference.to_string();
        let failed =
            |step: &str, message: String| Error::Push { reference: name.clone(), step: step.to_owned(), message };
        if reference.digest().is_some() {
            return Err(failed("name it", "an image is pushed under a tag, not under a digest".to_owned()));
        }
        let image = self.find(&name).ok_or_else(|| Error::NotFound(name.clone()))?;
        let _lease = self.lease(&image);
        let plain = pull::is_plain(reference.domain(), options);
        let target = pull::source(reference, reference.domain(), plain, auth).await?;
        let denied = |step: &'static str| {
            let failed = &failed;
            move |e: OciDistributionError| failed(step, refusal(&e))
        };
        target.client.auth(&target.reference, &target.auth, RegistryOperation::Push).await.map_err(denied("log in"))?;

        let scratch = self.scratch()?;
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for layer in &image.layers {
            let (root, dir) = (self.layer_fs(layer), scratch.0.clone());
            let (diff_id, blob) = pull::run(move || compress(&root, &dir)).await?;
            send(&target, &blob, &tell).await.map_err(denied("send a layer"))?;
            diff_ids.push(diff_id);
            layers.push(descriptor(LAYER, &blob.digest, blob.size));
        }
        let config = export::document(&image.config, &diff_ids);
        let blob = Blob { path: scratch.0.join("config"), digest: Digest::of(&config), size: config.len() as u64 };
        fs::write(&blob.path, &config).map_err(Error::io("write the configuration of an image"))?;
        send(&target, &blob, &tell).await.map_err(denied("send the configuration"))?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &blob.digest, blob.size),
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let digest = Digest::of(&manifest);
        let kind = http::HeaderValue::from_static(MANIFEST);
        target
            .client
            .push_manifest_raw(&target.reference, manifest, kind)
            .await
            .map_err(denied("send the manifest"))?;
        Ok(digest)
    }
}

fn descriptor(kind: &str, digest: &Digest, size: u64) -> serde_json::Value {
    serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
}

/// Archives and compresses a layer: the digest of the archive, and what is to be sent.
fn compress(root: &Path, dir: &Path) -> Result<(Digest, Blob), Error> {
    let work = || -> io::Result<(Digest, Blob)> {
        let (plain, path) = (dir.join("layer.tar"), dir.join("layer.tar.gz"));
        export::write_layer(root, File::create(&plain)?)?;
        let diff_id = HashingReader::new(File::open(&plain)?).finish()?;
        // Without a time in the header the same layer has the same digest each time.
        let mut gzip = GzBuilder::new().write(File::create(&path)?, Compression::default());
        io::copy(&mut File::open(&plain)?, &mut gzip)?;
        gzip.finish()?;
        let digest = HashingReader::new(File::open(&path)?).finish()?;
        let size = fs::metadata(&path)?.len();
        Ok((diff_id, Blob { path, digest, size }))
    };
    work().map_err(Error::io("archive a layer"))
}

/// Sends a file, unless the registry has it.
async fn send(target: &Source, blob: &Blob, tell: &(impl Fn(&str) + Sync)) -> Result<(), OciDistributionError> {
    let (digest, short) = (blob.digest.to_string(), &blob.digest.hex()[..12]);
    if target.client.blob_exists(&target.reference, &digest).await? {
        tell(&format!("{short}: Layer already exists"));
        return Ok(());
    }
    let file = tokio::fs::File::open(&blob.path).await?;
    let stream = ReaderStream::with_capacity(file, 1 << 20).map_err(OciDistributionError::from).boxed();
    target.client.push_blob_stream(&target.reference, stream, &digest, Some(blob.size)).await?;
    tell(&format!("{short}: Pushed {} kB", blob.size.div_ceil(1000)));
    Ok(())
}

const NO_CREDENTIALS: &str =
    "the registry does not let this user write there; credentials are read from docker's config.json";

/// What the registry said.
fn refusal(error: &OciDistributionError) -> String {
    let denied = |code: u16| code == 401 || code == 403;
    match error {
        OciDistributionError::RequestError(e) if e.status().is_some_and(|code| denied(code.as_u16())) => {
            NO_CREDENTIALS.to_owned()
        }
        OciDistributionError::ServerError { code, .. } if denied(*code) => NO_CREDENTIALS.to_owned(),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            NO_CREDENTIALS.to_owned()
        }
        OciDistributionError::RegistryError { envelope, .. } => envelope.to_string(),
        other => pull::chain(other),
    }
}
