//! An image as `docker save` writes it: one layer, and a configuration for each tag.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{hex, recipes::Recipe};

/// Any fixed time will do; this is the start of 2026.
const TIME: u64 = 1_767_225_600;
const CREATED: &str = "2026-01-01T00:00:00Z";

/// Writes the archive.
pub(super) fn write(recipe: &Recipe, rootfs: &Path, archive: &Path) -> Result<()> {
    let layer = archive.with_extension("layer");
    let digest = write_layer(rootfs, &layer)?;
    let layer_name = format!("{digest}/layer.tar");

    let mut builder = Builder::new(BufWriter::new(File::create(archive)?));
    let mut manifest = Vec::new();
    for tag in recipe.tags {
        let name = format!("{}:{tag}", recipe.name);
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": {
                "Env": environment(recipe, tag),
                "WorkingDir": recipe.working_dir,
                "Entrypoint": recipe.entrypoint,
                "Cmd": recipe.command,
                "ExposedPorts": recipe.ports.iter().map(|port| (*port, json!({}))).collect::<HashMap<_, _>>(),
                "StopSignal": recipe.stop_signal,
                "Labels": { "org.opencontainers.image.version": tag },
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            "history": [{ "created": CREATED, "created_by": "cargo xtask images" }],
        });
        let config = config.to_string();
        let file = format!("{}.json", hex(&Sha256::digest(&config)));
        append(&mut builder, &file, config.as_bytes())?;
        manifest.push(json!({ "Config": file, "RepoTags": [name], "Layers": [layer_name] }));
    }
    let mut header = header(EntryType::Regular, 0o644);
    header.set_size(fs::metadata(&layer)?.len());
    builder.append_data(&mut header, &layer_name, File::open(&layer)?)?;
    append(&mut builder, "manifest.json", json!(manifest).to_string().as_bytes())?;
    builder.into_inner()?.flush()?;
    fs::remove_file(layer)?;
    Ok(())
}

/// The recipe's variables, with the usual `PATH` if it has none.
fn environment(recipe: &Recipe, tag: &str) -> Vec<String> {
    let own = recipe.environment.iter().map(|variable| (*variable).to_owned());
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
    let has_path = recipe.environment.iter().any(|variable| variable.starts_with("PATH="));
    own.chain((!has_path).then_some(path)).chain([format!("VERSION={tag}")]).collect()
}

fn append(builder: &mut Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, 0o644);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, name, content)
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(TIME);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// Writes all files below a folder, in the order of their names, and returns the digest of the archive.
fn write_layer(rootfs: &Path, to: &Path) -> Result<String> {
    let mut builder = Builder::new(Digesting { file: BufWriter::new(File::create(to)?), digest: Sha256::new() });
    let mut links = HashMap::new();
    add_folder(&mut builder, rootfs, Path::new(""), &mut links)?;
    let mut out = builder.into_inner()?;
    out.flush()?;
    Ok(hex(&out.digest.finalize()))
}

fn add_folder(
    builder: &mut Builder<impl Write>,
    rootfs: &Path,
    folder: &Path,
    links: &mut HashMap<u64, PathBuf>,
) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(rootfs.join(folder))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let path = folder.join(name);
        let full = rootfs.join(&path);
        let data = fs::symlink_metadata(&full)?;
        let mode = data.permissions().mode() & 0o7777;
        let mut add = || -> Result<()> {
            if data.is_dir() {
                builder.append_data(&mut header(EntryType::Directory, mode), &path, io::empty())?;
                add_folder(builder, rootfs, &path, links)?;
            } else if data.is_symlink() {
                let target = fs::read_link(&full)?;
                builder.append_link(&mut header(EntryType::Symlink, 0o777), &path, target)?;
            } else if let Some(first) = links.get(&data.ino()) {
                builder.append_link(&mut header(EntryType::Link, mode), &path, first)?;
            } else {
                if data.nlink() > 1 {
                    links.insert(data.ino(), path.clone());
                }
                let mut header = header(EntryType::Regular, mode);
                header.set_size(data.len());
                builder.append_data(&mut header, &path, File::open(&full)?)?;
            }
            Ok(())
        };
        add().with_context(|| format!("cannot archive {}", full.display()))?;
    }
    Ok(())
}

/// Computes the digest of what goes through.
struct Digesting {
    file: BufWriter<File>,
    digest: Sha256,
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
