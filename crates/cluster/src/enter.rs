//! Running a command inside a node, as `docker exec` and `minikube ssh` do it.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus},
};

use nix::sched::{CloneFlags, setns};

/// The namespaces of a process that a command gets, in the order in which they are entered: with the files of the node
/// come its own.
const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Runs a command with the files, processes and network of the node whose first process is `pid`, and waits for it.
///
/// It ends with the node at the latest, whose first process is its reaper.
pub(crate) fn run(pid: i32, command: &mut Command) -> io::Result<ExitStatus> {
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}"));
    // Concerns the children of this thread alone. The first process may itself have stayed outside.
    setns(open("pid_for_children")?, CloneFlags::CLONE_NEWPID)?;
    let mut namespaces = Vec::new();
    for (name, kind) in NAMESPACES {
        namespaces.push((open(name)?, kind));
    }
    let enter = move || {
        for (namespace, kind) in &namespaces {
            setns(namespace, *kind)?;
        }
        std::env::set_current_dir("/")
    };
    // SAFETY: between fork and exec only system calls are made, with descriptors that were opened before.
    unsafe { command.pre_exec(enter) };
    command.status()
}
