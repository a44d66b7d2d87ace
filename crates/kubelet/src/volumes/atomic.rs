//! Writing a set of files so that a reader sees all of the old ones or all of the new ones.
//!
//! The files are in a directory of their own named after the time. `..data` is a link to it that is replaced by a
//! rename; what users see are links through `..data`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner, if not root.
    pub(crate) uid: Option<u32>,
}

/// Files by their path in the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// Makes the volume's content this. `finish` is called with the new directory before anybody sees it.
pub(crate) fn write(volume: &Path, payload: &Payload, finish: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    let link = volume.join(DATA);
    let old = match fs::read_link(&link) {
        Ok(target) => Some(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(old) = &old
        && unchanged(&volume.join(old), payload)
    {
        return link_names(volume, payload);
    }
    let name = OsString::from(format!(
        "..{}.{:09}",
        jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"),
        rand::random::<u32>()
    ));
    let dir = volume.join(&name);
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let filled = fill(&dir, payload).and_then(|()| finish(&dir));
    if let Err(error) = filled {
        // The error matters more than what stays behind.
        let _ = fs::remove_dir_all(&dir);
        return Err(error);
    }
    let new_link = volume.join(DATA_NEW);
    match fs::remove_file(&new_link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&name, &new_link)?;
    fs::rename(&new_link, &link)?;
    link_names(volume, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

/// Only names below the volume, none of ours.
fn check(path: &str) -> io::Result<()> {
    let inside = !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if !inside || path.starts_with("..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path: {path}")));
    }
    Ok(())
}

fn unchanged(dir: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if list(dir, Path::new(""), &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        found.contains(Path::new(path)) && fs::read(dir.join(path)).is_ok_and(|content| content == file.content)
    })
}

fn list(root: &Path, below: &Path, out: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, out)?;
        } else {
            out.insert(path);
        }
    }
    Ok(())
}

fn fill(dir: &Path, payload: &Payload) -> io::Result<()> {
    for (path, file) in payload {
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.content)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        if let Some(uid) = file.uid {
            std::os::unix::fs::chown(&target, Some(uid), None)?;
        }
    }
    Ok(())
}

/// Links for the first name of each path; links that lead nowhere now go.
fn link_names(volume: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), volume.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File { content: content.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    #[test]
    fn replaces_all_at_once_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("skiff-atomic-{:x}", rand::random::<u64>()));
        fs::create_dir_all(&dir).unwrap();
        write(&dir, &payload(&[("a", "1"), ("d/b", "2")]), |_| Ok(())).unwrap();
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &payload(&[("a", "1"), ("d/b", "2")]), |_| Ok(())).unwrap();
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), first, "nothing changed");
        write(&dir, &payload(&[("a", "3")]), |_| Ok(())).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        for bad in ["../x", "/x", "..x", "", "a/../b"] {
            assert!(write(&dir, &payload(&[(bad, "")]), |_| Ok(())).is_err(), "{bad}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
