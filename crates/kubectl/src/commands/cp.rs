//! `kubectl cp`: files into a container and out of it, by the container's own `tar`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, Empty, sink, stderr, stdout};
use tokio_util::io::SyncIoBridge;

use super::exec;
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::tell,
    pods,
    streams::{self, Streams},
};

pub(crate) const COMMAND: Command = Command {
    name: "cp",
    about: "Copy files and directories to and from containers",
    usage: "<file-spec-src> <file-spec-dest>",
    flags: &[FLAGS],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("container", "Container name. If omitted, use the kubectl.kubernetes.io/default-container annotation or the first container.").short('c'),
    Flag::bool("no-preserve", "The copied file/directory's ownership and permissions will not be preserved in the container"),
];

/// How much waits between the connection and the archive.
const BUFFER: usize = 64 << 10;

/// One end: `[[NAMESPACE/]POD:]PATH`.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    namespace: String,
    /// Empty: on this machine.
    pod: String,
    path: String,
}

impl Spec {
    fn parse(text: &str) -> Result<Spec> {
        let malformed = || Error::text("filespec must match the canonical format: [[namespace/]pod:]file/path");
        let Some((pod, path)) = text.split_once(':') else {
            return Ok(Spec { namespace: String::new(), pod: String::new(), path: text.to_owned() });
        };
        let (namespace, pod) = match pod.split('/').collect::<Vec<_>>()[..] {
            [""] => return Err(malformed()),
            [pod] => ("", pod),
            [namespace, pod] => (namespace, pod),
            _ => return Err(malformed()),
        };
        Ok(Spec { namespace: namespace.to_owned(), pod: pod.to_owned(), path: path.to_owned() })
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let [from, to] = cli.args() else { return Err(Error::text("source and destination are required")) };
    let (from, to) = (Spec::parse(from)?, Spec::parse(to)?);
    if !from.pod.is_empty() && !to.pod.is_empty() {
        return Err(Error::text("one of src or dest must be a local file specification"));
    }
    if from.path.is_empty() || to.path.is_empty() {
        return Err(Error::text("filepath can not be empty"));
    }
    match (from.pod.is_empty(), to.pod.is_empty()) {
        (false, _) => from_pod(cli, &from, &to.path).await,
        (_, false) => to_pod(cli, &from.path, &to).await,
        _ => Err(Error::text("one of src or dest must be a remote file specification")),
    }
}

/// A container to run commands in.
struct Container<'a> {
    cli: &'a Cli,
    pod: Value,
    name: String,
}

impl<'a> Container<'a> {
    async fn of(cli: &'a Cli, spec: &Spec) -> Result<Container<'a>> {
        let namespace = if spec.namespace.is_empty() { cli.namespace()? } else { spec.namespace.clone() };
        let path = format!("/api/v1/namespaces/{namespace}/pods/{}", crate::rest::escape(&spec.pod));
        let pod = cli.rest()?.get(&path).await?;
        let name = pods::container(&pod, cli.flags.text("container"), false)?;
        Ok(Container { cli, pod, name })
    }

    async fn run(
        &self,
        command: &[&str],
        stdin: Option<impl AsyncRead + Unpin>,
        stdout: impl AsyncWrite + Unpin,
        stderr: impl AsyncWrite + Unpin,
    ) -> Result<()> {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let streams = Streams { stdin: stdin.is_some(), tty: false };
        let path = exec::path(&self.pod, &self.name, &command, streams);
        streams::run_with(&*self.cli.rest()?, &path, streams, stdin, stdout, stderr).await
    }
}

async fn to_pod(cli: &Cli, from: &str, to: &Spec) -> Result<()> {
    let source = PathBuf::from(from);
    if fs::metadata(&source).is_err() {
        return Err(Error::text(format!("{from} doesn't exist in local filesystem")));
    }
    let container = Container::of(cli, to).await?;
    let mut target = clean(&to.path);
    let is_folder = container.run(&["test", "-d", &target], None::<Empty>, sink(), sink()).await;
    if is_folder.is_ok() {
        let name = absolute(&source)?.file_name().unwrap_or_default().to_string_lossy().into_owned();
        target = clean(&format!("{target}/{name}"));
    }
    let (folder, name) = target.rsplit_once('/').unwrap_or(("", &target));
    let mut command = vec!["tar"];
    if cli.flags.is("no-preserve") {
        command.extend(["--no-same-permissions", "--no-same-owner"]);
    }
    command.extend(["-xmf", "-"]);
    if target.contains('/') {
        command.extend(["-C", if folder.is_empty() { "/" } else { folder }]);
    }
    let (reader, writer) = tokio::io::duplex(BUFFER);
    let name = name.to_owned();
    let packed = tokio::task::spawn_blocking(move || pack(&source, Path::new(&name), SyncIoBridge::new(writer)));
    let ran = container.run(&command, Some(reader), stdout(), stderr()).await;
    // A command that has ended needs no more: its own error says why.
    ran?;
    packed.await.map_err(|error| Error::text(error.to_string()))??;
    Ok(())
}

/// Archives a file, or a folder with what is in it, under a name.
fn pack(source: &Path, name: &Path, to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    let source = absolute(source)?;
    match fs::symlink_metadata(&source)?.is_dir() {
        true => archive.append_dir_all(name, &source)?,
        false => archive.append_path_with_name(&source, name)?,
    }
    archive.into_inner()?.flush()
}

/// With a name at its end, also for `.`.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    match path.file_name() {
        Some(_) => Ok(path.to_owned()),
        None => fs::canonicalize(path),
    }
}

async fn from_pod(cli: &Cli, from: &Spec, to: &str) -> Result<()> {
    let container = Container::of(cli, from).await?;
    let (reader, writer) = tokio::io::duplex(BUFFER);
    let (prefix, to) = (member(&from.path), PathBuf::from(to));
    // The namespace as it was written, which may be not at all.
    let hint = format!(
        "consider using \"kubectl exec -n {:?} {:?} -- tar cf - {:?} | tar xf -\"",
        from.namespace, from.pod, from.path
    );
    let unpacked = tokio::task::spawn_blocking(move || unpack(SyncIoBridge::new(reader), &prefix, &to, &hint));
    // What tar says goes to standard output, as with the real one.
    let ran = container.run(&["tar", "cf", "-", &from.path], None::<Empty>, writer, stdout()).await;
    // What could not be written here broke the connection; it is what there is to say.
    unpacked.await.map_err(|error| Error::text(error.to_string()))??;
    ran
}

/// Writes the members of an archive below `prefix` to `to`. Nothing is written outside of `to`, and nothing through a
/// link: links are left out, as upstream does, because a container may lie.
fn unpack(from: impl Read, prefix: &str, to: &Path, hint: &str) -> Result<()> {
    let mut archive = tar::Archive::new(from);
    let mut links = false;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(inner) = below(&name, prefix) else { return Err(Error::text("tar contents corrupted")) };
        let mut target = to.to_owned();
        let mut outside = false;
        for part in Path::new(inner).components() {
            match part {
                Component::Normal(part) => target.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => outside = true,
            }
        }
        if outside {
            tell!("warning: file {target:?} is outside target destination, skipping");
            continue;
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(|error| at("mkdir", &target, &error))?;
            continue;
        }
        if kind.is_symlink() || kind.is_hard_link() {
            let leads_to = entry.link_name_bytes().unwrap_or_default();
            let leads_to = String::from_utf8_lossy(&leads_to).into_owned();
            match links {
                true => tell!("warning: skipping symlink: {target:?} -> {leads_to:?}"),
                false => tell!("warning: skipping symlink: {target:?} -> {leads_to:?} ({hint})"),
            }
            links = true;
            continue;
        }
        if !kind.is_file() {
            tell!("warning: skipping {target:?}, which is no file");
            continue;
        }
        if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| at("mkdir", folder, &error))?;
        }
        let mut file = File::create(&target).map_err(|error| at("open", &target, &error))?;
        io::copy(&mut entry, &mut file).map_err(|error| at("write", &target, &error))?;
    }
    Ok(())
}

/// An error in Go's words.
fn at(what: &str, path: &Path, error: &io::Error) -> Error {
    let text = match error.kind() {
        io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    };
    Error::text(format!("{what} {}: {text}", path.display()))
}

/// A path without `.`, `..` and repeated slashes, as Go's `path.Clean`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    match (path.starts_with('/'), parts.join("/")) {
        (true, rest) => format!("/{rest}"),
        (false, rest) if rest.is_empty() => ".".to_owned(),
        (false, rest) => rest,
    }
}

/// As what a path is in the archive that `tar` makes of it.
fn member(path: &str) -> String {
    let cleaned = clean(path.trim_start_matches('/'));
    let without = cleaned.trim_start_matches("../");
    if without == ".." { String::new() } else { without.to_owned() }
}

/// What a member's name has behind the prefix; nothing if it does not begin so.
fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() || prefix == "." {
        return Some(name.trim_start_matches("./"));
    }
    let name = name.trim_start_matches("./").trim_start_matches("../");
    match name.strip_prefix(prefix)? {
        "" => Some(""),
        rest => rest.strip_prefix('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read() {
        let spec = |text: &str| Spec::parse(text).map(|s| (s.namespace, s.pod, s.path)).map_err(|e| e.message());
        let is = |n: &str, p: &str, f: &str| Ok((n.to_owned(), p.to_owned(), f.to_owned()));
        assert_eq!(spec("/tmp/a"), is("", "", "/tmp/a"));
        assert_eq!(spec("web:/tmp/a"), is("", "web", "/tmp/a"));
        assert_eq!(spec("shop/web:a:b"), is("shop", "web", "a:b"));
        for bad in [":/a", "a/b/c:/x"] {
            assert!(spec(bad).unwrap_err().contains("must match the canonical format"), "{bad}");
        }
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, wanted) in
            [("/a//b/./c/", "/a/b/c"), ("a/../../b", "../b"), ("/../a", "/a"), (".", "."), ("./", "."), ("/", "/")]
        {
            assert_eq!(clean(path), wanted, "{path}");
        }
        assert_eq!(member("/tmp/foo/"), "tmp/foo");
        assert_eq!(member("../../foo"), "foo");
        assert_eq!(below("tmp/foo/bar", "tmp/foo"), Some("bar"));
        assert_eq!(below("tmp/foo", "tmp/foo"), Some(""));
        assert_eq!(below("tmp/foobar", "tmp/foo"), None);
        assert_eq!(below("./a", "."), Some("a"));
    }

    fn archive(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, kind, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let is_file = kind.is_file();
            header.set_size(if is_file { content.len() as u64 } else { 0 });
            if !is_file && !kind.is_dir() {
                header.set_link_name(content).unwrap();
            }
            // As a hostile program writes it, not as the library would let it.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, if is_file { content.as_bytes() } else { b"" }).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn nothing_is_written_outside_or_through_links() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let outside = dir.path().join("outside");
        let link = outside.to_str().unwrap();
        let hostile = archive(&[
            ("tmp/x", Directory, ""),
            ("tmp/x/good", Regular, "good"),
            ("tmp/x/../../outside", Regular, "bad"),
            ("tmp/x/link", Symlink, link),
            ("tmp/x/link/file", Regular, "in a folder of its own"),
        ]);
        unpack(&hostile[..], "tmp/x", &to, "").unwrap();
        assert_eq!(fs::read(to.join("good")).unwrap(), b"good");
        assert!(!outside.exists());
        assert!(fs::symlink_metadata(to.join("link")).unwrap().is_dir());
        let foreign = archive(&[("etc/passwd", Regular, "bad")]);
        assert_eq!(unpack(&foreign[..], "tmp/x", &to, "").unwrap_err().message(), "error: tar contents corrupted");
        let folder = archive(&[("tmp/x", Regular, "file")]);
        let error = unpack(&folder[..], "tmp/x", dir.path(), "").unwrap_err().message();
        assert_eq!(error, format!("error: open {}: is a directory", dir.path().display()));
    }
}
