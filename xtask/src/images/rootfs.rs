//! The files of an image.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::{Context, Result};

use super::recipes::Recipe;
use crate::{
    apt::{self, Apt},
    shell,
};

/// Folders that every image has, with their modes.
const FOLDERS: [(&str, u32); 10] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
];

/// Makes the image's root folder from packages.
pub(super) fn build(recipe: &Recipe, rootfs: &Path) -> Result<()> {
    if rootfs.exists() {
        fs::remove_dir_all(rootfs)?;
    }
    fs::create_dir_all(rootfs)?;
    if !recipe.applets {
        // Debian's merged /usr.
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(rootfs.join("usr").join(name))?;
            symlink(format!("usr/{name}"), rootfs.join(name))?;
        }
    }
    for (package, deb) in Apt::new(recipe.suite)?.closure(recipe.packages)? {
        if !recipe.without.iter().any(|prefix| package.starts_with(prefix)) {
            apt::unpack(&deb, rootfs)?;
        }
    }
    for (name, mode) in FOLDERS {
        fs::create_dir_all(rootfs.join(name))?;
        if !rootfs.join(name).is_symlink() {
            fs::set_permissions(rootfs.join(name), fs::Permissions::from_mode(mode))?;
        }
    }
    if recipe.applets {
        applets(rootfs)?;
    }
    for path in recipe.pruned {
        let path = rootfs.join(path.trim_end_matches('/'));
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
    }
    for (path, content) in recipe.files {
        let path = rootfs.join(path);
        fs::create_dir_all(path.parent().unwrap_or(rootfs))?;
        fs::write(&path, content)?;
    }
    for path in recipe.programs {
        fs::set_permissions(rootfs.join(path), fs::Permissions::from_mode(0o755))?;
    }
    if !recipe.python.is_empty() {
        let to = rootfs.join("usr/local/lib/python3.11/dist-packages");
        pip(&["install", "--no-compile", "--root-user-action=ignore", "--target"], &to, recipe.python)?;
    }
    if !recipe.wheels.is_empty() {
        pip(&["download", "--dest"], &rootfs.join("usr/share/wheels"), recipe.wheels)?;
    }
    for (path, target) in recipe.links {
        let path = rootfs.join(path);
        fs::create_dir_all(path.parent().unwrap_or(rootfs))?;
        symlink(target, path)?;
    }
    Ok(())
}

/// Has pip bring packages of PyPI for the image's Python to a folder: installed there, where Debian's looks for what is
/// not Debian's, or as files.
fn pip(how: &[&str], to: &Path, packages: &[&str]) -> Result<()> {
    let mut pip = shell::command("python3");
    pip.args(["-m", "pip"]).args(how).arg(to).arg("--quiet");
    pip.args(["--python-version=3.11", "--platform=manylinux2014_x86_64", "--only-binary=:all:"]);
    shell::run(pip.args(packages))
}

/// The one static program under all its names, all in /bin as in the image on Docker Hub.
fn applets(rootfs: &Path) -> Result<()> {
    let program = rootfs.join("bin/busybox");
    let installed = ["usr/bin/busybox", "bin/busybox"].map(|path| rootfs.join(path));
    let installed = installed.iter().find(|path| path.is_file()).context("the package has no busybox")?;
    if *installed != program {
        fs::rename(installed, &program)?;
    }
    for applet in shell::output(shell::command(&program).arg("--list"))?.lines() {
        let link = rootfs.join("bin").join(applet);
        if !link.exists() {
            fs::hard_link(&program, link)?;
        }
    }
    Ok(())
}
