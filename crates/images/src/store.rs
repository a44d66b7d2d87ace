//! The store: images and layers under one directory.
//!
//! ```text
//! <root>/lock             held while a process uses the store
//! <root>/images/<id>.json one record per image, <id> being the digest of its configuration
//! <root>/layers/<chain>/  one directory per layer, <chain> naming it and all below it
//!     fs/                 its content in overlayfs' form
//!     size                bytes of its files
//! <root>/staging/         what is being written; emptied when the store is opened
//! ```
//!
//! Invariants: whatever has its final name is complete, since it was renamed there after it had
//! reached the disk; a layer that a record or a lease names is never removed; the record is written
//! after its layers and removed before them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::config::ConfigFile;
use crate::layer::{self, Limits};
use crate::{Digest, Error, ImageConfig, Reference};

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Digest of its configuration.
    pub id: Digest,
    /// Names with tags, normalised and sorted.
    pub repo_tags: Vec<String>,
    /// Names with digests of manifests, normalised and sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of its files and its configuration.
    pub size: u64,
    /// Layers, bottom first, by chain id.
    pub layers: Vec<Digest>,
    /// How to run it.
    pub config: ImageConfig,
    /// Never to be removed to free space.
    #[serde(default)]
    pub pinned: bool,
}

/// What the store takes of its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the files of all layers.
    pub bytes: u64,
    /// Number of layers and images.
    pub entries: u64,
}

/// The images of a node. Cloning it gives another handle on the same store.
///
/// Methods block on the file system unless they are `async`; call those that unpack from a thread that
/// may block.
#[derive(Clone)]
pub struct ImageStore(Arc<Inner>);

struct Inner {
    root: PathBuf,
    limits: Limits,
    state: Mutex<State>,
    staged: AtomicU64,
    /// One lock per layer that is being unpacked.
    unpacking: Mutex<HashMap<Digest, Weak<Mutex<()>>>>,
    _lock: fs::File,
}

#[derive(Default)]
struct State {
    images: BTreeMap<Digest, Arc<Image>>,
    /// How many leases name a layer.
    leases: HashMap<Digest, usize>,
}

/// Keeps layers from being removed for as long as it lives.
#[must_use = "the layers may be removed once it is dropped"]
pub struct LayerLease {
    store: ImageStore,
    layers: Vec<Digest>,
    /// Whether what is unused in the end goes at once, or only with the next collection.
    collect: bool,
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for layer in &self.layers {
            if let Some(count) = state.leases.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(layer);
                }
            }
        }
        drop(state);
        if self.collect {
            self.store.remove_unused(&self.layers);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread left is whole: changes are single insertions and removals.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// Opens the store in this directory, making it if it is not there.
    ///
    /// # Errors
    /// Fails when another process has it open. A damaged record is an error too: nothing is dropped
    /// silently.
    pub fn open(root: &Path) -> Result<ImageStore, Error> {
        Self::open_with(root, Limits::default())
    }

    /// The same with limits of one's own.
    pub fn open_with(root: &Path, limits: Limits) -> Result<ImageStore, Error> {
        let what = || format!("open the image store {}", root.display());
        for dir in ["images", "layers"] {
            fs::create_dir_all(root.join(dir)).map_err(Error::io(what()))?;
        }
        // Set-user-id programs and secrets of images are not for the users of the machine.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(Error::io(what()))?;
        let lock_file = fs::File::create(root.join("lock")).map_err(Error::io(what()))?;
        lock_file
            .try_lock()
            .map_err(|e| Error::Io { what: format!("{}: another process uses it", what()), source: e.into() })?;
        let staging = root.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(what())(e)),
            _ => fs::create_dir(&staging).map_err(Error::io(what()))?,
        }
        let mut state = State::default();
        for entry in fs::read_dir(root.join("images")).map_err(Error::io(what()))? {
            let path = entry.map_err(Error::io(what()))?.path();
            let bytes = fs::read(&path).map_err(Error::io(what()))?;
            let image: Image = serde_json::from_slice(&bytes)
                .map_err(|e| Error::Manifest { what: "image record", reason: format!("{}: {e}", path.display()) })?;
            state.images.insert(image.id.clone(), Arc::new(image));
        }
        Ok(ImageStore(Arc::new(Inner {
            root: root.to_owned(),
            limits,
            state: Mutex::new(state),
            staged: AtomicU64::new(0),
            unpacking: Mutex::default(),
            _lock: lock_file,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The directory the store is in.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.state().images.values().cloned().collect()
    }

    /// The image of this name or id. Names are normalised; ids may leave out `sha256:` and be cut
    /// short as long as they are unambiguous.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.state();
        state.by_name(name).or_else(|| state.by_id(name)).cloned()
    }

    /// What all layers take.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        let mut layers: BTreeMap<&Digest, u64> = BTreeMap::new();
        for layer in state.images.values().flat_map(|image| &image.layers) {
            layers.entry(layer).or_insert_with(|| self.layer_size(layer));
        }
        Usage { bytes: layers.values().sum(), entries: (layers.len() + state.images.len()) as u64 }
    }

    /// The directories of an image's layers for overlayfs, top first.
    pub fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().rev().map(|layer| self.layer_fs(layer)).collect()
    }

    /// Keeps an image's layers although the image be removed.
    pub fn lease(&self, image: &Image) -> LayerLease {
        self.lease_layers(image.layers.clone())
    }

    /// The same by chain ids, for what was leased before a restart.
    pub fn lease_layers(&self, layers: Vec<Digest>) -> LayerLease {
        let mut state = self.state();
        for layer in &layers {
            *state.leases.entry(layer.clone()).or_default() += 1;
        }
        LayerLease { store: self.clone(), layers, collect: true }
    }

    /// A lease for a pull: if that is broken off, the next attempt goes on from what is there.
    pub(crate) fn lease_for_pull(&self, layers: Vec<Digest>) -> LayerLease {
        let mut lease = self.lease_layers(layers);
        lease.collect = false;
        lease
    }

    /// Gives an image a further name, taking it from the image that has it.
    pub fn tag(&self, image: &str, name: &str) -> Result<Arc<Image>, Error> {
        let reference: Reference = name.parse()?;
        let image = self.find(image).ok_or_else(|| Error::NotFound(image.to_owned()))?;
        self.record(Image::clone(&image), &[reference])
    }

    /// Removes a name; with its last name, or when given an id, the image and the layers that nothing
    /// else needs. An image that is not there is no error, as in CRI.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        let by_name = state.by_name(name).cloned();
        let Some(image) = by_name.clone().or_else(|| state.by_id(name).cloned()) else {
            return Ok(());
        };
        if by_name.is_some()
            && let Ok(reference) = name.parse::<Reference>()
        {
            let mut rest = Image::clone(&image);
            let name = reference.to_string();
            rest.repo_tags.retain(|tag| *tag != name);
            if !rest.repo_tags.is_empty() {
                self.write_record(&rest)?;
                state.images.insert(rest.id.clone(), Arc::new(rest));
                return Ok(());
            }
        }
        self.forget(&mut state, &image)?;
        drop(state);
        self.remove_unused(&image.layers);
        Ok(())
    }

    fn forget(&self, state: &mut State, image: &Image) -> Result<(), Error> {
        let path = self.record_path(&image.id);
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))?;
        state.images.remove(&image.id);
        Ok(())
    }

    /// Removes all layers that no image and no lease names, such as those of pulls that were broken
    /// off. To be called when everything that survived a restart has taken its leases.
    pub fn collect_garbage(&self) -> Result<(), Error> {
        let dir = self.0.root.join("layers");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("list the layers"))? {
            let name = entry.map_err(Error::io("list the layers"))?.file_name();
            if let Ok(layer) = format!("sha256:{}", name.to_string_lossy()).parse() {
                found.push(layer);
            }
        }
        self.remove_unused(&found);
        Ok(())
    }

    /// Removes those of the layers that nothing names.
    fn remove_unused(&self, layers: &[Digest]) {
        let mut doomed = Vec::new();
        let state = self.state();
        for layer in layers {
            let used =
                state.leases.contains_key(layer) || state.images.values().any(|image| image.layers.contains(layer));
            let dir = self.layer_dir(layer);
            if used || !dir.exists() {
                continue;
            }
            // Renamed under the lock, so that nobody finds half of it; deleted after.
            let staged = self.staging_path();
            match fs::rename(&dir, &staged) {
                Ok(()) => doomed.push(staged),
                Err(e) => tracing::warn!(%layer, error = %e, "cannot remove an unused layer"),
            }
        }
        drop(state);
        for path in doomed {
            if let Err(e) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), error = %e, "cannot remove an unused layer");
            }
        }
    }

    /// A path for something that is being made.
    pub(crate) fn staging_path(&self) -> PathBuf {
        let n = self.0.staged.fetch_add(1, Ordering::Relaxed);
        self.0.root.join("staging").join(n.to_string())
    }

    fn record_path(&self, id: &Digest) -> PathBuf {
        self.0.root.join("images").join(format!("{}.json", id.hex()))
    }

    fn layer_dir(&self, chain: &Digest) -> PathBuf {
        self.0.root.join("layers").join(chain.hex())
    }

    pub(crate) fn layer_fs(&self, chain: &Digest) -> PathBuf {
        self.layer_dir(chain).join("fs")
    }

    pub(crate) fn has_layer(&self, chain: &Digest) -> bool {
        self.layer_dir(chain).exists()
    }

    fn layer_size(&self, chain: &Digest) -> u64 {
        // Missing only if somebody tampered with the store; a size is not worth failing for.
        fs::read_to_string(self.layer_dir(chain).join("size")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Unpacks a layer unless it is there. `below` are the layers below it, bottom first; `open` gives
    /// its content, compressed or not.
    pub(crate) fn add_layer<R: Read>(
        &self,
        below: &[Digest],
        chain: &Digest,
        diff_id: &Digest,
        open: impl FnOnce() -> Result<R, Error>,
    ) -> Result<(), Error> {
        let key = {
            let mut unpacking = lock(&self.0.unpacking);
            unpacking.retain(|_, lock| lock.strong_count() > 0);
            let known = unpacking.get(chain).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let key = Arc::new(Mutex::new(()));
                unpacking.insert(chain.clone(), Arc::downgrade(&key));
                key
            })
        };
        let _only_one = lock(&key);
        if self.has_layer(chain) {
            return Ok(());
        }
        let lower: Vec<_> = below.iter().rev().map(|layer| self.layer_fs(layer)).collect();
        let reader = open()?;
        self.install_layer(chain, |fs_dir| {
            let unpacked = layer::unpack(reader, fs_dir, &lower, &self.0.limits)?;
            diff_id.expect("layer", &unpacked.diff_id)?;
            Ok(unpacked.bytes)
        })
    }

    /// Makes a layer by filling an empty directory; `fill` returns the bytes of its files.
    pub(crate) fn install_layer(
        &self,
        chain: &Digest,
        fill: impl FnOnce(&Path) -> Result<u64, Error>,
    ) -> Result<(), Error> {
        let staged = self.staging_path();
        let fs_dir = staged.join("fs");
        let result = (|| {
            let what = "make a layer's directory";
            fs::create_dir_all(&fs_dir).map_err(Error::io(what))?;
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&fs_dir, fs::Permissions::from_mode(0o755)).map_err(Error::io(what))?;
            let bytes = fill(&fs_dir)?;
            fs::write(staged.join("size"), bytes.to_string()).map_err(Error::io(what))?;
            let dir = fs::File::open(&staged).map_err(Error::io(what))?;
            rustix::fs::syncfs(&dir).map_err(|e| Error::io("write a layer to disk")(e.into()))?;
            let target = self.layer_dir(chain);
            fs::rename(&staged, &target).map_err(Error::io("put a layer in its place"))?;
            sync_dir(&self.0.root.join("layers"))
        })();
        if result.is_err()
            && let Err(e) = fs::remove_dir_all(&staged)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %staged.display(), error = %e, "cannot remove a failed layer");
        }
        result
    }

    /// Records an image whose layers are all there, under these names. A name that another image has
    /// moves; an image left without any name goes.
    pub(crate) fn add_image(
        &self,
        config: &[u8],
        layers: Vec<Digest>,
        names: &[Reference],
    ) -> Result<Arc<Image>, Error> {
        let id = Digest::of(config);
        let parsed = ConfigFile::parse(config)?.into_config();
        let size = layers.iter().map(|layer| self.layer_size(layer)).sum::<u64>();
        let image = Image {
            size: size + config.len() as u64,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            layers,
            config: parsed,
            pinned: false,
            id,
        };
        self.record(image, names)
    }

    /// Writes an image's record with further names.
    pub(crate) fn record(&self, mut image: Image, names: &[Reference]) -> Result<Arc<Image>, Error> {
        let mut state = self.state();
        if let Some(known) = state.images.get(&image.id) {
            image.repo_tags.extend(known.repo_tags.iter().cloned());
            image.repo_digests.extend(known.repo_digests.iter().cloned());
            image.pinned |= known.pinned;
        }
        for reference in names {
            if let Some(digest) = reference.digest() {
                image.repo_digests.push(reference.with_digest(digest).to_string());
            } else {
                image.repo_tags.push(reference.to_string());
            }
        }
        for names in [&mut image.repo_tags, &mut image.repo_digests] {
            names.sort();
            names.dedup();
        }
        self.write_record(&image)?;
        let image = Arc::new(image);
        state.images.insert(image.id.clone(), image.clone());
        let mut unused = Vec::new();
        let others: Vec<_> = state.images.values().filter(|i| i.id != image.id).cloned().collect();
        for other in others {
            let mut rest = Image::clone(&other);
            rest.repo_tags.retain(|tag| !image.repo_tags.contains(tag));
            if rest.repo_tags.len() == other.repo_tags.len() {
                continue;
            }
            if rest.repo_tags.is_empty() && rest.repo_digests.is_empty() {
                self.forget(&mut state, &other)?;
                unused.extend(other.layers.iter().cloned());
            } else {
                self.write_record(&rest)?;
                state.images.insert(rest.id.clone(), Arc::new(rest));
            }
        }
        drop(state);
        self.remove_unused(&unused);
        Ok(image)
    }

    fn write_record(&self, image: &Image) -> Result<(), Error> {
        let what = || format!("write the record of image {}", image.id);
        let bytes = serde_json::to_vec(image).map_err(|e| Error::io(what())(e.into()))?;
        let staged = self.staging_path();
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&staged)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&staged, self.record_path(&image.id))
        };
        write().map_err(Error::io(what()))?;
        sync_dir(&self.0.root.join("images"))
    }
}

impl State {
    fn by_name(&self, name: &str) -> Option<&Arc<Image>> {
        let reference: Reference = name.parse().ok()?;
        self.images.values().find(|image| match reference.digest() {
            Some(digest) => image.repo_digests.contains(&reference.with_digest(digest).to_string()),
            None => image.repo_tags.contains(&reference.to_string()),
        })
    }

    fn by_id(&self, id: &str) -> Option<&Arc<Image>> {
        let hex = id.strip_prefix("sha256:").unwrap_or(id);
        if hex.len() < 4 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self.images.values().filter(|image| image.id.hex().starts_with(hex));
        matching.next().filter(|_| matching.next().is_none())
    }
}

/// Makes a rename in this directory survive a power loss.
fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(format!("write {} to disk", dir.display())))
}
