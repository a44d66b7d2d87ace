//! Flags for what differs from the components' defaults, named as upstream's.

use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::node_config::Settings;

/// The same for servers, agents and local clusters.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct SettingArgs {
    /// How long a node may be silent before it counts as lost [default: 40s]
    #[arg(long, value_name = "DURATION", value_parser = super::cluster::duration)]
    node_monitor_grace_period: Option<Duration>,
    /// Of what a node must not have less, or pods are evicted: memory.available<100Mi,nodefs.available<10% …
    #[arg(long, value_name = "LIST")]
    eviction_hard: Option<String>,
    /// How long a node tells of a pressure after it was seen last [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = super::cluster::duration)]
    eviction_pressure_transition_period: Option<Duration>,
    /// How full the disk is, in percent, when unused images are removed; 100: never
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: Option<u8>,
    /// Down to where unused images are removed, in percent
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: Option<u8>,
}

impl SettingArgs {
    /// The settings; what cannot work is refused here and not on the node.
    pub(crate) fn into_settings(self) -> anyhow::Result<Settings> {
        if let Some(text) = &self.eviction_hard {
            text.parse::<skiff_kubelet::EvictionThresholds>().context("--eviction-hard")?;
        }
        let (high, low) = (self.image_gc_high_threshold.unwrap_or(85), self.image_gc_low_threshold.unwrap_or(80));
        anyhow::ensure!(
            low < high,
            "--image-gc-low-threshold ({low}) must be less than --image-gc-high-threshold ({high})"
        );
        Ok(Settings {
            disable: Vec::new(),
            node_monitor_grace_period_s: self.node_monitor_grace_period.map(|d| d.as_secs()),
            eviction_hard: self.eviction_hard,
            eviction_pressure_transition_period_s: self.eviction_pressure_transition_period.map(|d| d.as_secs()),
            image_gc_high_threshold: self.image_gc_high_threshold,
            image_gc_low_threshold: self.image_gc_low_threshold,
            encryption_provider_config: None,
        })
    }
}
