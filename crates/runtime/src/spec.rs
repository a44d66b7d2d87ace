//! What the daemon tells a supervisor to do, and what it hears back.
//!
//! The supervisor knows nothing of CRI or images: the daemon turns those into these values. They travel
//! as JSON, so that a supervisor and a daemon of different versions understand each other as far as
//! they can; every field added later needs a default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The namespaces that the containers of a pod share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    /// Set in a new UTS namespace; `None` stays in the node's.
    pub(crate) hostname: Option<String>,
    /// Where to pin a new network namespace; `None` stays in the node's.
    pub(crate) netns_pin: Option<PathBuf>,
    /// Whether to stay in the node's IPC namespace.
    pub(crate) host_ipc: bool,
    /// Where to mount the pod's shared memory; `None` with the node's IPC namespace.
    pub(crate) shm: Option<PathBuf>,
    /// Bytes of shared memory.
    pub(crate) shm_bytes: u64,
    /// Whether the containers share one PID namespace, whose first process the supervisor provides.
    pub(crate) share_pid: bool,
    /// Kernel parameters of the new namespaces, in dotted form.
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// A container, ready to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// Its id.
    pub(crate) id: String,
    /// Where its state is kept, see [`ContainerState`].
    pub(crate) state_file: PathBuf,
    /// Where its output is logged.
    pub(crate) log_path: Option<PathBuf>,
    /// Its file system.
    pub(crate) rootfs: Rootfs,
    /// Host paths in it, parents first.
    pub(crate) mounts: Vec<MountSpec>,
    /// Where the pod's shared memory is mounted on the node.
    pub(crate) shm: Option<PathBuf>,
    /// Its cgroup.
    pub(crate) cgroup: CgroupSpec,
    /// Device nodes beyond the usual ones.
    pub(crate) devices: Vec<DeviceSpec>,
    /// Paths that appear empty.
    pub(crate) masked_paths: Vec<String>,
    /// Paths that cannot be written.
    pub(crate) readonly_paths: Vec<String>,
    /// Whose processes it sees.
    pub(crate) pid: PidMode,
    /// Whether `/sys` is writable and everything is visible.
    pub(crate) privileged: bool,
    /// Whether it has a terminal.
    pub(crate) tty: bool,
    /// Whether its input is kept open for those who attach.
    pub(crate) stdin: bool,
    /// Whether its input closes when the first one who attached leaves.
    pub(crate) stdin_once: bool,
    /// Its first process.
    pub(crate) process: ProcessSpec,
}

/// The layers of a root file system.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rootfs {
    /// Read-only layers, top first.
    pub(crate) lower: Vec<PathBuf>,
    /// What the container writes.
    pub(crate) upper: PathBuf,
    /// For overlayfs, on the file system of `upper`.
    pub(crate) work: PathBuf,
    /// An empty directory to mount it on, in the container's own mount namespace.
    pub(crate) mountpoint: PathBuf,
    /// Whether the container cannot write to it.
    pub(crate) readonly: bool,
}

/// A host path that appears in a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MountSpec {
    /// File or directory of the node; followed if it is a link.
    pub(crate) source: PathBuf,
    /// Absolute path in the container.
    pub(crate) target: String,
    /// Whether it cannot be written.
    pub(crate) readonly: bool,
    /// Whether what is mounted below it cannot be written either.
    pub(crate) recursive_readonly: bool,
    /// Which later mounts cross.
    pub(crate) propagation: Propagation,
}

/// Which mounts made later cross a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Propagation {
    /// None.
    #[default]
    Private,
    /// Those of the node.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// The cgroup of a container, as far as the supervisor needs it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CgroupSpec {
    /// Files that a process writes `0` to in order to join.
    pub(crate) join: Vec<PathBuf>,
    /// A directory whose `cgroup.procs` lists the processes.
    pub(crate) procs_dir: Option<PathBuf>,
    /// The file that counts processes killed for lack of memory, as `oom_kill <n>`.
    pub(crate) oom_file: Option<PathBuf>,
    /// What the container sees below `/sys/fs/cgroup`: name (empty for the place itself) and directory.
    pub(crate) show: Vec<(String, PathBuf)>,
}

/// A device node to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeviceSpec {
    /// Absolute path in the container.
    pub(crate) path: String,
    /// Whether it is a block device.
    pub(crate) block: bool,
    /// Major number.
    pub(crate) major: u32,
    /// Minor number.
    pub(crate) minor: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// Whose processes a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidMode {
    /// Its own only.
    #[default]
    Own,
    /// Those of the pod.
    Pod,
    /// All of the node.
    Host,
    /// Those of the container of this id.
    Target(String),
}

/// A process in a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ProcessSpec {
    /// Program and arguments; never empty.
    pub(crate) args: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Working directory; made if it is missing.
    pub(crate) cwd: String,
    /// Whom it runs as.
    pub(crate) user: UserSpec,
    /// What it may do.
    pub(crate) capabilities: CapabilitySets,
    /// Whether executing programs never gives it more rights.
    pub(crate) no_new_privs: bool,
    /// Compiled seccomp filter, as struct sock_filter after struct sock_filter.
    pub(crate) seccomp: Option<PathBuf>,
    /// Preference of the kernel when memory runs out, -1000 to 1000.
    pub(crate) oom_score_adj: Option<i32>,
}

/// Whom a process runs as; names are looked up in the container's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserSpec {
    /// `user[:group]` by name or number; empty for root.
    pub(crate) user: String,
    /// Primary group instead of the one of the user.
    pub(crate) gid: Option<u32>,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
    /// Whether the groups of the container's files do not count.
    pub(crate) strict_groups: bool,
}

/// Capability sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilitySets {
    /// Those that can ever be held; also effective and permitted for root.
    pub(crate) bounding: u64,
    /// Those kept by unprivileged programs; inheritable too.
    pub(crate) ambient: u64,
}

/// The ids a process really started with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedUser {
    /// User.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// All supplemental groups.
    pub(crate) groups: Vec<u32>,
}

/// Where a container is in its life, as its supervisor writes it to the state file at each change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    /// Process id of its first process in the node's namespace; 0 before the start.
    pub(crate) pid: i32,
    /// Nanoseconds since the epoch; 0 before the start.
    pub(crate) started_at: i64,
    /// Nanoseconds since the epoch; 0 while it runs.
    pub(crate) finished_at: i64,
    /// Exit code, or 128 and the signal that ended it.
    pub(crate) exit_code: i32,
    /// Whether the kernel killed one of its processes for lack of memory.
    pub(crate) oom_killed: bool,
    /// Whom its first process runs as.
    pub(crate) user: Option<ResolvedUser>,
}

/// What the daemon asks of a supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// Makes the sandbox; the first call.
    Init(SandboxSpec),
    /// Tells how things are; the first call after a restart of the daemon.
    Hello,
    /// Starts a container whose spec is in this file.
    Start(PathBuf),
    /// Runs a process in a container. File descriptors: input, output, error output, as far as
    /// `streams` says; with a terminal none, and its other end comes with the answer.
    Exec {
        /// Chosen by the daemon; comes back in [`Event::ExecExited`].
        exec: u64,
        /// Container.
        id: String,
        /// What to run. User, groups, capabilities and seccomp are the container's.
        process: Box<ProcessSpec>,
        /// Whether it gets a terminal.
        tty: bool,
        /// Which of input, output and error output are given.
        streams: [bool; 3],
    },
    /// Sends a signal to a container's first process, or to all of its processes.
    Signal {
        /// Container.
        id: String,
        /// Number.
        signal: i32,
        /// Whether to all processes.
        all: bool,
    },
    /// Sends a signal to a process of [`Call::Exec`].
    SignalExec {
        /// Its number.
        exec: u64,
        /// Number.
        signal: i32,
    },
    /// Joins the input and output of a container. File descriptors as with [`Call::Exec`].
    Attach {
        /// Container.
        id: String,
        /// Which of input, output and error output are given.
        streams: [bool; 3],
    },
    /// Sets the size of a container's terminal.
    Resize {
        /// Container.
        id: String,
        /// Columns.
        width: u16,
        /// Lines.
        height: u16,
    },
    /// Opens the log again, after its file was renamed.
    ReopenLog(String),
    /// Connects to a TCP port of the pod's loopback; the connection comes with the answer.
    Connect(u16),
    /// Forgets a container that has ended.
    Forget(String),
    /// Kills everything and ends.
    Shutdown,
}

/// What a supervisor answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Text of the failure.
    pub(crate) error: Option<String>,
    /// State of the containers, for [`Call::Hello`] (all) and [`Call::Start`] (the one).
    pub(crate) containers: BTreeMap<String, ContainerState>,
    /// Process id, for [`Call::Exec`].
    pub(crate) pid: i32,
}

/// What a supervisor tells unasked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A container ended, and its output is in the log.
    Exited {
        /// Container.
        id: String,
        /// Its last state.
        state: ContainerState,
    },
    /// A process of [`Call::Exec`] ended.
    ExecExited {
        /// Its number.
        exec: u64,
        /// Exit code, or 128 and the signal.
        code: i32,
    },
}

/// A frame from daemon to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Comes back with the answer.
    pub(crate) seq: u64,
    /// What is asked.
    pub(crate) call: Call,
}

/// A frame from supervisor to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To the request of this number.
    Answer(u64, Answer),
    /// Unasked.
    Event(Event),
}
