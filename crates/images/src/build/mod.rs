//! Building images from a Dockerfile.
//!
//! Each RUN, COPY, ADD and WORKDIR makes a layer, which is known by the layers below it and a digest of everything
//! that it comes from: the instruction and, for COPY, the content of the files. A layer that is in the store already
//! is therefore the result of an earlier build, and the instruction is not carried out again. Unused layers stay for
//! later builds until [`ImageStore::collect_garbage`].
//!
//! What is deliberately not there: see `docs/images.md`.

mod copy;
mod dockerfile;
mod pattern;
mod select;
mod stage;
mod step;
mod user;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use dockerfile::DockerfileError;
pub use step::{SUBCOMMAND, build_step_main};

use crate::{
    Error, Reference, export,
    store::{Image, ImageStore, LayerLease},
};
use dockerfile::{Instruction, expand, pairs};
use pattern::Ignore;
use stage::Stage;

/// What to build.
pub struct BuildOptions {
    /// The text of the Dockerfile.
    pub dockerfile: String,
    /// The directory that COPY takes files from.
    pub context: PathBuf,
    /// Names of the image.
    pub names: Vec<Reference>,
    /// Values for ARG.
    pub arguments: BTreeMap<String, String>,
    /// The stage to end with; the last one if it is not given.
    pub target: Option<String>,
    /// This program, which answers to [`SUBCOMMAND`].
    pub program: PathBuf,
}

/// Arguments that need no ARG.
const PREDEFINED: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// A build in progress.
struct Build<'a> {
    store: &'a ImageStore,
    options: &'a BuildOptions,
    ignore: Ignore,
    pull: &'a mut dyn FnMut(&Reference) -> Result<Arc<Image>, Error>,
    tell: &'a mut dyn FnMut(&str),
    /// Of ARG before the first FROM.
    globals: BTreeMap<String, String>,
    stages: Vec<Stage>,
    leases: Vec<LayerLease>,
}

impl ImageStore {
    /// Builds an image. `pull` gets an image that is not in the store; `tell` is told what is being done.
    ///
    /// Must be called on the thread that lives as long as the process: a RUN ends with the thread that started it.
    pub fn build(
        &self,
        options: &BuildOptions,
        pull: &mut dyn FnMut(&Reference) -> Result<Arc<Image>, Error>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Arc<Image>, Error> {
        let instructions = dockerfile::parse(&options.dockerfile)?;
        let ignore = match fs::read_to_string(options.context.join(".dockerignore")) {
            Ok(text) => Ignore::parse(&text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ignore::default(),
            Err(e) => return Err(Error::io("read .dockerignore")(e)),
        };
        let architecture = crate::manifest::host_architecture();
        let platform = format!("linux/{architecture}");
        let globals = [
            ("TARGETPLATFORM", platform.as_str()),
            ("TARGETOS", "linux"),
            ("TARGETARCH", architecture),
            ("BUILDPLATFORM", &platform),
            ("BUILDOS", "linux"),
            ("BUILDARCH", architecture),
        ];
        let globals = globals.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut build =
            Build { store: self, options, ignore, pull, tell, globals, stages: Vec::new(), leases: Vec::new() };
        let stage = build.run(&instructions)?;
        let config = export::document(&stage.config, &stage.layers);
        self.add_image(&config, stage.layers, &options.names)
    }
}

impl Build<'_> {
    fn run(&mut self, instructions: &[Instruction]) -> Result<Stage, Error> {
        let declared = |name: &String| {
            PREDEFINED.contains(&name.to_uppercase().as_str())
                || instructions
                    .iter()
                    .filter(|i| i.name == "ARG")
                    .any(|i| i.rest.split_whitespace().any(|word| word.split('=').next() == Some(name.as_str())))
        };
        for name in self.options.arguments.keys().filter(|name| !declared(name)) {
            (self.tell)(&format!("warning: build argument {name:?} is not consumed"));
        }
        for (index, instruction) in instructions.iter().enumerate() {
            let last_of_target = instruction.name == "FROM"
                && self.options.target.is_some()
                && self.stages.last().is_some_and(|stage| stage.name == self.options.target);
            if last_of_target {
                break;
            }
            (self.tell)(&format!("[{}/{}] {}", index + 1, instructions.len(), instruction.text()));
            match (instruction.name.as_str(), self.stages.pop()) {
                ("FROM", current) => {
                    self.stages.extend(current);
                    let stage = self.from(instruction)?;
                    self.stages.push(stage);
                }
                ("ARG", None) => self.global(instruction)?,
                (_, None) => {
                    let message = "no build stage in current context";
                    return Err(instruction.error(message).into());
                }
                (_, Some(mut stage)) => {
                    let done = self.apply(&mut stage, instruction);
                    self.stages.push(stage);
                    done?;
                }
            }
        }
        let missing = |line, message: String| Error::from(DockerfileError { line, message });
        let stage = self.stages.pop().ok_or_else(|| missing(1, "no build stage".to_owned()))?;
        match &self.options.target {
            Some(target) if stage.name.as_ref() != Some(target) => {
                Err(missing(1, format!("target stage {target:?} could not be found")))
            }
            _ => Ok(stage),
        }
    }

    fn global(&mut self, instruction: &Instruction) -> Result<(), Error> {
        let (name, default) = argument(instruction, &self.globals)?;
        let value = self.options.arguments.get(&name).cloned().or(default);
        self.globals.extend(value.map(|value| (name, value)));
        Ok(())
    }

    fn from(&mut self, instruction: &Instruction) -> Result<Stage, Error> {
        let error = |message: String| instruction.error(message);
        if let Some(platform) = instruction.flag("platform") {
            let platform = expand(platform, &self.globals).map_err(error)?;
            if platform != self.globals["BUILDPLATFORM"] {
                return Err(error(format!("platform {platform:?} is not that of this machine")).into());
            }
        }
        let words: Vec<_> = instruction.rest.split_whitespace().collect();
        let (base, name) = match words[..] {
            [base] => (base, None),
            [base, word, name] if word.eq_ignore_ascii_case("as") => (base, Some(name.to_lowercase())),
            _ => return Err(error("FROM requires either one or three arguments".to_owned()).into()),
        };
        let base = expand(base, &self.globals).map_err(error)?;
        let mut stage = if base == "scratch" {
            Stage::default()
        } else if let Some(known) = self.stages.iter().find(|stage| stage.name.as_ref() == Some(&base.to_lowercase())) {
            Stage::upon(known.layers.clone(), known.config.clone())
        } else {
            let image = self.image(&base)?;
            Stage::upon(image.layers.clone(), image.config.clone())
        };
        stage.name = name;
        Ok(stage)
    }

    /// An image of the store, else of its registry.
    fn image(&mut self, name: &str) -> Result<Arc<Image>, Error> {
        let image = match self.store.find(name) {
            Some(image) => image,
            None => (self.pull)(&name.parse()?)?,
        };
        self.leases.push(self.store.lease_for_pull(image.layers.clone()));
        Ok(image)
    }

    /// The layers that `--from` names.
    fn source(&mut self, instruction: &Instruction, from: &str) -> Result<Vec<crate::Digest>, Error> {
        let by_number = from.parse::<usize>().ok().and_then(|number| self.stages.get(number));
        let by_name = || self.stages.iter().find(|stage| stage.name.as_deref() == Some(&from.to_lowercase()));
        match by_number.or_else(by_name) {
            Some(stage) => Ok(stage.layers.clone()),
            None if from.parse::<usize>().is_ok() => Err(instruction
                .error(format!("invalid from flag value {from}: no earlier stage has that number"))
                .into()),
            None => Ok(self.image(from)?.layers.clone()),
        }
    }

    fn lower(&self, layers: &[crate::Digest]) -> Vec<PathBuf> {
        layers.iter().rev().map(|layer| self.store.layer_fs(layer)).collect()
    }
}

/// The name and the default of an ARG.
fn argument(
    instruction: &Instruction,
    values: &BTreeMap<String, String>,
) -> Result<(String, Option<String>), DockerfileError> {
    if instruction.rest.contains('=') {
        let found = pairs(&instruction.rest, values).map_err(|message| instruction.error(message))?;
        return match <[_; 1]>::try_from(found) {
            Ok([(name, value)]) => Ok((name, Some(value))),
            Err(_) => Err(instruction.error("ARG takes one argument here")),
        };
    }
    Ok((instruction.rest.trim().to_owned(), None))
}

/// Bytes of the files in a layer.
fn size_of(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match () {
            () if metadata.is_dir() => size_of(&entry.path())?,
            () if metadata.is_file() => metadata.len(),
            () => 0,
        };
    }
    Ok(bytes)
}
