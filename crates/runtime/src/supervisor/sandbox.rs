//! Making the namespaces that the containers of a pod share. The supervisor itself lives in them, so
//! its children have them from birth and they last as long as it does.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork};

use super::rootfs::{Result, failed};
use crate::spec::SandboxSpec;

/// Where a new process finds its PID namespace.
pub(super) enum PidNamespace {
    /// The supervisor's, which is the node's.
    Same,
    /// A new one, whose first process it is.
    New,
    /// This one.
    Join(File),
}

/// Makes the namespaces.
pub(super) fn make(spec: &SandboxSpec) -> Result<()> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, spec.netns_pin.is_some());
    flags.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, spec.hostname.is_some());
    unshare(flags).map_err(failed("error creating namespaces"))?;
    if let Some(pin) = &spec.netns_pin {
        pin_network(pin).map_err(failed("error pinning the network namespace"))?;
        loopback_up().map_err(failed("error bringing up the loopback device"))?;
    }
    if let Some(hostname) = &spec.hostname {
        nix::unistd::sethostname(hostname).map_err(failed("error setting the hostname"))?;
    }
    for (name, value) in &spec.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(failed(format!("error setting sysctl {name}")))?;
    }
    if let Some(shm) = &spec.shm {
        let what = "error mounting shared memory";
        fs::create_dir_all(shm).map_err(failed(what))?;
        let options = format!("mode=1777,size={}", spec.shm_bytes);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), shm, Some("tmpfs"), flags, Some(options.as_str())).map_err(failed(what))?;
    }
    Ok(())
}

fn pin_network(pin: &Path) -> io::Result<()> {
    if let Some(parent) = pin.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(pin)?;
    let none: Option<&str> = None;
    mount(Some("/proc/self/ns/net"), pin, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: makes a new descriptor, which nobody else knows.
    let socket = unsafe {
        let raw = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(raw)
    };
    // SAFETY: an ifreq of zeros is valid; the request is filled in as its kind asks and outlives the
    // call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Forks into a PID namespace; the supervisor's own further children are where they were before.
pub(super) fn fork_in(namespace: &PidNamespace, own: &File) -> Result<ForkResult> {
    let what = "error entering the PID namespace";
    match namespace {
        PidNamespace::Same => {}
        PidNamespace::New => unshare(CloneFlags::CLONE_NEWPID).map_err(failed(what))?,
        PidNamespace::Join(file) => {
            setns(file, CloneFlags::CLONE_NEWPID).map_err(failed(what))?;
        }
    }
    // SAFETY: the supervisor has one thread, so the child finds every lock free.
    let forked = unsafe { fork() }.map_err(failed("error forking"));
    if !matches!(namespace, PidNamespace::Same) && !matches!(forked, Ok(ForkResult::Child)) {
        setns(own, CloneFlags::CLONE_NEWPID).map_err(failed(what))?;
    }
    forked
}

/// Starts the first process of the pod's PID namespace, which only reaps.
pub(super) fn start_pause(own: &File) -> Result<Pid> {
    match fork_in(&PidNamespace::New, own)? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let ended = pause();
            std::process::exit(i32::from(ended.is_err()));
        }
    }
}

fn pause() -> Result<()> {
    use nix::sys::signal::SigSet;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    super::process::fresh_start()?;
    // SAFETY: closes descriptors that this process, a copy, has no use for; nothing below uses any.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().map_err(failed("error waiting"))?;
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        children.wait().map_err(failed("error waiting"))?;
    }
}
