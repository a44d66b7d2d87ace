//! Writing images as an archive, in the form of `docker save`.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{lgetxattr, llistxattr};

use crate::{
    Digest, Error, ImageConfig, Reference,
    digest::HashingReader,
    store::{Image, ImageStore},
};

/// Overlayfs' own marks, which an archive expresses by names.
const OVERLAY: &str = "trusted.overlay.";
const OPAQUE: &str = "trusted.overlay.opaque";

/// The configuration document of an image whose layers have these digests.
pub(crate) fn document(config: &ImageConfig, diff_ids: &[Digest]) -> Vec<u8> {
    let set = |names: &[String]| -> serde_json::Map<String, serde_json::Value> {
        names.iter().map(|name| (name.clone(), serde_json::json!({}))).collect()
    };
    serde_json::json!({
        "architecture": crate::manifest::host_architecture(),
        "os": "linux",
        "config": {
            "User": config.user,
            "ExposedPorts": set(&config.exposed_ports),
            "Env": config.env,
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Volumes": set(&config.volumes),
            "WorkingDir": config.working_dir,
            "Labels": config.labels,
            "StopSignal": config.stop_signal,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

impl ImageStore {
    /// Writes an image as an archive that [`ImageStore::import`], `docker load` and others read. It has the name that
    /// it is asked for by, or all its names when that is an id.
    ///
    /// The layers' archives are made anew from what was unpacked, so digests may differ from those of an archive
    /// or a registry that the image came from.
    pub fn export(&self, name: &str, to: impl Write) -> Result<(), Error> {
        let image = self.find(name).ok_or_else(|| Error::NotFound(name.to_owned()))?;
        let _lease = self.lease(&image);
        let scratch = self.scratch()?;
        let tags = match name.parse::<Reference>() {
            Ok(reference) if image.repo_tags.contains(&reference.to_string()) => vec![reference.to_string()],
            _ => image.repo_tags.clone(),
        };
        self.write_archive(&image, &tags, &scratch.0, to).map_err(Error::io(format!("write an archive of {name}")))
    }

    fn write_archive(&self, image: &Image, tags: &[String], scratch: &Path, to: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(to);
        let mut diff_ids = Vec::new();
        let mut names = Vec::new();
        for (index, layer) in image.layers.iter().enumerate() {
            let spooled = scratch.join("layer.tar");
            write_layer(&self.layer_fs(layer), File::create(&spooled)?)?;
            diff_ids.push(HashingReader::new(File::open(&spooled)?).finish()?);
            let name = format!("{index}/layer.tar");
            archive.append_file(&name, &mut File::open(&spooled)?)?;
            names.push(name);
        }
        let config = document(&image.config, &diff_ids);
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]).to_string();
        for (name, content) in [(config_name.as_str(), config.as_slice()), ("manifest.json", manifest.as_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, content)?;
        }
        archive.into_inner()?.flush()
    }

    /// A directory in the store that goes when it is dropped.
    pub(crate) fn scratch(&self) -> Result<Scratch, Error> {
        let dir = self.staging_path();
        fs::create_dir(&dir).map_err(Error::io("make a directory for what is being written"))?;
        Ok(Scratch(dir))
    }
}

/// Removed when it is dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), error = %e, "cannot remove a directory in the image store");
        }
    }
}

/// Writes a directory in overlayfs' form as a layer's archive.
pub(crate) fn write_layer(root: &Path, to: File) -> io::Result<()> {
    let mut layer = Layer { archive: tar::Builder::new(io::BufWriter::new(to)), links: HashMap::new() };
    layer.directory(root, Path::new(""))?;
    layer.archive.into_inner()?.flush()
}

struct Layer {
    archive: tar::Builder<io::BufWriter<File>>,
    /// Under which name a file with several was written, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Layer {
    fn directory(&mut self, dir: &Path, name: &Path) -> io::Result<()> {
        let mut children = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        children.sort();
        for child in children {
            self.entry(&dir.join(&child), &name.join(&child))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            let mut whiteout = std::ffi::OsString::from(".wh.");
            whiteout.push(name.file_name().unwrap_or_default());
            return self.empty(&name.with_file_name(whiteout), &metadata);
        }
        let attributes = attributes(path)?;
        let mut header = header(&metadata);
        if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            self.pax(&attributes)?;
            return self.archive.append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            self.pax(&attributes)?;
            self.archive.append_data(&mut header, name, io::empty())?;
            if attributes.iter().any(|(key, value)| key == OPAQUE && value == b"y") {
                self.empty(&name.join(".wh..wh..opq"), &metadata)?;
            }
            return self.directory(path, name);
        }
        if metadata.nlink() > 1 {
            let known = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.to_owned()).clone();
            if known != name {
                header.set_entry_type(tar::EntryType::Link);
                return self.archive.append_link(&mut header, name, known);
            }
        }
        self.pax(&attributes)?;
        if kind.is_file() {
            header.set_size(metadata.len());
            return self.archive.append_data(&mut header, name, File::open(path)?);
        }
        header.set_entry_type(match () {
            () if kind.is_fifo() => tar::EntryType::Fifo,
            () if kind.is_block_device() => tar::EntryType::Block,
            () if kind.is_char_device() => tar::EntryType::Char,
            // A socket means nothing without the process that made it.
            () => return Ok(()),
        });
        header.set_device_major(rustix::fs::major(metadata.rdev()))?;
        header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        self.archive.append_data(&mut header, name, io::empty())
    }

    fn empty(&mut self, name: &Path, like: &Metadata) -> io::Result<()> {
        let mut header = header(like);
        header.set_mode(0);
        self.archive.append_data(&mut header, name, io::empty())
    }

    fn pax(&mut self, attributes: &[(String, Vec<u8>)]) -> io::Result<()> {
        let kept: Vec<_> = attributes
            .iter()
            .filter(|(key, _)| !key.starts_with(OVERLAY))
            .map(|(key, value)| (format!("SCHILY.xattr.{key}"), value))
            .collect();
        if kept.is_empty() {
            return Ok(());
        }
        self.archive.append_pax_extensions(kept.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }
}

fn header(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_size(0);
    header
}

/// Extended attributes of a file or link itself.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; 64 * 1024];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let length = lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        if let Ok(name) = std::str::from_utf8(name) {
            found.push((name.to_owned(), value));
        }
    }
    Ok(found)
}
