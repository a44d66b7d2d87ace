//! The profile of `RuntimeDefault`.
//!
//! Every call of the table is allowed but those below: calls that reach beyond the container, that
//! only administrators need, or that were the way in of past attacks. A capability that is there to
//! make such a call gives it back. What results is what containers get elsewhere in the field.

use super::{Action, Condition, Filter, Operator, Rule, syscalls};
use crate::caps;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Address family of virtual machine sockets, which reach the hypervisor.
const AF_VSOCK: u64 = 40;
/// The flags of clone(2) that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// Execution domains of personality(2): Linux, BSD-like wait, and asking for the current one.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Refused whatever the capabilities: keyrings, which know no namespaces; asynchronous calls, which
/// pass by this filter; memory tricks that exploits use; and what was removed from the kernel.
const NEVER: &[&str] = &[
    "add_key",
    "request_key",
    "keyctl",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    "kexec_load",
    "kexec_file_load",
    "swapon",
    "swapoff",
    "pivot_root",
    "nfsservctl",
    "sysfs",
    "_sysctl",
    "uselib",
    "ustat",
    "vserver",
    "move_pages",
    "migrate_pages",
    "afs_syscall",
    "tuxcall",
    "security",
    "getpmsg",
    "putpmsg",
    "create_module",
    "get_kernel_syms",
    "lsm_set_self_attr",
    "uretprobe",
];

/// Refused without one of the capabilities.
const PRIVILEGED: &[(&[&str], &[&str])] = &[
    (
        &["SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount2",
            "unshare",
            "statmount",
            "listmount",
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &["bpf"]),
    (&["SYS_ADMIN", "PERFMON"], &["perf_event_open"]),
    (&["SYS_ADMIN", "SYSLOG"], &["syslog"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_BOOT"], &["reboot"]),
    (&["SYS_CHROOT"], &["chroot"]),
    (&["SYS_MODULE"], &["delete_module", "init_module", "finit_module", "query_module"]),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"]),
    (&["SYS_RAWIO"], &["iopl", "ioperm"]),
    (&["SYS_TIME"], &["settimeofday", "clock_settime", "stime"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
    (&["SYS_NICE"], &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
];

/// The filter for a process with these capabilities in its bounding set.
pub(super) fn filter(capabilities: u64) -> Filter {
    let holds = |name: &str| caps::bit(name).is_some_and(|bit| capabilities & bit != 0);
    let refused = |name: &str| {
        NEVER.contains(&name)
            || PRIVILEGED.iter().any(|(any_of, calls)| calls.contains(&name) && !any_of.iter().any(|c| holds(c)))
    };
    let admin = holds("SYS_ADMIN");
    let mut rules = Vec::new();
    for (name, number) in syscalls::all() {
        let mut allow_if = |argument, operator, value| {
            let conditions = vec![Condition { argument, operator, value }];
            rules.push(Rule { number, conditions, action: Action::ALLOW });
        };
        match name {
            "personality" => {
                PERSONALITIES.iter().for_each(|p| allow_if(0, Operator::Equal, *p));
            }
            "socket" => allow_if(0, Operator::NotEqual, AF_VSOCK),
            "clone" if !admin => allow_if(0, Operator::Masked(NAMESPACE_FLAGS), 0),
            // Its flags are in memory, where no filter can look: programs then use clone(2).
            "clone3" if !admin => {
                let action = Action::errno(ENOSYS);
                rules.push(Rule { number, conditions: Vec::new(), action });
            }
            name if refused(name) => {}
            _ => rules.push(Rule { number, conditions: Vec::new(), action: Action::ALLOW }),
        }
    }
    Filter { rules, default: Action::errno(EPERM), unknown: Action::errno(ENOSYS) }
}
