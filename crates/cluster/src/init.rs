//! The first process of a node: `skiff node-init FILE`.
//!
//! It comes in two stages. The first, started by `skiff cluster` in the host's namespaces, joins the
//! node's cgroup and network namespace, leaves for new mount, PID, UTS, IPC and cgroup namespaces and
//! forks. The second is process 1 of the node: it makes the node's file system, then keeps the daemon
//! running and collects orphans until it is told to stop. It has one thread and holds next to nothing.
//!
//! Invariants: when the daemon dies, containers live on (they are children of their supervisors) and the
//! daemon is started again; when process 1 dies, the kernel ends everything in the node.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, sethostname, setsid},
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::{self, Hierarchy},
    filesystem::NodeFilesystem,
    node_config::{LOG_FILE, PROGRAM},
    spec::ExtraMount,
};

/// The subcommand of the binary that [`node_init_main`] serves.
pub const SUBCOMMAND: &str = "node-init";

/// Descriptors that the launcher hands over, by number. The first two stay open for the daemon.
pub(crate) const HOST_NETNS_FD: i32 = 3;
pub(crate) const HOST_PROC_FD: i32 = 4;
pub(crate) const NODE_NETNS_FD: i32 = 5;
pub(crate) const REPORT_FD: i32 = 6;

/// What the node's first process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitSpec {
    pub(crate) hostname: String,
    pub(crate) rootfs: PathBuf,
    pub(crate) etc: PathBuf,
    /// The program as the host sees it.
    pub(crate) program: PathBuf,
    /// The daemon's arguments.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) cgroup: PathBuf,
    pub(crate) limits: cgroup::Limits,
    pub(crate) mounts: Vec<ExtraMount>,
    pub(crate) resolv_conf: String,
    pub(crate) hosts: String,
}

/// A daemon that ran this long had started properly: its next restart is immediate again.
const SETTLED: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// How long the daemon, and after it everything else, may take to end when the node stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the first process of a node. Has to be called before any thread exists.
pub fn node_init_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(file) = arguments.into_iter().next() else {
        return ExitCode::from(2);
    };
    // SAFETY: the launcher hands over this descriptor, and nothing else here uses its number.
    let report = unsafe { OwnedFd::from_raw_fd(REPORT_FD) };
    let mut report = File::from(report);
    match first_stage(Path::new(&file), &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err((step, error)) => {
            // The launcher waits for exactly this; if it is gone there is nobody to tell.
            let _ = writeln!(report, "error cannot {step}: {error}");
            ExitCode::FAILURE
        }
    }
}

type StepError = (String, io::Error);

fn step(what: &str) -> impl FnOnce(io::Error) -> StepError + '_ {
    move |error| (what.to_owned(), error)
}

fn first_stage(file: &Path, report: &mut File) -> Result<(), StepError> {
    let spec: InitSpec = fs::read(file)
        .and_then(|content| Ok(serde_json::from_slice(&content)?))
        .map_err(step("read what the node is to be"))?;
    let hierarchies = cgroup::hierarchies().map_err(with_source)?;
    cgroup::create_and_join(&hierarchies, &spec.cgroup).map_err(with_source)?;
    cgroup::limit(&hierarchies, &spec.cgroup, &spec.limits).map_err(with_source)?;
    // SAFETY: the launcher hands over this descriptor, and nothing else here uses its number.
    let network = unsafe { OwnedFd::from_raw_fd(NODE_NETNS_FD) };
    setns(&network, CloneFlags::CLONE_NEWNET).map_err(|e| ("enter the node's network".to_owned(), e.into()))?;
    drop(network);
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(|e| ("make the node's namespaces".to_owned(), e.into()))?;
    // SAFETY: this process has a single thread.
    match unsafe { fork() }.map_err(|e| ("start the node's first process".to_owned(), e.into()))? {
        ForkResult::Parent { child } => {
            writeln!(report, "pid {child}").map_err(step("report the node's first process"))
        }
        ForkResult::Child => {
            second_stage(&spec, &hierarchies, report)?;
            // Only reached when the node has been stopped.
            std::process::exit(0);
        }
    }
}

fn with_source(error: crate::Error) -> StepError {
    match error {
        crate::Error::Io { action, source } => (action, source),
        other => (other.to_string(), io::Error::other("unexpected")),
    }
}

fn second_stage(spec: &InitSpec, hierarchies: &[Hierarchy], report: &mut File) -> Result<(), StepError> {
    // The signals are taken one by one in the main loop.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| ("block signals".to_owned(), e.into()))?;
    setsid().map_err(|e| ("leave the terminal".to_owned(), e.into()))?;
    sethostname(&spec.hostname).map_err(|e| ("set the host name".to_owned(), e.into()))?;
    let filesystem = NodeFilesystem {
        rootfs: &spec.rootfs,
        etc: &spec.etc,
        program: &spec.program,
        mounts: &spec.mounts,
        hierarchies,
        resolv_conf: &spec.resolv_conf,
        hosts: &spec.hosts,
        hostname: &spec.hostname,
    };
    filesystem.enter()?;
    cgroup::make_room_for_pods(hierarchies, Path::new("/sys/fs/cgroup"))
        .map_err(step("prepare the cgroups for pods"))?;
    let log = File::options().create(true).append(true).open(LOG_FILE).map_err(step("open the node's log"))?;
    redirect(&log).map_err(step("redirect output to the node's log"))?;
    raise_file_limit();
    let mut node = Init { spec, log, daemon: None, delay: Duration::ZERO };
    node.start_daemon();
    writeln!(report, "ready").map_err(step("report that the node is ready"))?;
    // The launcher waits for the end of the pipe.
    // SAFETY: nothing uses the report after this; the File object is never dropped in this process.
    let _ = unsafe { libc::close(report.as_raw_fd()) };
    node.run(&signals);
    Ok(())
}

/// Containers inherit the limits, and clients of many watches need more than the usual 1,024.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Raising the soft limit to the hard one needs no privilege; failing costs only headroom.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn redirect(log: &File) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for (source, target) in [(null.as_raw_fd(), 0), (log.as_raw_fd(), 1), (log.as_raw_fd(), 2)] {
        // SAFETY: both are open descriptors of this process, whose standard streams nobody holds.
        if unsafe { libc::dup2(source, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

struct Init<'a> {
    spec: &'a InitSpec,
    log: File,
    daemon: Option<(Child, Instant)>,
    /// How long the next restart waits.
    delay: Duration,
}

impl Init<'_> {
    fn run(&mut self, signals: &SigSet) {
        let mut restart_at: Option<Instant> = None;
        loop {
            let wait = restart_at.map(|at| at.saturating_duration_since(Instant::now()));
            match wait_signal(signals, wait) {
                Some(Signal::SIGTERM | Signal::SIGINT) => return self.stop(signals),
                _ => {
                    if self.reap() {
                        restart_at = Some(Instant::now() + self.delay);
                    }
                }
            }
            if restart_at.is_some_and(|at| at <= Instant::now()) {
                restart_at = None;
                if !self.start_daemon() {
                    restart_at = Some(Instant::now() + self.delay);
                }
            }
        }
    }

    /// True if the daemon is running now.
    fn start_daemon(&mut self) -> bool {
        let mut command = Command::new(PROGRAM);
        command
            .args(&self.spec.arguments)
            .env_clear()
            .envs(self.spec.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null());
        // SAFETY: only async-signal-safe calls: the daemon must not start with our blocked signals.
        unsafe {
            command.pre_exec(|| Ok(SigSet::all().thread_unblock()?));
        }
        match command.spawn() {
            Ok(child) => {
                self.daemon = Some((child, Instant::now()));
                true
            }
            Err(error) => {
                self.back_off();
                self.note(&format!("cannot start {PROGRAM}: {error}; next try in {:?}", self.delay));
                false
            }
        }
    }

    fn back_off(&mut self) {
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
    }

    /// Collects every process that has ended; true if the daemon was among them.
    fn reap(&mut self) -> bool {
        let mut daemon_ended = false;
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return daemon_ended,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return daemon_ended,
            };
            let pid = self.daemon.as_ref().map(|(child, _)| child.id().cast_signed());
            if status.pid().map(Pid::as_raw) != pid {
                continue;
            }
            if let Some((_, started)) = self.daemon.take() {
                daemon_ended = true;
                match started.elapsed() >= SETTLED {
                    true => self.delay = Duration::ZERO,
                    false => self.back_off(),
                }
                let how = match status {
                    WaitStatus::Exited(_, code) => format!("ended with exit code {code}"),
                    WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
                    other => format!("ended: {other:?}"),
                };
                self.note(&format!("the daemon {how}; starting it again in {:?}", self.delay));
            }
        }
    }

    /// Ends the daemon, then everything else in the node, first kindly.
    fn stop(&mut self, signals: &SigSet) {
        if let Some((daemon, _)) = &self.daemon {
            // It may have ended by itself, which the wait below notices.
            let _ = kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM);
        }
        self.wait_while(signals, |init| init.daemon.is_some());
        let everything = Pid::from_raw(-1);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if kill(everything, signal).is_err() {
                return;
            }
            self.wait_while(signals, |_| kill(everything, None).is_ok());
        }
    }

    fn wait_while(&mut self, signals: &SigSet, going: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + STOP_PATIENCE;
        self.reap();
        while going(self) && Instant::now() < deadline {
            // Processes that are not our children end without a signal to us, hence the short wait.
            wait_signal(signals, Some(Duration::from_millis(20)));
            self.reap();
        }
    }

    fn note(&mut self, message: &str) {
        // The log is all there is to tell of a failing log.
        let _ = writeln!(self.log, "node-init: {message}");
    }
}

/// The next of these signals, or `None` after `timeout`.
fn wait_signal(signals: &SigSet, timeout: Option<Duration>) -> Option<Signal> {
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both pointers are valid for the call or null, which the call allows.
    let number = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), time) };
    Signal::try_from(number).ok()
}

/// Lets a child have `source` under the number `target`. To be called between fork and exec.
pub(crate) fn hand_over(source: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    let source = source.as_raw_fd();
    // SAFETY: plain system calls on numbers; the process is about to be replaced.
    let result = unsafe {
        match source == target {
            // dup2 onto itself would leave close-on-exec set.
            true => libc::fcntl(target, libc::F_SETFD, 0),
            false => libc::dup2(source, target),
        }
    };
    match result < 0 {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}
