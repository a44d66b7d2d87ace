//! What sandboxes and containers use.

use std::path::Path;

use skiff_cri::v1;

use super::matches_labels;
use crate::cgroup::Usage;
use crate::error::{Error, Result};
use crate::runtime::{Container, Runtime, Sandbox, lock};
use crate::supervisor::log::now_nanoseconds;

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(usage: &Usage, timestamp: i64) -> v1::CpuUsage {
    v1::CpuUsage { timestamp, usage_core_nano_seconds: value(usage.cpu_nanoseconds), ..Default::default() }
}

fn memory(usage: &Usage, timestamp: i64) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: value(usage.working_set),
        available_bytes: usage.memory_limit.and_then(|limit| value(limit.saturating_sub(usage.working_set))),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: None,
    }
}

/// Bytes and entries below a directory, not crossing file systems.
fn disk_usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 1);
    let Ok(entries) = std::fs::read_dir(dir) else { return (0, 0) };
    for entry in entries.flatten() {
        // What vanishes meanwhile takes no room.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (b, i) = disk_usage(&entry.path());
            bytes += b;
            inodes += i;
        } else {
            bytes += metadata.blocks() * 512;
            inodes += 1;
        }
    }
    (bytes, inodes)
}

impl Runtime {
    pub(crate) fn container_stats(&self, container: &Container) -> Result<v1::ContainerStats> {
        let record = lock(&container.record).clone();
        let usage = self.0.cgroups.usage(&record.cgroup).map_err(Error::io("read the container's usage"))?;
        let timestamp = now_nanoseconds();
        let (bytes, inodes) = disk_usage(&container.dir.join("upper"));
        Ok(v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id,
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            cpu: Some(cpu(&usage, timestamp)),
            memory: Some(memory(&usage, timestamp)),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.0.config.root.display().to_string() }),
                used_bytes: value(bytes),
                inodes_used: value(inodes),
            }),
            swap: None,
            io: None,
        })
    }

    pub(crate) fn list_container_stats(&self, filter: Option<v1::ContainerStatsFilter>) -> Vec<v1::ContainerStats> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<_> = lock(&self.0.containers).values().cloned().collect();
        let wanted = containers.iter().filter(|container| {
            let record = lock(&container.record);
            container.is_running()
                && record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && matches_labels(&filter.label_selector, &record.config.labels)
        });
        // One that has just ended has nothing to show.
        wanted.filter_map(|container| self.container_stats(container).ok()).collect()
    }

    pub(crate) fn pod_stats(&self, sandbox: &Sandbox) -> v1::PodSandboxStats {
        let record = lock(&sandbox.record).clone();
        let timestamp = now_nanoseconds();
        // The pod's own cgroup does not exist before its first container.
        let usage = self.0.cgroups.usage(&self.pod_cgroup(sandbox)).unwrap_or_default();
        let containers = self.containers_of(&sandbox.id);
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id,
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(cpu(&usage, timestamp)),
                memory: Some(memory(&usage, timestamp)),
                network: None,
                process: Some(v1::ProcessUsage { timestamp, process_count: value(usage.pids) }),
                containers: containers
                    .iter()
                    .filter(|container| container.is_running())
                    .filter_map(|container| self.container_stats(container).ok())
                    .collect(),
                io: None,
            }),
        }
    }

    pub(crate) fn list_pod_stats(&self, filter: Option<v1::PodSandboxStatsFilter>) -> Vec<v1::PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = lock(&self.0.sandboxes).values().cloned().collect();
        let wanted = sandboxes.iter().filter(|sandbox| {
            let record = lock(&sandbox.record);
            record.ready
                && record.id.starts_with(&filter.id)
                && matches_labels(&filter.label_selector, &record.config.labels)
        });
        wanted.map(|sandbox| self.pod_stats(sandbox)).collect()
    }
}
