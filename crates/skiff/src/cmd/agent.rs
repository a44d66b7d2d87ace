//! `skiff agent`: a further node of a cluster.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use skiff_client::Informers;
use skiff_cluster::{NodeConfig, node_config::AgentConfig};

use super::settings::SettingArgs;
use crate::{components::Components, join, machine::Machine, node};

/// Flags of `skiff agent`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What `skiff cluster` tells a node; all other flags are left out then
    #[arg(long, value_name = "FILE", conflicts_with_all = ["server", "token", "ca_file", "node_ip"])]
    node_config: Option<PathBuf>,
    /// The control plane: https://ADDRESS:6443
    #[arg(long, value_name = "URL", required_unless_present = "node_config")]
    server: Option<String>,
    /// A token of the control plane: its file pki/bootstrap-token
    #[arg(long, required_unless_present = "node_config")]
    token: Option<String>,
    /// The control plane's certificate authority: its file pki/ca.crt
    #[arg(long, value_name = "FILE", required_unless_present = "node_config")]
    ca_file: Option<PathBuf>,
    /// The address, one of this machine's, under which the others reach it. In a dual-stack cluster an IPv6 address may
    /// follow after a comma
    #[arg(long, value_delimiter = ',', required_unless_present = "node_config")]
    node_ip: Vec<IpAddr>,
    /// Name of the node [default: the machine's]
    #[arg(long)]
    node_name: Option<String>,
    /// Where the state is kept
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// Range of the Services' addresses, as the control plane was told
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: String,
    /// Range of the pods' addresses, as the control plane was told
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: String,
    #[command(flatten)]
    settings: SettingArgs,
}

impl Args {
    fn node_config(self) -> Result<NodeConfig> {
        if let Some(path) = &self.node_config {
            return super::read_node_config(path);
        }
        let ca_file = self.ca_file.context("--ca-file is missing")?;
        let ca_certificate =
            std::fs::read_to_string(&ca_file).with_context(|| format!("cannot read {}", ca_file.display()))?;
        let machine = Machine {
            data_dir: &self.data_dir,
            node_name: self.node_name,
            node_ips: &self.node_ip,
            pod_cidr: &self.pod_cidr,
            service_cidr: &self.service_cidr,
            token: self.token.context("--token is missing")?,
            settings: self.settings.into_settings()?,
        };
        let server_url = self.server.context("--server is missing")?;
        machine.node_config(None, Some(AgentConfig { server_url, ca_certificate }))
    }
}

/// Runs until the process is told to end.
pub(crate) fn run(args: Args) -> Result<()> {
    super::log_to_stderr();
    crate::certificates::choose_provider();
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let config = args.node_config()?;
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
            components: Components::default(),
        })
        .await?;
        super::until_told_to_end().await?;
        node.close();
        Ok(())
    })
}
