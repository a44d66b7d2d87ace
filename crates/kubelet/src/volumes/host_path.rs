//! `hostPath`: what is asked to be there is there, or is made.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

/// Checks a path against the type that the volume asks for; the types that say so are made.
pub(super) fn check(path: &str, kind: &str) -> Result<(), String> {
    let failed = |what: &str| format!("hostPath type check failed: {path} is not {what}");
    let found = fs::metadata(path).ok();
    let has = |test: &dyn Fn(&fs::FileType) -> bool| found.as_ref().is_some_and(|m| test(&m.file_type()));
    let ok = |holds: bool, what: &str| if holds { Ok(()) } else { Err(failed(what)) };
    match kind {
        // What is not there becomes a directory, as runtimes do it for such mounts.
        "" | "DirectoryOrCreate" if found.is_none() => make(path, |p| fs::create_dir_all(p), 0o755),
        "" => Ok(()),
        "DirectoryOrCreate" | "Directory" => ok(has(&fs::FileType::is_dir), "a directory"),
        "FileOrCreate" if found.is_none() => make(path, |p| fs::write(p, ""), 0o644),
        "FileOrCreate" | "File" => ok(has(&fs::FileType::is_file), "a file"),
        "Socket" => ok(has(&|t| t.is_socket()), "a socket file"),
        "CharDevice" => ok(has(&|t| t.is_char_device()), "a character device"),
        "BlockDevice" => ok(has(&|t| t.is_block_device()), "a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

fn make(path: &str, how: impl Fn(&Path) -> std::io::Result<()>, mode: u32) -> Result<(), String> {
    let path = Path::new(path);
    how(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|e| format!("cannot make {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = std::env::temp_dir().join(format!("skiff-hostpath-{:x}", rand::random::<u64>()));
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        assert_eq!(
            check(&path("no"), "Directory").unwrap_err(),
            format!("hostPath type check failed: {} is not a directory", path("no"))
        );
        check(&path("made"), "DirectoryOrCreate").unwrap();
        check(&path("made"), "Directory").unwrap();
        check(&path("file"), "FileOrCreate").unwrap();
        check(&path("file"), "File").unwrap();
        assert!(check(&path("file"), "Socket").is_err());
        assert!(check(&path("made"), "File").is_err());
        check("/dev/null", "CharDevice").unwrap();
        check(&path("implicit"), "").unwrap();
        assert!(dir.join("implicit").is_dir());
        fs::remove_dir_all(dir).unwrap();
    }
}
