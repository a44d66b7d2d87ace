//! What is watched of the node, and below which of it pods are evicted.

use std::{fmt, str::FromStr};

use skiff_api::quantity::Quantity;

/// Something that a node can run short of, in the order in which shortages are dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Signal {
    MemoryAvailable,
    PidAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
}

impl Signal {
    const ALL: [(Signal, &str); 6] = [
        (Signal::MemoryAvailable, "memory.available"),
        (Signal::PidAvailable, "pid.available"),
        (Signal::NodefsAvailable, "nodefs.available"),
        (Signal::NodefsInodesFree, "nodefs.inodesFree"),
        (Signal::ImagefsAvailable, "imagefs.available"),
        (Signal::ImagefsInodesFree, "imagefs.inodesFree"),
    ];

    /// What pods use up, as messages name it.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory",
            Signal::PidAvailable => "pids",
            Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
        }
    }

    /// The node's condition while it is short of this.
    pub(crate) fn pressure(self) -> Pressure {
        match self {
            Signal::MemoryAvailable => Pressure::Memory,
            Signal::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }
}

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    pub(crate) const ALL: [Pressure; 3] = [Pressure::Memory, Pressure::Disk, Pressure::Pid];

    /// The condition's type.
    pub(crate) fn condition(self) -> &'static str {
        match self {
            Pressure::Memory => "MemoryPressure",
            Pressure::Disk => "DiskPressure",
            Pressure::Pid => "PIDPressure",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Quantity(Quantity),
    /// Of the capacity, 0 to 1.
    Share(f64),
}

/// Pods are evicted while less than this is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Threshold {
    pub(crate) signal: Signal,
    amount: Amount,
}

impl Threshold {
    /// In bytes or pieces.
    pub(crate) fn quantity(&self, capacity: i64) -> i64 {
        match self.amount {
            Amount::Quantity(quantity) => quantity.units(),
            Amount::Share(share) => (capacity as f64 * share) as i64,
        }
    }
}

/// The hard thresholds of a kubelet, as `--eviction-hard` says them: `memory.available<100Mi,nodefs.available<10%`.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionThresholds(pub(crate) Vec<Threshold>);

impl EvictionThresholds {
    /// Upstream's.
    pub const DEFAULT: &'static str = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,\
                                       imagefs.available<15%,imagefs.inodesFree<5%";
}

impl Default for EvictionThresholds {
    fn default() -> Self {
        EvictionThresholds::DEFAULT.parse().unwrap_or(EvictionThresholds(Vec::new()))
    }
}

/// A threshold that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid eviction threshold {text:?}: {why}")]
pub struct ThresholdError {
    text: String,
    why: &'static str,
}

impl FromStr for EvictionThresholds {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut thresholds: Vec<Threshold> = Vec::new();
        for text in text.split(',').filter(|t| !t.is_empty()) {
            let wrong = |why| ThresholdError { text: text.to_owned(), why };
            let (name, amount) = text.split_once('<').ok_or_else(|| wrong("it is not of the form signal<amount"))?;
            let known = Signal::ALL.into_iter().find(|(_, n)| *n == name);
            let (signal, _) = known.ok_or_else(|| wrong("unsupported eviction signal"))?;
            if thresholds.iter().any(|t| t.signal == signal) {
                return Err(wrong("duplicate eviction threshold"));
            }
            let amount = match amount.strip_suffix('%') {
                Some(percent) => {
                    let percent: f64 = percent.parse().map_err(|_| wrong("it is no percentage"))?;
                    if !(0.0..=100.0).contains(&percent) {
                        return Err(wrong("percentage must be between 0 and 100"));
                    }
                    // Upstream's way to switch a threshold off.
                    if percent == 0.0 || percent == 100.0 {
                        continue;
                    }
                    Amount::Share(percent / 100.0)
                }
                None => {
                    let quantity: Quantity = amount.parse().map_err(|_| wrong("it is no quantity"))?;
                    if quantity.is_zero() || quantity.is_negative() {
                        return Err(wrong("eviction threshold must be positive"));
                    }
                    Amount::Quantity(quantity)
                }
            };
            thresholds.push(Threshold { signal, amount });
        }
        thresholds.sort_by_key(|t| t.signal);
        Ok(EvictionThresholds(thresholds))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Signal::ALL.iter().find(|(s, _)| s == self).map_or("", |(_, n)| n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_parsed() {
        let defaults = EvictionThresholds::default().0;
        assert_eq!(defaults.len(), 5);
        assert_eq!(defaults[0].quantity(0), 100 << 20);
        assert_eq!(defaults[1].quantity(1000), 100);
        let parsed = |text: &str| text.parse::<EvictionThresholds>();
        assert_eq!(parsed("nodefs.available<0%").unwrap().0, []);
        assert_eq!(parsed("").unwrap().0, []);
        for bad in ["memory.available", "memory.free<1Mi", "memory.available<x", "nodefs.available<101%"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        assert!(parsed("memory.available<1Mi,memory.available<2Mi").is_err());
    }
}
