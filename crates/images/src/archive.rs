//! Importing the archives that `docker save`, `skopeo`, `buildah` and others write.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::config::ConfigFile;
use crate::layer::decompress;
use crate::manifest::{Descriptor, Document, Index, Manifest};
use crate::store::{Image, ImageStore};
use crate::{Digest, Error, Reference, tree};

/// Annotations of an index that hold an image's name; the first is containerd's full one, the second
/// often only a tag.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// Links from one archive entry to another, as old archives use for layers that occur twice.
const MAX_LINKS: usize = 8;
/// More files than any image archive has.
const MAX_FILES: usize = 100_000;
/// Indexes within indexes.
const MAX_NESTING: usize = 4;

/// An entry of `manifest.json` in Docker's format.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// An archive's files, spooled under numbers: no name of the archive ever becomes a path.
struct Spool {
    dir: PathBuf,
    files: HashMap<String, PathBuf>,
    links: HashMap<String, String>,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), error = %e, "cannot remove a spooled archive");
        }
    }
}

impl ImageStore {
    /// Imports all images of an archive: an OCI layout or what `docker save` writes, plain or
    /// compressed with gzip or zstd. Of images for several platforms the one for this machine is taken.
    pub fn import(&self, archive: impl Read) -> Result<Vec<Arc<Image>>, Error> {
        let spool = self.spool(archive)?;
        if spool.contains("index.json") {
            self.import_oci(&spool)
        } else if spool.contains("manifest.json") {
            let images = self.docker_images(&spool)?;
            images.iter().map(|image| self.import_docker(&spool, image)).collect()
        } else {
            Err(Error::Archive("neither index.json nor manifest.json is in it".to_owned()))
        }
    }

    /// The same from a file.
    pub fn import_file(&self, path: &Path) -> Result<Vec<Arc<Image>>, Error> {
        self.import(File::open(path).map_err(Error::io(format!("open {}", path.display())))?)
    }

    fn spool(&self, archive: impl Read) -> Result<Spool, Error> {
        let damaged = |e: io::Error| Error::Archive(e.to_string());
        let limit = self.limits().archive_bytes;
        let dir = self.staging_path();
        std::fs::create_dir(&dir).map_err(Error::io("spool an archive"))?;
        let mut spool = Spool { dir, files: HashMap::new(), links: HashMap::new() };
        let reader = decompress(archive).map_err(damaged)?.take(limit);
        let mut archive = tar::Archive::new(reader);
        for (n, entry) in archive.entries().map_err(damaged)?.enumerate() {
            let mut entry = entry.map_err(damaged)?;
            if n >= MAX_FILES {
                return Err(Error::TooLarge { what: "number of files", limit: MAX_FILES as u64 });
            }
            let Some(name) = flat_name(&entry.path_bytes()) else {
                continue;
            };
            let kind = entry.header().entry_type();
            if kind.is_file() {
                let path = spool.dir.join(n.to_string());
                let mut file = File::create(&path).map_err(Error::io("spool an archive"))?;
                io::copy(&mut entry, &mut file).map_err(Error::io("spool an archive"))?;
                spool.files.insert(name, path);
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = if kind.is_symlink() {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    [parent.as_bytes(), b"/", &target[..]].concat()
                } else {
                    target
                };
                if let Some(target) = flat_name(&target) {
                    spool.links.insert(name, target);
                }
            }
        }
        Ok(spool)
    }

    fn import_oci(&self, spool: &Spool) -> Result<Vec<Arc<Image>>, Error> {
        let index = match Document::parse(&spool.document("index.json", self)?)? {
            Document::Index(index) => index,
            Document::Manifest(_) => {
                return Err(Error::Archive("index.json is not an index".to_owned()));
            }
        };
        // `docker save` writes both formats; the tags are complete in its own one.
        let docker = if spool.contains("manifest.json") { self.docker_images(spool)? } else { Vec::new() };
        let mut images: Vec<Arc<Image>> = Vec::new();
        for descriptor in &index.manifests {
            if descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown") {
                continue;
            }
            let Some((manifest, digest)) = self.resolve(spool, descriptor, 0)? else {
                continue;
            };
            let mut names = annotated_names(descriptor);
            for image in &docker {
                if flat_name(image.config.as_bytes()).is_some_and(|name| name.ends_with(manifest.config.digest.hex())) {
                    names.extend(image.tags()?);
                }
            }
            let digests: Vec<_> = names.iter().map(|name| name.with_digest(&digest)).collect();
            names.extend(digests);
            images.push(self.import_manifest(spool, &manifest, &names)?);
        }
        if images.is_empty() {
            return Err(Error::Archive(format!(
                "no image for linux/{} is in it",
                crate::manifest::host_architecture()
            )));
        }
        images.dedup_by(|a, b| a.id == b.id);
        Ok(images)
    }

    /// Follows a descriptor of an index to the manifest for this machine. `None` if what it names is not
    /// an image or not in the archive, as with the other platforms of `docker save`.
    fn resolve(
        &self,
        spool: &Spool,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Option<(Manifest, Digest)>, Error> {
        let name = blob(&descriptor.digest);
        if depth > MAX_NESTING || !spool.contains(&name) {
            return Ok(None);
        }
        let bytes = spool.document(&name, self)?;
        descriptor.digest.verify("manifest", &bytes)?;
        match Document::parse(&bytes)? {
            Document::Manifest(manifest) => {
                let is_image = descriptor.media_type.is_empty() || descriptor.media_type.contains("manifest");
                Ok(is_image.then(|| (manifest, descriptor.digest.clone())))
            }
            Document::Index(Index { manifests }) => {
                let index = Index { manifests };
                for candidate in index.for_host() {
                    if let Some((manifest, _)) = self.resolve(spool, candidate, depth + 1)? {
                        return Ok(Some((manifest, descriptor.digest.clone())));
                    }
                }
                Ok(None)
            }
        }
    }

    fn import_manifest(&self, spool: &Spool, manifest: &Manifest, names: &[Reference]) -> Result<Arc<Image>, Error> {
        let config = spool.document(&blob(&manifest.config.digest), self)?;
        manifest.config.digest.verify("image configuration", &config)?;
        let layers: Vec<_> = manifest.layers.iter().map(|layer| blob(&layer.digest)).collect();
        self.import_layers(spool, &config, &layers, names)
    }

    fn docker_images(&self, spool: &Spool) -> Result<Vec<DockerImage>, Error> {
        serde_json::from_slice(&spool.document("manifest.json", self)?)
            .map_err(|e| Error::Manifest { what: "manifest.json", reason: e.to_string() })
    }

    fn import_docker(&self, spool: &Spool, image: &DockerImage) -> Result<Arc<Image>, Error> {
        let config = spool.document(&image.config, self)?;
        let layers = image.layers.clone().unwrap_or_default();
        self.import_layers(spool, &config, &layers, &image.tags()?)
    }

    fn import_layers(
        &self,
        spool: &Spool,
        config: &[u8],
        files: &[String],
        names: &[Reference],
    ) -> Result<Arc<Image>, Error> {
        let parsed = ConfigFile::parse(config)?;
        parsed.check(files.len(), self.limits())?;
        let mut layers: Vec<Digest> = Vec::new();
        // Held until the record names them: a removal of another image must not take them away.
        let mut leases = Vec::new();
        for (file, diff_id) in files.iter().zip(parsed.diff_ids()) {
            let chain = Digest::chain(layers.last(), diff_id);
            leases.push(self.lease_layers(vec![chain.clone()]));
            self.add_layer(&layers, &chain, diff_id, || spool.open(file))?;
            layers.push(chain);
        }
        self.add_image(config, layers, names)
    }
}

impl ConfigFile {
    /// Whether the configuration fits the manifest and this machine.
    pub(crate) fn check(&self, layers: usize, limits: &crate::Limits) -> Result<(), Error> {
        let bad = |reason| Err(Error::Manifest { what: "image configuration", reason });
        if layers != self.diff_ids().len() {
            return bad(format!("it lists {} layers, the manifest {layers}", self.diff_ids().len()));
        }
        if layers > limits.layers {
            return Err(Error::TooLarge { what: "number of layers", limit: limits.layers as u64 });
        }
        if !self.os.is_empty() && self.os != "linux" {
            return bad(format!("the image is for {}, not for linux", self.os));
        }
        Ok(())
    }
}

impl DockerImage {
    fn tags(&self) -> Result<Vec<Reference>, Error> {
        self.repo_tags.iter().flatten().map(|tag| tag.parse()).collect()
    }
}

impl Spool {
    fn find(&self, name: &str) -> Option<&PathBuf> {
        let mut name = flat_name(name.as_bytes())?;
        for _ in 0..MAX_LINKS {
            if let Some(path) = self.files.get(&name) {
                return Some(path);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn open(&self, name: &str) -> Result<File, Error> {
        let path = self.find(name).ok_or_else(|| Error::Archive(format!("{name} is not in it")))?;
        File::open(path).map_err(Error::io("open a spooled file"))
    }

    /// A small file, whole.
    fn document(&self, name: &str, store: &ImageStore) -> Result<Vec<u8>, Error> {
        let limit = store.limits().document_bytes;
        let mut bytes = Vec::new();
        let file = self.open(name)?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read a spooled file"))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: "document", limit });
        }
        Ok(bytes)
    }
}

/// An entry's name with `.` and `..` resolved; names that lead out of the archive are nobody's.
fn flat_name(name: &[u8]) -> Option<String> {
    let names = tree::split(name)?;
    let parts: Option<Vec<_>> = names.iter().map(|n| std::str::from_utf8(n.as_bytes()).ok()).collect();
    Some(parts?.join("/"))
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The names an index gives an image. A mere tag names nothing.
fn annotated_names(descriptor: &Descriptor) -> Vec<Reference> {
    let Some(annotations) = &descriptor.annotations else {
        return Vec::new();
    };
    let is_name = |text: &&String| text.contains([':', '/']);
    NAME_ANNOTATIONS
        .iter()
        .filter_map(|key| annotations.get(*key))
        .find(is_name)
        .and_then(|name| name.parse().ok())
        .into_iter()
        .collect()
}
