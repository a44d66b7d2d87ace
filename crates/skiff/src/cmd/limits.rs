//! `--cpus` and `--memory`: what each node of a local cluster may take of the machine.

use anyhow::{Context as _, ensure};
use skiff_api::quantity::Quantity;
use skiff_cluster::Limits;

/// Less than this is used by the node itself.
const LEAST_MEMORY: i64 = 256 << 20;
const LEAST_CPU_MILLIS: i64 = 100;

/// As minikube's flags of these names, in Kubernetes' quantities.
#[derive(Debug, Default, PartialEq, clap::Args)]
pub(crate) struct LimitArgs {
    /// Processors that each node may use: 2, 1500m [default: all]
    #[arg(long, value_name = "QUANTITY")]
    cpus: Option<Quantity>,
    /// Memory that each node may use: 2Gi, 512Mi [default: all]
    #[arg(long, value_name = "QUANTITY")]
    memory: Option<Quantity>,
}

impl LimitArgs {
    /// The limits; what the machine does not have, or a node cannot live with, is refused.
    pub(crate) fn into_limits(self) -> anyhow::Result<Limits> {
        if self == LimitArgs::default() {
            return Ok(Limits::default());
        }
        let cpus = std::thread::available_parallelism().context("cannot count the processors")?.get();
        let meminfo = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
        let memory = mem_total(&meminfo).context("/proc/meminfo does not say how much memory there is")?;
        self.on(i64::try_from(cpus)?, memory)
    }

    fn on(self, cpus: i64, memory_bytes: i64) -> anyhow::Result<Limits> {
        let mut limits = Limits::default();
        if let Some(wanted) = self.cpus {
            let millis = wanted.millis();
            ensure!(millis >= LEAST_CPU_MILLIS, "--cpus {wanted} is less than a node needs, {LEAST_CPU_MILLIS}m");
            ensure!(millis <= cpus * 1000, "--cpus {wanted} is more than this machine has, {cpus}");
            limits.cpu_millis = Some(u32::try_from(millis)?);
        }
        if let Some(wanted) = self.memory {
            let bytes = wanted.units();
            ensure!(
                bytes >= LEAST_MEMORY,
                "--memory {wanted} is less than a node needs, {}Mi; a unit is written behind the number, as in 2Gi",
                LEAST_MEMORY >> 20
            );
            ensure!(bytes <= memory_bytes, "--memory {wanted} is more than this machine has, {}Mi", memory_bytes >> 20);
            limits.memory_bytes = Some(u64::try_from(bytes)?);
        }
        Ok(limits)
    }
}

fn mem_total(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_small_machine(cpus: Option<&str>, memory: Option<&str>) -> Result<Limits, String> {
        let quantity = |text: &str| text.parse().unwrap();
        let args = LimitArgs { cpus: cpus.map(quantity), memory: memory.map(quantity) };
        args.on(2, 4 << 30).map_err(|e| e.to_string())
    }

    #[test]
    fn limits_fit_the_machine() {
        let some = Limits { cpu_millis: Some(1500), memory_bytes: Some(2 << 30) };
        assert_eq!(on_a_small_machine(Some("1500m"), Some("2Gi")), Ok(some));
        assert_eq!(on_a_small_machine(None, None), Ok(Limits::default()));
        assert_eq!(on_a_small_machine(Some("4"), None).unwrap_err(), "--cpus 4 is more than this machine has, 2");
        assert_eq!(on_a_small_machine(Some("50m"), None).unwrap_err(), "--cpus 50m is less than a node needs, 100m");
        assert_eq!(
            on_a_small_machine(None, Some("8Gi")).unwrap_err(),
            "--memory 8Gi is more than this machine has, 4096Mi"
        );
        assert_eq!(
            on_a_small_machine(None, Some("8192")).unwrap_err(),
            "--memory 8192 is less than a node needs, 256Mi; a unit is written behind the number, as in 2Gi"
        );
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(mem_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
    }
}
