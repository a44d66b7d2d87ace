//! `skiff image …`: images on this machine, and on the nodes of a cluster.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use skiff_api::docker_config::DockerConfig;
use skiff_cluster::{
    Clusters, Home,
    clusters::Loaded,
    progress::{Console, Progress},
};
use skiff_images::{Auth, ImageStore, PullOptions, Reference, build::BuildOptions};

use super::table;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a Dockerfile and keep it on this machine
    Build {
        /// A name for the image, NAME[:TAG]
        #[arg(short, long = "tag", value_name = "NAME", required = true)]
        tags: Vec<Reference>,
        /// [default: Dockerfile in the context]
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// A value for ARG; without `=` that of the environment
        #[arg(long = "build-arg", value_name = "KEY=VALUE")]
        arguments: Vec<String>,
        /// The stage to end with
        #[arg(long, value_name = "STAGE")]
        target: Option<String>,
        /// The directory that COPY takes files from
        context: PathBuf,
    },
    /// Give an image of this machine another name, as docker tag
    Tag { image: String, name: Reference },
    /// Fetch an image from its registry and keep it on this machine
    Pull {
        #[arg(value_name = "NAME")]
        name: Reference,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Send an image of this machine to the registry that its name says, as docker push
    Push {
        #[arg(value_name = "NAME")]
        name: Reference,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Keep the images of an archive (docker save, or an OCI layout in a tar file) on this machine
    Import { archive: PathBuf },
    /// List the images on this machine
    List,
    /// Remove an image from this machine
    #[command(alias = "rm")]
    Remove {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Write an image of this machine to an archive, as docker save
    Save {
        name: String,
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Remove what earlier builds left for later ones
    Prune,
    /// Load an image of this machine, or an image archive, into the nodes of a cluster
    Load {
        /// The image's name or the archive's path
        #[arg(value_name = "IMAGE")]
        image: String,
        #[arg(long, value_name = "NAME", default_value = "skiff")]
        cluster: String,
        /// Only these nodes
        #[arg(long, value_name = "NODE", value_delimiter = ',')]
        nodes: Vec<String>,
        /// Into the node that `skiff server` or `skiff agent` runs on this machine, instead of a local cluster
        #[arg(long, conflicts_with_all = ["cluster", "nodes"])]
        machine: bool,
    },
}

/// How registries are spoken to. Credentials are those that docker and podman keep: `config.json` in $DOCKER_CONFIG or
/// ~/.docker.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Speak to this registry without TLS; it always is so on the loopback
    #[arg(long, value_name = "HOST[:PORT]")]
    insecure_registry: Vec<String>,
}

impl RegistryArgs {
    fn options(&self) -> PullOptions {
        PullOptions { plain_http: self.insecure_registry.clone(), ..PullOptions::default() }
    }
}

/// What docker's configuration of this user has for the registry of an image.
fn credentials(name: &Reference) -> anyhow::Result<Auth> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let Some(path) = dir.or_else(home).map(|dir| dir.join("config.json")) else { return Ok(Auth::Anonymous) };
    let config = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Auth::Anonymous),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let config = DockerConfig::parse(&config).with_context(|| format!("cannot use {}", path.display()))?;
    let most_specific = config.matching(&name.to_string()).into_iter().max_by_key(|found| found.registry.len());
    Ok(match most_specific {
        Some(found) if !found.identity_token.is_empty() => Auth::Bearer(found.identity_token),
        Some(found) if !found.username.is_empty() => Auth::Basic(found.username, found.password),
        _ => Auth::Anonymous,
    })
}

/// Where this machine's images are.
fn store(home: &Home) -> anyhow::Result<ImageStore> {
    let root = home.state.join("images");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    Ok(ImageStore::open(&root)?)
}

pub(crate) fn run(command: ImageCommand) -> anyhow::Result<()> {
    let home = Home::from_environment()?;
    let mut out = std::io::stdout().lock();
    match command {
        ImageCommand::Build { tags, file, arguments, target, context } => {
            let file = file.unwrap_or_else(|| context.join("Dockerfile"));
            let dockerfile = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let context =
                fs::canonicalize(&context).with_context(|| format!("cannot find the context {}", context.display()))?;
            let options = BuildOptions {
                dockerfile,
                context,
                names: tags,
                arguments: build_arguments(&arguments)?,
                target: target.map(|target| target.to_lowercase()),
                program: home.program.clone(),
            };
            build(&store(&home)?, &options, &mut out)?;
        }
        ImageCommand::Tag { image, name } => {
            store(&home)?.tag(&image, &name.to_string())?;
            writeln!(out, "{name}")?;
        }
        ImageCommand::Pull { name, registry } => {
            let (store, auth) = (store(&home)?, credentials(&name)?);
            let image = block_on(store.pull(&name, auth, &registry.options(), |_| {}))??;
            writeln!(out, "Pulled {name}: {}", image.id)?;
        }
        ImageCommand::Push { name, registry } => {
            let (store, auth) = (store(&home)?, credentials(&name)?);
            // What cannot be told need not stop the push.
            let tell = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
            let digest = block_on(store.push(&name, auth, &registry.options(), tell))??;
            writeln!(out, "Pushed {name}: {digest}")?;
        }
        ImageCommand::Import { archive } => {
            for image in store(&home)?.import_file(&archive)? {
                writeln!(
                    out,
                    "{}",
                    if image.repo_tags.is_empty() { image.id.to_string() } else { image.repo_tags.join(", ") }
                )?;
            }
        }
        ImageCommand::List => {
            let mut rows = Vec::new();
            for image in store(&home)?.list() {
                let size = format!("{} kB", image.size.div_ceil(1000));
                let names =
                    if image.repo_tags.is_empty() { vec!["<none>".to_owned()] } else { image.repo_tags.clone() };
                rows.extend(names.into_iter().map(|name| vec![name, image.id.hex()[..12].to_owned(), size.clone()]));
            }
            rows.sort();
            rows.insert(0, ["IMAGE", "ID", "SIZE"].map(str::to_owned).to_vec());
            table::write(&mut out, &rows)?;
        }
        ImageCommand::Remove { names } => {
            let store = store(&home)?;
            for name in names {
                if store.find(&name).is_none() {
                    bail!("image {name:?} not found");
                }
                store.remove(&name)?;
                writeln!(out, "Removed: {name}")?;
            }
        }
        ImageCommand::Save { name, output } => save(&store(&home)?, &name, &output)?,
        ImageCommand::Prune => store(&home)?.collect_garbage()?,
        ImageCommand::Load { image, cluster, nodes, machine } => {
            let archive = Path::new(&image);
            let loaded = if archive.is_file() {
                load(archive, &image, (!machine).then_some(&cluster), &nodes, &home)?
            } else {
                let kept = Kept::of(&image, &home)?
                    .with_context(|| format!("{image:?} is neither an archive nor an image on this machine"))?;
                load(&kept.0, &image, (!machine).then_some(&cluster), &nodes, &home)?
            };
            for node in loaded {
                writeln!(out, "{}: {}", node.node, node.images.join(", "))?;
            }
        }
    }
    Ok(())
}

fn build(store: &ImageStore, options: &BuildOptions, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut err = std::io::stderr();
    let mut pull = |reference: &Reference| {
        let auth = credentials(reference).map_err(|error| skiff_images::Error::Pull {
            reference: reference.to_string(),
            step: "read credentials".to_owned(),
            message: format!("{error:#}"),
        })?;
        block_on(store.pull(reference, auth, &PullOptions::default(), |_| {}))?
    };
    // What cannot be told need not stop the build.
    let mut tell = |line: &str| drop(writeln!(err, "{line}"));
    let image = store.build(options, &mut pull, &mut tell)?;
    let names: Vec<_> = options.names.iter().map(Reference::to_string).collect();
    writeln!(out, "Built {} as {}", image.id, names.join(", "))?;
    Ok(())
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, skiff_images::Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| skiff_images::Error::Io { what: "start the runtime".to_owned(), source })?;
    Ok(runtime.block_on(work))
}

fn build_arguments(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut arguments = BTreeMap::new();
    for argument in given {
        match argument.split_once('=') {
            Some((name, value)) => arguments.insert(name.to_owned(), value.to_owned()),
            None => std::env::var(argument).ok().and_then(|value| arguments.insert(argument.clone(), value)),
        };
    }
    Ok(arguments)
}

fn save(store: &ImageStore, name: &str, to: &Path) -> anyhow::Result<()> {
    let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(store.export(name, BufWriter::new(file))?)
}

/// An image of this machine as an archive, for as long as this lives.
pub(crate) struct Kept(pub(crate) PathBuf);

impl Kept {
    /// Nothing if there is no image of this name.
    pub(crate) fn of(name: &str, home: &Home) -> anyhow::Result<Option<Self>> {
        let store = store(home)?;
        if store.find(name).is_none() {
            return Ok(None);
        }
        let kept = Self(home.state.join(format!("image-{}.tar", std::process::id())));
        save(&store, name, &kept.0)?;
        Ok(Some(kept))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Loads an archive into nodes of a cluster, or into this machine's own node, and shows how far it is.
pub(crate) fn load(
    archive: &Path,
    shown_as: &str,
    cluster: Option<&String>,
    nodes: &[String],
    home: &Home,
) -> anyhow::Result<Vec<Loaded>> {
    let total = fs::metadata(archive).map_or(0, |metadata| metadata.len());
    let mut progress = Console::default();
    let mut shown = 0;
    progress.begin(&format!("Loading {shown_as}"));
    let mut advance = |node: &str, sent: u64| {
        let percent = sent.checked_mul(100).and_then(|sent| sent.checked_div(total)).unwrap_or_default();
        if percent != shown {
            shown = percent;
            progress.update(&format!("Loading {shown_as} into {node}: {percent}%"));
        }
    };
    let loaded = match cluster {
        Some(cluster) => Clusters::new(home.clone()).load_images(cluster, archive, nodes, &mut advance),
        None => skiff_cluster::load_into_this_machine(archive, &mut |sent| advance("this machine", sent))
            .map(|loaded| vec![loaded]),
    };
    match &loaded {
        Ok(_) => progress.done(),
        Err(_) => progress.failed(),
    }
    Ok(loaded?)
}
