//! What the node has and what of it pods can have, read from the kernel.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use skiff_api::quantity::Quantity;

use crate::fields::Allocatable;

/// Memory below which upstream would evict pods, and so does not promise to them.
const RESERVED_MEMORY: i64 = 100 << 20;
/// The share of the disk that is not promised, likewise.
const RESERVED_STORAGE_PERCENT: i64 = 10;

/// What the node has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) cpu_millis: i64,
    pub(crate) memory_bytes: i64,
    storage_bytes: i64,
}

impl Capacity {
    /// Reads it: processors as far as this process may use them, memory as far as its cgroup lets it.
    pub(crate) fn read(root_dir: &Path) -> Capacity {
        let cpus = std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1));
        let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text)).unwrap_or(0);
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limit = limits.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<i64>().ok());
        let storage = nix::sys::statvfs::statvfs(root_dir).map_or(0, |fs| {
            i64::try_from(u128::from(fs.blocks()) * u128::from(fs.fragment_size())).unwrap_or(i64::MAX)
        });
        Capacity {
            cpu_millis: cpus * 1000,
            memory_bytes: limit.filter(|l| *l > 0).map_or(total, |l| l.min(total)),
            storage_bytes: storage,
        }
    }

    #[cfg(test)]
    pub(crate) fn fixed(cpu_millis: i64, memory_bytes: i64, storage_bytes: i64) -> Capacity {
        Capacity { cpu_millis, memory_bytes, storage_bytes }
    }

    pub(crate) fn allocatable(&self) -> Allocatable {
        Allocatable {
            cpu_millis: self.cpu_millis,
            memory_bytes: (self.memory_bytes - RESERVED_MEMORY).max(0),
            ephemeral_storage_bytes: self.storage_bytes / 100 * (100 - RESERVED_STORAGE_PERCENT),
        }
    }

    /// `status.capacity` and `status.allocatable`.
    pub(crate) fn lists(&self, max_pods: u32) -> [BTreeMap<String, ApiQuantity>; 2] {
        let list = |cpu: i64, memory: i64, storage: Quantity| -> BTreeMap<String, ApiQuantity> {
            [
                ("cpu", Quantity::from_millis(cpu).to_string()),
                // Memory is told in Ki, as upstream does.
                ("memory", format!("{}Ki", memory >> 10)),
                ("ephemeral-storage", storage.to_string()),
                ("hugepages-1Gi", "0".to_owned()),
                ("hugepages-2Mi", "0".to_owned()),
                ("pods", max_pods.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), ApiQuantity(value)))
            .into()
        };
        let allocatable = self.allocatable();
        [
            list(self.cpu_millis, self.memory_bytes, Quantity::from_bytes(self.storage_bytes >> 10 << 10)),
            list(
                allocatable.cpu_millis,
                allocatable.memory_bytes,
                Quantity::from_units(allocatable.ephemeral_storage_bytes),
            ),
        ]
    }
}

fn mem_total(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemTotal:"))?;
    let kib: i64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_can_have() {
        assert_eq!(mem_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        let [capacity, allocatable] = Capacity::fixed(2000, 1 << 30, 1000 << 10).lists(110);
        assert_eq!(capacity["cpu"].0, "2");
        assert_eq!(capacity["memory"].0, "1048576Ki");
        assert_eq!(allocatable["memory"].0, "946176Ki");
        assert_eq!(allocatable["ephemeral-storage"].0, "921600");
        assert_eq!(capacity["pods"].0, "110");
    }
}
