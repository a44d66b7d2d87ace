//! The program called as `kind`: what its users type, with what it prints, on skiff's own clusters.
//!
//! As with kind, what is going on is told on standard error and what was asked for is printed on standard output.
//! There is no node image to choose and no container provider.

use std::{io::Write, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use skiff_cluster::{
    Clusters, CreateOptions, Home, clusters::ClusterStatus, kubeconfig, progress::Console, record::ClusterRecord,
    spec::ClusterSpec,
};

use super::cluster::duration;

/// Contexts of clusters that were made under this name begin with it.
const PREFIX: &str = "kind";

/// Local Kubernetes clusters, by skiff
#[derive(Parser)]
#[command(name = "kind", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Creates one of [cluster]
    #[command(subcommand)]
    Create(Create),
    /// Deletes one of [cluster, clusters]
    #[command(subcommand)]
    Delete(Delete),
    /// Exports one of [kubeconfig, logs]
    #[command(subcommand)]
    Export(Export),
    /// Gets one of [clusters, nodes, kubeconfig]
    #[command(subcommand)]
    Get(Get),
    /// Loads images into nodes
    #[command(subcommand)]
    Load(Load),
    /// Prints the version
    Version,
}

/// Which cluster.
#[derive(Args)]
struct Name {
    /// The cluster's name
    #[arg(short, long, default_value = "kind", env = "KIND_CLUSTER_NAME")]
    name: String,
}

#[derive(Subcommand)]
enum Create {
    /// Creates a local Kubernetes cluster
    Cluster {
        /// A configuration (kind.x-k8s.io/v1alpha4)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The cluster's name [default: the configuration's, or kind]
        #[arg(short, long, env = "KIND_CLUSTER_NAME")]
        name: Option<String>,
        /// The kubeconfig to merge the context into [default: as kubectl finds it]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// How long to wait at most until the nodes are Ready and DNS answers
        #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = duration)]
        wait: Duration,
        /// No way out of the cluster
        #[arg(long, env = "SKIFF_ISOLATED", value_parser = clap::builder::FalseyValueParser::new())]
        isolated: bool,
    },
}

#[derive(Subcommand)]
enum Delete {
    /// Deletes a cluster
    Cluster(Name),
    /// Deletes clusters
    Clusters {
        names: Vec<String>,
        /// All that were created under the name of kind
        #[arg(short = 'A', long, conflicts_with = "names")]
        all: bool,
    },
}

#[derive(Subcommand)]
enum Export {
    /// Merges a cluster's context into a kubeconfig
    Kubeconfig {
        #[command(flatten)]
        name: Name,
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// Copies the logs of a cluster's nodes into a folder
    Logs {
        /// [default: a new one in the folder for temporary files]
        folder: Option<PathBuf>,
        #[command(flatten)]
        name: Name,
    },
}

#[derive(Subcommand)]
enum Get {
    /// Lists the clusters
    Clusters,
    /// Lists a cluster's nodes
    Nodes {
        #[command(flatten)]
        name: Name,
        /// Of all clusters
        #[arg(short = 'A', long)]
        all_clusters: bool,
    },
    /// Prints a cluster's kubeconfig
    Kubeconfig(Name),
}

#[derive(Subcommand)]
enum Load {
    /// Loads images of this machine into a cluster's nodes
    DockerImage {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        name: Name,
        /// Only these nodes
        #[arg(long, value_delimiter = ',')]
        nodes: Vec<String>,
    },
    /// Loads an image archive into a cluster's nodes
    ImageArchive {
        archive: PathBuf,
        #[command(flatten)]
        name: Name,
        /// Only these nodes
        #[arg(long, value_delimiter = ',')]
        nodes: Vec<String>,
    },
}

/// Runs what was typed.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    let clusters = Clusters::new(Home::from_environment()?);
    let mut out = std::io::stdout().lock();
    let mut err = std::io::stderr();
    match cli.command {
        Command::Create(Create::Cluster { config, name, kubeconfig, wait, isolated }) => {
            let spec = match &config {
                Some(file) => ClusterSpec::read(file)?,
                None => ClusterSpec::of_size(1),
            };
            spec.check().map_err(anyhow::Error::msg)?;
            let name = name.or_else(|| spec.name.clone()).unwrap_or_else(|| PREFIX.to_owned());
            writeln!(err, "Creating cluster {name:?} ...")?;
            let options = CreateOptions {
                name: Some(name),
                isolated,
                wait: (!wait.is_zero()).then_some(wait),
                context_prefix: PREFIX.to_owned(),
                kubeconfig,
                ..CreateOptions::new(spec)
            };
            let created = clusters.create(&options, &mut Console::default())?;
            let context = &created.status.record.context;
            writeln!(err, "Set kubectl context to {context:?}\nYou can now use your cluster with:\n")?;
            writeln!(err, "kubectl cluster-info --context {context}")?;
        }
        Command::Delete(Delete::Cluster(Name { name })) => delete(&clusters, &name, &mut err)?,
        Command::Delete(Delete::Clusters { names, all }) => {
            let names = if all { own(&clusters)?.into_iter().map(|c| c.record.name).collect() } else { names };
            for name in &names {
                delete(&clusters, name, &mut err)?;
            }
            writeln!(err, "Deleted clusters: {names:?}")?;
        }
        Command::Export(Export::Kubeconfig { name: Name { name }, kubeconfig }) => {
            let record = clusters.get(&name)?.record;
            let path = kubeconfig.map_or_else(kubeconfig::default_path, Ok)?;
            kubeconfig::merge(&path, &record.context, &admin_kubeconfig(&clusters, &record)?)?;
            writeln!(err, "Set kubectl context to {:?}", record.context)?;
        }
        Command::Export(Export::Logs { folder, name: Name { name } }) => {
            let folder = folder.unwrap_or_else(|| std::env::temp_dir().join(format!("kind-{}", std::process::id())));
            writeln!(err, "Exporting logs for cluster {name:?} to:")?;
            clusters.export_logs(&name, &folder)?;
            writeln!(out, "{}", folder.display())?;
        }
        Command::Get(Get::Clusters) => {
            let names: Vec<_> = own(&clusters)?.into_iter().map(|c| c.record.name).collect();
            list(&names, "No kind clusters found.", &mut out, &mut err)?;
        }
        Command::Get(Get::Nodes { name: Name { name }, all_clusters }) => {
            let all = own(&clusters)?;
            let wanted = all.iter().filter(|c| all_clusters || c.record.name == name);
            let nodes: Vec<_> = wanted.flat_map(|c| c.record.nodes.iter().map(|n| n.name.clone())).collect();
            list(&nodes, &format!("No kind nodes found for cluster {name:?}."), &mut out, &mut err)?;
        }
        Command::Get(Get::Kubeconfig(Name { name })) => {
            let record = clusters.get(&name)?.record;
            write!(out, "{}", kubeconfig::named(&record.context, &admin_kubeconfig(&clusters, &record)?)?)?;
        }
        Command::Load(Load::DockerImage { images, name: Name { name }, nodes }) => {
            let home = clusters.home();
            clusters.get(&name)?;
            let kept = |image: &String| {
                super::image::Kept::of(image, home)?.with_context(|| format!("image: {image:?} not present locally"))
            };
            for image in &images {
                super::image::load(&kept(image)?.0, image, Some(&name), &nodes, home)?;
            }
        }
        Command::Load(Load::ImageArchive { archive, name: Name { name }, nodes }) => {
            super::image::load(&archive, &archive.display().to_string(), Some(&name), &nodes, clusters.home())?;
        }
        Command::Version => writeln!(
            out,
            "kind by skiff v{}, Kubernetes {}, linux/amd64",
            env!("CARGO_PKG_VERSION"),
            skiff_apiserver::git_version()
        )?,
    }
    Ok(())
}

/// The clusters that were made under this name.
fn own(clusters: &Clusters) -> anyhow::Result<Vec<ClusterStatus>> {
    let all = clusters.list()?.into_iter();
    Ok(all.filter(|c| c.record.context.starts_with(PREFIX)).collect())
}

fn admin_kubeconfig(clusters: &Clusters, record: &ClusterRecord) -> anyhow::Result<Vec<u8>> {
    clusters.admin_kubeconfig(record)?.with_context(|| format!("cluster {:?} has no control plane", record.name))
}

/// kind deletes what is not there without complaint.
fn delete(clusters: &Clusters, name: &str, err: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(err, "Deleting cluster {name:?} ...")?;
    let nodes: Vec<_> = match clusters.get(name) {
        Ok(status) => status.record.nodes.into_iter().map(|node| node.name).collect(),
        Err(skiff_cluster::Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    clusters.delete(name, &mut skiff_cluster::progress::Silent)?;
    writeln!(err, "Deleted nodes: {nodes:?}")?;
    Ok(())
}

fn list(names: &[String], none: &str, out: &mut dyn Write, err: &mut dyn Write) -> std::io::Result<()> {
    if names.is_empty() {
        return writeln!(err, "{none}");
    }
    names.iter().try_for_each(|name| writeln!(out, "{name}"))
}
