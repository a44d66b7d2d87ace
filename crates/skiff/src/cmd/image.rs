//! `skiff image …`: images on the nodes of a cluster.

use std::{io::Write, path::PathBuf};

use clap::Subcommand;
use skiff_cluster::{
    Clusters, Home,
    progress::{Console, Progress},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Load an image archive (docker save, or an OCI layout in a tar file) into the nodes of a cluster
    Load {
        archive: PathBuf,
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

pub(crate) fn run(command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Load { archive, cluster, nodes, machine } => {
            let total = std::fs::metadata(&archive).map_or(0, |metadata| metadata.len());
            let mut progress = Console::default();
            let mut shown = 0;
            progress.begin(&format!("Loading {}", archive.display()));
            let mut advance = |node: &str, sent: u64| {
                let percent = sent.checked_mul(100).and_then(|sent| sent.checked_div(total)).unwrap_or_default();
                if percent != shown {
                    shown = percent;
                    progress.update(&format!("Loading {} into {node}: {percent}%", archive.display()));
                }
            };
            let loaded = if machine {
                skiff_cluster::load_into_this_machine(&archive, &mut |sent| advance("this machine", sent))
                    .map(|loaded| vec![loaded])
            } else {
                Clusters::new(Home::from_environment()?).load_images(&cluster, &archive, &nodes, &mut advance)
            };
            match &loaded {
                Ok(_) => progress.done(),
                Err(_) => progress.failed(),
            }
            let mut out = std::io::stdout().lock();
            for node in loaded? {
                writeln!(out, "{}: {}", node.node, node.images.join(", "))?;
            }
        }
    }
    Ok(())
}
