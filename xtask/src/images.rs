//! `cargo xtask images`: the images that the tests run, as archives in the form of `docker save`.
//!
//! They are made of Debian's packages, unpacked without running any of their scripts. The same packages
//! give the same archive to the byte. An archive that is there is kept until its recipe changes.

mod archive;
mod recipes;
mod rootfs;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use self::recipes::{RECIPES, Recipe};
use crate::shell;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names of images; all if none is given
    names: Vec<String>,
    /// Build them again, with today's packages
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let known = || RECIPES.map(|recipe| recipe.name).join(", ");
    if let Some(unknown) = args.names.iter().find(|name| !RECIPES.iter().any(|recipe| recipe.name == **name)) {
        bail!("there is no image {unknown:?}, only {}", known());
    }
    for recipe in &RECIPES {
        if args.names.is_empty() || args.names.iter().any(|name| name == recipe.name) {
            println!("{}", image(recipe, args.force)?.display());
        }
    }
    Ok(())
}

/// Builds those that are missing.
pub(crate) fn all() -> Result<()> {
    RECIPES.iter().try_for_each(|recipe| image(recipe, false).map(drop))
}

fn image(recipe: &Recipe, force: bool) -> Result<PathBuf> {
    let dir = shell::target().join("images");
    let (archive, key) = (dir.join(format!("{}.tar", recipe.name)), dir.join(format!("{}.key", recipe.name)));
    let sources = [
        include_str!("images/recipes.rs"),
        include_str!("images/rootfs.rs"),
        include_str!("images/archive.rs"),
        include_str!("images/files/postgres.sh"),
        include_str!("images/files/fastapi.py"),
        include_str!("images/files/myapp.sh"),
    ];
    let wanted = hex(&Sha256::digest(sources.concat()));
    if !force && archive.exists() && fs::read_to_string(&key).is_ok_and(|key| key == wanted) {
        return Ok(archive);
    }
    eprintln!("building the image {}", recipe.name);
    fs::create_dir_all(&dir)?;
    let rootfs = dir.join(format!("{}.rootfs", recipe.name));
    let build = || {
        rootfs::build(recipe, &rootfs)?;
        let draft = archive.with_extension("draft");
        archive::write(recipe, &rootfs, &draft)?;
        fs::rename(draft, &archive)?;
        fs::remove_dir_all(&rootfs)?;
        fs::write(key, wanted)?;
        anyhow::Ok(())
    };
    build().with_context(|| format!("cannot build the image {}", recipe.name))?;
    Ok(archive)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
