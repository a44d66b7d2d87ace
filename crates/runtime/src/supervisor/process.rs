//! The last steps of a process before it becomes the program: user, capabilities, seccomp, execve.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::rootfs::{Result, errno_text, failed};
use super::user;
use crate::caps;
use crate::seccomp::Instruction;
use crate::spec::{CapabilitySets, ProcessSpec, ResolvedUser};
use crate::wire::Frame;

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit code of a process whose program the kernel would not run after all.
const EXEC_FAILED: i32 = 255;

/// What a child tells its supervisor before it becomes the program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChildMessage {
    /// The other end of its terminal comes with this.
    Terminal,
    /// Everything is done but the last call.
    Ready(ResolvedUser),
    /// It could not become the program and has ended.
    Failed(String),
}

/// A child's way to its supervisor.
pub(super) struct Channel(pub(super) OwnedFd);

impl Channel {
    pub(super) fn send(&self, message: &ChildMessage, fds: Vec<OwnedFd>) -> Result<()> {
        use std::os::fd::AsFd;
        Frame::new(message, fds)
            .and_then(|frame| frame.send(self.0.as_fd()))
            .map_err(failed("error talking to the supervisor"))
    }
}

/// Prepares a just forked process: no signal handling of the supervisor's, no open files, and death
/// with the supervisor.
pub(super) fn fresh_start() -> Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, signal};
    for number in Signal::iterator() {
        if !matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: setting the default action runs no code of ours.
            unsafe { signal(number, SigHandler::SigDfl) }.map_err(failed("error resetting signals"))?;
        }
    }
    SigSet::empty().thread_set_mask().map_err(failed("error resetting signals"))?;
    nix::unistd::setsid().map_err(failed("error starting a session"))?;
    die_with_supervisor()?;
    // Out of reach of what else runs in the container, until execve makes it an ordinary process.
    prctl::set_dumpable(false).map_err(failed("error hiding from other processes"))?;
    close_on_exec()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    Ok(())
}

fn die_with_supervisor() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("error tying to the supervisor"))
}

/// Marks everything but the standard streams to be closed by execve, however it came to be open.
fn close_on_exec() -> Result<()> {
    // SAFETY: only sets a flag on descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 {
        return Err(failed("error closing files")(io::Error::last_os_error()));
    }
    Ok(())
}

/// Makes these the standard streams.
pub(super) fn set_streams(streams: [BorrowedFd<'_>; 3]) -> Result<()> {
    for (number, fd) in (0..).zip(streams) {
        // SAFETY: both are open descriptors; nothing owns the standard streams of this process.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return Err(failed("error setting the streams")(io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Joins a cgroup.
pub(super) fn join_cgroup(files: &[std::path::PathBuf]) -> Result<()> {
    for file in files {
        std::fs::write(file, "0").map_err(failed(format!("error joining the cgroup {}", file.display())))?;
    }
    Ok(())
}

/// Sets the preference for being killed; as low as is permitted where the wish is not.
pub(super) fn set_oom_score_adj(value: i32) -> Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match std::fs::write(FILE, value.to_string()) {
        // Without CAP_SYS_RESOURCE it cannot go below what it started with: then it stays there.
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => Ok(()),
        result => result.map_err(failed("error setting oom_score_adj")),
    }
}

/// Makes a new terminal of this root the process's own and sends its other end to the supervisor.
pub(super) fn open_terminal(channel: &Channel) -> Result<()> {
    use std::os::fd::{AsFd, FromRawFd};
    let what = "error opening a terminal";
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, rustix::fs::Mode::empty()).map_err(failed(what))?;
    rustix::pty::unlockpt(&master).map_err(failed(what))?;
    // Not by its name, which leads wherever the container's /dev/pts does.
    // SAFETY: the call makes a new descriptor, which nobody else knows.
    let slave = unsafe {
        let raw = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY);
        if raw < 0 {
            return Err(failed(what)(io::Error::last_os_error()));
        }
        OwnedFd::from_raw_fd(raw)
    };
    rustix::process::ioctl_tiocsctty(&slave).map_err(failed(what))?;
    set_streams([slave.as_fd(); 3])?;
    channel.send(&ChildMessage::Terminal, vec![master])
}

/// Becomes the program. Returns only with an error.
///
/// `filter` is the one that `process` names, loaded while the node's files were in reach.
pub(super) fn run(
    process: &ProcessSpec,
    filter: Option<Vec<Instruction>>,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    let found = user::resolve(&process.user)?;
    enter_directory(&process.cwd)?;
    own_streams(found.user.uid);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Without no_new_privs only an administrator may set a filter, so it is set before that ends.
    if let Some(filter) = filter.as_ref().filter(|_| !process.no_new_privs) {
        set_filter(filter)?;
    }
    become_user(&found.user, process.capabilities)?;
    // Changing the user undid it.
    die_with_supervisor()?;

    let mut env = process.env.clone();
    if !env.iter().any(|var| var.starts_with("HOME=")) {
        env.push(format!("HOME={}", found.home));
    }
    let program = find_program(&process.args[0], &env)?;
    let c_string = |text: &String| CString::new(text.as_str()).map_err(|_| format!("{text:?} holds a null byte"));
    let path = c_string(&program)?;
    let args = process.args.iter().map(c_string).collect::<Result<Vec<_>>>()?;
    let env = env.iter().map(c_string).collect::<Result<Vec<_>>>()?;
    channel.send(&ChildMessage::Ready(found.user), Vec::new())?;
    if process.no_new_privs {
        prctl::set_no_new_privs().map_err(failed("error setting no_new_privs"))?;
        if let Some(filter) = &filter {
            set_filter(filter)?;
        }
    }
    let error = nix::unistd::execve(&path, &args, &env).unwrap_err();
    // As elsewhere, the container has started by now: this is in its log, not an event.
    let text = format!("exec {program}: {}\n", error.desc().to_lowercase());
    let _ = nix::unistd::write(io::stderr(), text.as_bytes());
    std::process::exit(EXEC_FAILED);
}

/// Enters the working directory, making it if it is missing.
fn enter_directory(cwd: &str) -> Result<()> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    if !cwd.starts_with('/') {
        return Err(format!("Cwd must be an absolute path: {cwd}"));
    }
    if let Err(e) = std::fs::create_dir_all(cwd)
        && e.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(format!("mkdir {cwd}: {}", errno_text(&e)));
    }
    let text = |e: nix::Error| format!("chdir to cwd ({cwd:?}) set in config.json failed: {}", e.desc().to_lowercase());
    nix::unistd::chdir(cwd).map_err(text)?;
    // A directory outside of the root would show as unreachable: some descriptor leaked.
    let here = nix::unistd::getcwd().map_err(text)?;
    if !here.is_absolute() {
        return Err("current working directory is outside of container mount namespace root".into());
    }
    Ok(())
}

/// Gives the standard streams to the user, who may then open them again through `/dev/stdout`.
fn own_streams(uid: u32) {
    for fd in [io::stdin().as_raw_fd(), 1, 2] {
        // SAFETY: the standard streams are open in this process.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let is_null = rustix::fs::fstat(fd).is_ok_and(|s| s.st_rdev == rustix::fs::makedev(1, 3));
        if !is_null {
            // Not all kinds of files have owners; the program can use them nevertheless.
            let _ = rustix::fs::fchown(fd, Some(rustix::process::Uid::from_raw(uid)), None);
        }
    }
}

/// struct __user_cap_header_struct and struct __user_cap_data_struct.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION: u32 = 0x2008_0522;

fn call(what: &str, result: libc::c_long) -> Result<()> {
    if result < 0 { Err(failed(what)(io::Error::last_os_error())) } else { Ok(()) }
}

fn become_user(user: &ResolvedUser, wanted: CapabilitySets) -> Result<()> {
    // What this process does not hold itself it cannot pass on.
    let mut held: u64 = 0;
    for number in 0..caps::COUNT {
        // SAFETY: only asks about the bounding set.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number) };
        if answer == 1 {
            held |= 1 << number;
        }
    }
    let bounding = wanted.bounding & held;
    for number in (0..64).filter(|number| bounding & (1u64 << number) == 0) {
        // SAFETY: only changes this process's bounding set.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number) };
        if result < 0 && held & (1 << number) != 0 {
            return Err(failed("error dropping capabilities")(io::Error::last_os_error()));
        }
    }
    prctl::set_keepcaps(true).map_err(failed("error keeping capabilities"))?;
    let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(failed("error setting groups"))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(failed("error setting the group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed("error setting the user"))?;

    let ambient = wanted.ambient & bounding;
    let half = |shift: u32| CapabilityData {
        effective: (bounding >> shift) as u32,
        permitted: (bounding >> shift) as u32,
        // Only for ambient ones: inheritable ones would come back through files that ask for them.
        inheritable: (ambient >> shift) as u32,
    };
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: header and data are as the kernel expects for this version, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &header as *const CapabilityHeader, data.as_ptr()) };
    call("error setting capabilities", result)?;
    // SAFETY: only changes this process's ambient set.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    call("error clearing ambient capabilities", cleared.into())?;
    for number in (0..caps::COUNT).filter(|number| ambient & (1 << number) != 0) {
        // SAFETY: as before.
        let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        call("error raising an ambient capability", raised.into())?;
    }
    Ok(())
}

/// Reads the compiled filter of a process.
pub(super) fn load_program(path: &Path) -> Result<Vec<Instruction>> {
    let bytes = std::fs::read(path).map_err(failed(format!("error reading {}", path.display())))?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|chunk| Instruction::from_bytes(*chunk)).collect())
}

/// struct sock_fprog.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

fn set_filter(filter: &[Instruction]) -> Result<()> {
    let length = u16::try_from(filter.len()).map_err(failed("seccomp filter too long"))?;
    let program = Program { length, instructions: filter.as_ptr() };
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    // SAFETY: the program is an array of instructions of that length, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program as *const Program) };
    call("error setting the seccomp filter", result)
}

/// What a program's name stands for, with Go's texts, which users know.
fn find_program(name: &str, env: &[String]) -> Result<String> {
    use nix::unistd::{AccessFlags, access};
    let runnable = |path: &str| -> std::result::Result<(), String> {
        let metadata = std::fs::metadata(path).map_err(|e| format!("stat {path}: {}", errno_text(&e)))?;
        if metadata.is_dir() {
            return Err("is a directory".into());
        }
        access(path, AccessFlags::X_OK).map_err(|e| e.desc().to_lowercase())
    };
    if name.contains('/') {
        return match runnable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(reason) => Err(format!("exec: {name:?}: {reason}")),
        };
    }
    let path = env.iter().rev().find_map(|var| var.strip_prefix("PATH="));
    if !name.is_empty() {
        for dir in path.unwrap_or(DEFAULT_PATH).split(':') {
            let dir = if dir.is_empty() { "." } else { dir };
            let candidate = format!("{}/{name}", dir.trim_end_matches('/'));
            if runnable(&candidate).is_ok() {
                return Ok(candidate);
            }
        }
    }
    Err(format!("exec: {name:?}: executable file not found in $PATH"))
}
