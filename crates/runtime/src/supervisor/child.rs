//! What runs in a forked child until it becomes the program.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

use super::process::{self, Channel, ChildMessage};
use super::rootfs::{self, Result, Sources, failed};
use crate::spec::{CgroupSpec, ContainerSpec, ProcessSpec};

/// Becomes a container's first process. Never returns.
pub(super) fn container(spec: &ContainerSpec, streams: Option<[OwnedFd; 3]>, channel: Channel) -> ! {
    end(start_container(spec, streams, &channel), &channel)
}

fn start_container(
    spec: &ContainerSpec,
    streams: Option<[OwnedFd; 3]>,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    process::fresh_start()?;
    set_streams(&streams)?;
    if let Some(value) = spec.process.oom_score_adj {
        process::set_oom_score_adj(value)?;
    }
    process::join_cgroup(&spec.cgroup.join)?;
    let filter = spec.process.seccomp.as_deref().map(process::load_program).transpose()?;
    let sources = Sources::open(spec)?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("error creating a mount namespace"))?;
    rootfs::enter(spec, sources)?;
    if spec.tty {
        process::open_terminal(channel)?;
        rootfs::show_console()?;
    }
    process::run(&spec.process, filter, channel)
}

/// Becomes a further process of a container, whose mount namespace is `mounts`. Never returns.
pub(super) fn exec(
    process: &ProcessSpec,
    cgroup: &CgroupSpec,
    mounts: &File,
    streams: Option<[OwnedFd; 3]>,
    channel: Channel,
) -> ! {
    end(start_exec(process, cgroup, mounts, streams, &channel), &channel)
}

fn start_exec(
    process: &ProcessSpec,
    cgroup: &CgroupSpec,
    mounts: &File,
    streams: Option<[OwnedFd; 3]>,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    process::fresh_start()?;
    set_streams(&streams)?;
    if let Some(value) = process.oom_score_adj {
        process::set_oom_score_adj(value)?;
    }
    process::join_cgroup(&cgroup.join)?;
    let filter = process.seccomp.as_deref().map(process::load_program).transpose()?;
    setns(mounts, CloneFlags::CLONE_NEWNS).map_err(failed("error entering the container"))?;
    if streams.is_none() {
        process::open_terminal(channel)?;
    }
    process::run(process, filter, channel)
}

fn set_streams(streams: &Option<[OwnedFd; 3]>) -> Result<()> {
    match streams {
        Some([stdin, stdout, stderr]) => process::set_streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]),
        None => Ok(()),
    }
}

fn end(result: Result<std::convert::Infallible>, channel: &Channel) -> ! {
    let Err(text) = result;
    // Without a supervisor there is nobody to tell.
    let _ = channel.send(&ChildMessage::Failed(text), Vec::new());
    std::process::exit(128);
}
