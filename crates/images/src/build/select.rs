//! Which files of a directory COPY takes. Links are followed within that directory only: the kernel resolves every
//! path as if it were the root.

use std::{
    fs::File,
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::pattern::{Ignore, clean, matches_name};

/// One file, directory or link to be made at the destination.
#[derive(Debug)]
pub(super) struct Selected {
    /// From the source's root.
    pub(super) path: String,
    /// From the destination; empty for the destination itself.
    pub(super) target: String,
    pub(super) stat: Stat,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Directory,
    File,
    Link(Vec<u8>),
}

/// What the sources of one COPY are.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) entries: Vec<Selected>,
    /// Whether it is one file that was named itself, so that the destination may be its new name.
    pub(super) single_file: bool,
}

fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// Opens a selected file for reading.
pub(super) fn open_file(root: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    Ok(open(root, path, OFlags::RDONLY | OFlags::NONBLOCK)?.into())
}

/// Names in a directory, sorted; those that are not UTF-8 cannot be meant by a Dockerfile and are refused.
fn names(dir: OwnedFd) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in Dir::new(dir)? {
        let name = String::from_utf8(entry?.file_name().to_bytes().to_vec())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("a name is not UTF-8: {e}")))?;
        if name != "." && name != ".." {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() || name.is_empty() { format!("{parent}{name}") } else { format!("{parent}/{name}") }
}

/// Finds what the patterns name below `root`.
///
/// # Errors
/// A pattern that names nothing is an error in BuildKit's words.
pub(super) fn select(root: BorrowedFd<'_>, patterns: &[String], ignore: &Ignore) -> io::Result<Selection> {
    let mut entries = Vec::new();
    let (mut matched, mut files) = (0, 0);
    for pattern in patterns {
        let mut paths = vec![String::new()];
        for part in clean(pattern) {
            let mut next = Vec::new();
            for path in paths {
                if !part.contains(['*', '?', '[', '\\']) {
                    next.push(join(&path, part));
                } else if let Ok(dir) = open(root, &path, OFlags::RDONLY | OFlags::DIRECTORY) {
                    let found = names(dir)?.into_iter().filter(|name| matches_name(part.as_bytes(), name.as_bytes()));
                    next.extend(found.map(|name| join(&path, &name)));
                }
            }
            paths = next;
        }
        paths.retain(|path| !ignore.leaves_out(path) || ignore.takes_back());
        let before = entries.len();
        for path in &paths {
            match open(root, path, OFlags::PATH) {
                Ok(fd) => {
                    let stat = fs::fstat(fd)?;
                    matched += 1;
                    files += usize::from(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
                    top(root, path, stat, ignore, &mut entries)?;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        // An empty directory is something, too.
        if entries.len() == before && paths.iter().all(|path| open(root, path, OFlags::DIRECTORY).is_err()) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("\"/{}\": not found", clean(pattern).join("/")),
            ));
        }
    }
    Ok(Selection { entries, single_file: matched == 1 && files == 1 })
}

/// A source itself: of a directory its content is taken, a link is followed.
fn top(root: BorrowedFd<'_>, path: &str, stat: Stat, ignore: &Ignore, found: &mut Vec<Selected>) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => inside(root, path, "", ignore, found),
        FileType::RegularFile if ignore.leaves_out(path) => Ok(()),
        FileType::RegularFile => {
            let name = path.rsplit('/').next().unwrap_or_default();
            found.push(Selected { path: path.to_owned(), target: name.to_owned(), stat, content: Content::File });
            Ok(())
        }
        _ => Err(special(path)),
    }
}

fn inside(
    root: BorrowedFd<'_>,
    path: &str,
    target: &str,
    ignore: &Ignore,
    found: &mut Vec<Selected>,
) -> io::Result<()> {
    let dir = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in names(dir.try_clone()?)? {
        let (path, target) = (join(path, &name), join(target, &name));
        let out = ignore.leaves_out(&path);
        if out && !ignore.takes_back() {
            continue;
        }
        let stat = fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Content::Directory,
            FileType::RegularFile => Content::File,
            FileType::Symlink => {
                let link = fs::readlinkat(&dir, &name, Vec::new())?.into_string().map_err(io::Error::other)?;
                Content::Link(std::ffi::OsString::from(link).into_vec())
            }
            _ if out => continue,
            _ => return Err(special(&path)),
        };
        let is_directory = matches!(content, Content::Directory);
        if !out {
            found.push(Selected { path: path.clone(), target: target.clone(), stat, content });
        }
        if is_directory {
            inside(root, &path, &target, ignore, found)?;
        }
    }
    Ok(())
}

fn special(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("\"/{path}\" is neither a file, a directory nor a link"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{fd::AsFd, unix::fs::symlink};

    fn found(dir: &std::path::Path, patterns: &[&str], ignore: &str) -> Result<Vec<String>, String> {
        let root = File::open(dir).unwrap();
        let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let selection = select(root.as_fd(), &patterns, &Ignore::parse(ignore)).map_err(|e| e.to_string())?;
        Ok(selection.entries.into_iter().map(|e| format!("{}>{}", e.path, e.target)).collect())
    }

    #[test]
    fn files_directories_and_patterns() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("src/sub")).unwrap();
        for name in ["a.txt", "b.txt", "src/c", "src/sub/d"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        assert_eq!(found(dir.path(), &["*.txt"], "").unwrap(), ["a.txt>a.txt", "b.txt>b.txt"]);
        assert_eq!(found(dir.path(), &["src"], "").unwrap(), ["src/c>c", "src/sub>sub", "src/sub/d>sub/d"]);
        assert_eq!(found(dir.path(), &["."], "src\n!src/c\na*").unwrap(), ["b.txt>b.txt", "src/c>src/c"]);
        assert_eq!(found(dir.path(), &["none"], "").unwrap_err(), "\"/none\": not found");
        assert_eq!(found(dir.path(), &["a.txt"], "a.txt").unwrap_err(), "\"/a.txt\": not found");
    }

    #[test]
    fn nothing_outside_of_the_root_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        std::fs::create_dir(&context).unwrap();
        std::fs::write(dir.path().join("secret"), "").unwrap();
        symlink("../secret", context.join("up")).unwrap();
        symlink("/etc/passwd", context.join("absolute")).unwrap();
        symlink("/", context.join("root")).unwrap();
        for path in ["../secret", "up", "absolute", "root/etc/passwd", "/../secret"] {
            assert!(found(&context, &[path], "").unwrap_err().contains("not found"), "{path}");
        }
    }
}
