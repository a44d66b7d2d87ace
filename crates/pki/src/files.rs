//! Keys and certificates on disk.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::{Authority, Error, Pair, Request};

fn fault(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::File { path: path.to_owned(), source }
}

/// Reads a file; `None` if it is not there.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fault(path)(e)),
    }
}

/// Writes a file for its owner only, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text, 0o600)
}

/// Writes a file that all may read, whole or not at all.
pub fn write_public(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text, 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(fault(dir))?;
    }
    let mut new: PathBuf = path.to_owned();
    new.as_mut_os_string().push(".new");
    // What a crash left behind may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(fault(&new))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fault(&new))?;
    fs::rename(&new, path).map_err(fault(path))
}

/// The pair `NAME.crt` and `NAME.key` in `dir`: the one that is there, if it will last, else a new one.
pub fn load_or_create(dir: &Path, name: &str, authority: &Authority, request: &Request<'_>) -> Result<Pair, Error> {
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Some(certificate_pem), Some(key_pem)) = (read(&certificate)?, read(&key)?)
        && !authority.needs_renewal(&certificate_pem)
    {
        return Ok(Pair { certificate_pem, key_pem });
    }
    let pair = authority.issue(request)?;
    write_private(&key, &pair.key_pem)?;
    write_public(&certificate, &pair.certificate_pem)?;
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::Usage;

    #[test]
    fn pairs_are_kept_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, _) = Authority::generate("test").unwrap();
        let request =
            Request { common_name: "a", organization: None, usage: Usage::Client, dns_names: &[], addresses: &[] };
        let first = load_or_create(dir.path(), "a", &ca, &request).unwrap();
        let second = load_or_create(dir.path(), "a", &ca, &request).unwrap();
        assert_eq!(first.certificate_pem, second.certificate_pem);
        let mode = fs::metadata(dir.path().join("a.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (other, _) = Authority::generate("test").unwrap();
        let third = load_or_create(dir.path(), "a", &other, &request).unwrap();
        assert_ne!(first.certificate_pem, third.certificate_pem);
    }
}
