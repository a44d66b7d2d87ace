//! Starting and stopping the first process of a node.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::{Signal, kill};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};
use skiff_network::NetNs;

use crate::{
    Error, Home, Result, cgroup, fabric, filesystem,
    home::write_atomically,
    init::{self, HOST_NETNS_FD, HOST_PROC_FD, InitSpec, NODE_NETNS_FD, REPORT_FD},
    node_config::{NODE_CONFIG, NodeConfig, Role},
    record::{ClusterRecord, NodeRecord},
};

/// How long a node may take to stop by itself: twice the patience of its first process, and some.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);

/// A process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// In clock ticks since boot, from /proc/PID/stat.
    start_time: u64,
}

impl ProcessId {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last parenthesis may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let state = fields.first()?;
        let start_time = fields.get(19)?.parse().ok()?;
        (*state != "Z").then_some(Self { pid, start_time })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

fn process_file(home: &Home, cluster: &str, node: &str) -> PathBuf {
    home.run_dir(cluster).join(format!("{node}.json"))
}

/// The node's first process, if it runs.
pub(crate) fn running(home: &Home, cluster: &str, node: &str) -> Option<ProcessId> {
    let content = fs::read(process_file(home, cluster, node)).ok()?;
    let process: ProcessId = serde_json::from_slice(&content).ok()?;
    process.is_alive().then_some(process)
}

/// Starts a node that is not running: its network, its files, its first process.
///
/// The caller's network namespace becomes the host's.
pub(crate) fn start(
    home: &Home,
    fabric: &NetNs,
    cluster: &ClusterRecord,
    node: &NodeRecord,
    config: &NodeConfig,
) -> Result<()> {
    let failed = |message: String| Error::Node { node: node.name.clone(), message };
    // What a node that was not stopped properly has left: its pods' cgroups.
    let cgroup = cgroup::node_cgroup(home, &cluster.name, &node.name);
    cgroup::remove(&cgroup::hierarchies()?, &cgroup, CGROUP_PATIENCE)?;
    let namespace = fabric::connect_node(fabric, cluster, node).map_err(Error::network(&cluster.name))?;
    let directory = home.node(&cluster.name, &node.name);
    let rootfs = home.rootfs(&cluster.name, &node.name);
    let config_file = home.inside(&cluster.name, &node.name, NODE_CONFIG);
    let write_config = || {
        fs::create_dir_all(config_file.parent().unwrap_or(&rootfs))?;
        write_atomically(&config_file, &serde_json::to_vec_pretty(config)?, 0o600)
    };
    write_config().map_err(Error::io(format!("write {}", config_file.display())))?;
    let mode = match node.role {
        Role::ControlPlane => "server",
        Role::Worker => "agent",
    };
    let hosts =
        format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{} {}\n", node.address, node.name);
    let spec = InitSpec {
        hostname: node.name.clone(),
        etc: directory.join("etc"),
        program: home.program.clone(),
        arguments: vec![mode.to_owned(), "--node-config".to_owned(), NODE_CONFIG.to_owned()],
        environment: environment(),
        cgroup,
        limits: cluster.limits,
        mounts: node.mounts.clone(),
        resolv_conf: filesystem::node_resolv_conf(cluster.isolated),
        hosts,
        rootfs,
    };
    let spec_file = directory.join("init.json");
    let content = serde_json::to_vec_pretty(&spec).map_err(|e| Error::io("encode the node")(e.into()))?;
    write_atomically(&spec_file, &content, 0o600).map_err(Error::io(format!("write {}", spec_file.display())))?;

    let host = NetNs::current().map_err(Error::network(&cluster.name))?;
    let host_proc = File::open("/proc").map_err(Error::io("open /proc"))?;
    let (reports, report) = io::pipe().map_err(Error::io("make a pipe"))?;
    let mut command = Command::new(&home.program);
    command
        .arg(init::SUBCOMMAND)
        .arg(&spec_file)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let handed: [OwnedFd; 4] = [host.into(), host_proc.into(), namespace.into(), report.into()];
    // Out of the way of the numbers that they are to have.
    let handed = handed
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 10))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::io("copy descriptors")(e.into()))?;
    // SAFETY: the closure only makes system calls that are allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for (fd, target) in handed.iter().zip([HOST_NETNS_FD, HOST_PROC_FD, NODE_NETNS_FD, REPORT_FD]) {
                init::hand_over(fd.as_fd(), target)?;
            }
            Ok(())
        });
    }
    let mut first_stage = command.spawn().map_err(Error::io(format!("run {}", home.program.display())))?;
    // The command holds our copies of the descriptors: without this the pipe would never end.
    drop(command);
    let result = await_ready(home, cluster, node, reports);
    first_stage.wait().map_err(Error::io("wait for the node's starter"))?;
    result.map_err(failed)
}

fn await_ready(home: &Home, cluster: &ClusterRecord, node: &NodeRecord, reports: io::PipeReader) -> Result<(), String> {
    for line in BufReader::new(reports).lines() {
        let line = line.map_err(|error| error.to_string())?;
        match line.split_once(' ') {
            Some(("pid", pid)) => {
                let process = pid.parse().ok().and_then(ProcessId::of);
                let process = process.ok_or("its first process ended at once")?;
                let file = process_file(home, &cluster.name, &node.name);
                let content = serde_json::to_vec(&process).map_err(|error| error.to_string())?;
                write_atomically(&file, &content, 0o644)
                    .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
            }
            Some(("error", message)) => return Err(message.to_owned()),
            _ if line == "ready" => return Ok(()),
            _ => {}
        }
    }
    Err("its first process ended before the node was ready".to_owned())
}

fn environment() -> Vec<(String, String)> {
    let mut environment = vec![
        ("PATH".to_owned(), "/opt/skiff/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOME".to_owned(), "/root".to_owned()),
    ];
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        environment.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    environment
}

/// Stops a node and waits until nothing of it runs. A node that does not run is fine.
pub(crate) fn stop(home: &Home, cluster: &ClusterRecord, node: &NodeRecord) -> Result<()> {
    if let Some(process) = running(home, &cluster.name, &node.name) {
        end(process).map_err(Error::io(format!("stop node {}", node.name)))?;
        if process.is_alive() {
            return Err(Error::NodeStuck { node: node.name.clone() });
        }
    }
    let file = process_file(home, &cluster.name, &node.name);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove {}", file.display()))(error));
        }
        _ => {}
    }
    let cgroup = cgroup::node_cgroup(home, &cluster.name, &node.name);
    cgroup::remove(&cgroup::hierarchies()?, &cgroup, CGROUP_PATIENCE)
}

/// Asks a process to end, and ends it when it takes too long.
fn end(process: ProcessId) -> io::Result<()> {
    let pid = Pid::from_raw(process.pid).ok_or(io::ErrorKind::InvalidInput)?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // The handle was opened before this check, so the number cannot pass to another process.
        if !process.is_alive() {
            return Ok(());
        }
        match kill(nix::unistd::Pid::from_raw(process.pid), signal) {
            Ok(()) => {}
            Err(nix::errno::Errno::ESRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut waiting = [PollFd::new(&handle, PollFlags::IN)];
        let timeout =
            rustix::time::Timespec { tv_sec: i64::try_from(STOP_PATIENCE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        if poll(&mut waiting, Some(&timeout))? > 0 {
            return Ok(());
        }
    }
    Ok(())
}
