//! Capabilities: names, the default set, and what CRI asks for.

use crate::spec::CapabilitySets;

/// Names by number, as in linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers hold unless told otherwise: the same fourteen everywhere in the field.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The number of capabilities known here.
pub(crate) const COUNT: u32 = NAMES.len() as u32;

/// All that are known here.
pub(crate) const ALL: u64 = (1 << COUNT) - 1;

/// The bit of a capability; the name may start with `CAP_` and is taken in any case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|n| *n == name).map(|n| 1 << n)
}

/// The default set.
pub(crate) fn default_set() -> u64 {
    DEFAULT.iter().filter_map(|name| bit(name)).sum()
}

/// What a container holds. `ALL` is handled first on both sides, then single names; dropping wins.
///
/// # Errors
/// Returns the name that is no capability.
pub(crate) fn resolve(
    privileged: bool,
    add: &[String],
    drop: &[String],
    ambient: &[String],
) -> Result<CapabilitySets, String> {
    if privileged {
        return Ok(CapabilitySets { bounding: ALL, ambient: 0 });
    }
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
    let mut bounding = default_set();
    if add.iter().any(|name| is_all(&name)) {
        bounding = ALL;
    }
    if drop.iter().any(|name| is_all(&name)) {
        bounding = 0;
    }
    let one = |name: &String| bit(name).ok_or_else(|| name.clone());
    let mut ambient_set = 0;
    for name in ambient.iter().filter(|name| !is_all(name)) {
        ambient_set |= one(name)?;
    }
    for name in add.iter().filter(|name| !is_all(name)) {
        bounding |= one(name)?;
    }
    bounding |= ambient_set;
    for name in drop.iter().filter(|name| !is_all(name)) {
        bounding &= !one(name)?;
    }
    Ok(CapabilitySets { bounding, ambient: ambient_set & bounding })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_and_drops_like_containerd() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let check =
            |add: &[&str], drop: &[&str]| resolve(false, &names(add), &names(drop), &[]).expect("known names").bounding;
        assert_eq!(check(&[], &[]), 0xa80425fb, "the value that everybody's containers show");
        assert_eq!(check(&["NET_ADMIN"], &[]), 0xa80425fb | 1 << 12);
        assert_eq!(check(&["CAP_net_admin"], &["ALL"]), 1 << 12);
        assert_eq!(check(&["ALL"], &["SYS_ADMIN"]), ALL & !(1 << 21));
        assert_eq!(check(&["NET_RAW"], &["NET_RAW"]) & 1 << 13, 0);
        assert_eq!(resolve(false, &names(&["NOPE"]), &[], &[]), Err("NOPE".to_owned()));
    }
}
