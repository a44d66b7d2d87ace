//! `skiff agent`: a further node of a cluster.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use skiff_client::Informers;

use crate::{join, node};

/// Flags of `skiff agent`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What `skiff cluster` tells a node
    #[arg(long, value_name = "FILE")]
    node_config: PathBuf,
}

/// Runs until the process is told to end.
pub(crate) fn run(args: Args) -> Result<()> {
    super::log_to_stderr();
    crate::certificates::choose_provider();
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let config = super::read_node_config(&args.node_config)?;
        let agent = config.agent.as_ref().context("the node's configuration does not say whom to join")?;
        let target = join::Target {
            server_url: &agent.server_url,
            authority_pem: &agent.ca_certificate,
            token: &config.bootstrap_token,
            node_name: &config.node_name,
        };
        let (client, serving) = join::join(&config.data_dir.join("pki"), &target).await?;
        let node = node::start(node::Setup {
            config: &config,
            services: Informers::new(client.clone()),
            client,
            serving,
            authority_pem: agent.ca_certificate.clone(),
        })
        .await?;
        super::until_told_to_end().await?;
        node.close();
        Ok(())
    })
}
