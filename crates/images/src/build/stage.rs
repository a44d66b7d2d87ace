//! One stage of a Dockerfile, and what each instruction does to it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use sha2::Digest as _;

use super::{
    Build, PREDEFINED, argument,
    dockerfile::{Form, Instruction, expand, pairs, words},
    pattern::{Ignore, clean},
    select::{Content, open_file, select},
    size_of,
    step::{self, Action, Copy, Origin, Step},
};
use crate::{Digest, Error, ImageConfig};

/// Where programs are looked for when the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How far a stage has come.
pub(super) struct Stage {
    pub(super) name: Option<String>,
    pub(super) layers: Vec<Digest>,
    pub(super) config: ImageConfig,
    arguments: BTreeMap<String, String>,
    shell: Vec<String>,
    /// Whether CMD is this stage's own; ENTRYPOINT takes that of the base image away.
    own_command: bool,
}

impl Default for Stage {
    fn default() -> Self {
        Self::upon(Vec::new(), ImageConfig::default())
    }
}

impl Stage {
    pub(super) fn upon(layers: Vec<Digest>, mut config: ImageConfig) -> Self {
        if !config.env.iter().any(|pair| pair.starts_with("PATH=")) {
            config.env.insert(0, format!("PATH={PATH}"));
        }
        let shell = ["/bin/sh", "-c"].map(str::to_owned).into();
        Self { name: None, layers, config, arguments: BTreeMap::new(), shell, own_command: false }
    }

    /// What `$NAME` stands for: ENV before ARG.
    fn values(&self) -> BTreeMap<String, String> {
        let mut values = self.arguments.clone();
        values.extend(self.environment());
        values
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pair = |pair: &String| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.config.env.iter().filter_map(pair).collect()
    }

    fn set_environment(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        match self.config.env.iter_mut().find(|known| known.split('=').next() == Some(name)) {
            Some(known) => *known = pair,
            None => self.config.env.push(pair),
        }
    }

    /// Arguments as they are, or as one text for the shell.
    fn arguments_of(&self, form: Form) -> Vec<String> {
        match form {
            Form::Exec(words) => words,
            Form::Shell(text) => [self.shell.as_slice(), &[text]].concat(),
        }
    }

    /// A path from the working directory, with the slash at its end kept.
    fn path(&self, path: &str) -> String {
        let from = if path.starts_with('/') { "" } else { self.config.working_dir.as_str() };
        let mut absolute = format!("/{}", clean(&format!("{from}/{path}")).join("/"));
        let directory = path.ends_with('/') || matches!(path.rsplit('/').next(), Some("." | ".."));
        if directory && absolute.len() > 1 {
            absolute.push('/');
        }
        absolute
    }
}

impl Build<'_> {
    pub(super) fn apply(&mut self, stage: &mut Stage, instruction: &Instruction) -> Result<(), Error> {
        let rest = instruction.rest.as_str();
        let values = stage.values();
        let error = |message: String| Error::from(instruction.error(message));
        let expanded = || expand(rest, &values).map_err(error);
        let listed = || match instruction.form() {
            Form::Exec(words) => Ok(words),
            Form::Shell(text) => words(&text, &values).map_err(error),
        };
        match instruction.name.as_str() {
            "ARG" => {
                let (name, default) = argument(instruction, &values)?;
                let given = self.options.arguments.get(&name).cloned();
                if let Some(value) = given.or(default).or_else(|| self.globals.get(&name).cloned()) {
                    stage.arguments.insert(name, value);
                }
            }
            "ENV" => {
                for (name, value) in pairs(rest, &values).map_err(error)? {
                    stage.set_environment(&name, &value);
                }
            }
            "LABEL" => stage.config.labels.extend(pairs(rest, &values).map_err(error)?),
            "USER" => stage.config.user = expanded()?,
            "STOPSIGNAL" => stage.config.stop_signal = expanded()?,
            "EXPOSE" => {
                for word in words(rest, &values).map_err(error)? {
                    stage.config.exposed_ports.extend(ports(&word).map_err(error)?);
                }
                stage.config.exposed_ports.sort();
                stage.config.exposed_ports.dedup();
            }
            "VOLUME" => {
                stage.config.volumes.extend(listed()?);
                stage.config.volumes.sort();
                stage.config.volumes.dedup();
            }
            "SHELL" => match instruction.form() {
                Form::Exec(words) if !words.is_empty() => stage.shell = words,
                _ => return Err(error("SHELL requires the arguments to be in JSON form".to_owned())),
            },
            "CMD" => {
                stage.config.cmd = stage.arguments_of(instruction.form());
                stage.own_command = true;
            }
            "ENTRYPOINT" => {
                stage.config.entrypoint = stage.arguments_of(instruction.form());
                if !stage.own_command {
                    stage.config.cmd.clear();
                }
            }
            // Kubernetes has probes of its own and never asks for an image's.
            "HEALTHCHECK" => {}
            "WORKDIR" => {
                let path = stage.path(&expanded()?);
                let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
                stage.config.working_dir = path.clone();
                self.layer(stage, instruction, &["WORKDIR", &path], Action::MakeDirectory { path: path.clone() })?;
            }
            "RUN" => self.run_program(stage, instruction)?,
            "COPY" | "ADD" => self.copy(stage, instruction, &values)?,
            other => return Err(error(format!("unknown instruction: {other}"))),
        }
        Ok(())
    }

    fn run_program(&mut self, stage: &mut Stage, instruction: &Instruction) -> Result<(), Error> {
        let arguments = stage.arguments_of(instruction.form());
        let mut environment: BTreeMap<_, _> = stage.values();
        let proxies = self.options.arguments.iter().filter(|(k, _)| PREDEFINED.contains(&k.to_uppercase().as_str()));
        // Not a part of what the layer is known by, as in Docker.
        let known = serde_json::json!(["RUN", arguments, environment, stage.config.user, stage.config.working_dir]);
        environment.extend(proxies.map(|(name, value)| (name.clone(), value.clone())));
        let action = Action::Run {
            arguments,
            environment: environment.into_iter().collect(),
            user: stage.config.user.clone(),
            directory: stage.config.working_dir.clone(),
        };
        self.layer(stage, instruction, &[&known.to_string()], action)
    }

    fn copy(
        &mut self,
        stage: &mut Stage,
        instruction: &Instruction,
        values: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let error = |message: String| Error::from(instruction.error(message));
        let mut patterns = match instruction.form() {
            Form::Exec(words) => words.iter().map(|word| expand(word, values)).collect::<Result<_, _>>(),
            Form::Shell(text) => words(&text, values),
        }
        .map_err(error)?;
        let name = &instruction.name;
        let destination = match (patterns.pop(), patterns.is_empty()) {
            (Some(destination), false) => stage.path(&destination),
            _ => return Err(error(format!("{name} requires at least two arguments"))),
        };
        let flag = |name: &str| instruction.flag(name).map(|value| expand(value, values)).transpose().map_err(error);
        let owner = flag("chown")?;
        let mode = flag("chmod")?
            .map(|mode| u32::from_str_radix(&mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or(mode))
            .transpose()
            .map_err(|mode| error(format!("invalid chmod parameter: {mode:?}, it must be an octal number")))?;
        let mut known = serde_json::json!(["COPY", destination, owner, mode]).to_string();
        let (from, ignore) = match flag("from")? {
            Some(from) => {
                let layers = self.source(instruction, &from)?;
                known.push_str(&serde_json::json!([layers, patterns]).to_string());
                (Origin::Layers(self.lower(&layers)), Ignore::default())
            }
            None => {
                if name == "ADD"
                    && let Some(url) = patterns.iter().find(|p| p.contains("://") || p.starts_with("git@"))
                {
                    return Err(error(format!("ADD of {url}: only local files are supported")));
                }
                let content = content(&self.options.context, &patterns, &self.ignore, name == "ADD").map_err(error)?;
                known.push_str(&content);
                (Origin::Directory(self.options.context.clone()), self.ignore.clone())
            }
        };
        let copy = Copy { from, patterns, ignore, destination, owner, mode };
        self.layer(stage, instruction, &[&known], Action::Copy(copy))
    }

    /// Makes the layer of an instruction, unless it is there; `known` is all that its content comes from.
    fn layer(
        &mut self,
        stage: &mut Stage,
        instruction: &Instruction,
        known: &[&str],
        action: Action,
    ) -> Result<(), Error> {
        let limit = self.store.limits().layers;
        if stage.layers.len() >= limit {
            return Err(Error::TooLarge { what: "number of layers", limit: limit as u64 });
        }
        let key = Digest::of(serde_json::json!(["skiff build 1", known]).to_string().as_bytes());
        let chain = Digest::chain(stage.layers.last(), &key);
        self.leases.push(self.store.lease_for_pull(vec![chain.clone()]));
        if self.store.has_layer(&chain) {
            (self.tell)("  cached");
        } else {
            let lower = self.lower(&stage.layers);
            let scratch = self.store.scratch()?;
            let program = &self.options.program;
            self.store.install_layer(&chain, |upper| {
                let is_run = matches!(action, Action::Run { .. });
                let step = Step { lower: lower.clone(), upper: upper.to_owned(), action };
                step::run(program, &scratch.0, &step).map_err(|message| Error::Step {
                    line: instruction.line,
                    instruction: instruction.text(),
                    message,
                })?;
                if is_run {
                    remove_mount_points(upper, &lower);
                }
                size_of(upper).map_err(Error::io("measure a layer"))
            })?;
        }
        stage.layers.push(chain);
        Ok(())
    }
}

/// Takes away what was only made to mount upon, unless it is not empty or the layers below have it as well.
fn remove_mount_points(upper: &Path, lower: &[PathBuf]) {
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let below = |name: &str| lower.iter().any(|dir| fs::symlink_metadata(dir.join(name)).is_ok());
    for name in ["etc/resolv.conf", "etc/hosts"].into_iter().filter(|_| is_dir(&upper.join("etc"))) {
        let path = upper.join(name);
        if !below(name) && fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() == 0) {
            let _ = fs::remove_file(path);
        }
    }
    for name in ["etc", "proc", "dev", "sys"].into_iter().filter(|name| !below(name)) {
        // Fails where something is in it, which is to stay.
        let _ = fs::remove_dir(upper.join(name));
    }
}

/// A digest of the files that are to be copied: names, modes and content, but not times and owners.
fn content(context: &Path, patterns: &[String], ignore: &Ignore, is_add: bool) -> Result<String, String> {
    let failed = |e: std::io::Error| e.to_string();
    let root = File::open(context).map_err(|e| format!("cannot open {}: {e}", context.display()))?;
    let selection = select(root.as_fd(), patterns, ignore).map_err(failed)?;
    let mut all = sha2::Sha256::new();
    all.update([u8::from(selection.single_file)]);
    for entry in &selection.entries {
        let digest = match &entry.content {
            Content::Directory => "directory".to_owned(),
            Content::Link(link) => format!("link {}", Digest::of(link)),
            Content::File => {
                let mut file = open_file(root.as_fd(), &entry.path).map_err(failed)?;
                let mut head = Vec::new();
                (&mut file).take(512).read_to_end(&mut head).map_err(failed)?;
                if is_add && is_archive(&head) {
                    return Err(format!("ADD of the archive {:?} is not supported, unpack it in a RUN", entry.path));
                }
                let whole = std::io::Cursor::new(head).chain(file);
                crate::digest::HashingReader::new(whole).finish().map_err(failed)?.to_string()
            }
        };
        all.update(serde_json::json!([entry.target, entry.stat.st_mode, digest]).to_string());
    }
    Ok(Digest::from(all).to_string())
}

/// Whether ADD would unpack it: tar, gzip, bzip2, xz, zstd.
fn is_archive(head: &[u8]) -> bool {
    let magic: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magic.iter().any(|magic| head.starts_with(magic)) || head.get(257..262) == Some(b"ustar")
}

/// `80`, `80/udp`, `8000-8002` in the form of configurations.
fn ports(word: &str) -> Result<Vec<String>, String> {
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let (from, to) = range.split_once('-').unwrap_or((range, range));
    let protocol = protocol.to_lowercase();
    match (from.parse::<u16>(), to.parse::<u16>()) {
        (Ok(from), Ok(to)) if from <= to && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") => {
            Ok((from..=to).map(|port| format!("{port}/{protocol}")).collect())
        }
        _ => Err(format!("invalid containerPort: {word}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_working_directory() {
        let mut stage = Stage::default();
        assert_eq!(stage.path("a/"), "/a/");
        stage.config.working_dir = "/app".to_owned();
        for (path, expected) in
            [(".", "/app/"), ("main.py", "/app/main.py"), ("/x", "/x"), ("../../y", "/y"), ("/", "/")]
        {
            assert_eq!(stage.path(path), expected, "{path}");
        }
    }

    #[test]
    fn ports_of_all_forms() {
        assert_eq!(ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("8000-8001/UDP").unwrap(), ["8000/udp", "8001/udp"]);
        for bad in ["", "x", "2-1", "80/http", "70000"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_files_have_the_same_digest() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        let digest = || content(dir.path(), &["a".to_owned()], &Ignore::default(), true).unwrap();
        let first = digest();
        fs::write(dir.path().join("a"), "1").unwrap();
        assert_eq!(digest(), first);
        fs::write(dir.path().join("a"), "2").unwrap();
        assert_ne!(digest(), first);
        fs::write(dir.path().join("a"), b"\x1f\x8b").unwrap();
        assert!(content(dir.path(), &["a".to_owned()], &Ignore::default(), true).unwrap_err().contains("archive"));
    }
}
