//! `fsGroup`: a volume's files belong to a group and the group may do what the owner may.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::Path,
};

/// Gives everything below `path` to the group. With `on_root_mismatch` only if the directory itself is not yet so.
pub(crate) fn set(path: &Path, group: u32, read_only: bool, on_root_mismatch: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if on_root_mismatch
        && meta.gid() == group
        && meta.permissions().mode() & wanted(true, read_only) == wanted(true, read_only)
    {
        return Ok(());
    }
    apply(path, group, read_only)
}

fn apply(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            apply(&entry?.path(), group, read_only)?;
        }
    }
    let mode = meta.permissions().mode() | wanted(meta.is_dir(), read_only);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn wanted(dir: bool, read_only: bool) -> u32 {
    let access = if read_only { 0o440 } else { 0o660 };
    // Directories hand their group on to what is made in them.
    if dir { access | 0o2110 } else { access }
}
